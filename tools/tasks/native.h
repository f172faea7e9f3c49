/* SPDX-License-Identifier: Apache-2.0 */
/* The family native; ends with a task without a name. */
#ifndef MACATTN_TOOLS_TASKS_NATIVE_H
#define MACATTN_TOOLS_TASKS_NATIVE_H

#include "task.h"

extern const task native_tasks[];

#endif /* MACATTN_TOOLS_TASKS_NATIVE_H */
