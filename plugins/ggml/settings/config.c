/* SPDX-License-Identifier: Apache-2.0 */
#include "settings/config.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"
#include "settings/json.h"

enum {
    MAX_BYTES = 1 << 24,
    MAX_SCALE = 1000000,
    CONFIG_VERSION = 1,
    KEY_BYTES = 32,
    MOST_KEYS = 64
};

/* Keys that an object has had: of two values for one, neither is what was meant for certain. */
typedef struct keys {
    int n;
    char seen[MOST_KEYS][KEY_BYTES];
} keys;

static bool next_key(json *j, keys *had, bool *first, char *key)
{
    if (!json_next_key(j, first, key, KEY_BYTES)) return false;
    for (int i = 0; i < had->n; i++) {
        if (strcmp(had->seen[i], key) == 0) return json_fail(j, "\"%s\" is there twice", key);
    }
    if (had->n < MOST_KEYS) memcpy(had->seen[had->n++], key, KEY_BYTES);
    return true;
}

/* What the model has so much of, as a field of macattn_config. */
static bool count(json *j, const char *key, const char *field, int32_t *value)
{
    const macattn_setting *s = macattn_setting_find(field);
    double x;
    if (!json_number(j, &x)) return false;
    if (x < s->low || x > s->high || x != floor(x)) {
        return json_fail(j, "%s is %g; it must be a whole number in [%g, %g]", key, x, s->low,
                         s->high);
    }
    *value = (int32_t)x;
    return true;
}

static bool read_model(json *j, plugin_model *model)
{
    bool first = true;
    char key[KEY_BYTES];
    keys had = {0};
    while (next_key(j, &had, &first, key)) {
        bool ok;
        if (strcmp(key, "layers") == 0) {
            ok = count(j, key, "n_layers", &model->n_layers);
        } else if (strcmp(key, "heads") == 0) {
            ok = count(j, key, "n_heads", &model->n_heads);
        } else if (strcmp(key, "kv_heads") == 0) {
            ok = count(j, key, "n_kv_heads", &model->n_kv_heads);
        } else if (strcmp(key, "head_dim") == 0) {
            ok = count(j, key, "head_dim", &model->head_dim);
        } else if (strcmp(key, "name") == 0) {
            ok = json_string(j, model->name, sizeof model->name);
        } else {
            ok = json_fail(j, "model has no \"%s\"", key);
        }
        if (!ok) return false;
    }
    return json_ok(j);
}

/* A setting of reuse: a policy by name, anything else a number. */
static bool read_setting(json *j, const macattn_setting *s, macattn_config *config)
{
    char name[32] = "", error[128] = "";
    double x = 0;
    macattn_status status;
    if (s->type == MACATTN_SETTING_POLICY) {
        if (!json_string(j, name, sizeof name)) return false;
        status = macattn_setting_parse(config, s->name, name, error, sizeof error);
    } else {
        if (!json_number(j, &x)) return false;
        status = macattn_setting_set(config, s->name, x, error, sizeof error);
    }
    return status == MACATTN_OK || json_fail(j, "%s", error);
}

static bool read_scale_row(json *j, plugin_settings *o, size_t *n)
{
    bool first = true;
    int32_t heads = 0;
    while (json_next_element(j, &first)) {
        double x;
        float *scale = realloc(o->file_scale, (*n + 1) * sizeof *scale);
        if (!scale) return json_fail(j, "out of memory");
        o->file_scale = scale;
        if (!json_number(j, &x)) return false;
        if (x < 0 || x > MAX_SCALE) {
            return json_fail(j, "a budget_scale is %g; it must be in [0, %d]", x, (int)MAX_SCALE);
        }
        scale[(*n)++] = (float)x;
        heads++;
    }
    if (json_ok(j) && o->scale_layers > 0 && heads != o->scale_heads) {
        return json_fail(j, "budget_scale has layers of %d and of %d heads", (int)o->scale_heads,
                         (int)heads);
    }
    o->scale_heads = heads;
    o->scale_layers++;
    return json_ok(j);
}

/* [[of each head] of each layer] */
static bool read_scale(json *j, plugin_settings *o)
{
    bool first = true;
    size_t n = 0;
    while (json_next_element(j, &first)) {
        if (!read_scale_row(j, o, &n)) return false;
    }
    return json_ok(j) && (n > 0 || json_fail(j, "budget_scale is empty"));
}

static bool fits_model(json *j, const plugin_settings *o)
{
    const plugin_model *m = &o->model;
    if (!o->file_scale || ((!m->n_layers || m->n_layers == o->scale_layers) &&
                           (!m->n_heads || m->n_heads == o->scale_heads))) {
        return true;
    }
    return json_fail(j, "budget_scale has %d layers of %d heads, the model %d of %d",
                     (int)o->scale_layers, (int)o->scale_heads, (int)m->n_layers, (int)m->n_heads);
}

static bool read_version(json *j)
{
    double x;
    if (!json_number(j, &x)) return false;
    return x == CONFIG_VERSION ||
           json_fail(j, "macattn_config is %g; this version reads %d", x, (int)CONFIG_VERSION);
}

static bool read_key(json *j, const char *key, plugin_settings *o)
{
    const macattn_setting *s = settings_find(key);
    if (s) return read_setting(j, s, &o->config);
    if (strcmp(key, "macattn_config") == 0) return read_version(j);
    if (strcmp(key, "model") == 0) return read_model(j, &o->model);
    if (strcmp(key, "budget_scale") == 0) return read_scale(j, o);
    if (strcmp(key, "evidence") == 0) return json_skip(j); /* for people */
    return json_fail(j, "there is no setting \"%s\"", key);
}

static bool parse(json *j, plugin_settings *settings)
{
    bool first = true, versioned = false;
    char key[KEY_BYTES];
    keys had = {0};
    while (next_key(j, &had, &first, key)) {
        versioned = versioned || strcmp(key, "macattn_config") == 0;
        if (!read_key(j, key, settings)) return false;
    }
    if (json_ok(j) && !versioned) json_fail(j, "there is no \"macattn_config\": 1");
    return json_ok(j) && fits_model(j, settings) && json_at_end(j);
}

static char *read_file(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    char *text = f ? malloc(MAX_BYTES + 1) : NULL;
    *bytes = text ? fread(text, 1, MAX_BYTES + 1, f) : 0;
    const bool failed = !text || ferror(f);
    if (failed) {
        host_say("not loaded: cannot read MACATTN_CONFIG=%s: %s", path, strerror(errno));
    } else if (*bytes > MAX_BYTES) {
        host_say("not loaded: MACATTN_CONFIG=%s is too long", path);
    }
    if (f) fclose(f);
    if (failed || *bytes > MAX_BYTES) {
        free(text);
        return NULL;
    }
    text[*bytes] = '\0';
    return text;
}

bool config_read(const char *path, plugin_settings *settings)
{
    json j;
    size_t bytes;
    plugin_settings read = *settings;
    read.file_scale = NULL;
    read.scale_layers = read.scale_heads = 0;
    char *text = read_file(path, &bytes);
    if (!text) return false;
    json_open(&j, text, bytes);
    const bool ok = parse(&j, &read);
    if (ok) {
        read.scale = read.file_scale;
        *settings = read;
    } else {
        host_say("not loaded: MACATTN_CONFIG=%s: %s", path, j.error);
        free(read.file_scale);
    }
    free(text);
    return ok;
}
