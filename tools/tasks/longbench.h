/* SPDX-License-Identifier: Apache-2.0 */
/* The family longbench; ends with a task without a name. */
#ifndef MACATTN_TOOLS_TASKS_LONGBENCH_H
#define MACATTN_TOOLS_TASKS_LONGBENCH_H

#include "task.h"

extern const task longbench_tasks[];

/* Keep the first and the last half of `limit` tokens. Returns how many there are then. */
int64_t task_truncate_middle(int32_t *tokens, int64_t n, int64_t limit);
/* The letter of an answer, 0 if it has none. */
char task_choice(const char *answer);

#endif /* MACATTN_TOOLS_TASKS_LONGBENCH_H */
