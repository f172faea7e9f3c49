/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn tune`: which settings save most in a model, of those that keep its predictions. */
#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "commit.h"
#include "common/parse.h"
#include "common/say.h"
#include "session.h"
#include "tune_scale.h"

#define MAX_CANDIDATES 64
#define N(array) (int)(sizeof array / sizeof array[0])

typedef struct tune_arguments {
    eval_common common;
    double kl, top1; /* what is asked of the predictions */
    double gain;     /* the least share of K and V's bytes worth the trouble */
    bool one_budget; /* for all heads */
    const char *output;
} tune_arguments;

enum { KEY_KL = 512, KEY_TOP1, KEY_GAIN, KEY_ONE_BUDGET, KEY_OUTPUT = 'o' };

static const struct argp_option options_table[] = {
    {"kl", KEY_KL, "X", 0, "largest mean KL divergence allowed, in nats (default 1e-4)", 6},
    {"top1", KEY_TOP1, "X", 0, "least share of equal most likely tokens (default 0.999)", 6},
    {"gain", KEY_GAIN, "X", 0,
     "least share of the KV cache's bytes that has to be saved (default 0.05)", 6},
    {"one-budget", KEY_ONE_BUDGET, NULL, 0,
     "do not measure how much each layer's KV heads matter (one more measurement for each)", 6},
    {"output", KEY_OUTPUT, "FILE", 0,
     "the configuration that the plug-in reads as MACATTN_CONFIG (default macattn-config.json)", 7},
    {0}};

static void real(struct argp_state *state, const char *name, const char *arg, double max,
                 double *value)
{
    if (!parse_real(arg, 0.0, max, value)) {
        argp_error(state, "--%s does not take '%s'", name, arg);
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    tune_arguments *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &o->common;
        state->child_inputs[1] = &o->common.settings;
        return 0;
    case KEY_KL: real(state, "kl", arg, 1000.0, &o->kl); return 0;
    case KEY_TOP1: real(state, "top1", arg, 1.0, &o->top1); return 0;
    case KEY_GAIN: real(state, "gain", arg, 1.0, &o->gain); return 0;
    case KEY_ONE_BUDGET: o->one_budget = true; return 0;
    case KEY_OUTPUT: o->output = arg; return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

/* -------------------------------------------------------------------------------- candidates -- */

/* A setting, and what it gave at all lengths. */
typedef struct candidate {
    macattn_ggml_options options;
    bool measured, faithful;     /* at every length */
    double saved, skipped, hits; /* means over the lengths */
    double kl, top1;             /* the worst length's */
    double kl_floor, top1_floor;
    int64_t tokens;
} candidate;

typedef struct search {
    const tune_arguments *arguments;
    eval_session session;
    candidate candidates[MAX_CANDIDATES];
    int n;
    tune_scale scale;
} search;

static void add(search *s, macattn_ggml_options options)
{
    if (s->n < MAX_CANDIDATES) {
        s->candidates[s->n++] = (candidate){.options = options, .faithful = true};
    }
}

/* What is asked is what reuse may add to what rounding alone makes of the same model: any other
 * rounding, however slight, makes about that, and small independent divergences add up. */
static bool is_faithful(const tune_arguments *o, const eval_result *r)
{
    const double kl_floor = metrics_kl_mean(&r->floor), top1_floor = metrics_agreement(&r->floor);
    const double kl = o->kl + (isnan(kl_floor) ? 0.0 : kl_floor);
    const double top1 = o->top1 - (isnan(top1_floor) ? 0.0 : 1.0 - top1_floor);
    return metrics_kl_mean(&r->all) <= kl && metrics_agreement(&r->all) >= top1;
}

static void note(candidate *c, const tune_arguments *o, const eval_result *r)
{
    const double share = 1.0 / o->common.contexts.n;
    const double top1 = metrics_agreement(&r->all), top1_floor = metrics_agreement(&r->floor);
    c->faithful = c->faithful && is_faithful(o, r);
    c->saved += share * (1.0 - eval_result_read(r));
    c->skipped += share * eval_result_skipped(r);
    c->hits += share * eval_result_hit_ratio(r);
    c->kl = fmax(c->kl, metrics_kl_mean(&r->all));
    c->top1 = c->tokens ? fmin(c->top1, top1) : top1;
    c->kl_floor = fmax(c->kl_floor, metrics_kl_mean(&r->floor));
    c->top1_floor = c->tokens ? fmin(c->top1_floor, top1_floor) : top1_floor;
    c->tokens += (int64_t)r->all.kl.n;
}

/* Measure what has not been measured. */
static void measure(search *s)
{
    const eval_common *common = &s->arguments->common;
    macattn_ggml_options settings[MAX_CANDIDATES];
    candidate *of[MAX_CANDIDATES];
    int n = 0;
    for (int i = 0; i < s->n; i++) {
        if (!s->candidates[i].measured) {
            settings[n] = s->candidates[i].options;
            of[n++] = &s->candidates[i];
        }
    }
    for (int c = 0; c < common->contexts.n && n > 0; c++) {
        eval_plan plan = {.context = common->contexts.values[c],
                          .n_tokens = common->n_tokens,
                          .ggml_baseline = common->ggml_baseline,
                          .chat = common->chat,
                          .seed = (uint64_t)common->seed};
        eval_result *results = eval_session_measure(&s->session, &plan, settings, n, true);
        for (int i = 0; i < n; i++) {
            note(of[i], s->arguments, &results[i]);
            of[i]->measured = true;
            eval_result_free(&results[i]);
        }
        free(results);
    }
}

/* The faithful candidate that saves most; NULL if none is faithful. */
static const candidate *best(const search *s)
{
    const candidate *found = NULL;
    for (int i = 0; i < s->n; i++) {
        const candidate *c = &s->candidates[i];
        if (c->faithful && (!found || c->saved > found->saved)) {
            found = c;
        }
    }
    return found;
}

static void add_budgets(search *s, macattn_ggml_options options)
{
    static const float budgets[] = {0.005f, 0.01f, 0.02f, 0.03f, 0.05f, 0.1f};
    options.policy = MACATTN_POLICY_BUDGET;
    eval_common_resolve(&options);
    for (int i = 0; i < N(budgets); i++) {
        options.budget = budgets[i];
        add(s, options);
    }
}

static void add_policies(search *s)
{
    static const float taus[] = {0.45f, 0.6f, 0.7f, 0.8f, 0.9f, 0.95f};
    macattn_ggml_options options = eval_session_options(&s->session);
    options.policy = MACATTN_POLICY_PAPER;
    eval_common_resolve(&options);
    for (int i = 0; i < N(taus); i++) {
        options.tau = taus[i];
        add(s, options);
    }
    add_budgets(s, eval_session_options(&s->session));
}

/* The same budgets, divided among the heads by how much they matter. */
static void add_scaled(search *s)
{
    const eval_common *common = &s->arguments->common;
    macattn_ggml_options options = eval_session_options(&s->session);
    const eval_plan plan = {.context = common->contexts.values[common->contexts.n - 1],
                            .n_tokens = common->n_tokens,
                            .ggml_baseline = common->ggml_baseline,
                            .chat = common->chat,
                            .seed = (uint64_t)common->seed};
    if (s->arguments->one_budget) {
        return;
    }
    options.policy = MACATTN_POLICY_BUDGET;
    eval_common_resolve(&options);
    s->scale = tune_scale_measure(&s->session, &plan, &options);
    if (s->scale.at) {
        options.budget_scale = s->scale.at;
        options.scale_layers = s->scale.n_layers;
        options.scale_heads = s->scale.n_heads;
        add_budgets(s, options);
    }
}

/* The best so far with other values of a field, an int32_t. What the command line says is kept. */
static void add_others(search *s, setting_option option, size_t field, const int32_t *values, int n)
{
    const candidate *c = best(s);
    const bool given = s->arguments->common.settings.values[option].n > 0;
    for (int i = 0; c && !given && i < n; i++) {
        macattn_ggml_options options = c->options;
        int32_t *value = (int32_t *)(void *)((char *)&options + field);
        if (*value != values[i]) {
            *value = values[i];
            add(s, options);
        }
    }
}

/* -------------------------------------------------------------------------------- conclusion -- */

static void add_model(cJSON *config, const eval_model *m)
{
    const macattn_ggml_interface *plugin = eval_model_plugin(m);
    const int32_t n = plugin->n_layers(eval_model_attention(m));
    macattn_ggml_layer first = {.struct_size = sizeof first};
    bool alike = true;
    plugin->layer(eval_model_attention(m), 0, &first);
    for (int32_t l = 1; l < n; l++) {
        macattn_ggml_layer other = {.struct_size = sizeof other};
        plugin->layer(eval_model_attention(m), l, &other);
        alike = alike && other.n_heads == first.n_heads && other.n_kv_heads == first.n_kv_heads &&
                other.head_dim == first.head_dim;
    }
    cJSON *model = report_row();
    report_add_text(model, "name", eval_model_name(m));
    report_add_int(model, "layers", n);
    if (alike) { /* else the number of layers has to do */
        report_add_int(model, "heads", first.n_heads);
        report_add_int(model, "kv_heads", first.n_kv_heads);
        report_add_int(model, "head_dim", first.head_dim);
    }
    cJSON_AddItemToObject(config, "model", model);
}

static cJSON *evidence(const search *s, const candidate *c, const char *conclusion)
{
    const tune_arguments *o = s->arguments;
    cJSON *row = report_row();
    report_add_text(row, "conclusion", conclusion);
    report_add_real(row, "kl_allowed", o->kl);
    report_add_real(row, "top1_asked", o->top1);
    report_add_real(row, "gain_asked", o->gain);
    cJSON *contexts = cJSON_AddArrayToObject(row, "contexts");
    for (int i = 0; contexts && i < o->common.contexts.n; i++) {
        cJSON_AddItemToArray(contexts, cJSON_CreateNumber((double)o->common.contexts.values[i]));
    }
    report_add_text(row, "text", eval_session_text(&s->session));
    report_add_int(row, "settings_tried", s->n);
    if (c) {
        report_add_int(row, "tokens", c->tokens);
        report_add_real(row, "kl_mean", c->kl);
        report_add_real(row, "kl_floor", c->kl_floor);
        report_add_real(row, "top1_agreement", c->top1);
        report_add_real(row, "top1_floor", c->top1_floor);
        report_add_real(row, "hit_ratio", c->hits);
        report_add_real(row, "bytes_skipped", c->skipped);
        report_add_real(row, "bytes_saved", c->saved);
    }
    report_add_text(row, "version", macattn_version());
    report_add_text(row, "commit", MACATTN_COMMIT);
    report_add_text(row, "machine", s->session.machine.cpu);
    return row;
}

/* A list of lists: [layer][head]. */
static void add_scale(cJSON *config, const macattn_ggml_options *options)
{
    cJSON *layers = cJSON_AddArrayToObject(config, "budget_scale");
    for (int32_t l = 0; l < options->scale_layers; l++) {
        cJSON *heads = cJSON_CreateArray();
        for (int32_t h = 0; h < options->scale_heads; h++) {
            const double x = (double)options->budget_scale[l * options->scale_heads + h];
            cJSON_AddItemToArray(heads, cJSON_CreateNumber(round(x * 1e3) / 1e3));
        }
        cJSON_AddItemToArray(layers, heads);
    }
}

static void write_config(const search *s, const candidate *c, bool pays, const char *conclusion)
{
    cJSON *config = report_row();
    report_add_int(config, "macattn_config", 1);
    add_model(config, s->session.model);
    report_add_text(config, "policy", pays ? macattn_policy_name(c->options.policy) : "exact");
    if (pays) {
        report_add_real(config, c->options.policy == MACATTN_POLICY_PAPER ? "tau" : "budget",
                        eval_setting_value(&c->options));
        if (c->options.policy == MACATTN_POLICY_BUDGET && c->options.budget_scale) {
            add_scale(config, &c->options);
        }
        report_add_int(config, "ring", c->options.ring);
        report_add_int(config, "band", c->options.band);
        report_add_int(config, "fresh_tokens", c->options.fresh_tokens);
        report_add_int(config, "lse_order", c->options.lse_order);
        report_add_int(config, "select", c->options.select);
        report_add_int(config, "min_tokens", c->options.min_tokens);
    }
    cJSON_AddItemToObject(config, "evidence", evidence(s, c, conclusion));
    char *text = cJSON_Print(config);
    FILE *f = fopen(s->arguments->output, "w");
    if (!text || !f || fprintf(f, "%s\n", text) < 0 || fclose(f) != 0) {
        die(EXIT_FAILED, "cannot write %s: %s", s->arguments->output, strerror(errno));
    }
    cJSON_free(text);
    cJSON_Delete(config);
}

static void conclude(const search *s)
{
    const tune_arguments *o = s->arguments;
    const candidate *c = best(s);
    const bool pays = c && c->saved >= o->gain;
    char sentence[512];
    if (pays) {
        snprintf(sentence, sizeof sentence,
                 "%s %g with ring %d, band %d saves %.1f %% of the KV cache's bytes; mean KL %.2g, "
                 "top-1 "
                 "%.4f (rounding alone: %.2g, %.4f)",
                 macattn_policy_name(c->options.policy), eval_setting_value(&c->options),
                 (int)c->options.ring, (int)c->options.band, 100.0 * c->saved, c->kl, c->top1,
                 c->kl_floor, c->top1_floor);
    } else if (c) {
        snprintf(
            sentence, sizeof sentence,
            "reuse does not pay on this model and text: the best setting within what is asked, %s "
            "%g, saves %.1f %% of the KV cache's bytes, less than %.1f %%; exact it is",
            macattn_policy_name(c->options.policy), eval_setting_value(&c->options),
            100.0 * c->saved, 100.0 * o->gain);
    } else {
        snprintf(
            sentence, sizeof sentence,
            "reuse does not pay on this model and text: no setting keeps a mean KL of %g and a "
            "top-1 of %g beyond what rounding alone makes; exact it is",
            o->kl, o->top1);
    }
    write_config(s, c, pays, sentence);
    printf("\n%s\nwritten: %s (use it with MACATTN_CONFIG)\n", sentence, o->output);
}

/* Rather now than after hours of measuring. */
static void check_output(const char *path)
{
    FILE *f = fopen(path, "a");
    if (!f || fclose(f) != 0) {
        die(EXIT_FAILED, "cannot write %s: %s", path, strerror(errno));
    }
}

static void tune(const tune_arguments *o)
{
    static const int32_t rings[] = {64, 128, 256, 512, 1024, 2048};
    static const int32_t bands[] = {128, 256, 512, 1024, 2048, 4096};
    static search s;
    s.arguments = o;
    check_output(o->output);
    eval_session_open(&s.session, &o->common);
    add_policies(&s);
    measure(&s);
    add_scaled(&s);
    measure(&s);
    add_others(&s, OPTION_RING, offsetof(macattn_ggml_options, ring), rings, N(rings));
    measure(&s);
    add_others(&s, OPTION_BAND, offsetof(macattn_ggml_options, band), bands, N(bands));
    measure(&s);
    conclude(&s);
    tune_scale_free(&s.scale);
    eval_session_close(&s.session);
}

int command_tune(int argc, char **argv)
{
    tune_arguments o = {.kl = 1e-4, .top1 = 0.999, .gain = 0.05, .output = "macattn-config.json"};
    eval_common_init(&o.common,
                     1 << OPTION_RING | 1 << OPTION_BAND | 1 << OPTION_FRESH |
                         1 << OPTION_LSE_ORDER | 1 << OPTION_SELECT | 1 << OPTION_MIN_TOKENS |
                         1 << OPTION_THREADS | 1 << OPTION_KV,
                     0, MACATTN_POLICY_BUDGET);
    const struct argp settings = setting_options_argp(&o.common.settings);
    const struct argp_child children[] = {
        {&eval_common_argp, 0, NULL, 0}, {&settings, 0, NULL, 3}, {0}};
    const struct argp argp = {
        options_table,
        parse_option,
        NULL,
        "\nFind the settings that save most in a model, of those that keep its predictions, and "
        "write them to a file for the plug-in. Without --text the model writes a text itself.",
        children,
        NULL,
        NULL};
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &o);
    eval_common_complete(&o.common, 8192);
    tune(&o);
    return EXIT_OK;
}
