/* SPDX-License-Identifier: Apache-2.0 */
/* Attention nodes computed by macattn: one context per ggml backend, that is per llama_context. */
#ifndef MACATTN_PLUGIN_ATTENTION_H
#define MACATTN_PLUGIN_ATTENTION_H

#include <stdbool.h>

#include "host.h"
#include "macattn/ggml.h"
#include "options.h"
#include "report.h"

typedef struct attention attention;

/*! attention_supports() : whether a FLASH_ATTN_EXT node is of a kind that macattn computes. */
bool attention_supports(const struct ggml_tensor *node);

/*! attention_create() : `options` is copied.  @return : NULL without memory. */
attention *attention_create(const plugin_options *options);

/*! attention_free() : adds its statistics to the process's, see report.h. */
void attention_free(attention *a);

void attention_set_threads(attention *a, int n_threads);

/*! attention_note_division() : the scheduler asks about the nodes of a graph. What is traced next
 *  belongs to a new graph. Thread-safe. */
void attention_note_division(void);

/*! attention_note_write() : a SET_ROWS node seen while a graph is being divided: where new keys go. Any
 *  context's; thread-safe. */
void attention_note_write(const struct ggml_tensor *node);

/*! attention_trace() : an attention node of a graph that is going to be computed; finds out where its
 *  query comes from, and asks through `params` that what is needed of that stays in memory. */
void attention_trace(attention *a, struct ggml_tensor *node,
                     struct ggml_backend_graph_optimize_params *params);

/*! attention_compute() : compute one node. */
enum ggml_status attention_compute(attention *a, struct ggml_tensor *node);

/* What macattn_ggml_interface (macattn/ggml.h) offers of a context. Layers are numbered over all groups. */
int32_t attention_n_layers(const attention *a);
macattn_status attention_layer(const attention *a, int32_t layer, macattn_ggml_layer *info);
macattn_status attention_stats(attention *a, int32_t layer, int32_t head, macattn_stats *stats);
macattn_status attention_bytes(const attention *a, int32_t layer, macattn_ggml_bytes *bytes);
const report_totals *attention_totals(const attention *a);
macattn_status attention_keep(attention *a);
macattn_status attention_restart(attention *a, const plugin_options *options);

#endif
