/* SPDX-License-Identifier: Apache-2.0 */
/* Options and output that `eval` and `tune` have in common. */
#ifndef MACATTN_TOOLS_EVAL_OPTIONS_H
#define MACATTN_TOOLS_EVAL_OPTIONS_H

#include <argp.h>
#include <stdio.h>

#include "eval_run.h"

#define EVAL_MAX_FILES 64
#define EVAL_MAX_WINDOWS 256

typedef struct eval_common {
    const char *model, *plugin, *json;
    const char *texts[EVAL_MAX_FILES];
    int n_texts;
    tool_int_list contexts;
    int64_t n_tokens, n_windows, n_threads, ring, band, min_tokens; /* -1 = default */
    int64_t audit_every, seed;
    tool_kv_types kv;
    bool ggml_baseline;
} eval_common;

/* What argp is given as a child, with an eval_common as its input. */
extern const struct argp eval_common_argp;

void eval_common_defaults(eval_common *common);

/* Everything that is open during a run. */
typedef struct eval_bench {
    const eval_common *common;
    eval_model *model;
    eval_text text;
    report table;
    FILE *json;
    machine_info machine;
} eval_bench;

/* Opens the model and reads the texts; the model writes one itself if none is named. Dies with a
 * sentence on failure. */
void eval_bench_open(eval_bench *bench, const eval_common *common);
void eval_bench_close(eval_bench *bench);

/* What records call the text: the first file's name without its folder. */
const char *eval_bench_text(const eval_bench *bench);

/* The plug-in's defaults with what the command line says. */
macattn_ggml_options eval_bench_options(const eval_bench *bench);

/* Measure settings at one context length, on as many windows as there are and are asked for. Dies if the
 * texts are too short for one. The results are to be freed. */
eval_result *eval_bench_measure(eval_bench *bench, eval_plan *plan,
                                const macattn_ggml_options *settings, int n_settings);

/* Write a row as one line. Dies if `path` cannot be written. */
void eval_write_row(FILE *json, const char *path, const cJSON *row);

/* Print a row, and write it to the JSON file. */
void eval_bench_row(eval_bench *bench, const eval_plan *plan, const macattn_ggml_options *setting,
                    const eval_result *result);

#endif /* MACATTN_TOOLS_EVAL_OPTIONS_H */
