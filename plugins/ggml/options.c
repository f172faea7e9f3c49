/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"

enum { MAX_RING = 4096, MAX_TOKENS = 1 << 30 };

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

static bool policy(macattn_policy *value)
{
    const char *s = text("MACATTN_POLICY");
    if (!s) return true;
    for (size_t i = 0; i < sizeof policy_names / sizeof policy_names[0]; i++) {
        if (strcmp(s, policy_names[i]) == 0) {
            *value = (macattn_policy)i;
            return true;
        }
    }
    host_say("not loaded: MACATTN_POLICY=%s is none of: exact, paper, budget", s);
    return false;
}

bool options_read(plugin_options *options)
{
    macattn_config defaults;
    macattn_config_init(&defaults);
    double budget = (double)defaults.budget, tau = (double)defaults.tau, ring = defaults.ring,
           band = defaults.band;
    double min_tokens = (double)defaults.min_tokens, audit = 0;
    *options = (plugin_options){.policy = MACATTN_POLICY_EXACT, .stats = text("MACATTN_STATS")};
    if (!policy(&options->policy) || !number("MACATTN_TAU", 0, 1, &tau) ||
        !number("MACATTN_BUDGET", 0, 1, &budget) || !integer("MACATTN_RING", 1, MAX_RING, &ring) ||
        !integer("MACATTN_BAND", 1, MAX_TOKENS, &band) ||
        !integer("MACATTN_MIN_TOKENS", 0, MAX_TOKENS, &min_tokens) ||
        !integer("MACATTN_AUDIT", 0, MAX_TOKENS, &audit)) {
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
                                   .ring = options->ring,
                                   .band = options->band,
                                   .min_tokens = options->min_tokens,
                                   .audit_every = options->audit_every,
                                   .count_bytes = options->count_bytes,
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
                  {"ring", seen->ring, 1, MAX_RING},
                  {"band", seen->band, 1, MAX_TOKENS},
                  {"min_tokens", (double)seen->min_tokens, 0, MAX_TOKENS},
                  {"audit_every", seen->audit_every, 0, MAX_TOKENS}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high) continue;
        snprintf(error, error_size, "%s is %g; it must be in [%g, %g]", ranges[i].name,
                 ranges[i].value, ranges[i].low, ranges[i].high);
        return MACATTN_E_RANGE;
    }
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
