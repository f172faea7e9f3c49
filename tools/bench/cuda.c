/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench attend|mac --device cuda`: the GPU side.
 *
 * One repetition is a CUDA graph that holds one call for each layer, timed with events and
 * divided by the layers; layers rotate, so that K, V and rings come from memory, as in decoding.
 * For mac, exact attention of the same tokens is measured in turns. Rings are filled with
 * macattn_cuda_capture; the results handed to it are made up, since their values do not change
 * what is read. Decisions are counted by the library and compared with those the queries were
 * made for. */
#include "cuda.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "cuda_device.h"
#include "cuda_select.h"
#include "reference.h"

#define PAGE_SIZE 16
#define BLOCK_TOKENS 1024 /* of random K and V, repeated through the cache */
#define MAX_LAYERS 64
#define HIT_BACK 64 /* hits repeat one of as many newest remembered queries */
/* Inputs and probabilities are rounded to K's type: 8 bits of mantissa in bf16, 3 in fp8. */
#define TOLERANCE 2e-2

static const report_column attend_columns[] = {
    BENCH_SHAPE_COLUMNS, {"batch", "batch", 5, 0}, {"page_size", "page", 5, 0},
    BENCH_TIME_COLUMNS,  {"gbps", "GB/s", 8, 1},   {0}};

static const report_column mac_columns[] = {BENCH_SHAPE_COLUMNS,
                                            {"batch", "batch", 5, 0},
                                            {"ring", "ring", 5, 0},
                                            {"hit_ratio", "hits", 6, 3},
                                            BENCH_TIME_COLUMNS,
                                            {"exact_us_median", "exact us", 10, 1},
                                            {"speedup_vs_exact", "speedup", 7, 2},
                                            {"gbps", "GB/s", 8, 1},
                                            {0}};

typedef struct gpu_row {
    const bench_shape *shape;
    macattn_config cfg;
    macattn_cuda *m;
    bench_cuda_clock clock;
    int32_t n_layers, ring;
    int64_t n_pages;                 /* of a sequence */
    size_t token_bytes, layer_bytes; /* of K */
    char *k, *v;                     /* [layer][row][page][token][kv_head][dim] */
    char *q, *q_match;               /* [layer][row][head][dim], bf16 or f16 */
    float *out;                      /* [row][head][dim] */
    int32_t *n_tokens, *pages;       /* [row], [row][page] */
    uint16_t *ring_q;                /* host: [ring][head][dim] */
    char *ring_out;                  /* device, made up: [ring][head][dim] f32 */
    char *ring_device;               /* ring_q there */
    float *ring_lse;                 /* [ring][head] */
    int64_t planned_hits;            /* of one layer's call */
    double kv_bytes;                 /* that one layer's call has to read */
    cudaGraphExec_t decode, exact;   /* NULL: not recorded */
} gpu_row;

/* ----------------------------------------------------------------------------------- tensors -- */

/* BLOCK_TOKENS random tokens, then copies of them. */
static char *fill(size_t bytes, size_t token_bytes, macattn_dtype dtype, random_state *rng)
{
    const size_t block = BLOCK_TOKENS * token_bytes;
    const size_t n = block / macattn_dtype_row_bytes(dtype, 1);
    float *values = memory_alloc(n * sizeof *values);
    char *encoded = memory_alloc(block), *to = bench_cuda_alloc(bytes);
    tensors_fill_normal(values, n, rng);
    tensors_encode(dtype, values, n, encoded);
    bench_cuda_repeat(to, bytes, encoded, block);
    free(values);
    free(encoded);
    return to;
}

static void make_pages(gpu_row *g)
{
    const int32_t batch = g->shape->batch;
    int32_t *tokens = memory_alloc((size_t)batch * sizeof *tokens);
    for (int32_t i = 0; i < batch; i++) tokens[i] = (int32_t)g->shape->context;
    g->pages = bench_cuda_pages((size_t)(g->n_pages * batch));
    g->n_tokens = bench_cuda_alloc((size_t)batch * sizeof *tokens);
    bench_cuda_upload(g->n_tokens, tokens, (size_t)batch * sizeof *tokens);
    free(tokens);
}

static size_t query_bytes(const gpu_row *g, int64_t rows)
{
    return (size_t)rows * (size_t)g->cfg.n_heads * (size_t)g->cfg.head_dim * 2;
}

static uint16_t *random_queries(const gpu_row *g, int64_t rows, random_state *rng)
{
    const size_t n = query_bytes(g, rows) / 2;
    float *values = memory_alloc(n * sizeof *values);
    uint16_t *out = memory_alloc(n * sizeof *out);
    tensors_fill_normal(values, n, rng);
    bench_cuda_round(g->cfg.q_dtype, values, n, out);
    free(values);
    return out;
}

static void make(bench_session *session, const bench_shape *shape, bool mac, gpu_row *g,
                 random_state *rng)
{
    const bench_options *o = session->options;
    *g = (gpu_row){.shape = shape, .ring = mac ? (int32_t)o->ring.values[0] : 0};
    bench_config(session, shape, &g->cfg);
    g->cfg.q_dtype = shape->kv.k == MACATTN_DTYPE_F16 ? MACATTN_DTYPE_F16 : MACATTN_DTYPE_BF16;
    g->cfg.policy = mac ? MACATTN_POLICY_PAPER : MACATTN_POLICY_EXACT;
    g->cfg.isa = NULL;
    g->cfg.n_threads = 1;
    g->cfg.max_slots = shape->batch;
    g->cfg.max_tokens = shape->context;
    if (mac) g->cfg.ring = g->ring, g->cfg.band = (int32_t)o->band;
    g->n_pages = (shape->context + PAGE_SIZE - 1) / PAGE_SIZE;
    g->token_bytes =
        (size_t)shape->heads.n_kv_heads * macattn_dtype_row_bytes(shape->kv.k, shape->head_dim);
    g->layer_bytes = (size_t)g->n_pages * PAGE_SIZE * (size_t)shape->batch * g->token_bytes;
    g->n_layers = g->cfg.n_layers = bench_cuda_layers(session, 2 * g->layer_bytes, MAX_LAYERS);

    macattn_cuda_config cuda;
    char error[320] = "";
    macattn_cuda_config_init(&cuda);
    cuda.max_rows = shape->batch > g->ring ? shape->batch : g->ring;
    const macattn_status status = macattn_cuda_create(&g->cfg, &cuda, &g->m, error, sizeof error);
    if (status != MACATTN_OK) die(EXIT_FAILED, "%s: %s", macattn_status_string(status), error);
    report_progress("[%d/%d] filling K and V", session->rows_done + 1, session->n_rows);
    g->clock = bench_cuda_clock_make();
    g->k = fill(g->layer_bytes * (size_t)g->n_layers, g->token_bytes, shape->kv.k, rng);
    g->v = fill(g->layer_bytes * (size_t)g->n_layers, g->token_bytes, shape->kv.k, rng);
    g->q = bench_cuda_alloc(query_bytes(g, (int64_t)shape->batch * g->n_layers));
    g->q_match = bench_cuda_alloc(query_bytes(g, (int64_t)shape->batch * g->n_layers));
    g->out = bench_cuda_alloc(query_bytes(g, shape->batch) * 2);
    uint16_t *q = random_queries(g, (int64_t)shape->batch * g->n_layers, rng);
    bench_cuda_upload(g->q, q, query_bytes(g, (int64_t)shape->batch * g->n_layers));
    free(q);
    make_pages(g);
}

static void unmake(gpu_row *g)
{
    void *memory[] = {g->k,        g->v,     g->q,        g->q_match,  g->out,
                      g->n_tokens, g->pages, g->ring_out, g->ring_lse, g->ring_device};
    bench_cuda_expect(cudaDeviceSynchronize(), "device");
    if (g->decode) (void)cudaGraphExecDestroy(g->decode);
    if (g->exact) (void)cudaGraphExecDestroy(g->exact);
    macattn_cuda_destroy(g->m);
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) bench_cuda_free(memory[i]);
    bench_cuda_clock_destroy(&g->clock);
    free(g->ring_q);
}

/* ------------------------------------------------------------------------------------- calls -- */

static macattn_cuda_batch batch_of(const gpu_row *g)
{
    return (macattn_cuda_batch){.struct_size = sizeof(macattn_cuda_batch),
                                .n_rows = g->shape->batch,
                                .n_tokens = g->n_tokens,
                                .page_size = PAGE_SIZE,
                                .pages = g->pages,
                                .page_table_stride = g->n_pages};
}

static macattn_cuda_io io_of(const gpu_row *g, int32_t layer)
{
    const size_t head = macattn_dtype_row_bytes(g->shape->kv.k, g->shape->head_dim);
    const int64_t token = (int64_t)g->token_bytes;
    const size_t at = (size_t)layer * query_bytes(g, g->shape->batch);
    return (macattn_cuda_io){.struct_size = sizeof(macattn_cuda_io),
                             .q = g->q + at,
                             .q_match = g->ring > 0 ? g->q_match + at : NULL,
                             .kv = {.k = g->k + (size_t)layer * g->layer_bytes,
                                    .v = g->v + (size_t)layer * g->layer_bytes,
                                    .k_page_stride = PAGE_SIZE * token,
                                    .k_token_stride = token,
                                    .k_head_stride = (int64_t)head,
                                    .v_page_stride = PAGE_SIZE * token,
                                    .v_token_stride = token,
                                    .v_head_stride = (int64_t)head},
                             .out = g->out};
}

static void call_layers(const gpu_row *g, bool reuse)
{
    const macattn_cuda_batch batch = batch_of(g);
    for (int32_t layer = 0; layer < g->n_layers; layer++) {
        const macattn_cuda_io io = io_of(g, layer);
        if (reuse) {
            bench_cuda_expect_ok(
                g->m, macattn_cuda_decode(g->m, layer, &batch, &io, g->clock.stream), "decode");
        } else {
            bench_cuda_expect_ok(g->m, macattn_cuda_attend(g->m, &batch, &io, g->clock.stream),
                                 "attend");
        }
    }
}

static cudaGraphExec_t record(const gpu_row *g, bool reuse)
{
    bench_cuda_record(&g->clock);
    call_layers(g, reuse);
    return bench_cuda_recorded(&g->clock);
}

/* Microseconds a layer. */
static double replay_us(const gpu_row *g, cudaGraphExec_t graph)
{
    return bench_cuda_replay(&g->clock, graph) / g->n_layers;
}

/* ------------------------------------------------------------------------------------- check -- */

/* The first and the last (row, head) of exact attention against float64. */
static double exact_error(const gpu_row *g)
{
    const bench_shape *s = g->shape;
    const macattn_cuda_batch batch = batch_of(g);
    const macattn_cuda_io io = io_of(g, 0);
    const size_t row_bytes = g->layer_bytes / (size_t)s->batch, d = (size_t)s->head_dim;
    char *k = memory_alloc(row_bytes), *v = memory_alloc(row_bytes);
    float *out = memory_alloc(d * sizeof *out);
    float *q = memory_alloc((size_t)s->heads.n_heads * d * sizeof *q);
    uint16_t *q16 = memory_alloc(query_bytes(g, 1));
    double *expected = memory_alloc(d * sizeof *expected), lse, worst = 0;
    macattn_config cfg = g->cfg;
    cfg.q_dtype = MACATTN_DTYPE_F32; /* the queries are handed to the reference as floats */
    bench_cuda_expect_ok(g->m, macattn_cuda_attend(g->m, &batch, &io, g->clock.stream), "attend");
    bench_cuda_expect(cudaStreamSynchronize(g->clock.stream), "attend");
    for (int i = 0; i < 2; i++) {
        const int32_t row = i ? s->batch - 1 : 0, head = i ? s->heads.n_heads - 1 : 0;
        const size_t at = ((size_t)row * (size_t)s->heads.n_heads + (size_t)head) * d;
        const size_t n = (size_t)s->heads.n_heads * d;
        bench_cuda_expect(
            cudaMemcpy(k, g->k + (size_t)row * row_bytes, row_bytes, cudaMemcpyDefault), "K");
        bench_cuda_expect(
            cudaMemcpy(v, g->v + (size_t)row * row_bytes, row_bytes, cudaMemcpyDefault), "V");
        bench_cuda_expect(cudaMemcpy(out, g->out + at, d * sizeof *out, cudaMemcpyDefault),
                          "output");
        bench_cuda_expect(cudaMemcpy(q16, g->q + (size_t)row * n * 2, n * 2, cudaMemcpyDefault),
                          "q");
        for (size_t j = 0; j < n; j++) {
            q[j] = (float)bench_value(g->cfg.q_dtype, q16, j);
        }
        macattn_kv kv = io.kv;
        kv.k = k, kv.v = v, kv.k_page_stride = kv.v_page_stride = 0;
        const macattn_row where = {.slot = -1, .n_queries = 1, .n_tokens = s->context};
        bench_reference(&cfg, &kv, &where, 0, head, q, 0, s->context, expected, &lse);
        worst = fmax(worst, bench_error(out, expected, s->head_dim));
    }
    free(k), free(v), free(out), free(q), free(q16), free(expected);
    return worst;
}

static bool check(bench_session *session, const gpu_row *g, double *error)
{
    *error = (double)NAN;
    if (!session->options->check) return true;
    report_progress("[%d/%d] checking", session->rows_done + 1, session->n_rows);
    *error = exact_error(g);
    report_progress_clear();
    if (*error <= TOLERANCE) return true;
    say("bench: the result is off by %.2e of its largest value; no time", *error);
    return false;
}

/* ------------------------------------------------------------------------------------- reuse -- */

/* Every layer's ring of the first slot, copied to the others. */
static void fill_rings(gpu_row *g, random_state *rng)
{
    const int64_t n = g->ring;
    const size_t heads = (size_t)g->cfg.n_heads,
                 results = (size_t)n * heads * (size_t)g->cfg.head_dim;
    float *lse = memory_alloc((size_t)n * heads * sizeof *lse),
          *out = memory_alloc(results * sizeof *out);
    int32_t before = (int32_t)g->shape->context - 1;
    g->ring_q = random_queries(g, n, rng);
    for (size_t i = 0; i < (size_t)n * heads; i++) lse[i] = 30.0f;
    tensors_fill_normal(out, results, rng);
    g->ring_out = bench_cuda_alloc(results * sizeof *out);
    g->ring_lse = bench_cuda_alloc((size_t)n * heads * sizeof *lse);
    g->ring_device = bench_cuda_alloc(query_bytes(g, n));
    bench_cuda_upload(g->ring_out, out, results * sizeof *out);
    bench_cuda_upload(g->ring_lse, lse, (size_t)n * heads * sizeof *lse);
    bench_cuda_upload(g->ring_device, g->ring_q, query_bytes(g, n));
    free(lse), free(out);

    /* The token of the step to come is not part of the prompt. */
    macattn_cuda_batch batch = batch_of(g);
    int32_t *tokens = bench_cuda_alloc(sizeof before);
    bench_cuda_upload(tokens, &before, sizeof before);
    batch.n_tokens = tokens, batch.n_rows = 1;
    for (int32_t layer = 0; layer < g->n_layers; layer++) {
        macattn_cuda_io io = io_of(g, layer);
        io.q = io.q_match = g->ring_device;
        io.out = g->ring_out, io.lse = g->ring_lse;
        bench_cuda_expect_ok(
            g->m, macattn_cuda_capture(g->m, layer, &batch, 0, (int32_t)n, &io, g->clock.stream),
            "capture");
    }
    for (int32_t slot = 1; slot < g->shape->batch; slot++) {
        bench_cuda_expect_ok(g->m, macattn_cuda_slot_fork(g->m, 0, slot, g->clock.stream), "fork");
    }
    bench_cuda_expect(cudaStreamSynchronize(g->clock.stream), "capture");
    bench_cuda_free(tokens);
}

/* Queries of which `hit_ratio` repeat a remembered one; the others are drawn at random, as those
 * were. */
static void make_queries(gpu_row *g, double hit_ratio, bool clustered, random_state *rng)
{
    const bench_shape *s = g->shape;
    const int32_t heads = s->heads.n_heads, group = heads / s->heads.n_kv_heads;
    const size_t d = (size_t)s->head_dim;
    const int64_t pairs = (int64_t)s->batch * heads;
    uint16_t *q = random_queries(g, s->batch, rng);
    g->planned_hits = 0;
    g->kv_bytes = 0;
    const int32_t unit = clustered ? group : 1;
    int64_t hits = (int64_t)llround(hit_ratio * (double)pairs / unit), left = pairs / unit;
    int64_t least = 0;
    for (int64_t i = 0; i < pairs; i++) {
        if (i % group == 0) least = 0; /* tokens that the group reads */
        static bool hit;
        if (i % unit == 0) {
            hit = random_below(rng, left) < hits;
            hits -= hit, left--;
        }
        const int64_t back = random_below(rng, HIT_BACK < g->ring ? HIT_BACK : g->ring);
        if (hit) {
            const size_t from = (size_t)(g->ring - 1 - back) * (size_t)heads + (size_t)(i % heads);
            memcpy(q + (size_t)i * d, g->ring_q + from * d, d * sizeof *q);
        }
        g->planned_hits += hit;
        const int64_t reads = hit ? g->cfg.band + 1 + back : s->context;
        least = reads > least ? reads : least;
        if (i % group == group - 1) {
            g->kv_bytes +=
                2.0 * (double)least * (double)macattn_dtype_row_bytes(s->kv.k, s->head_dim);
        }
    }
    for (int32_t layer = 0; layer < g->n_layers; layer++) {
        bench_cuda_upload(g->q_match + (size_t)layer * query_bytes(g, s->batch), q,
                          query_bytes(g, s->batch));
    }
    free(q);
}

/* To before the step. */
static void rewind_slots(const gpu_row *g)
{
    for (int32_t slot = 0; slot < g->shape->batch; slot++) {
        bench_cuda_expect_ok(
            g->m, macattn_cuda_slot_truncate(g->m, slot, g->shape->context - 1, g->clock.stream),
            "truncate");
    }
}

/* -------------------------------------------------------------------------------------- rows -- */

static void add_common(const gpu_row *g, cJSON *row, const sample_list *us, double error)
{
    bench_add_shape(row, g->shape);
    report_add_int(row, "page_size", PAGE_SIZE);
    report_add_int(row, "layers_rotated", g->n_layers);
    report_add_int(row, "reps", (int64_t)us->n);
    bench_add_times(row, "", us);
    report_add_real(row, "error", error);
}

static void attend_row(bench_session *session, const bench_shape *shape)
{
    gpu_row g;
    random_state rng = {(uint64_t)session->options->seed};
    sample_list us = {0};
    double error, spent = 0;
    make(session, shape, false, &g, &rng);
    if (!check(session, &g, &error)) {
        session->n_failed++;
        unmake(&g);
        return;
    }
    g.exact = record(&g, false);
    (void)replay_us(&g, g.exact);
    for (int64_t rep = 0; !bench_enough(session, rep, spent); rep++) {
        const double one = replay_us(&g, g.exact);
        sample_list_add(&us, one);
        spent += one * g.n_layers;
    }
    cJSON *row = report_row();
    add_common(&g, row, &us, error);
    const double bytes = 2.0 * (double)shape->context * shape->batch * (double)g.token_bytes;
    report_add_int(row, "bytes", (int64_t)bytes);
    report_add_real(row, "gbps", bytes / sample_list_median(&us) * 1e-3);
    bench_cuda_add_device(row);
    report_add_machine(row, &session->machine, "cuda");
    report_print(&session->report, row);
    sample_list_free(&us);
    unmake(&g);
}

static void print_mac(bench_session *session, const gpu_row *g, const sample_list *us,
                      const sample_list *exact, double hit_ratio, double error)
{
    const double median = sample_list_median(us);
    cJSON *row = report_row();
    add_common(g, row, us, error);
    report_add_text(row, "policy", macattn_policy_name(MACATTN_POLICY_PAPER));
    report_add_real(row, "tau", (double)g->cfg.tau);
    report_add_int(row, "ring", g->ring);
    report_add_int(row, "band", g->cfg.band);
    report_add_text(row, "misses", session->options->clustered ? "clustered" : "scattered");
    report_add_real(row, "hit_ratio", hit_ratio);
    bench_add_times(row, "exact_", exact);
    report_add_real(row, "speedup_vs_exact", sample_list_median(exact) / median);
    const double ring = (double)g->ring * g->cfg.n_heads * g->shape->batch *
                        ((double)g->cfg.head_dim + 16.0); /* what the search reads */
    report_add_int(row, "kv_bytes", (int64_t)g->kv_bytes);
    report_add_int(row, "bytes", (int64_t)(g->kv_bytes + ring));
    report_add_real(row, "gbps", (g->kv_bytes + ring) / median * 1e-3);
    bench_cuda_add_device(row);
    report_add_machine(row, &session->machine, "cuda");
    report_print(&session->report, row);
}

static void hit_ratio_row(bench_session *session, gpu_row *g, double asked, double error,
                          random_state *rng)
{
    sample_list us = {0}, exact = {0};
    double spent = 0;
    int64_t rep = 0;
    make_queries(g, asked, session->options->clustered, rng);
    rewind_slots(g);
    (void)replay_us(g, g->decode);
    rewind_slots(g);
    bench_cuda_expect_ok(g->m, macattn_cuda_stats_reset(g->m, g->clock.stream), "statistics");
    for (; !bench_enough(session, rep, spent); rep++) {
        bench_step_progress(session, "measuring", rep, spent);
        sample_list_add(&us, replay_us(g, g->decode));
        rewind_slots(g);
        sample_list_add(&exact, replay_us(g, g->exact));
        spent += (us.values[us.n - 1] + exact.values[exact.n - 1]) * g->n_layers;
    }
    macattn_stats stats = {.struct_size = sizeof stats};
    bench_cuda_expect_ok(g->m, macattn_cuda_stats_get(g->m, -1, -1, &stats), "statistics");
    report_progress_clear();
    if (session->options->check && (int64_t)stats.hits != g->planned_hits * g->n_layers * rep) {
        say("bench: %lld hits instead of %lld; no time", (long long)stats.hits,
            (long long)(g->planned_hits * g->n_layers * rep));
        session->n_failed++;
    } else {
        print_mac(session, g, &us, &exact, (double)stats.hits / (double)stats.steps, error);
    }
    sample_list_free(&us);
    sample_list_free(&exact);
}

static void mac_row(bench_session *session, const bench_shape *shape)
{
    const bench_options *o = session->options;
    (void)bench_mac_ring(session, shape);
    gpu_row g;
    double error;
    random_state rng = {(uint64_t)o->seed};
    make(session, shape, true, &g, &rng);
    if (check(session, &g, &error)) {
        fill_rings(&g, &rng);
        g.decode = record(&g, true);
        g.exact = record(&g, false);
        for (int i = 0; i < o->hit_ratio.n; i++) {
            hit_ratio_row(session, &g, o->hit_ratio.values[i], error, &rng);
        }
    } else {
        session->n_failed++;
    }
    unmake(&g);
}

int bench_cuda(bench_session *session, const char *what)
{
    const bench_options *o = session->options;
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        die(EXIT_FAILED, "there is no CUDA device here");
    }
    const bool mac = strcmp(what, "mac") == 0;
    const bool selects = mac && o->select_share.n > 0;
    session->report.columns = selects ? bench_cuda_select_columns()
                              : mac   ? mac_columns
                                      : attend_columns;
    bench_each_shape(session, selects ? bench_cuda_select : mac ? mac_row : attend_row);
    return session->n_failed == 0 ? EXIT_OK : EXIT_FAILED;
}
