/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <string.h>

enum {
    KEY_TEXT = 'f',
    KEY_MODEL = 'm',
    KEY_CONTEXT = 'c',
    KEY_TOKENS = 'n',
    KEY_PLUGIN = 256,
    KEY_WINDOWS,
    KEY_KV,
    KEY_THREADS,
    KEY_RING,
    KEY_BAND,
    KEY_MIN_TOKENS,
    KEY_AUDIT,
    KEY_BASELINE,
    KEY_SEED,
    KEY_JSON
};

static const struct argp_option options_table[] = {
    {"model", KEY_MODEL, "FILE", 0, "the model, in GGUF", 1},
    {"text", KEY_TEXT, "FILE", 0,
     "a text; zero bytes separate documents; may be given several times", 1},
    {"plugin", KEY_PLUGIN, "FILE", 0, "libggml-macattn.so, if it is not where it was built", 1},
    {"context", KEY_CONTEXT, "N,...", 0, "tokens of the prompt, a list (default 4k)", 2},
    {"tokens", KEY_TOKENS, "N", 0, "tokens compared after each prompt (default 256)", 2},
    {"windows", KEY_WINDOWS, "N", 0, "pieces of text used at each length, at most (default 4)", 2},
    {"kv", KEY_KV, "TYPE", 0, "type of K and V in the cache (default f16)", 2},
    {"threads", KEY_THREADS, "N", 0, "threads (default: the processors this process may use)", 2},
    {"ring", KEY_RING, "K", 0, "queries remembered (default 512)", 3},
    {"band", KEY_BAND, "R", 0,
     "newest tokens that no summary covers (default: 256 for paper, 2048 for budget)", 3},
    {"min-tokens", KEY_MIN_TOKENS, "N", 0, "shorter contexts reuse nothing (default 2048)", 3},
    {"audit-every", KEY_AUDIT, "N", 0,
     "compute every n-th step of a layer exactly as well, for the errors of heads (default 8; 0 = "
     "none)",
     4},
    {"baseline", KEY_BASELINE, "NAME", 0,
     "what is taken as right: exact (macattn's, default) or ggml (llama.cpp's own)", 4},
    {"seed", KEY_SEED, "N", 0, "of what is drawn at random (default 1)", 4},
    {"json", KEY_JSON, "FILE", 0, "write one JSON object a row to this file as well", 5},
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
    case KEY_KV:
        if (!parse_kv(arg, &o->kv) || o->kv.k == MACATTN_DTYPE_F8_E4M3 ||
            o->kv.v == MACATTN_DTYPE_F8_E4M3) {
            argp_error(state, "--kv does not take '%s'", arg);
        }
        return 0;
    case KEY_THREADS: integer(state, "threads", arg, 1, 1024, &o->n_threads); return 0;
    case KEY_RING: integer(state, "ring", arg, 1, 4096, &o->ring); return 0;
    case KEY_BAND: integer(state, "band", arg, 1, most, &o->band); return 0;
    case KEY_MIN_TOKENS: integer(state, "min-tokens", arg, 0, most, &o->min_tokens); return 0;
    case KEY_AUDIT: integer(state, "audit-every", arg, 0, most, &o->audit_every); return 0;
    case KEY_BASELINE: parse_baseline(state, o, arg); return 0;
    case KEY_SEED: integer(state, "seed", arg, 0, most, &o->seed); return 0;
    case KEY_JSON: o->json = arg; return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

const struct argp eval_common_argp = {options_table, parse_option, NULL, NULL, NULL, NULL, NULL};

void eval_common_defaults(eval_common *common)
{
    *common = (eval_common){.contexts = {.values = {4096}, .n = 1},
                            .n_tokens = 256,
                            .n_windows = 4,
                            .n_threads = -1,
                            .ring = -1,
                            .band = -1,
                            .min_tokens = -1,
                            .audit_every = 8,
                            .seed = 1,
                            .kv = {MACATTN_DTYPE_F16, MACATTN_DTYPE_F16}};
}
