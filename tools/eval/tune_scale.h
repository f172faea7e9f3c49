/* SPDX-License-Identifier: Apache-2.0 */
/* How much the error of each KV head's heads matters to the predictions. */
#ifndef MACATTN_TOOLS_EVAL_TUNE_SCALE_H
#define MACATTN_TOOLS_EVAL_TUNE_SCALE_H

#include "session.h"

/* Factors of the budget, [layer of the model][head]. */
typedef struct tune_scale {
    float *at;
    int32_t n_layers, n_heads;
} tune_scale;

/* Measure it: for each layer and KV head, reuse there and nowhere else, what that changes in the
 * predictions and how large the errors were. `like`: the settings; something must have been
 * measured before. Without layers that are known by number, or with layers of different shapes,
 * `at` is NULL. */
tune_scale tune_scale_measure(eval_session *session, const eval_plan *plan,
                              const macattn_ggml_options *like);
void tune_scale_free(tune_scale *scale);

#endif /* MACATTN_TOOLS_EVAL_TUNE_SCALE_H */
