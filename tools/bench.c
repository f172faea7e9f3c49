/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench`: the command line, and what the benchmarks share. */
#include "bench.h"
#include "bench_cuda.h"

#include <argp.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"

#define MEMORY_LIMIT ((size_t)3 << 30) /* of K and V */
#define MIN_REPS 7
#define MAX_REPS 2000

enum option_key {
    KEY_HEADS = 256,
    KEY_HEAD_DIM,
    KEY_V_HEAD_DIM,
    KEY_KV,
    KEY_CONTEXT,
    KEY_BATCH,
    KEY_THREADS,
    KEY_PAGE_SIZE,
    KEY_QUERIES,
    KEY_SOFTCAP,
    KEY_ISA,
    KEY_HIT_RATIO,
    KEY_SELECT_SHARE,
    KEY_POLICY,
    KEY_RING,
    KEY_BAND,
    KEY_CLUSTERED,
    KEY_SCATTERED,
    KEY_REPS,
    KEY_MIN_TIME,
    KEY_WARM,
    KEY_COLD,
    KEY_HUGE,
    KEY_PEER,
    KEY_JSON,
    KEY_NO_CHECK,
    KEY_SEED,
    KEY_DEVICE
};

static const struct argp_option option_table[] = {
    {NULL, 0, NULL, 0, "Shapes; a list (a,b,c) makes a row of each:", 1},
    {"heads", KEY_HEADS, "Q/KV", 0, "query heads / KV heads, a list (32/8)", 0},
    {"head-dim", KEY_HEAD_DIM, "N", 0, "head size of q and K, a list (128)", 0},
    {"v-head-dim", KEY_V_HEAD_DIM, "N", 0, "head size of V (that of K)", 0},
    {"kv", KEY_KV, "TYPE", 0,
     "type of K and V, a list of f32, f16, bf16, q8_0, or K's/V's as in f16/q8_0 (f16); on a GPU "
     "f16, "
     "bf16, f8_e4m3",
     0},
    {"context", KEY_CONTEXT, "N", 0, "tokens in the cache, a list; 8k is 8192 (8k)", 0},
    {"batch", KEY_BATCH, "N", 0, "attend: sequences, a list (1)", 0},
    {"threads", KEY_THREADS, "N", 0, "a list (the CPUs this process may use)", 0},
    {"page-size", KEY_PAGE_SIZE, "N", 0,
     "attend: tokens a page, the pages shuffled; 0 is one contiguous run (0)", 0},
    {"queries", KEY_QUERIES, "N", 0,
     "attend: a prompt chunk of N tokens behind the context; 1 is decode (1)", 0},
    {"softcap", KEY_SOFTCAP, "X", 0, "logit soft cap (0, off)", 0},
    {"isa", KEY_ISA, "NAME", 0, "instruction set (the best this machine has)", 0},
    {NULL, 0, NULL, 0, "Reuse (mac, match):", 2},
    {"hit-ratio", KEY_HIT_RATIO, "X", 0, "share of query heads that hit, a list (0,0.5,0.95,1)", 0},
    {"select-share", KEY_SELECT_SHARE, "X", 0,
     "mac: budget, and nothing is reused: share of the runs of 16 tokens that carry the mass, a "
     "list",
     0},
    {"policy", KEY_POLICY, "NAME", 0, "paper (default), or budget, whose misses are clustered", 0},
    {"ring", KEY_RING, "K", 0, "queries remembered (mac: the first one), a list (512)", 0},
    {"band", KEY_BAND, "R", 0, "newest tokens never covered (256)", 0},
    {"scattered", KEY_SCATTERED, NULL, 0, "misses fall on any query head (default)", 0},
    {"clustered", KEY_CLUSTERED, NULL, 0, "misses fall on all query heads of a KV head", 0},
    {NULL, 0, NULL, 0, "How to measure:", 3},
    {"device", KEY_DEVICE, "NAME", 0,
     "cpu, or cuda: attend and mac on the GPU (--batch also for mac; pages of 16) (cpu)", 0},
    {"peer", KEY_PEER, "NAME", 0, "attend: measure another implementation in turns: ggml", 0},
    {"reps", KEY_REPS, "N", 0, "repetitions (as many as --min-time takes, at least 7)", 0},
    {"min-time", KEY_MIN_TIME, "S", 0, "seconds of measured calls for a row (1)", 0},
    {"cold", KEY_COLD, NULL, 0, "rotate layers so that K and V come from memory (default)", 0},
    {"warm", KEY_WARM, NULL, 0, "use one layer over and over", 0},
    {"huge-pages", KEY_HUGE, NULL, 0, "ask for huge pages for K and V", 0},
    {"no-check", KEY_NO_CHECK, NULL, 0, "do not compare with the reference first", 0},
    {"seed", KEY_SEED, "N", 0, "of the random tensors (1)", 0},
    {"json", KEY_JSON, NULL, 0, "one JSON object a row", 0},
    {0}};

static void bad_value(struct argp_state *state, const char *option, const char *arg)
{
    argp_error(state, "--%s does not take '%s'", option, arg);
}

static bool parse_heads_list(const char *arg, bench_options *options)
{
    char item[32];
    options->n_heads = 0;
    while (tool_next_item(&arg, item, sizeof item)) {
        if (options->n_heads == TOOL_LIST_MAX ||
            !tool_parse_heads(item, &options->heads[options->n_heads++])) {
            return false;
        }
    }
    return true;
}

static bool parse_kv_list(const char *arg, bench_options *options)
{
    char item[32];
    options->n_kv = 0;
    while (tool_next_item(&arg, item, sizeof item)) {
        if (options->n_kv == TOOL_LIST_MAX || !tool_parse_kv(item, &options->kv[options->n_kv++])) {
            return false;
        }
    }
    return true;
}

static bool is_isa(const char *name)
{
    for (int i = 0; macattn_isa_name(i); i++) {
        if (strcmp(macattn_isa_name(i), name) == 0) {
            return true;
        }
    }
    return false;
}

/* Options with a value. False if the value is wrong. */
static bool parse_value(int key, const char *arg, bench_options *options)
{
    const int64_t max_tokens = INT32_MAX;
    switch (key) {
    case KEY_HEADS: return parse_heads_list(arg, options);
    case KEY_HEAD_DIM: return tool_parse_int_list(arg, 8, 1024, &options->head_dim);
    case KEY_V_HEAD_DIM: return tool_parse_int(arg, 8, 1024, &options->v_head_dim);
    case KEY_KV: return parse_kv_list(arg, options);
    case KEY_CONTEXT: return tool_parse_int_list(arg, 1, max_tokens, &options->context);
    case KEY_BATCH: return tool_parse_int_list(arg, 1, 4096, &options->batch);
    case KEY_THREADS:
        options->threads_given = true;
        return tool_parse_int_list(arg, 1, 1024, &options->threads);
    case KEY_PAGE_SIZE:
        return tool_parse_int(arg, 0, 1 << 20, &options->page_size) &&
               (options->page_size & (options->page_size - 1)) == 0;
    case KEY_QUERIES: return tool_parse_int(arg, 1, 1 << 20, &options->n_queries);
    case KEY_SOFTCAP: return tool_parse_real(arg, 0.0, 1e6, &options->softcap);
    case KEY_ISA: options->isa = arg; return is_isa(arg);
    case KEY_HIT_RATIO: return tool_parse_real_list(arg, 0.0, 1.0, &options->hit_ratio);
    case KEY_SELECT_SHARE: return tool_parse_real_list(arg, 0.0, 1.0, &options->select_share);
    case KEY_POLICY:
        options->policy = strcmp(arg, "paper") == 0 ? MACATTN_POLICY_PAPER : MACATTN_POLICY_BUDGET;
        return options->policy == MACATTN_POLICY_PAPER || strcmp(arg, "budget") == 0;
    case KEY_RING: return tool_parse_int_list(arg, 2, 4096, &options->ring);
    case KEY_BAND: return tool_parse_int(arg, 1, max_tokens, &options->band);
    case KEY_REPS: return tool_parse_int(arg, 1, 1000000, &options->reps);
    case KEY_MIN_TIME: return tool_parse_real(arg, 0.0, 3600.0, &options->min_time);
    case KEY_SEED: return tool_parse_int(arg, 0, INT32_MAX, &options->seed);
    case KEY_DEVICE:
        options->cuda = strcmp(arg, "cuda") == 0;
        return options->cuda || strcmp(arg, "cpu") == 0;
    case KEY_PEER: options->peer = arg; return strcmp(arg, "ggml") == 0;
    default: return false;
    }
}

static const char *option_name(int key)
{
    for (size_t i = 0; i < sizeof option_table / sizeof option_table[0]; i++) {
        if (option_table[i].key == key && option_table[i].name) {
            return option_table[i].name;
        }
    }
    return "?";
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    bench_options *options = state->input;
    switch (key) {
    case KEY_SCATTERED:
    case KEY_CLUSTERED: options->clustered = key == KEY_CLUSTERED; return 0;
    case KEY_COLD:
    case KEY_WARM: options->warm = key == KEY_WARM; return 0;
    case KEY_HUGE: options->huge = true; return 0;
    case KEY_JSON: options->json = true; return 0;
    case KEY_NO_CHECK: options->check = false; return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: break;
    }
    if (key < KEY_HEADS || key > KEY_DEVICE) {
        return ARGP_ERR_UNKNOWN;
    }
    if (!parse_value(key, arg, options)) {
        bad_value(state, option_name(key), arg);
    }
    return 0;
}

static void default_options(bench_options *options, int n_cpus)
{
    *options = (bench_options){.n_heads = 1,
                               .heads = {{32, 8}},
                               .n_kv = 1,
                               .kv = {{MACATTN_DTYPE_F16, MACATTN_DTYPE_F16}},
                               .head_dim = {{128}, 1},
                               .context = {{8192}, 1},
                               .threads = {{n_cpus}, 1},
                               .batch = {{1}, 1},
                               .n_queries = 1,
                               .hit_ratio = {{0.0, 0.5, 0.95, 1.0}, 4},
                               .ring = {{512}, 1},
                               .policy = MACATTN_POLICY_PAPER,
                               .min_time = 1.0,
                               .check = true,
                               .seed = 1};
}

static const char bench_doc[] =
    "\nMeasure attention on random tensors laid out as in llama.cpp's cache.\v"
    "  attend  exact attention: decode, or a prompt chunk with --queries\n"
    "  mac     decode with reuse at given hit ratios, and exact attention in turns\n"
    "  match   the search of the ring alone\n\n"
    "Every shape is compared with a float64 reference before it is timed. "
    "Times are of one call for one layer.";

int command_bench(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(bench_run *run);
    } kinds[] = {{"attend", bench_attend}, {"mac", bench_mac}, {"match", bench_match}};
    const struct argp argp = {option_table, parse_option, "attend|mac|match", bench_doc, NULL,
                              NULL,         NULL};
    bench_run run = {0};
    bench_options options;
    machine_describe(&run.machine);
    default_options(&options, run.machine.n_cpus);
    run.options = &options;

    int kind = -1;
    for (int i = 0; argc > 1 && i < (int)(sizeof kinds / sizeof kinds[0]); i++) {
        if (strcmp(argv[1], kinds[i].name) == 0) {
            kind = i;
        }
    }
    if (kind >= 0) {
        /* The kind is taken out, the program's name stays. */
        argv[1] = argv[0];
        argv++;
        argc--;
    }
    argp_err_exit_status = TOOL_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &options);
    if (options.band == 0) {
        options.band = MACATTN_DEFAULT_BAND(options.policy);
    }
    if (kind < 0) {
        tool_die(TOOL_USAGE, "bench: say what: attend, mac or match (see macattn bench --help)");
    }
    run.report.json = options.json;
    const int status = options.cuda ? bench_cuda(&run, kinds[kind].name) : kinds[kind].run(&run);
    machine_team_destroy(run.team);
    return status;
}

/* ------------------------------------------------------------------------------------- rows -- */

void bench_each_shape(bench_run *run, void (*row)(bench_run *run, const bench_shape *shape))
{
    const bench_options *o = run->options;
    /* Threads first: making a team anew costs a second. */
    for (int t = 0; t < o->threads.n; t++) {
        if (!o->cuda) bench_use_team(run, (int)o->threads.values[t]);
        int total = o->n_heads * o->head_dim.n * o->n_kv * o->context.n * o->batch.n;
        for (int i = 0; i < total; i++) {
            int rest = i;
            bench_shape shape = {.threads = (int32_t)o->threads.values[t]};
            shape.context = o->context.values[rest % o->context.n];
            rest /= o->context.n;
            shape.batch = (int32_t)o->batch.values[rest % o->batch.n];
            rest /= o->batch.n;
            shape.kv = o->kv[rest % o->n_kv];
            rest /= o->n_kv;
            shape.head_dim = (int32_t)o->head_dim.values[rest % o->head_dim.n];
            rest /= o->head_dim.n;
            shape.heads = o->heads[rest];
            shape.v_head_dim = o->v_head_dim > 0 ? (int32_t)o->v_head_dim : shape.head_dim;
            run->n_rows = total * o->threads.n;
            row(run, &shape);
            run->rows_done++;
        }
    }
    report_progress_clear();
}

void bench_use_team(bench_run *run, int threads)
{
    if (run->team && run->team_threads == threads) {
        return;
    }
    report_progress("measuring the machine's read bandwidth with %d threads", threads);
    machine_team_destroy(run->team);
    run->team = machine_team_create(threads);
    run->team_threads = threads;
}

void bench_config(const bench_run *run, const bench_shape *shape, macattn_config *cfg)
{
    tool_expect(NULL, macattn_config_init(cfg), "macattn_config_init");
    cfg->n_layers = 1;
    cfg->n_heads = shape->heads.n_heads;
    cfg->n_kv_heads = shape->heads.n_kv_heads;
    cfg->head_dim = shape->head_dim;
    cfg->v_head_dim = shape->v_head_dim;
    cfg->k_dtype = shape->kv.k;
    cfg->v_dtype = shape->kv.v;
    /* Queries and keys are standard normal. Three times the usual scale gives logits the spread that
     * lets a few tokens dominate, as in a model: an average over all would hide errors. */
    cfg->scale = 3.0f / sqrtf((float)shape->head_dim);
    cfg->softcap = (float)run->options->softcap;
    cfg->n_threads = shape->threads;
    cfg->isa = run->options->isa;
}

macattn *bench_create(const macattn_config *cfg)
{
    macattn *m;
    char error[320];
    macattn_status status = macattn_create(cfg, &m, error, sizeof error);
    if (status != MACATTN_OK) {
        tool_die(TOOL_FAILED, "%s: %s", macattn_status_string(status), error);
    }
    return m;
}

bool bench_enough(const bench_run *run, int64_t reps, double spent_us)
{
    const bench_options *o = run->options;
    if (o->reps > 0) {
        return reps >= o->reps;
    }
    return reps >= MAX_REPS || (reps >= MIN_REPS && spent_us >= o->min_time * 1e6);
}

double bench_share_done(const bench_run *run, int64_t rep, double spent_us)
{
    const bench_options *o = run->options;
    if (o->reps > 0) {
        return (double)rep / (double)o->reps;
    }
    return fmin(fmin(spent_us / (o->min_time * 1e6 + 1.0), (double)rep / MIN_REPS), 1.0);
}

void bench_step_progress(const bench_run *run, const char *what, int64_t rep, double spent_us)
{
    report_progress("[%d/%d] %s %3.0f%%", run->rows_done + 1, run->n_rows, what,
                    100.0 * bench_share_done(run, rep, spent_us));
}

int32_t bench_layers(const bench_run *run, size_t bytes)
{
    if (run->options->warm || bytes == 0) {
        return 1;
    }
    size_t wanted = (MACHINE_COLD_BYTES + bytes - 1) / bytes;
    size_t room = MEMORY_LIMIT / bytes;
    size_t layers = wanted < room ? wanted : room;
    return layers < 1 ? 1 : layers > 64 ? 64 : (int32_t)layers;
}

int32_t bench_mac_ring(const bench_run *run, const bench_shape *shape)
{
    const int32_t ring = (int32_t)run->options->ring.values[0];
    const int64_t least = ring + run->options->band + 1;
    if (shape->context < least) {
        tool_die(TOOL_USAGE, "bench mac: a ring of %d and a band of %d need a --context of %d",
                 ring, (int)run->options->band, (int)least);
    }
    return ring;
}

void bench_add_shape(cJSON *row, const bench_shape *shape)
{
    char text[32];
    snprintf(text, sizeof text, "%d/%d", shape->heads.n_heads, shape->heads.n_kv_heads);
    report_add_text(row, "heads", text);
    report_add_int(row, "head_dim", shape->head_dim);
    report_add_int(row, "v_head_dim", shape->v_head_dim);
    report_add_text(row, "kv", tool_kv_name(shape->kv, text));
    report_add_int(row, "context", shape->context);
    report_add_int(row, "batch", shape->batch);
    report_add_int(row, "threads", shape->threads);
}

void bench_add_times(cJSON *row, const char *prefix, const tool_samples *us)
{
    static const struct {
        const char *name;
        double quantile;
    } columns[] = {{"us_median", 0.5}, {"us_p10", 0.1}, {"us_p90", 0.9}};
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        char field[64];
        snprintf(field, sizeof field, "%s%s", prefix, columns[i].name);
        report_add_real(row, field, tool_samples_quantile(us, columns[i].quantile));
    }
}

/* ------------------------------------------------------------------------------------- check -- */

double bench_error(const float *out, const double *expected, int32_t n)
{
    double largest = 0.0, worst = 0.0;
    for (int32_t i = 0; i < n; i++) {
        double off = fabs((double)out[i] - expected[i]);
        largest = fmax(largest, fabs(expected[i]));
        if (!(off <= worst)) { /* NaN counts */
            worst = isnan(off) ? (double)INFINITY : off;
        }
    }
    return largest > 0.0 ? worst / largest : worst;
}
