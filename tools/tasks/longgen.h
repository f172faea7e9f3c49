/* SPDX-License-Identifier: Apache-2.0 */
/* The family longgen; ends with a task without a name. */
#ifndef MACATTN_TOOLS_TASKS_LONGGEN_H
#define MACATTN_TOOLS_TASKS_LONGGEN_H

#include "task.h"

extern const task longgen_tasks[];

/* Completion rate and share of checks met, both in [0, 1]. */
void task_longgen_rates(const task_sample *sample, const char *answer, double *completed,
                        double *checks);

#endif /* MACATTN_TOOLS_TASKS_LONGGEN_H */
