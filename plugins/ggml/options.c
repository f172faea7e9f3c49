/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
        !number("MACATTN_BUDGET", 0, 1, &budget) || !integer("MACATTN_RING", 1, 4096, &ring) ||
        !integer("MACATTN_BAND", 1, 1 << 30, &band) ||
        !integer("MACATTN_MIN_TOKENS", 0, 1 << 30, &min_tokens) ||
        !integer("MACATTN_AUDIT", 0, 1 << 30, &audit)) {
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
