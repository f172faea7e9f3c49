/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac --device cuda --select-share`: decode of groups that may not reuse, in turns
 * with exact attention.
 *
 * The tensors are made as for the CPU (select.c): of four themes each is that of a share of the runs
 * of 16 tokens, which carry nearly all of the mass of its queries; share 1 is flat attention. A block
 * of tokens is repeated through the cache. Short prompts at the end of the context teach the
 * threshold; then all slots are forks of the first. Each goes through sixteen lengths, so that the
 * means of a run are made as often as in use, in a CUDA graph of one call a layer. */
#include "cuda_select.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>

#include "common/memory.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "cuda_device.h"
#include "macattn/cuda.h"

enum {
    RUN = 16,
    PAGE = 16,
    BLOCK = 4096, /* tokens */
    THEMES = 4,
    LESSONS = 16,
    N_QUERIES = 16,
    MOST_LAYERS = 16
};
/* How much of a theme is in the keys that have it, beside noise of size 1, and in its queries. */
#define KEY_SHARE 1.2f
#define QUERY_SHARE 0.4f
#define QUERY_NOISE 0.1f

static const report_column columns[] = {BENCH_SHAPE_COLUMNS,
                                        {"batch", "batch", 5, 0},
                                        {"select_share", "runs", 6, 3},
                                        BENCH_TIME_COLUMNS,
                                        {"exact_us_median", "exact us", 10, 1},
                                        {"speedup_vs_exact", "speedup", 7, 2},
                                        {"selected_share", "selected", 8, 3},
                                        {"read_share", "read", 6, 3},
                                        {"error", "error", 9, 5},
                                        {0}};

typedef struct world {
    const bench_shape *shape;
    macattn_config cfg;
    macattn_cuda *m;
    cudaStream_t stream;
    cudaEvent_t begin, end;
    cudaGraphExec_t decode, exact;
    int32_t n_layers, rows, n_tokens;        /* n_tokens: most */
    size_t token_bytes, layer_bytes, values; /* of K; values: of a row's queries */
    char *k, *v;                             /* [layer][row][page][token][kv_head][dim] */
    char *q, *q_match;                       /* [row][head][dim], of 16 bits */
    uint16_t *host_q;                        /* [N_QUERIES][head][dim] */
    float *themes;                           /* [THEMES][kv_head][dim] */
    float *out[2], *lse, *host[2];
    int32_t *lengths, *pages, *same; /* same: two rows that are one sequence */
    random_state rng;
} world;

const report_column *bench_cuda_select_columns(void)
{
    return columns;
}

static void expect_cuda(cudaError_t status, const char *what)
{
    if (status != cudaSuccess) die(EXIT_FAILED, "%s: %s", what, cudaGetErrorString(status));
}

static void expect(const world *w, macattn_status status, const char *what)
{
    if (status == MACATTN_OK) return;
    die(EXIT_FAILED, "%s: %s: %s", what, macattn_status_string(status),
        macattn_cuda_last_error(w->m));
}

static void *device_alloc(size_t bytes)
{
    void *p = NULL;
    expect_cuda(cudaMalloc(&p, bytes), "device memory");
    return p;
}

static void upload(void *to, const void *from, size_t bytes)
{
    expect_cuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copy to the device");
}

/* ----------------------------------------------------------------------------------- tensors -- */

static float *theme(const world *w, size_t which, size_t kv_head)
{
    const size_t d = (size_t)w->cfg.head_dim;
    return w->themes + (which * (size_t)w->cfg.n_kv_heads + kv_head) * d;
}

/* x less its part along y. */
static void turn_away(float *x, const float *y, size_t d)
{
    double xy = 0, yy = 0;
    for (size_t i = 0; i < d; i++) {
        xy += (double)x[i] * (double)y[i];
        yy += (double)y[i] * (double)y[i];
    }
    for (size_t i = 0; i < d; i++) x[i] -= (float)(xy / yy) * y[i];
}

static void make_themes(world *w)
{
    const size_t d = (size_t)w->cfg.head_dim;
    w->themes = memory_alloc(THEMES * (size_t)w->cfg.n_kv_heads * d * sizeof *w->themes);
    for (size_t a = 0; a < THEMES; a++) {
        for (size_t h = 0; h < (size_t)w->cfg.n_kv_heads; h++) {
            tensors_fill_normal(theme(w, a, h), d, &w->rng);
            for (size_t b = 0; b < a; b++) turn_away(theme(w, a, h), theme(w, b, h), d);
        }
    }
}

/* A block of tokens to all of K, or V. */
static void spread(world *w, char *to, const float *values)
{
    const size_t block = BLOCK * w->token_bytes, all = w->layer_bytes * (size_t)w->n_layers;
    char *encoded = memory_alloc(block);
    size_t done = block < all ? block : all;
    tensors_encode(w->cfg.k_dtype, values,
                   BLOCK * (size_t)w->cfg.n_kv_heads * (size_t)w->cfg.head_dim, encoded);
    upload(to, encoded, done);
    while (done < all) {
        const size_t more = done < all - done ? done : all - done;
        expect_cuda(cudaMemcpy(to + done, to, more, cudaMemcpyDeviceToDevice), "fill");
        done += more;
    }
    free(encoded);
}

/* Keys of some runs get what a theme's queries ask for. */
static void make_cache(world *w, double share)
{
    const size_t d = (size_t)w->cfg.head_dim, heads = (size_t)w->cfg.n_kv_heads;
    float *values = memory_alloc(BLOCK * heads * d * sizeof *values);
    tensors_fill_normal(values, BLOCK * heads * d, &w->rng);
    spread(w, w->v, values);
    tensors_fill_normal(values, BLOCK * heads * d, &w->rng);
    for (size_t run = 0; run < BLOCK / RUN; run++) {
        for (size_t a = 0; a < THEMES; a++) {
            if ((double)random_below(&w->rng, 1 << 20) * 0x1p-20 >= share) continue;
            for (size_t i = run * RUN * heads * d; i < (run + 1) * RUN * heads * d; i++)
                values[i] += KEY_SHARE * theme(w, a, i / d % heads)[i % d];
        }
    }
    spread(w, w->k, values);
    free(values);
}

static void encode(const world *w, const float *values, size_t n, uint16_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] =
            w->cfg.q_dtype == MACATTN_DTYPE_BF16 ? tensors_bf16(values[i]) : tensors_f16(values[i]);
}

static void make_queries(world *w)
{
    const size_t d = (size_t)w->cfg.head_dim, n = N_QUERIES * w->values;
    const size_t group = (size_t)(w->cfg.n_heads / w->cfg.n_kv_heads);
    float *q = memory_alloc(n * sizeof *q);
    tensors_fill_normal(q, n, &w->rng);
    for (size_t i = 0; i < n; i++) {
        const size_t head = i / d % (size_t)w->cfg.n_heads, query = i / w->values;
        q[i] = QUERY_NOISE * q[i] + QUERY_SHARE * theme(w, query % THEMES, head / group)[i % d];
    }
    w->host_q = memory_alloc(n * sizeof *w->host_q);
    encode(w, q, n, w->host_q);
    free(q);
}

/* Queries from the `first` on, and others that match nothing. */
static void put_queries(world *w, int64_t first, int32_t n)
{
    float *match = memory_alloc((size_t)n * w->values * sizeof *match);
    uint16_t *match16 = memory_alloc((size_t)n * w->values * sizeof *match16);
    const size_t row = w->values * sizeof(uint16_t);
    tensors_fill_normal(match, (size_t)n * w->values, &w->rng);
    encode(w, match, (size_t)n * w->values, match16);
    upload(w->q_match, match16, (size_t)n * row);
    for (int32_t r = 0; r < n; r++)
        upload(w->q + (size_t)r * row, w->host_q + (size_t)((first + r) % N_QUERIES) * w->values,
               row);
    free(match);
    free(match16);
}

static void put_lengths(world *w, int32_t n)
{
    int32_t *all = memory_alloc((size_t)w->rows * sizeof *all);
    for (int32_t r = 0; r < w->rows; r++) all[r] = n;
    upload(w->lengths, all, (size_t)w->rows * sizeof *all);
    free(all);
}

/* ------------------------------------------------------------------------------------- calls -- */

static macattn_cuda_batch batch_of(const world *w)
{
    return (macattn_cuda_batch){.struct_size = sizeof(macattn_cuda_batch),
                                .n_rows = w->rows,
                                .n_tokens = w->lengths,
                                .page_size = PAGE,
                                .pages = w->pages,
                                .page_table_stride = w->n_tokens / PAGE};
}

static macattn_cuda_io io_of(const world *w, int32_t layer, float *out)
{
    const int64_t token = (int64_t)w->token_bytes;
    const int64_t head = token / w->cfg.n_kv_heads;
    return (macattn_cuda_io){.struct_size = sizeof(macattn_cuda_io),
                             .q = w->q,
                             .q_match = w->q_match,
                             .kv = {.k = w->k + (size_t)layer * w->layer_bytes,
                                    .v = w->v + (size_t)layer * w->layer_bytes,
                                    .k_page_stride = PAGE * token,
                                    .k_token_stride = token,
                                    .k_head_stride = head,
                                    .v_page_stride = PAGE * token,
                                    .v_token_stride = token,
                                    .v_head_stride = head},
                             .out = out,
                             .lse = w->lse};
}

static cudaGraphExec_t record(world *w, bool exact)
{
    const macattn_cuda_batch batch = batch_of(w);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    expect_cuda(cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (int32_t layer = 0; layer < w->n_layers; layer++) {
        const macattn_cuda_io io = io_of(w, layer, w->out[exact]);
        if (exact)
            expect(w, macattn_cuda_attend(w->m, &batch, &io, w->stream), "attend");
        else
            expect(w, macattn_cuda_decode(w->m, layer, &batch, &io, w->stream), "decode");
    }
    expect_cuda(cudaStreamEndCapture(w->stream, &graph), "capture");
    expect_cuda(cudaGraphInstantiateWithFlags(&exec, graph, 0), "graph");
    (void)cudaGraphDestroy(graph);
    return exec;
}

/* Microseconds a layer. */
static double replay_us(world *w, cudaGraphExec_t exec)
{
    float ms = 0;
    expect_cuda(cudaEventRecord(w->begin, w->stream), "event");
    expect_cuda(cudaGraphLaunch(exec, w->stream), "graph");
    expect_cuda(cudaEventRecord(w->end, w->stream), "event");
    expect_cuda(cudaEventSynchronize(w->end), "graph");
    expect_cuda(cudaEventElapsedTime(&ms, w->begin, w->end), "event");
    return (double)ms * 1e3 / w->n_layers;
}

static void truncate_slots(world *w, int32_t n)
{
    for (int32_t slot = 0; slot < w->rows; slot++)
        expect(w, macattn_cuda_slot_truncate(w->m, slot, n, w->stream), "truncate");
}

/* Prompts of two queries, exact results of which are computed as those of two rows. */
static void teach(world *w)
{
    const int32_t n = w->n_tokens - RUN, lengths[2] = {n - 1, n}, starts[3] = {0, 0, 0};
    int32_t *tokens = device_alloc(sizeof lengths), *zeros = device_alloc(sizeof starts);
    upload(zeros, starts, sizeof starts);
    macattn_cuda_batch both = batch_of(w);
    both.n_rows = 2, both.n_tokens = tokens, both.page_indptr = zeros;
    macattn_cuda_batch one = batch_of(w);
    one.n_rows = 1, one.n_tokens = tokens + 1;
    upload(tokens, lengths, sizeof lengths);
    for (int i = 0; i < LESSONS; i++) {
        put_queries(w, i, 2);
        expect(w, macattn_cuda_slot_truncate(w->m, 0, n - 2, w->stream), "truncate");
        for (int32_t layer = 0; layer < w->n_layers; layer++) {
            const macattn_cuda_io io = io_of(w, layer, w->out[1]);
            expect(w, macattn_cuda_attend(w->m, &both, &io, w->stream), "attend");
            expect(w, macattn_cuda_capture(w->m, layer, &one, 0, 2, &io, w->stream), "capture");
        }
        expect_cuda(cudaStreamSynchronize(w->stream), "capture");
    }
    for (int32_t slot = 1; slot < w->rows; slot++)
        expect(w, macattn_cuda_slot_fork(w->m, 0, slot, w->stream), "fork");
    expect_cuda(cudaStreamSynchronize(w->stream), "fork");
    (void)cudaFree(tokens);
    (void)cudaFree(zeros);
}

/* -------------------------------------------------------------------------------------- rows -- */

static int32_t layers_wanted(const bench_session *session, size_t layer_bytes)
{
    int l2 = 0, device = 0;
    expect_cuda(cudaGetDevice(&device), "device");
    expect_cuda(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device), "device");
    if (session->options->warm) return 1;
    const size_t n = ((size_t)l2 * 4 + layer_bytes - 1) / layer_bytes;
    return n > MOST_LAYERS ? MOST_LAYERS : (int32_t)n;
}

static void make_pages(world *w)
{
    const size_t n = (size_t)w->rows * (size_t)w->n_tokens / PAGE;
    int32_t *pages = memory_alloc(n * sizeof *pages);
    for (size_t i = 0; i < n; i++) pages[i] = (int32_t)i;
    w->pages = device_alloc(n * sizeof *pages);
    upload(w->pages, pages, n * sizeof *pages);
    free(pages);
}

static void open_object(bench_session *session, const bench_shape *shape, world *w)
{
    const bench_options *o = session->options;
    macattn_cuda_config cuda;
    char error[320] = "";
    bench_config(session, shape, &w->cfg);
    w->cfg.q_dtype = shape->kv.k == MACATTN_DTYPE_F16 ? MACATTN_DTYPE_F16 : MACATTN_DTYPE_BF16;
    w->cfg.policy = MACATTN_POLICY_BUDGET;
    w->cfg.band = (int32_t)o->band;
    w->cfg.isa = NULL, w->cfg.n_threads = 1, w->cfg.min_tokens = 0;
    w->cfg.max_slots = shape->batch;
    w->n_tokens = (int32_t)(shape->context / BLOCK * BLOCK);
    w->cfg.max_tokens = w->n_tokens;
    w->token_bytes =
        (size_t)shape->heads.n_kv_heads * macattn_dtype_row_bytes(shape->kv.k, shape->head_dim);
    w->layer_bytes = (size_t)w->n_tokens * (size_t)shape->batch * w->token_bytes;
    w->n_layers = w->cfg.n_layers = layers_wanted(session, 2 * w->layer_bytes);
    macattn_cuda_config_init(&cuda);
    cuda.max_rows = shape->batch > 2 ? shape->batch : 2;
    const macattn_status status = macattn_cuda_create(&w->cfg, &cuda, &w->m, error, sizeof error);
    if (status != MACATTN_OK) die(EXIT_FAILED, "%s: %s", macattn_status_string(status), error);
}

static void open_world(bench_session *session, const bench_shape *shape, double share, world *w)
{
    *w = (world){.shape = shape, .rows = shape->batch, .rng = {(uint64_t)session->options->seed}};
    report_progress("[%d/%d] making the cache", session->rows_done + 1, session->n_rows);
    open_object(session, shape, w);
    const size_t rows = (size_t)(w->rows > 2 ? w->rows : 2);
    w->values = (size_t)w->cfg.n_heads * (size_t)w->cfg.head_dim;
    expect_cuda(cudaStreamCreate(&w->stream), "stream");
    expect_cuda(cudaEventCreate(&w->begin), "event");
    expect_cuda(cudaEventCreate(&w->end), "event");
    w->k = device_alloc(w->layer_bytes * (size_t)w->n_layers);
    w->v = device_alloc(w->layer_bytes * (size_t)w->n_layers);
    w->q = device_alloc(rows * w->values * 2);
    w->q_match = device_alloc(rows * w->values * 2);
    w->lengths = device_alloc(rows * sizeof *w->lengths);
    w->lse = device_alloc(rows * (size_t)w->cfg.n_heads * sizeof *w->lse);
    for (int i = 0; i < 2; i++) {
        w->out[i] = device_alloc(rows * w->values * sizeof **w->out);
        w->host[i] = memory_alloc(rows * w->values * sizeof **w->host);
    }
    make_pages(w);
    make_themes(w);
    make_cache(w, share);
    make_queries(w);
    report_progress("[%d/%d] teaching", session->rows_done + 1, session->n_rows);
    teach(w);
    w->decode = record(w, false);
    w->exact = record(w, true);
}

static void close_world(world *w)
{
    void *memory[] = {w->k,     w->v,      w->q,      w->q_match, w->lengths,
                      w->pages, w->out[0], w->out[1], w->lse};
    expect_cuda(cudaDeviceSynchronize(), "device");
    (void)cudaGraphExecDestroy(w->decode);
    (void)cudaGraphExecDestroy(w->exact);
    macattn_cuda_destroy(w->m);
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) (void)cudaFree(memory[i]);
    (void)cudaEventDestroy(w->begin);
    (void)cudaEventDestroy(w->end);
    (void)cudaStreamDestroy(w->stream);
    free(w->host_q);
    free(w->themes);
    free(w->host[0]);
    free(w->host[1]);
}

/* Of all heads' outputs of all rows, relative to their size: the unit that the budget counts in. */
static double error_of(const world *w)
{
    const size_t n = (size_t)w->rows * w->values;
    double off2 = 0, all2 = 0;
    for (int i = 0; i < 2; i++)
        expect_cuda(cudaMemcpy(w->host[i], w->out[i], n * sizeof **w->host, cudaMemcpyDeviceToHost),
                    "out");
    for (size_t i = 0; i < n; i++) {
        const double off = (double)w->host[0][i] - (double)w->host[1][i];
        off2 += off * off;
        all2 += (double)w->host[1][i] * (double)w->host[1][i];
    }
    return sqrt(off2 / all2);
}

static void print_row(bench_session *session, const world *w, double share, const sample_list *us,
                      const sample_list *exact, double error)
{
    macattn_stats s = {.struct_size = sizeof s};
    expect(w, macattn_cuda_stats_get(w->m, -1, -1, &s), "statistics");
    double groups = 0, read = 0, runs = 0;
    for (int i = 0; i < MACATTN_WAYS; i++) {
        groups += (double)s.groups[i];
        read += (double)s.kv_bytes[i];
        runs += (double)s.run_bytes[i];
    }
    const double all = 2.0 * (double)w->token_bytes / w->cfg.n_kv_heads * w->n_tokens * groups;
    cJSON *row = report_row();
    bench_add_shape(row, w->shape);
    report_add_text(row, "policy", "budget");
    report_add_real(row, "budget", (double)w->cfg.budget);
    report_add_int(row, "band", w->cfg.band);
    report_add_real(row, "select_share", share);
    report_add_int(row, "page_size", PAGE);
    report_add_int(row, "layers_rotated", w->n_layers);
    report_add_int(row, "reps", (int64_t)us->n);
    bench_add_times(row, "", us);
    bench_add_times(row, "exact_", exact);
    report_add_real(row, "speedup_vs_exact", sample_list_median(exact) / sample_list_median(us));
    report_add_real(row, "selected_share", (double)s.groups[MACATTN_SELECTED] / groups);
    report_add_real(row, "reused_share", (double)s.groups[MACATTN_REUSED] / groups);
    report_add_real(row, "read_share", (read + runs) / all);
    report_add_real(row, "run_share", runs / all);
    report_add_real(row, "error", error);
    bench_cuda_add_device(row);
    report_add_machine(row, &session->machine, "cuda");
    report_print(&session->report, row);
}

static void measure(bench_session *session, world *w, double share)
{
    sample_list us = {0}, exact = {0};
    double spent = 0, error2 = 0;
    const int32_t before = w->n_tokens - RUN;
    int64_t rep = 0;
    for (int64_t step = -2; !bench_enough(session, rep, spent); step++) {
        if (step % RUN == 0 || step < 0) truncate_slots(w, before);
        put_lengths(w, before + 1 + (step < 0 ? 0 : (int32_t)(step % RUN)));
        put_queries(w, step < 0 ? 0 : step, w->rows);
        const double took = replay_us(w, w->decode), exact_took = replay_us(w, w->exact);
        if (step == -1) expect(w, macattn_cuda_stats_reset(w->m, w->stream), "statistics");
        if (step < 0) continue;
        bench_step_progress(session, "measuring", rep, spent);
        sample_list_add(&us, took);
        sample_list_add(&exact, exact_took);
        spent += (took + exact_took) * w->n_layers;
        const double error = error_of(w);
        error2 += error * error;
        rep++;
    }
    report_progress_clear();
    print_row(session, w, share, &us, &exact, sqrt(error2 / (double)rep));
    sample_list_free(&us);
    sample_list_free(&exact);
}

void bench_cuda_select(bench_session *session, const bench_shape *shape)
{
    const bench_options *o = session->options;
    if (shape->context < BLOCK || shape->context < o->band + 64 * RUN) {
        die(EXIT_USAGE, "bench mac: --select-share needs a --context of %d or more",
            o->band + 64 * RUN > BLOCK ? (int)o->band + 64 * RUN : BLOCK);
    }
    for (int i = 0; i < o->select_share.n; i++) {
        world w;
        open_world(session, shape, o->select_share.values[i], &w);
        measure(session, &w, o->select_share.values[i]);
        close_world(&w);
    }
}
