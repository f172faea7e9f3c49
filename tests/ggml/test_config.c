/* SPDX-License-Identifier: Apache-2.0 */
/* The plug-in's configuration file: what is taken from it, that the environment overrides it,
 * and that a file which makes no sense, or is cut or damaged anywhere, changes nothing.  usage:
 * test_config FILE */
#include "settings/config.h"
#include "settings/environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *path;
static int failures;

static void expect(bool ok, const char *what)
{
    if (ok) return;
    printf("FAILED: %s\n", what);
    failures++;
}

static const char good[] =
    "{\"macattn_config\": 1,\n"
    " \"model\": {\"name\": \"a \\\"b\\\"\", \"layers\": 1, \"heads\": 8, \"kv_heads\": 2, "
    "\"head_dim\": 64},\n"
    " \"policy\": \"paper\", \"tau\": 0.75, \"budget\": 1e-3,\n"
    " \"budget_scale\": [[1, 2, 0.5, 1, 1, 1, 1, 1.0]],\n"
    " \"ring\": 128, \"band\": 64, \"min_tokens\": 1024,\n"
    " \"fresh_tokens\": 2, \"lse_order\": 0,\n"
    " \"evidence\": {\"list\": [1, -2.5e3, {}, [], [null, true, false]], \"text\": \"\\u00e4\"}}\n";

static bool read_text(const char *text, size_t bytes, plugin_settings *options)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(text, 1, bytes, f) != bytes || fclose(f) != 0) {
        perror(path);
        exit(1);
    }
    return config_read(path, options);
}

static plugin_settings start;

static void make_start(void)
{
    start = settings_defaults();
    start.config.tau = 0.5f;
    start.config.ring = 7;
    start.config.policy = MACATTN_POLICY_BUDGET;
}

static void takes_all(void)
{
    plugin_settings o = start;
    expect(read_text(good, strlen(good), &o), "the good file is read");
    expect(o.config.policy == MACATTN_POLICY_PAPER && o.config.tau == 0.75f &&
               o.config.budget == 1e-3f,
           "policy");
    expect(o.config.ring == 128 && o.config.band == 64 && o.config.min_tokens == 1024, "sizes");
    expect(o.config.fresh_tokens == 2 && o.config.lse_order == 0, "first tokens, order of the lse");
    expect(o.model.n_layers == 1 && o.model.n_heads == 8 && o.model.n_kv_heads == 2 &&
               o.model.head_dim == 64 && strcmp(o.model.name, "a \"b\"") == 0,
           "model");
    expect(o.scale_layers == 1 && o.scale_heads == 8 && o.file_scale[2] == 0.5f, "budget_scale");
    free(o.file_scale);
}

static void keeps_what_is_not_there(void)
{
    static const char text[] = "{\"macattn_config\": 1}";
    plugin_settings o = start;
    expect(read_text(text, strlen(text), &o), "a file with the version only");
    expect(memcmp(&o, &start, sizeof o) == 0, "nothing has changed");
}

static void refuses(void)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"macattn_config\": 2}",
        "{\"macattn_config\": 1, \"tau\": 1.5}",
        "{\"macattn_config\": 1, \"tau\": \"0.5\"}",
        "{\"macattn_config\": 1, \"tau\": NaN}",
        "{\"macattn_config\": 1, \"tau\": 1e999}",
        "{\"macattn_config\": 1, \"tau\": --1}",
        "{\"macattn_config\": 1, \"ring\": 1.5}",
        "{\"macattn_config\": 1, \"ring\": -1}",
        "{\"macattn_config\": 1, \"band\": 99999999999}",
        "{\"macattn_config\": 1, \"policy\": \"fastest\"}",
        "{\"macattn_config\": 1, \"polcy\": \"paper\"}",
        "{\"macattn_config\": 1, \"ring\": 256, \"ring\": 512}",
        "{\"macattn_config\": 1, \"macattn_config\": 1}",
        "{\"macattn_config\": 1, \"model\": {\"layers\": 2, \"layers\": 2}}",
        "{\"macattn_config\": 1, \"model\": {\"width\": 3}}",
        "{\"macattn_config\": 1, \"model\": 3}",
        "{\"macattn_config\": 1, \"budget_scale\": []}",
        "{\"macattn_config\": 1, \"budget_scale\": [[]]}",
        "{\"macattn_config\": 1, \"budget_scale\": [[1, 2], [1]]}",
        "{\"macattn_config\": 1, \"budget_scale\": [[1, -2]]}",
        "{\"macattn_config\": 1, \"budget_scale\": [1, 2]}",
        "{\"macattn_config\": 1, \"budget_scale\": [[1]], \"budget_scale\": [[1]]}",
        "{\"macattn_config\": 1, \"budget_scale\": [[1]], \"model\": {\"layers\": 2}}",
        "{\"macattn_config\": 1,}",
        "{\"macattn_config\": 1} x",
        "{\"macattn_config\" 1}",
        "{\"macattn_config\": 1, \"evidence\": [1 2]}",
        "{\"macattn_config\": 1, \"evidence\": nul}",
        "{\"macattn_config\": 1, \"evidence\": \"\n\"}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        plugin_settings o = start;
        expect(!read_text(bad[i], strlen(bad[i]), &o), bad[i]);
        expect(memcmp(&o, &start, sizeof o) == 0, "a refused file changes nothing");
    }
    plugin_settings o = start;
    expect(!config_read("/nonexistent/macattn", &o), "a file that is not there");
    expect(!config_read("/", &o), "a folder");
}

