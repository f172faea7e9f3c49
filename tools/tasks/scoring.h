/* SPDX-License-Identifier: Apache-2.0 */
/* Scores of answers. */
#ifndef MACATTN_TOOLS_TASKS_SCORING_H
#define MACATTN_TOOLS_TASKS_SCORING_H

#include "task.h"

/* In [0, 1]. Predictions are cleaned as RULER does: control characters become newlines, ends are
 * stripped; letters compare without case. */
double task_score(const task *self, const task_sample *sample, const char *prediction);

/* Mean of scores in per cent and half the width of its 95% interval (normal, from their
 * variance). */
void task_summary(const double *scores, int64_t n, double *mean, double *margin);

#endif /* MACATTN_TOOLS_TASKS_SCORING_H */
