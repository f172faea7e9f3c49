/* SPDX-License-Identifier: Apache-2.0 */
/* Options that `tasks` and `eval --tasks` have in common. */
#ifndef MACATTN_TOOLS_TASKS_OPTIONS_H
#define MACATTN_TOOLS_TASKS_OPTIONS_H

#include <argp.h>

#include "tasks.h"

#define TASKS_MAX 64

typedef struct tasks_common {
    const char *names, *essay_file, *data;
    int64_t length, samples, seed; /* -1: not given */
    /* By tasks_common_load: */
    const task *tasks[TASKS_MAX];
    int n;
    char *essay; /* NULL: made up */
} tasks_common;

/* What argp is given as a child, with a tasks_common as its input. The seed is the command's. */
extern const struct argp tasks_common_argp;

/* Nothing is given yet. */
void tasks_common_init(tasks_common *common);
/* The first option that is given besides --tasks; NULL if none is. */
const char *tasks_common_given(const tasks_common *common);

/* Fills in what was not given (`samples` of each task), finds the tasks and reads the essay.
 * Dies with a sentence of the command on failure. */
void tasks_common_load(tasks_common *common, const char *command, int64_t samples);
void tasks_common_free(tasks_common *common);

task_options tasks_common_options(const tasks_common *common, task_counter counter);

#endif /* MACATTN_TOOLS_TASKS_OPTIONS_H */
