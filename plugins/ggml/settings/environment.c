/* SPDX-License-Identifier: Apache-2.0 */
#include "settings/environment.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "host.h"
#include "settings/config.h"

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

static bool read_policy(macattn_policy *policy)
{
    const char *s = text("MACATTN_POLICY");
    if (!s || settings_find_policy(s, policy)) return true;
    host_say("not loaded: MACATTN_POLICY=%s is none of: exact, paper, budget", s);
    return false;
}

bool environment_read(plugin_settings *settings)
{
    *settings = settings_defaults();
    settings->config = text("MACATTN_CONFIG");
    settings->stats = text("MACATTN_STATS");
    if (settings->config && !config_read(settings->config, settings)) return false;
    double budget = (double)settings->budget, tau = (double)settings->tau, ring = settings->ring;
    double band = settings->band, min_tokens = (double)settings->min_tokens, audit = 0;
    if (!read_policy(&settings->policy) || !number("MACATTN_TAU", 0, 1, &tau) ||
        !number("MACATTN_BUDGET", 0, 1, &budget) ||
        !integer("MACATTN_RING", 1, SETTINGS_MAX_RING, &ring) ||
        !integer("MACATTN_BAND", 0, SETTINGS_MAX_TOKENS, &band) ||
        !integer("MACATTN_MIN_TOKENS", 0, SETTINGS_MAX_TOKENS, &min_tokens) ||
        !integer("MACATTN_AUDIT", 0, SETTINGS_MAX_TOKENS, &audit)) {
        return false;
    }
    settings->tau = (float)tau;
    settings->budget = (float)budget;
    settings->ring = (int32_t)ring;
    settings->band = (int32_t)band;
    settings->min_tokens = (int64_t)min_tokens;
    settings->audit_every = (int)audit;
    return true;
}
