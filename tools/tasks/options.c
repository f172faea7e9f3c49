/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <stdlib.h>

#include "common/parse.h"
#include "common/say.h"

enum { KEY_TASKS = 't', KEY_LENGTH = 'l', KEY_SAMPLES = 256, KEY_ESSAY, KEY_DATA };

static const struct argp_option options_table[] = {
    {"tasks", KEY_TASKS, "NAME,...", 0,
     "families (ruler, native, longgen, longbench) or tasks, a list (default ruler; eval: none)",
     1},
    {"length", KEY_LENGTH, "N", 0, "tokens of a sample, its answer included (default 4k)", 1},
    {"samples", KEY_SAMPLES, "N", 0, "of each task (default 10; eval: 20)", 1},
    {"essay", KEY_ESSAY, "FILE", 0, "a text to hide needles in (default: made up)", 2},
    {"data", KEY_DATA, "FILE", 0, "your copy of the data that qa_1, qa_2 and longbench_v2 read", 2},
    {0}};

static void integer(struct argp_state *state, const char *name, const char *arg, int64_t min,
                    int64_t max, int64_t *value)
{
    if (!parse_int(arg, min, max, value)) {
        argp_error(state, "--%s does not take '%s' (%lld to %lld)", name, arg, (long long)min,
                   (long long)max);
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    tasks_common *o = state->input;
    switch (key) {
    case KEY_TASKS: o->names = arg; return 0;
    case KEY_LENGTH: integer(state, "length", arg, 64, 1 << 24, &o->length); return 0;
    case KEY_SAMPLES: integer(state, "samples", arg, 1, 1000000, &o->samples); return 0;
    case KEY_ESSAY: o->essay_file = arg; return 0;
    case KEY_DATA: o->data = arg; return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

const struct argp tasks_common_argp = {options_table, parse_option, NULL, NULL, NULL, NULL, NULL};

void tasks_common_init(tasks_common *common)
{
    *common = (tasks_common){.length = -1, .samples = -1, .seed = -1};
}

const char *tasks_common_given(const tasks_common *common)
{
    return common->length >= 0    ? "length"
           : common->samples >= 0 ? "samples"
           : common->essay_file   ? "essay"
           : common->data         ? "data"
                                  : NULL;
}

void tasks_common_load(tasks_common *common, const char *command, int64_t samples)
{
    char error[256];
    common->length = common->length < 0 ? 4096 : common->length;
    common->samples = common->samples < 0 ? samples : common->samples;
    common->seed = common->seed < 0 ? 42 : common->seed;
    common->n = task_list(common->names, common->tasks, TASKS_MAX, error, sizeof error);
    if (common->n < 0) die(EXIT_USAGE, "%s: %s", command, error);
    if (common->essay_file && !(common->essay = text_read_file(common->essay_file)))
        die(EXIT_FAILED, "%s: cannot read %s", command, common->essay_file);
}

void tasks_common_free(tasks_common *common)
{
    free(common->essay);
    common->essay = NULL;
}

task_options tasks_common_options(const tasks_common *common, task_counter counter)
{
    return (task_options){common->length, (uint64_t)common->seed, counter, common->essay,
                          common->data};
}
