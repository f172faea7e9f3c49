/* SPDX-License-Identifier: Apache-2.0 */
/* Options that `eval` and `tune` have in common. */
#ifndef MACATTN_TOOLS_EVAL_OPTIONS_H
#define MACATTN_TOOLS_EVAL_OPTIONS_H

#include <argp.h>

#include "common/options.h"
#include "macattn/ggml.h"

#define EVAL_MAX_FILES 64
#define EVAL_MAX_WINDOWS 256

typedef struct eval_common {
    const char *model, *plugin, *json;
    const char *texts[EVAL_MAX_FILES];
    int n_texts;
    int_list contexts;                              /* n = 0: not given */
    int64_t n_tokens, n_windows, audit_every, seed; /* -1: not given */
    double progress;                                 /* seconds between its lines */
    bool ggml_baseline;
    bool chat; /* the model's own chat template around texts and questions */
    setting_options settings;
} eval_common;

/* What argp is given as children, with an eval_common and its `settings` as their inputs. */
extern const struct argp eval_common_argp;

/* Nothing is given yet. `taken`, `lists`: of the settings (common/options.h). */
void eval_common_init(eval_common *common, uint32_t taken, uint32_t lists, macattn_policy policy);

/* The first option about a text that is given, NULL if none is. */
const char *eval_common_given(const eval_common *common);

/* Fills in what was not given: `context` tokens of a prompt. Dies without a model. */
void eval_common_complete(eval_common *common, int64_t context);

/* Type of K and V, threads, and the plug-in's settings with what was given. */
kv_types eval_common_kv(const eval_common *common);
int eval_common_threads(const eval_common *common);
void eval_common_apply(const eval_common *common, macattn_ggml_options *options);

/* Ring and band as the policy has them, where nobody says otherwise. */
void eval_common_resolve(macattn_ggml_options *options);

#endif /* MACATTN_TOOLS_EVAL_OPTIONS_H */
