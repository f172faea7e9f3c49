/* SPDX-License-Identifier: Apache-2.0 */
/* Settings measured against a baseline on the same tokens. */
#ifndef MACATTN_TOOLS_EVAL_MEASURE_H
#define MACATTN_TOOLS_EVAL_MEASURE_H

#include "result.h"
#include "text.h"

/* A window of context + n_tokens + 1 tokens under every setting, added to the results. Settings
 * of the same ring and band share one computation of the prompt. */
void eval_measure_window(eval_model *m, const eval_plan *plan, const eval_window *window,
                         const macattn_ggml_options *settings, int n_settings,
                         eval_result *results);

/* The instruction set that rounds otherwise than the best; NULL if this machine has one only. */
const char *eval_other_isa(void);

#endif /* MACATTN_TOOLS_EVAL_MEASURE_H */
