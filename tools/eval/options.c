/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <string.h>

#include "common/machine.h"
#include "common/report.h"
#include "common/say.h"

enum {
    KEY_TEXT = 'f',
    KEY_MODEL = 'm',
    KEY_CONTEXT = 'c',
    KEY_TOKENS = 'n',
    KEY_PLUGIN = 256,
    KEY_WINDOWS,
    KEY_AUDIT,
    KEY_BASELINE,
    KEY_SEED,
    KEY_JSON,
    KEY_PROGRESS,
    KEY_CHAT
};

static const struct argp_option options_table[] = {
    {"model", KEY_MODEL, "FILE", 0, "the model, in GGUF", 1},
    {"text", KEY_TEXT, "FILE", 0,
     "a text; zero bytes separate documents; may be given several times", 1},
    {"plugin", KEY_PLUGIN, "FILE", 0, "libggml-macattn.so, if it is not where it was built", 1},
    {"context", KEY_CONTEXT, "N,...", 0, "tokens of the prompt, a list (default 4k)", 2},
    {"tokens", KEY_TOKENS, "N", 0, "tokens compared after each prompt (default 256)", 2},
    {"windows", KEY_WINDOWS, "N", 0, "pieces of text used at each length, at most (default 4)", 2},
    {"chat", KEY_CHAT, NULL, 0,
     "put each text, or question of a task, into a user's message by the model's own chat "
     "template; "
     "what is compared is then the model's own answer",
     2},
    {"audit-every", KEY_AUDIT, "N", 0,
     "compute every n-th step of a layer exactly as well, for the errors of heads (default 8; 0 = "
     "none)",
     4},
    {"baseline", KEY_BASELINE, "NAME", 0,
     "what is taken as right: exact (macattn's, default) or ggml (llama.cpp's own)", 4},
    {"seed", KEY_SEED, "N", 0, "of what is drawn at random (default 1; with --tasks 42)", 4},
    {"json", KEY_JSON, "FILE", 0, "write one JSON object a row to this file as well", 5},
    {"progress", KEY_PROGRESS, "S", 0,
     "where standard error is no terminal, a line of progress every S seconds (default 60; 0 = "
     "none)",
     5},
    /* argp's own --program-name would make these ambiguous. */
    {"progr", 0, NULL, OPTION_ALIAS | OPTION_HIDDEN, NULL, 0},
    {"prog", 0, NULL, OPTION_ALIAS | OPTION_HIDDEN, NULL, 0},
    {0}};

static void integer(struct argp_state *state, const char *name, const char *arg, int64_t min,
                    int64_t max, int64_t *value)
{
    if (!parse_int(arg, min, max, value)) {
        argp_error(state, "--%s does not take '%s'", name, arg);
    }
}

static void add_text(struct argp_state *state, eval_common *o, const char *arg)
{
    if (o->n_texts == EVAL_MAX_FILES) {
        argp_error(state, "--text: more than %d files", EVAL_MAX_FILES);
    } else {
        o->texts[o->n_texts++] = arg;
    }
}

