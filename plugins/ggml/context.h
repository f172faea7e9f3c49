/* SPDX-License-Identifier: Apache-2.0 */
/* One context per ggml backend, that is per llama_context: its life, and what programs ask of
 * it. */
#ifndef MACATTN_PLUGIN_CONTEXT_H
#define MACATTN_PLUGIN_CONTEXT_H

#include "records.h"

/*! attention_create() : `settings` is copied.  @return : NULL without memory. */
attention *attention_create(const plugin_settings *settings);

/*! attention_free() : adds its statistics to the process's, see report.h. */
void attention_free(attention *a);

void attention_set_threads(attention *a, int n_threads);

/* What macattn_ggml_interface (macattn/ggml.h) offers of a context; attention_n_layers is in
 * group.h. */
macattn_status attention_layer(const attention *a, int32_t layer, macattn_ggml_layer *info);
macattn_status attention_stats(attention *a, int32_t layer, int32_t head, macattn_stats *stats);
macattn_status attention_bytes(const attention *a, int32_t layer, macattn_ggml_bytes *bytes);
const report_totals *attention_totals(const attention *a);
macattn_status attention_keep(attention *a);
macattn_status attention_restart(attention *a, const plugin_settings *settings);
macattn_status attention_set_budgets(attention *a, const plugin_settings *settings);

#endif
