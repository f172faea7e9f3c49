/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of contexts. Those of reuse are macattn's own: names, ranges and defaults come
 * from its table (macattn_setting_at), whoever sets them: the environment, a file, a program. */
#ifndef MACATTN_PLUGIN_SETTINGS_H
#define MACATTN_PLUGIN_SETTINGS_H

#include <stdbool.h>

#include "macattn/ggml.h"

enum { SETTINGS_MAX_AUDIT = 1 << 30 };

/* What a configuration file was made for; 0 where it does not say. */
typedef struct plugin_model {
    int32_t n_layers, n_heads, n_kv_heads, head_dim;
    char name[96];
} plugin_model;

typedef struct plugin_settings {
    macattn_config config;   /*!< what settings_at lists, and `isa`; the rest is the model's */
    int audit_every;         /*!< MACATTN_AUDIT: recompute every n-th decode that reused anything;
                                  0 = none */
    bool count_bytes;        /*!< these three are set by programs only, see macattn/ggml.h */
    macattn_ggml_audit on_audit;
    void *audit_user;
    const char *config_path; /*!< MACATTN_CONFIG: a file with settings (config.h); NULL = none */
    plugin_model model;      /*!< from there: the model they are for */
    float *file_scale;       /*!< from there: factors of the budget, as `scale`; NULL = none.
                                  Allocated by config_read for the record it fills, whose owner
                                  frees it (the plug-in's own lasts as long as the process); copies
                                  of the record borrow it */
    const float *scale;      /*!< the factors in force, [scale_layers][scale_heads]: the file's, or
                                  a program's; borrowed, NULL = none */
    int32_t scale_layers, scale_heads;
    const char *stats_path; /*!< MACATTN_STATS: a file for them, "-" is stderr; NULL = none */
} plugin_settings;

/*! settings_defaults() : what applies where nobody says anything. */
plugin_settings settings_defaults(void);

/*! settings_at() : the settings of reuse that users and files may set, one after another from index
 *  0.
 *  @return : NULL after the last. */
const macattn_setting *settings_at(int index);

/*! settings_find() : the one of those with that name, NULL if there is none. */
const macattn_setting *settings_find(const char *name);

/*! settings_get(), settings_set() : to and from what programs see of the settings.
 * @return : E_ARG or E_RANGE with a sentence in `error`, the settings being unchanged. */
void settings_get(const plugin_settings *settings, macattn_ggml_options *seen);
macattn_status settings_set(plugin_settings *settings, const macattn_ggml_options *seen,
                            char *error, size_t error_size);

/* In force: what is not set is as the policy has it. */
static inline int32_t settings_ring(const plugin_settings *settings)
{
    const macattn_config *c = &settings->config;
    return c->ring > 0 ? c->ring : MACATTN_DEFAULT_RING(c->policy);
}

static inline int32_t settings_band(const plugin_settings *settings)
{
    const macattn_config *c = &settings->config;
    return c->band > 0 ? c->band : MACATTN_DEFAULT_BAND(c->policy);
}

#endif
