/* SPDX-License-Identifier: Apache-2.0 */
/* Options that `tasks` and `eval --tasks` have in common. */
#ifndef MACATTN_TOOLS_TASKS_OPTIONS_H
#define MACATTN_TOOLS_TASKS_OPTIONS_H

#include <argp.h>

#include "tasks.h"

#define TASKS_MAX 64

typedef struct tasks_common {
    const char *names, *essay_file, *data;
    int64_t length, samples, seed;
    /* By tasks_common_load: */
    const task *tasks[TASKS_MAX];
    int n;
    char *essay; /* NULL: made up */
} tasks_common;

/* What argp is given as a child, with a tasks_common as its input. */
extern const struct argp tasks_common_argp;

/* What differs between the commands: names of tasks (NULL: must be given) and sample_list of each. */
void tasks_common_defaults(tasks_common *common, const char *names, int64_t samples);

/* Finds the tasks and reads the essay. Dies with a sentence of the command on failure. */
void tasks_common_load(tasks_common *common, const char *command);
void tasks_common_free(tasks_common *common);

task_options tasks_common_options(const tasks_common *common, task_counter counter);

#endif /* MACATTN_TOOLS_TASKS_OPTIONS_H */
