/* SPDX-License-Identifier: Apache-2.0 */
#include "eval_options.h"

#include <errno.h>
#include <stdlib.h>
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
    if (!tool_parse_int(arg, min, max, value)) {
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
        if (!tool_parse_int_list(arg, 1, most, &o->contexts)) {
            argp_error(state, "--context does not take '%s'", arg);
        }
        return 0;
    case KEY_TOKENS: integer(state, "tokens", arg, 2, most, &o->n_tokens); return 0;
    case KEY_WINDOWS: integer(state, "windows", arg, 1, EVAL_MAX_WINDOWS, &o->n_windows); return 0;
    case KEY_KV:
        if (!tool_parse_kv(arg, &o->kv) || o->kv.k == MACATTN_DTYPE_F8_E4M3 ||
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

/* --------------------------------------------------------------------------------------- bench -- */

static int64_t longest(const eval_common *common)
{
    int64_t n = 0;
    for (int i = 0; i < common->contexts.n; i++) {
        n = common->contexts.values[i] > n ? common->contexts.values[i] : n;
    }
    return n + common->n_tokens + 1;
}

void eval_bench_open(eval_bench *bench, const eval_common *common)
{
    *bench = (eval_bench){.common = common, .table = {.columns = eval_columns}};
    if (!common->model) {
        tool_die(TOOL_USAGE, "--model is missing: a GGUF file");
    }
    if (common->json) {
        bench->json = fopen(common->json, "w");
        if (!bench->json) {
            tool_die(TOOL_FAILED, "cannot write %s: %s", common->json, strerror(errno));
        }
    }
    machine_describe(&bench->machine);
    const eval_model_config config = {.model = common->model,
                                      .plugin = common->plugin,
                                      .kv = common->kv,
                                      .n_threads = common->n_threads > 0 ? (int)common->n_threads
                                                                         : bench->machine.n_cpus,
                                      .n_tokens = longest(common),
                                      .with_ggml = common->ggml_baseline};
    bench->model = eval_model_open(&config);
    for (int i = 0; i < common->n_texts; i++) {
        eval_text_add_file(&bench->text, bench->model, common->texts[i]);
    }
    if (common->n_texts == 0) {
        eval_text_add_sample(&bench->text, bench->model, longest(common), (uint64_t)common->seed);
    }
}

void eval_bench_close(eval_bench *bench)
{
    eval_text_free(&bench->text);
    eval_model_close(bench->model);
    if (bench->json && fclose(bench->json) != 0) {
        tool_die(TOOL_FAILED, "cannot write %s: %s", bench->common->json, strerror(errno));
    }
}

const char *eval_bench_text(const eval_bench *bench)
{
    if (bench->common->n_texts == 0) {
        return "sampled from the model";
    }
    const char *slash = strrchr(bench->common->texts[0], '/');
    return slash ? slash + 1 : bench->common->texts[0];
}

macattn_ggml_options eval_bench_options(const eval_bench *bench)
{
    const eval_common *common = bench->common;
    macattn_ggml_options options = eval_model_options(bench->model);
    options.audit_every = (int32_t)common->audit_every;
    options.ring = common->ring > 0 ? (int32_t)common->ring : options.ring;
    options.band = common->band > 0 ? (int32_t)common->band : options.band;
    options.min_tokens = common->min_tokens >= 0 ? common->min_tokens : options.min_tokens;
    return options;
}

eval_result *eval_bench_measure(eval_bench *bench, eval_plan *plan,
                                const macattn_ggml_options *settings, int n_settings)
{
    eval_window windows[EVAL_MAX_WINDOWS];
    const int64_t length = plan->context + plan->n_tokens + 1;
    const int n = eval_text_windows(&bench->text, length, windows, (int)bench->common->n_windows);
    if (n == 0) {
        tool_die(TOOL_FAILED,
                 "no document has the %lld tokens that --context %lld --tokens %lld take",
                 (long long)length, (long long)plan->context, (long long)plan->n_tokens);
    }
    eval_result *results = tool_alloc((size_t)n_settings * sizeof *results);
    for (int w = 0; w < n; w++) {
        char what[64];
        snprintf(what, sizeof what, "context %lld, window %d of %d", (long long)plan->context,
                 w + 1, n);
        plan->what = what;
        eval_run_window(bench->model, plan, &windows[w], settings, n_settings, results);
    }
    plan->what = NULL;
    return results;
}

static const char *chosen_isa(void)
{
    int i = 0;
    while (macattn_isa_name(i) && !macattn_isa_supported(macattn_isa_name(i))) {
        i++;
    }
    return macattn_isa_name(i);
}

void eval_write_row(FILE *json, const char *path, const cJSON *row)
{
    char *text = cJSON_PrintUnformatted(row);
    if (!text || fprintf(json, "%s\n", text) < 0 || fflush(json) != 0) {
        tool_die(TOOL_FAILED, "cannot write %s: %s", path, strerror(errno));
    }
    cJSON_free(text);
}

void eval_bench_row(eval_bench *bench, const eval_plan *plan, const macattn_ggml_options *setting,
                    const eval_result *result)
{
    char dtype[16];
    cJSON *row = eval_result_row(bench->model, plan, setting, result);
    report_add_text(row, "dtype", tool_kv_name(bench->common->kv, dtype));
    report_add_text(row, "machine", bench->machine.cpu);
    report_add_text(row, "text", eval_bench_text(bench));
    report_add_machine(row, &bench->machine, chosen_isa());
    if (bench->json) eval_write_row(bench->json, bench->common->json, row);
    report_print(&bench->table, row);
}
