/* SPDX-License-Identifier: Apache-2.0 */
/* Options that `eval` and `tune` have in common. */
#ifndef MACATTN_TOOLS_EVAL_OPTIONS_H
#define MACATTN_TOOLS_EVAL_OPTIONS_H

#include <argp.h>

#include "common/parse.h"

#define EVAL_MAX_FILES 64
#define EVAL_MAX_WINDOWS 256

typedef struct eval_common {
    const char *model, *plugin, *json;
    const char *texts[EVAL_MAX_FILES];
    int n_texts;
    int_list contexts;
    int64_t n_tokens, n_windows, n_threads, ring, band, min_tokens; /* -1 = default */
    int64_t audit_every, seed;
    kv_types kv;
    bool ggml_baseline;
} eval_common;

/* What argp is given as a child, with an eval_common as its input. */
extern const struct argp eval_common_argp;

void eval_common_defaults(eval_common *common);

#endif /* MACATTN_TOOLS_EVAL_OPTIONS_H */