static void parse_baseline(struct argp_state *state, eval_common *o, const char *arg)
{
    o->ggml_baseline = strcmp(arg, "ggml") == 0;
    if (!o->ggml_baseline && strcmp(arg, "exact") != 0) {
        argp_error(state, "--baseline does not take '%s'", arg);
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    eval_common *o = state->input;
    const int64_t most = (int64_t)1 << 24;
    switch (key) {
    case KEY_MODEL: o->model = arg; return 0;
    case KEY_TEXT: add_text(state, o, arg); return 0;
    case KEY_PLUGIN: o->plugin = arg; return 0;
    case KEY_CONTEXT:
        if (!parse_int_list(arg, 1, most, &o->contexts)) {
            argp_error(state, "--context does not take '%s'", arg);
        }
        return 0;
    case KEY_TOKENS: integer(state, "tokens", arg, 2, most, &o->n_tokens); return 0;
    case KEY_WINDOWS: integer(state, "windows", arg, 1, EVAL_MAX_WINDOWS, &o->n_windows); return 0;
    case KEY_AUDIT: integer(state, "audit-every", arg, 0, most, &o->audit_every); return 0;
    case KEY_BASELINE: parse_baseline(state, o, arg); return 0;
    case KEY_SEED: integer(state, "seed", arg, 0, most, &o->seed); return 0;
    case KEY_CHAT: o->chat = true; return 0;
    case KEY_JSON: o->json = arg; return 0;
    case KEY_PROGRESS:
        if (!parse_real(arg, 0.0, 1e6, &o->progress)) {
            argp_error(state, "--progress does not take '%s'", arg);
        }
        return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

const struct argp eval_common_argp = {options_table, parse_option, NULL, NULL, NULL, NULL, NULL};

void eval_common_init(eval_common *common, uint32_t taken, uint32_t lists, macattn_policy policy)
{
    *common = (eval_common){
        .n_tokens = -1, .n_windows = -1, .audit_every = -1, .seed = -1, .progress = 60.0};
    setting_options_init(&common->settings, taken, lists, policy);
}

const char *eval_common_given(const eval_common *common)
{
    return common->n_texts > 0        ? "text"
           : common->contexts.n > 0   ? "context"
           : common->n_tokens >= 0    ? "tokens"
           : common->n_windows >= 0   ? "windows"
           : common->audit_every >= 0 ? "audit-every"
           : common->ggml_baseline    ? "baseline"
                                      : NULL;
}

void eval_common_complete(eval_common *common, int64_t context)
{
    if (!common->model) die(EXIT_USAGE, "--model is missing: a GGUF file");
    if (common->contexts.n == 0) common->contexts = (int_list){.values = {context}, .n = 1};
    if (common->n_tokens < 0) common->n_tokens = 256;
    if (common->n_windows < 0) common->n_windows = 4;
    if (common->audit_every < 0) common->audit_every = 8;
    if (common->seed < 0) common->seed = 1;
    report_progress_every(common->progress);
}

kv_types eval_common_kv(const eval_common *common)
{
    const kv_types f16 = {MACATTN_DTYPE_F16, MACATTN_DTYPE_F16};
    const kv_types kv = common->settings.n_kv > 0 ? common->settings.kv[0] : f16;
    if (kv.k == MACATTN_DTYPE_F8_E4M3 || kv.v == MACATTN_DTYPE_F8_E4M3) {
        die(EXIT_USAGE, "llama.cpp keeps no K and V in f8_e4m3");
    }
    return kv;
}

int eval_common_threads(const eval_common *common)
{
    const int n = (int)setting_options_value(&common->settings, OPTION_THREADS, 0);
    machine_info machine;
    if (n > 0) return n;
    machine_describe(&machine);
    return machine.n_cpus;
}

void eval_common_apply(const eval_common *common, macattn_ggml_options *options)
{
    const setting_options *s = &common->settings;
    options->ring = (int32_t)setting_options_value(s, OPTION_RING, options->ring);
    options->band = (int32_t)setting_options_value(s, OPTION_BAND, options->band);
    options->fresh_tokens = (int32_t)setting_options_value(s, OPTION_FRESH, options->fresh_tokens);
    options->lse_order = (int32_t)setting_options_value(s, OPTION_LSE_ORDER, options->lse_order);
    options->select = (int32_t)setting_options_value(s, OPTION_SELECT, options->select);
    options->min_tokens =
        (int64_t)setting_options_value(s, OPTION_MIN_TOKENS, (double)options->min_tokens);
}

void eval_common_resolve(macattn_ggml_options *options)
{
    if (options->ring == 0) options->ring = MACATTN_DEFAULT_RING(options->policy);
    if (options->band == 0) options->band = MACATTN_DEFAULT_BAND(options->policy);
}
