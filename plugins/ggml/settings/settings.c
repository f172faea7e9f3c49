/* SPDX-License-Identifier: Apache-2.0 */
#include "settings/settings.h"

#include <stdio.h>
#include <string.h>

static const char *const policy_names[] = {[MACATTN_POLICY_EXACT] = "exact",
                                           [MACATTN_POLICY_PAPER] = "paper",
                                           [MACATTN_POLICY_BUDGET] = "budget"};

const char *settings_policy_name(macattn_policy policy)
{
    return policy_names[policy];
}

bool settings_find_policy(const char *name, macattn_policy *policy)
{
    for (size_t i = 0; i < sizeof policy_names / sizeof policy_names[0]; i++) {
        if (strcmp(name, policy_names[i]) == 0) {
            *policy = (macattn_policy)i;
            return true;
        }
    }
    return false;
}

plugin_settings settings_defaults(void)
{
    macattn_config c;
    macattn_config_init(&c);
    return (plugin_settings){.policy = MACATTN_POLICY_EXACT,
                             .tau = c.tau,
                             .budget = c.budget,
                             .ring = c.ring,
                             .band = c.band,
                             .min_tokens = c.min_tokens};
}

void settings_get(const plugin_settings *settings, macattn_ggml_options *seen)
{
    if (!seen || seen->struct_size != sizeof *seen) return;
    *seen = (macattn_ggml_options){.struct_size = sizeof *seen,
                                   .policy = settings->policy,
                                   .tau = settings->tau,
                                   .budget = settings->budget,
                                   .budget_scale = settings->scale,
                                   .scale_layers = settings->scale_layers,
                                   .scale_heads = settings->scale_heads,
                                   .ring = settings->ring,
                                   .band = settings->band,
                                   .min_tokens = settings->min_tokens,
                                   .audit_every = settings->audit_every,
                                   .count_bytes = settings->count_bytes,
                                   .isa = settings->isa,
                                   .on_audit = settings->on_audit,
                                   .audit_user = settings->audit_user};
}

macattn_status settings_set(plugin_settings *settings, const macattn_ggml_options *seen,
                            char *error, size_t error_size)
{
    if (!seen || seen->struct_size != sizeof *seen) {
        snprintf(error, error_size, "struct_size is not sizeof(macattn_ggml_options)");
        return MACATTN_E_ARG;
    }
    const struct {
        const char *name;
        double value, low, high;
    } ranges[] = {{"policy", (double)seen->policy, MACATTN_POLICY_EXACT, MACATTN_POLICY_BUDGET},
                  {"tau", (double)seen->tau, 0, 1},
                  {"budget", (double)seen->budget, 0, 1},
                  {"ring", seen->ring, 1, SETTINGS_MAX_RING},
                  {"band", seen->band, 0, SETTINGS_MAX_TOKENS},
                  {"min_tokens", (double)seen->min_tokens, 0, SETTINGS_MAX_TOKENS},
                  {"audit_every", seen->audit_every, 0, SETTINGS_MAX_TOKENS}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high) continue;
        snprintf(error, error_size, "%s is %g; it must be in [%g, %g]", ranges[i].name,
                 ranges[i].value, ranges[i].low, ranges[i].high);
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
    settings->model = (plugin_model){0}; /* the program knows what it sets */
    settings->budget_scale = NULL;
    settings->scale = seen->budget_scale;
    settings->scale_layers = seen->budget_scale ? seen->scale_layers : 0;
    settings->scale_heads = seen->budget_scale ? seen->scale_heads : 0;
    settings->isa = seen->isa;
    settings->policy = seen->policy;
    settings->tau = seen->tau;
    settings->budget = seen->budget;
    settings->ring = seen->ring;
    settings->band = seen->band;
    settings->min_tokens = seen->min_tokens;
    settings->audit_every = seen->audit_every;
    settings->count_bytes = seen->count_bytes != 0;
    settings->on_audit = seen->on_audit;
    settings->audit_user = seen->audit_user;
    return MACATTN_OK;
}
