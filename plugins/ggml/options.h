/* SPDX-License-Identifier: Apache-2.0 */
/* What the environment says. docs/llama.cpp.md lists the variables for users. */
#ifndef MACATTN_PLUGIN_OPTIONS_H
#define MACATTN_PLUGIN_OPTIONS_H

#include <stdbool.h>

#include "macattn/ggml.h"

enum { OPTIONS_MAX_RING = 4096, OPTIONS_MAX_TOKENS = 1 << 30 };

/* What a configuration file was made for; 0 where it does not say. */
typedef struct plugin_model {
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
    char name[96];
} plugin_model;

typedef struct plugin_options {
    macattn_policy policy; /*!< MACATTN_POLICY: exact (default), paper, budget */
    float budget;          /*!< MACATTN_BUDGET, in [0, 1] */
    float tau;             /*!< MACATTN_TAU, in [0, 1] */
    int32_t ring;          /*!< MACATTN_RING, 1 to 4096 */
    int32_t band;          /*!< MACATTN_BAND, >= 0; 0: the policy's, see options_band */
    int64_t min_tokens;    /*!< MACATTN_MIN_TOKENS, >= 0 */
    int audit_every; /*!< MACATTN_AUDIT: recompute every n-th decode that reused anything; 0 = none */
    bool count_bytes; /*!< these three are set by programs only, see macattn/ggml.h */
    macattn_ggml_audit on_audit;
    void *audit_user;
    const char *isa;    /*!< NULL = the best; set by programs only */
    const char *config; /*!< MACATTN_CONFIG: a file with settings (config.h); NULL = none */
    plugin_model model; /*!< from there: the model they are for */
    float *budget_scale; /*!< from there: [scale_layers][scale_heads] factors of the budget; NULL = none.
                              Allocated, and kept until the process ends */
    const float *scale; /*!< those in force: the file's, or a program's */
    int32_t scale_layers, scale_heads;
    const char *stats; /*!< MACATTN_STATS: a file for the statistics, "-" for stderr; NULL = none */
} plugin_options;

/*! options_read() : read the configuration file, and the environment, which overrides it.
 * @return : false, with a message on stderr, if a variable or the file makes no sense. */
bool options_read(plugin_options *options);

/*! options_get(), options_set() : to and from what programs see of the settings.
 * @return : E_ARG or E_RANGE with a sentence in `error`, the options being unchanged. */
void options_get(const plugin_options *options, macattn_ggml_options *seen);
macattn_status options_set(plugin_options *options, const macattn_ggml_options *seen, char *error,
                           size_t error_size);

static inline int32_t options_band(const plugin_options *options)
{
    return options->band > 0 ? options->band : MACATTN_DEFAULT_BAND(options->policy);
}

/*! options_parse_policy() : as MACATTN_POLICY names it.  @return : false if there is none so called. */
bool options_parse_policy(const char *name, macattn_policy *policy);

/*! options_policy_name() : as MACATTN_POLICY names it. */
const char *options_policy_name(macattn_policy policy);

#endif
