/* SPDX-License-Identifier: Apache-2.0 */
#include "settings/settings.h"

#include <stdio.h>
#include <string.h>

plugin_settings settings_defaults(void)
{
    plugin_settings settings = {0};
    macattn_config_init(&settings.config);
    settings.config.policy = MACATTN_POLICY_EXACT; /* nobody who loads a plug-in asked for less */
    return settings;
}

/* The policy, and what some policy looks at, but exact attention does not. */
static bool is_of_reuse(const macattn_setting *s)
{
    return s->type == MACATTN_SETTING_POLICY || !(s->policies >> MACATTN_POLICY_EXACT & 1);
}

const macattn_setting *settings_at(int index)
{
    const macattn_setting *s = NULL;
    for (int i = 0; index >= 0 && (s = macattn_setting_at(i)) != NULL; i++) index -= is_of_reuse(s);
    return s;
}

const macattn_setting *settings_find(const char *name)
{
    const macattn_setting *s = macattn_setting_find(name);
    return s && is_of_reuse(s) ? s : NULL;
}

void settings_get(const plugin_settings *settings, macattn_ggml_options *seen)
{
    const macattn_config *c = &settings->config;
    if (!seen || seen->struct_size != sizeof *seen) return;
    *seen = (macattn_ggml_options){.struct_size = sizeof *seen,
                                   .policy = c->policy,
                                   .tau = c->tau,
                                   .budget = c->budget,
                                   .budget_scale = settings->scale,
                                   .scale_layers = settings->scale_layers,
                                   .scale_heads = settings->scale_heads,
                                   .ring = c->ring,
                                   .band = c->band,
                                   .fresh_tokens = c->fresh_tokens,
                                   .lse_order = c->lse_order,
                                   .select = c->select,
                                   .min_tokens = c->min_tokens,
                                   .audit_every = settings->audit_every,
                                   .count_bytes = settings->count_bytes,
                                   .isa = c->isa,
                                   .on_audit = settings->on_audit,
                                   .audit_user = settings->audit_user};
}

/* The settings of reuse that programs set, checked one by one. */
static macattn_status set_config(macattn_config *config, const macattn_ggml_options *seen,
                                 char *error, size_t error_size)
{
    const struct {
        const char *name;
        double value;
    } values[] = {{"policy", (double)seen->policy},
                  {"tau", (double)seen->tau},
                  {"budget", (double)seen->budget},
                  {"ring", seen->ring},
                  {"band", seen->band},
                  {"fresh_tokens", seen->fresh_tokens},
                  {"lse_order", seen->lse_order},
                  {"select", seen->select},
                  {"min_tokens", (double)seen->min_tokens}};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        const macattn_status status =
            macattn_setting_set(config, values[i].name, values[i].value, error, error_size);
        if (status != MACATTN_OK) return status;
    }
    config->isa = seen->isa;
    return MACATTN_OK;
}

/* What is no setting of macattn's. */
static macattn_status check_others(const macattn_ggml_options *seen, char *error, size_t error_size)
{
    if (seen->audit_every < 0 || seen->audit_every > SETTINGS_MAX_AUDIT) {
        snprintf(error, error_size, "audit_every is %d; it must be in [0, %d]",
                 (int)seen->audit_every, (int)SETTINGS_MAX_AUDIT);
        return MACATTN_E_RANGE;
    }
    if (seen->budget_scale && (seen->scale_layers < 1 || seen->scale_heads < 1)) {
        snprintf(error, error_size, "budget_scale has %d layers of %d heads",
                 (int)seen->scale_layers, (int)seen->scale_heads);
        return MACATTN_E_ARG;
    }
    if (seen->isa && !macattn_isa_supported(seen->isa)) {
        snprintf(error, error_size, "there is no instruction set %s here", seen->isa);
        return MACATTN_E_ISA;
    }
    return MACATTN_OK;
}

macattn_status settings_set(plugin_settings *settings, const macattn_ggml_options *seen,
                            char *error, size_t error_size)
{
    if (!seen || seen->struct_size != sizeof *seen) {
        snprintf(error, error_size, "struct_size is not sizeof(macattn_ggml_options)");
        return MACATTN_E_ARG;
    }
    macattn_config config = settings->config;
    macattn_status status = check_others(seen, error, error_size);
    if (status == MACATTN_OK) status = set_config(&config, seen, error, error_size);
    if (status != MACATTN_OK) return status;
    settings->config = config;
    settings->model = (plugin_model){0}; /* the program knows what it sets */
    settings->scale = seen->budget_scale;
    settings->scale_layers = seen->budget_scale ? seen->scale_layers : 0;
    settings->scale_heads = seen->budget_scale ? seen->scale_heads : 0;
    settings->audit_every = seen->audit_every;
    settings->count_bytes = seen->count_bytes != 0;
    settings->on_audit = seen->on_audit;
    settings->audit_user = seen->audit_user;
    return MACATTN_OK;
}
