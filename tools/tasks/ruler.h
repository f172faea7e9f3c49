/* SPDX-License-Identifier: Apache-2.0 */
/* The family ruler; ends with a task without a name. */
#ifndef MACATTN_TOOLS_TASKS_RULER_H
#define MACATTN_TOOLS_TASKS_RULER_H

#include "task.h"

extern const task ruler_tasks[];

#endif /* MACATTN_TOOLS_TASKS_RULER_H */
