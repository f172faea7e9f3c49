/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn check`: every instruction set of this machine, on random shapes, against the float64
 * reference. The library's own tests do more; this one runs where the library is installed. */
#include <argp.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "commands.h"
#include "common/memory.h"
#include "common/parse.h"
#include "common/random.h"
#include "common/say.h"
#include "ref.h"
#include "stream.h"

typedef struct check_options {
    int64_t cases, seed;
    const char *isa;
    bool verbose;
} check_options;

/* One random shape with its tensors. */
typedef struct check_case {
    macattn_config cfg;
    tensors_kv kv;
    macattn_row rows[3];
    macattn_batch batch;
    int32_t *pages;
    int64_t n_queries; /* of all rows */
    void *q;           /* in q_dtype */
    float *sinks, *out, *lse;
    double *expected, *expected_lse;
} check_case;

static void random_config(macattn_config *cfg, random_state *rng)
{
    static const int32_t dims[] = {8, 64, 72, 80, 96, 112, 128, 160, 192, 256};
    static const macattn_dtype kv_dtypes[] = {
        MACATTN_DTYPE_F16,  MACATTN_DTYPE_BF16, MACATTN_DTYPE_Q8_0,
        MACATTN_DTYPE_F32,  MACATTN_DTYPE_Q4_0, MACATTN_DTYPE_Q4_1,
        MACATTN_DTYPE_Q5_0, MACATTN_DTYPE_Q5_1, MACATTN_DTYPE_IQ4_NL};
    const int64_t n_dtypes = sizeof kv_dtypes / sizeof kv_dtypes[0];
    die_unless_ok(NULL, macattn_config_init(cfg), "macattn_config_init");
    cfg->n_layers = 1;
    cfg->n_kv_heads = 1 + (int32_t)random_below(rng, 4);
    cfg->n_heads = cfg->n_kv_heads * (1 + (int32_t)random_below(rng, 9));
    cfg->head_dim = dims[random_below(rng, 10)];
    cfg->v_head_dim = random_below(rng, 4) == 0 ? dims[random_below(rng, 10)] : 0;
    cfg->k_dtype = kv_dtypes[random_below(rng, n_dtypes)];
    cfg->v_dtype =
        random_below(rng, 3) == 0 ? kv_dtypes[random_below(rng, n_dtypes)] : cfg->k_dtype;
    /* Some types are made of whole blocks. */
    if (macattn_dtype_row_bytes(cfg->k_dtype, 8) == 0 ||
        macattn_dtype_row_bytes(cfg->v_dtype, 8) == 0) {
        cfg->head_dim = (cfg->head_dim + 31) / 32 * 32;
        cfg->v_head_dim = (cfg->v_head_dim + 31) / 32 * 32;
    }
    cfg->q_dtype = (macattn_dtype)random_below(rng, 3);
    cfg->scale = 2.0f / sqrtf((float)cfg->head_dim);
    cfg->softcap = random_below(rng, 4) == 0 ? 5.0f : 0.0f;
    cfg->window = random_below(rng, 5) == 0 ? 1 + random_below(rng, 300) : 0;
    cfg->policy = MACATTN_POLICY_EXACT;
    cfg->max_tokens = 4096;
    cfg->n_threads = 1 + (int32_t)random_below(rng, 3);
}

static void random_rows(check_case *c, random_state *rng)
{
    static const int32_t page_sizes[] = {0, 0, 1, 16, 64, 256};
    int32_t page_size = page_sizes[random_below(rng, 6)];
    int32_t n_rows = 1 + (int32_t)random_below(rng, 3);
    int32_t each = page_size > 0 ? (int32_t)(c->kv.n_rows / page_size) : 1;
    int32_t n_pages = each * c->kv.n_sequences;
    bool decode = random_below(rng, 2) == 0;
    c->pages = memory_alloc((size_t)n_pages * sizeof *c->pages);
    for (int32_t i = 0; i < n_pages; i++) {
        c->pages[i] = i;
    }
    for (int32_t i = n_pages - 1; i > 0; i--) {
        int32_t j = (int32_t)random_below(rng, i + 1);
        int32_t page = c->pages[i];
        c->pages[i] = c->pages[j];
        c->pages[j] = page;
    }
    for (int32_t b = 0; b < n_rows; b++) {
        int64_t n = 1 + random_below(rng, random_below(rng, 2) ? c->kv.n_rows : 40);
        int64_t new = decode ? 1 : 1 + random_below(rng, n > 70 ? 70 : n);
        c->rows[b] = (macattn_row){.slot = -1,
                                   .n_queries = (int32_t) new,
                                   .n_tokens = n,
                                   .page = page_size > 0 ? 0 : b,
                                   .pages = page_size > 0 ? c->pages + b *each : NULL};
        c->n_queries += new;
    }
    c->batch = (macattn_batch){.struct_size = sizeof c->batch,
                               .n_rows = n_rows,
                               .rows = c->rows,
                               .page_size = page_size,
                               .n_pages = n_pages};
}

static void make_case(check_case *c, random_state *rng)
{
    *c = (check_case){0};
    random_config(&c->cfg, rng);
    int32_t dv = c->cfg.v_head_dim > 0 ? c->cfg.v_head_dim : c->cfg.head_dim;
    kv_types types = {c->cfg.k_dtype, c->cfg.v_dtype};
    tensors_kv_create(&c->kv, types, c->cfg.n_kv_heads, c->cfg.head_dim, dv, 3,
                      1 + random_below(rng, 1500), 1, false, false, rng);
    random_rows(c, rng);
    size_t heads = (size_t)c->n_queries * (size_t)c->cfg.n_heads;
    size_t values = heads * (size_t)c->cfg.head_dim;
    float *q = memory_alloc(values * sizeof *q);
    tensors_fill_normal(q, values, rng);
    c->q = memory_alloc(values * sizeof *q);
    tensors_encode(c->cfg.q_dtype, q, values, c->q);
    free(q);
    if (random_below(rng, 4) == 0) {
        c->sinks = memory_alloc((size_t)c->cfg.n_heads * sizeof *c->sinks);
        tensors_fill_normal(c->sinks, (size_t)c->cfg.n_heads, rng);
    }
    c->out = memory_alloc(heads * (size_t)dv * sizeof *c->out);
    c->lse = memory_alloc(heads * sizeof *c->lse);
    c->expected = memory_alloc(heads * (size_t)dv * sizeof *c->expected);
    c->expected_lse = memory_alloc(heads * sizeof *c->expected_lse);
}

static void free_case(check_case *c)
{
    tensors_kv_destroy(&c->kv);
    free(c->pages);
    free(c->q);
    free(c->sinks);
    free(c->out);
    free(c->lse);
    free(c->expected);
    free(c->expected_lse);
}

/* Runs it on one instruction set; the largest error over all heads. */
static double attend_error(check_case *c, const char *isa)
{
    macattn_config cfg = c->cfg;
    cfg.isa = isa;
    macattn *m = bench_create(&cfg);
    die_unless_ok(m, macattn_get_config(m, &cfg), "macattn_get_config");
    die_unless_ok(m, macattn_plan(m, &c->batch), "macattn_plan");
    macattn_io io = {.struct_size = sizeof io,
                     .q = c->q,
                     .kv = tensors_kv_view(&c->kv, 0, c->batch.page_size),
                     .sinks = c->sinks,
                     .out = c->out,
                     .lse = c->lse};
    die_unless_ok(m, macattn_attend(m, &io), "macattn_attend");
    macattn_destroy(m);
    ref_attend(&cfg, &c->batch, &io, c->expected, c->expected_lse);
    double worst = 0.0;
    for (int64_t i = 0; i < c->n_queries * cfg.n_heads; i++) {
        size_t at = (size_t)i * (size_t)cfg.v_head_dim;
        double error = bench_error(c->out + at, c->expected + at, cfg.v_head_dim);
        double lse_error = fabs((double)c->lse[i] - c->expected_lse[i]);
        error = lse_error <= error ? error : lse_error;
        worst = error <= worst ? worst : error;
    }
    return worst;
}

static void describe(const check_case *c, char *text, size_t size)
{
    snprintf(text, size, "q %s, k %s, v %s, heads %d/%d, dim %d/%d, page %d, rows %d, queries %d%s",
             macattn_dtype_name(c->cfg.q_dtype), macattn_dtype_name(c->cfg.k_dtype),
             macattn_dtype_name(c->cfg.v_dtype), c->cfg.n_heads, c->cfg.n_kv_heads, c->cfg.head_dim,
             c->kv.v_head_dim, c->batch.page_size, c->batch.n_rows, (int)c->n_queries,
             c->cfg.window > 0 ? ", window" : "");
}

static int check_attend(const check_options *o, const char *isa)
{
    int failed = 0;
    double worst = 0.0;
    for (int64_t i = 0; i < o->cases; i++) {
        random_state rng = {(uint64_t)(o->seed + i) * 0x9e3779b9u};
        check_case c;
        make_case(&c, &rng);
        double error = attend_error(&c, isa);
        bool ok = error <= BENCH_TOLERANCE;
        if (!ok || o->verbose) {
            char text[200];
            describe(&c, text, sizeof text);
            printf("%s  %s case %d: error %.1e: %s\n", ok ? "    " : "FAIL", isa, (int)i, error,
                   text);
        }
        failed += !ok;
        worst = error <= worst ? worst : error;
        free_case(&c);
    }
    printf("%s  %-10s  attention   %d of %d shapes, largest error %.1e\n", failed ? "FAIL" : "pass",
           isa, (int)o->cases - failed, (int)o->cases, worst);
    return failed;
}

/* Steps of one shape that are decoded; the reference computes every REFERENCE_EVERY-th of them, the
 * decisions are compared in all. */
#define STEPS 300
#define REFERENCE_EVERY 50

typedef struct reuse_result {
    int64_t wrong_decisions, decisions;
    int wrong_outputs, outputs;
    double worst;
} reuse_result;

/* Hits of all heads since the statistics were reset. */
static int64_t hits(const stream *s)
{
    macattn_stats stats = {.struct_size = sizeof stats};
    die_unless_ok(s->m, macattn_stats_get(s->m, -1, -1, &stats), "macattn_stats_get");
    return (int64_t)stats.hits;
}

static void check_reuse_step(stream *s, double hit_ratio, bool reference, random_state *rng,
                             reuse_result *result)
{
    stream_step step = stream_step_create(s, hit_ratio, false, false, rng);
    int64_t expected = 0, before = hits(s);
    for (int32_t head = 0; head < s->cfg.n_heads; head++) {
        expected += step.source[head] >= 0;
    }
    stream_rewind(s, 0);
    (void)stream_decode_us(s, &step);
    result->wrong_decisions += llabs(hits(s) - before - expected);
    result->decisions += s->cfg.n_heads;
    if (reference) {
        double error = stream_error(s, &step, 0, s->cfg.n_heads);
        result->wrong_outputs += !(error <= BENCH_TOLERANCE);
        result->outputs++;
        result->worst = error <= result->worst ? result->worst : error;
    }
    stream_step_free(&step);
}

/* Decode with hits and misses, against the reference's hits and misses. */
static int check_reuse(const check_options *o, const char *isa)
{
    static const head_counts heads[] = {{8, 2}, {6, 6}, {5, 1}, {16, 2}};
    /* Large enough that queries drawn at random are never near each other. */
    static const int32_t dims[] = {96, 112, 128, 256};
    reuse_result result = {0};
    for (int i = 0; i < 4; i++) {
        bench_options options = {
            .isa = isa, .policy = MACATTN_POLICY_PAPER, .band = 32, .seed = o->seed + i};
        bench_session session = {.options = &options, .n_rows = 4, .rows_done = i};
        bench_shape shape = {.heads = heads[i],
                             .kv = {MACATTN_DTYPE_F16, MACATTN_DTYPE_F16},
                             .head_dim = dims[i],
                             .v_head_dim = dims[i],
                             .batch = 1,
                             .threads = 2,
                             .context = 400};
        stream s;
        /* Not the stream's own numbers: where both come to the same ones, a query that is to miss is one that is
         * remembered. */
        random_state rng = {~(uint64_t)options.seed};
        stream_create(&session, &shape, 200, shape.context, 1, 0, &s);
        for (int step = 0; step < STEPS; step++) {
            check_reuse_step(&s, step % 6 * 0.2, step % REFERENCE_EVERY == step / REFERENCE_EVERY,
                             &rng, &result);
        }
        stream_destroy(&s);
    }
    report_progress_clear();
    bool failed = result.wrong_decisions > 0 || result.wrong_outputs > 0;
    printf("%s  %-10s  reuse       %lld of %lld decisions, %d of %d steps, largest error %.1e\n",
           failed ? "FAIL" : "pass", isa, (long long)(result.decisions - result.wrong_decisions),
           (long long)result.decisions, result.outputs - result.wrong_outputs, result.outputs,
           result.worst);
    return failed;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    check_options *options = state->input;
    switch (key) {
    case 'n':
        if (!parse_int(arg, 1, 1000000, &options->cases)) {
            argp_error(state, "--cases does not take '%s'", arg);
        }
        return 0;
    case 's':
        if (!parse_int(arg, 0, INT32_MAX, &options->seed)) {
            argp_error(state, "--seed does not take '%s'", arg);
        }
        return 0;
    case 'i': options->isa = arg; return 0;
    case 'v': options->verbose = true; return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int command_check(int argc, char **argv)
{
    static const struct argp_option options_table[] = {
        {"cases", 'n', "N", 0, "random shapes for each instruction set (60)", 0},
        {"seed", 's', "N", 0, "of the first one (1)", 0},
        {"isa", 'i', "NAME", 0, "this instruction set only", 0},
        {"verbose", 'v', NULL, 0, "say every shape", 0},
        {0}};
    const struct argp argp = {options_table,
                              parse_option,
                              NULL,
                              "\nCompare every instruction set of this machine with the float64 "
                              "reference.\vThe exit status is 0 if all pass, 1 if one does not.",
                              NULL,
                              NULL,
                              NULL};
    check_options options = {.cases = 60, .seed = 1};
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &options);
    int failed = 0, checked = 0;
    for (int i = 0; macattn_isa_name(i); i++) {
        const char *isa = macattn_isa_name(i);
        if (options.isa && strcmp(options.isa, isa) != 0) {
            continue;
        }
        if (!macattn_isa_supported(isa)) {
            printf("skip  %-10s  not on this machine\n", isa);
            continue;
        }
        failed += check_attend(&options, isa) + check_reuse(&options, isa);
        checked++;
    }
    if (checked == 0) {
        die(EXIT_FAILED, "check: this machine has no instruction set '%s'", options.isa);
    }
    return failed == 0 ? EXIT_OK : EXIT_FAILED;
}