static void nested_too_deeply(void)
{
    char text[100000];
    const size_t n = (size_t)snprintf(text, sizeof text, "{\"macattn_config\": 1, \"evidence\": ");
    memset(text + n, '[', sizeof text - n);
    plugin_settings o = start;
    expect(!read_text(text, sizeof text, &o), "nested too deeply");
}

/* Cut anywhere it is refused; damaged anywhere it is refused or read, and nothing else happens. */
static void cut_and_damaged(void)
{
    char text[sizeof good];
    for (size_t n = 0; n + 2 < sizeof good; n++) {
        plugin_settings o = start;
        expect(!read_text(good, n, &o), "a cut file");
    }
    for (size_t i = 0; i < sizeof good - 1; i++) {
        static const char with[] = "\"{[,0-\x80";
        plugin_settings o = start;
        memcpy(text, good, sizeof good);
        text[i] = with[i % (sizeof with)];
        (void)read_text(text, sizeof good - 1, &o);
        expect(o.config.ring >= 0 && o.config.tau >= 0 && o.config.tau <= 1,
               "damaged, but in range");
        free(o.file_scale);
    }
}

static void environment_overrides(void)
{
    plugin_settings o;
    environment_read(&o);
    expect(read_text(good, strlen(good), &o), "the good file");
    free(o.file_scale);
    setenv("MACATTN_CONFIG", path, 1);
    setenv("MACATTN_TAU", "0.25", 1);
    setenv("MACATTN_FRESH", "6", 1); /* any setting of reuse has a variable */
    expect(environment_read(&o), "file and environment");
    expect(o.config.policy == MACATTN_POLICY_PAPER && o.config.ring == 128, "what the file says");
    expect(o.config.tau == 0.25f && o.config.fresh_tokens == 6, "what the environment says");
    free(o.file_scale);
    setenv("MACATTN_POLICY", "exact", 1);
    expect(environment_read(&o) && o.config.policy == MACATTN_POLICY_EXACT, "the policy, too");
    free(o.file_scale);
    setenv("MACATTN_CONFIG", "/nonexistent/macattn", 1);
    expect(!environment_read(&o), "a file that is not there");
}

/* What a program sets is checked against the same table; the file's factors stay whose they are. */
static void program_sets(void)
{
    static const float scale[] = {1, 2};
    char error[128] = "";
    plugin_settings o;
    make_start();
    o = start;
    expect(read_text(good, strlen(good), &o), "the good file, for a program");
    float *owned = o.file_scale;
    expect(o.scale == owned, "the file's factors are in force");
    macattn_ggml_options seen = {.struct_size = sizeof seen};
    settings_get(&o, &seen);
    expect(seen.budget_scale == owned && seen.tau == o.config.tau, "what a program sees");
    seen.ring = 5000;
    seen.tau = 0.125f;
    expect(settings_set(&o, &seen, error, sizeof error) == MACATTN_E_RANGE &&
               strcmp(error, "ring is 5000; it must be in [0, 4096]") == 0 && o.config.tau == 0.75f,
           "a ring out of range changes nothing");
    seen.ring = 64;
    seen.lse_order = 2;
    expect(settings_set(&o, &seen, error, sizeof error) == MACATTN_E_RANGE, "no such order");
    seen.lse_order = 0;
    seen.fresh_tokens = 16;
    seen.policy = (macattn_policy)7;
    expect(settings_set(&o, &seen, error, sizeof error) == MACATTN_E_RANGE, "no such policy");
    seen.policy = MACATTN_POLICY_PAPER;
    seen.budget_scale = scale;
    seen.scale_layers = 1;
    seen.scale_heads = 2;
    expect(settings_set(&o, &seen, error, sizeof error) == MACATTN_OK && o.config.ring == 64 &&
               o.config.fresh_tokens == 16 && o.config.lse_order == 0 && o.config.tau == 0.125f &&
               o.scale == scale && o.file_scale == owned,
           "what a program sets");
    free(owned);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    path = argv[1];
    unsetenv("MACATTN_POLICY");
    make_start();
    takes_all();
    keeps_what_is_not_there();
    refuses();
    nested_too_deeply();
    cut_and_damaged();
    environment_overrides();
    program_sets();
    remove(path);
    printf("%d failures\n", failures);
    return failures > 0;
}
