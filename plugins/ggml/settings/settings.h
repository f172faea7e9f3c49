/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of contexts: what there is, their ranges and names. */
#ifndef MACATTN_PLUGIN_SETTINGS_H
#define MACATTN_PLUGIN_SETTINGS_H

#include <stdbool.h>

#include "macattn/ggml.h"

enum { SETTINGS_MAX_RING = 4096, SETTINGS_MAX_TOKENS = 1 << 30 };

/* What a configuration file was made for; 0 where it does not say. */
typedef struct plugin_model {
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
    char name[96];
} plugin_model;

typedef struct plugin_settings {
    macattn_policy policy; /*!< MACATTN_POLICY: exact (default), paper, budget */
    float budget;          /*!< MACATTN_BUDGET, in [0, 1] */
    float tau;             /*!< MACATTN_TAU, in [0, 1] */
    int32_t ring;          /*!< MACATTN_RING, 1 to 4096 */
    int32_t band;          /*!< MACATTN_BAND, >= 0; 0: the policy's, see settings_band */
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
} plugin_settings;

/*! settings_defaults() : what applies where nobody says anything. */
plugin_settings settings_defaults(void);

/*! settings_get(), settings_set() : to and from what programs see of the settings.
 * @return : E_ARG or E_RANGE with a sentence in `error`, the settings being unchanged. */
void settings_get(const plugin_settings *settings, macattn_ggml_options *seen);
macattn_status settings_set(plugin_settings *settings, const macattn_ggml_options *seen, char *error,
                            size_t error_size);

static inline int32_t settings_band(const plugin_settings *settings)
{
    return settings->band > 0 ? settings->band : MACATTN_DEFAULT_BAND(settings->policy);
}

/*! settings_find_policy() : as MACATTN_POLICY names it.  @return : false if there is none so called. */
bool settings_find_policy(const char *name, macattn_policy *policy);

/*! settings_policy_name() : as MACATTN_POLICY names it. */
const char *settings_policy_name(macattn_policy policy);

#endif
