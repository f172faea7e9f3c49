/* SPDX-License-Identifier: Apache-2.0 */
#include "settings/environment.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "settings/config.h"

static const char *text(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* "min_tokens": MACATTN_MIN_TOKENS. What would be long is MACATTN_FRESH. */
static void variable_of(const macattn_setting *s, char *name, size_t size)
{
    const char *own = strcmp(s->name, "fresh_tokens") == 0 ? "fresh" : s->name;
    const int n = snprintf(name, size, "MACATTN_%s", own);
    for (int i = 0; i < n && (size_t)i < size; i++) name[i] = (char)toupper((unsigned char)name[i]);
}

static bool read_setting(const macattn_setting *s, macattn_config *config)
{
    char variable[64], error[160] = "";
    variable_of(s, variable, sizeof variable);
    const char *value = text(variable);
    if (!value ||
        macattn_setting_parse(config, s->name, value, error, sizeof error) == MACATTN_OK) {
        return true;
    }
    host_say("not loaded: %s=%s: %s", variable, value, error);
    return false;
}

static bool read_audit(int *every)
{
    char *end;
    const char *value = text("MACATTN_AUDIT");
    if (!value) return true;
    errno = 0;
    const long n = strtol(value, &end, 10);
    if (errno != 0 || end == value || *end != '\0' || n < 0 || n > SETTINGS_MAX_AUDIT) {
        host_say("not loaded: MACATTN_AUDIT=%s: it must be a whole number in [0, %d]", value,
                 (int)SETTINGS_MAX_AUDIT);
        return false;
    }
    *every = (int)n;
    return true;
}

bool environment_read(plugin_settings *settings)
{
    *settings = settings_defaults();
    settings->config_path = text("MACATTN_CONFIG");
    settings->stats_path = text("MACATTN_STATS");
    if (settings->config_path && !config_read(settings->config_path, settings)) return false;
    const macattn_setting *s;
    for (int i = 0; (s = settings_at(i)) != NULL; i++) {
        if (!read_setting(s, &settings->config)) return false;
    }
    return read_audit(&settings->audit_every);
}
