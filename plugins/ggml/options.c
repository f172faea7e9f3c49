/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "host.h"

static const char *const policy_names[] = {[MACATTN_POLICY_EXACT] = "exact",
                                           [MACATTN_POLICY_PAPER] = "paper",
                                           [MACATTN_POLICY_BUDGET] = "budget"};

const char *options_policy_name(macattn_policy policy)
{
    return policy_names[policy];
}

static const char *text(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static bool number(const char *name, double low, double high, double *value)
{
    const char *s = text(name);
    if (!s) return true;
    char *end;
    errno = 0;
    const double x = strtod(s, &end);
    if (errno != 0 || *end != '\0' || !isfinite(x) || x < low || x > high) {
        host_say("not loaded: %s=%s is not a number in [%g, %g]", name, s, low, high);
        return false;
    }
    *value = x;
    return true;
}

static bool integer(const char *name, double low, double high, double *value)
{
    if (!number(name, low, high, value)) return false;
    if (*value != floor(*value)) {
        host_say("not loaded: %s=%s is not a whole number", name, text(name));
        return false;
    }
    return true;
}

bool options_parse_policy(const char *name, macattn_policy *policy)
{
    for (size_t i = 0; i < sizeof policy_names / sizeof policy_names[0]; i++) {
        if (strcmp(name, policy_names[i]) == 0) {
            *policy = (macattn_policy)i;
            return true;
        }
    }
    return false;
}

static bool read_policy(macattn_policy *policy)
{
    const char *s = text("MACATTN_POLICY");
    if (!s || options_parse_policy(s, policy)) return true;
    host_say("not loaded: MACATTN_POLICY=%s is none of: exact, paper, budget", s);
    return false;
}

static plugin_options defaults(void)
{
    macattn_config c;
    macattn_config_init(&c);
    return (plugin_options){.policy = MACATTN_POLICY_EXACT,
                            .tau = c.tau,
                            .budget = c.budget,
                            .ring = c.ring,
                            .band = c.band,
                            .min_tokens = c.min_tokens,
                            .config = text("MACATTN_CONFIG"),
                            .stats = text("MACATTN_STATS")};
}

bool options_read(plugin_options *options)
{
    *options = defaults();
    if (options->config && !config_read(options->config, options)) return false;
    double budget = (double)options->budget, tau = (double)options->tau, ring = options->ring;
    double band = options->band, min_tokens = (double)options->min_tokens, audit = 0;
    if (!read_policy(&options->policy) || !number("MACATTN_TAU", 0, 1, &tau) ||
        !number("MACATTN_BUDGET", 0, 1, &budget) ||
        !integer("MACATTN_RING", 1, OPTIONS_MAX_RING, &ring) ||
        !integer("MACATTN_BAND", 0, OPTIONS_MAX_TOKENS, &band) ||
        !integer("MACATTN_MIN_TOKENS", 0, OPTIONS_MAX_TOKENS, &min_tokens) ||
        !integer("MACATTN_AUDIT", 0, OPTIONS_MAX_TOKENS, &audit)) {
        return false;
    }
    options->tau = (float)tau;
    options->budget = (float)budget;
    options->ring = (int32_t)ring;
    options->band = (int32_t)band;
    options->min_tokens = (int64_t)min_tokens;
    options->audit_every = (int)audit;
    return true;
}

void options_get(const plugin_options *options, macattn_ggml_options *seen)
{
    if (!seen || seen->struct_size != sizeof *seen) return;
    *seen = (macattn_ggml_options){.struct_size = sizeof *seen,
                                   .policy = options->policy,
                                   .tau = options->tau,
                                   .budget = options->budget,
                                   .budget_scale = options->scale,
                                   .scale_layers = options->scale_layers,
                                   .scale_heads = options->scale_heads,
                                   .ring = options->ring,
                                   .band = options->band,
                                   .min_tokens = options->min_tokens,
                                   .audit_every = options->audit_every,
                                   .count_bytes = options->count_bytes,
                                   .isa = options->isa,
                                   .on_audit = options->on_audit,
                                   .audit_user = options->audit_user};
}

macattn_status options_set(plugin_options *options, const macattn_ggml_options *seen, char *error,
                           size_t error_size)
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
                  {"ring", seen->ring, 1, OPTIONS_MAX_RING},
                  {"band", seen->band, 0, OPTIONS_MAX_TOKENS},
                  {"min_tokens", (double)seen->min_tokens, 0, OPTIONS_MAX_TOKENS},
                  {"audit_every", seen->audit_every, 0, OPTIONS_MAX_TOKENS}};
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
    options->model = (plugin_model){0}; /* the program knows what it sets */
    options->budget_scale = NULL;
    options->scale = seen->budget_scale;
    options->scale_layers = seen->budget_scale ? seen->scale_layers : 0;
    options->scale_heads = seen->budget_scale ? seen->scale_heads : 0;
    options->isa = seen->isa;
    options->policy = seen->policy;
    options->tau = seen->tau;
    options->budget = seen->budget;
    options->ring = seen->ring;
    options->band = seen->band;
    options->min_tokens = seen->min_tokens;
    options->audit_every = seen->audit_every;
    options->count_bytes = seen->count_bytes != 0;
    options->on_audit = seen->on_audit;
    options->audit_user = seen->audit_user;
    return MACATTN_OK;
}
