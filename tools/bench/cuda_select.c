/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac --device cuda --select-share`: decode of groups that may not reuse, in turns
 * with exact attention.
 *
 * The tensors are made as for the CPU (themes.h), a block of tokens repeated through the cache. Short
 * prompts at the end of the context teach the threshold; then all slots are forks of the first. Each
 * goes through sixteen lengths, so that the means of a run are made as often as in use, in a CUDA
 * graph of one call a layer. */
#include "cuda_select.h"

#include <math.h>
#include <stdlib.h>

#include "common/memory.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "cuda_device.h"
#include "tensors.h"
#include "themes.h"

enum {
    PAGE = 16,
    BLOCK = 4096, /* tokens */
    MOST_LAYERS = 16
};

static const report_column columns[] = {
    BENCH_SHAPE_COLUMNS, {"batch", "batch", 5, 0}, THEME_COLUMNS, {0}};

typedef struct world {
    const bench_shape *shape;
    macattn_config cfg;
    macattn_cuda *m;
    bench_cuda_clock clock;
    cudaGraphExec_t decode, exact;
    int32_t n_layers, rows, n_tokens;        /* n_tokens: most */
    size_t token_bytes, layer_bytes, values; /* of K; values: of a row's queries */
    char *k, *v;                             /* [layer][row][page][token][kv_head][dim] */
    char *q, *q_match;                       /* [row][head][dim], of 16 bits */
    uint16_t *host_q;                        /* [THEME_QUERIES][head][dim] */
    float *themes;                           /* themes_make's */
    float *out[2], *lse, *host[2];
    int32_t *lengths, *pages;
    random_state rng;
} world;

const report_column *bench_cuda_select_columns(void)
{
    return columns;
}

/* ----------------------------------------------------------------------------------- tensors -- */

/* A block of tokens to all of K, or V. */
static void spread(world *w, char *to, const float *values)
{
    const size_t block = BLOCK * w->token_bytes;
    char *encoded = memory_alloc(block);
    tensors_encode(w->cfg.k_dtype, values,
                   BLOCK * (size_t)w->cfg.n_kv_heads * (size_t)w->cfg.head_dim, encoded);
    bench_cuda_repeat(to, w->layer_bytes * (size_t)w->n_layers, encoded, block);
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
    for (size_t run = 0; run < BLOCK / THEME_RUN; run++) {
        for (size_t a = 0; a < THEMES; a++) {
            if (!themes_chosen(share, &w->rng)) continue;
            for (size_t i = run * THEME_RUN * heads * d; i < (run + 1) * THEME_RUN * heads * d; i++)
                values[i] +=
                    THEME_KEY_SHARE * themes_at(w->themes, &w->cfg, a, i / d % heads)[i % d];
        }
    }
    spread(w, w->k, values);
    free(values);
}

static void make_queries(world *w)
{
    const size_t n = THEME_QUERIES * w->values;
    float *q = memory_alloc(n * sizeof *q);
    themes_queries(w->themes, &w->cfg, q, &w->rng);
    w->host_q = memory_alloc(n * sizeof *w->host_q);
    bench_cuda_round(w->cfg.q_dtype, q, n, w->host_q);
    free(q);
}

/* Queries from the `first` on, and others that match nothing. */
static void put_queries(world *w, int64_t first, int32_t n)
{
    float *match = memory_alloc((size_t)n * w->values * sizeof *match);
    uint16_t *match16 = memory_alloc((size_t)n * w->values * sizeof *match16);
    const size_t row = w->values * sizeof(uint16_t);
    tensors_fill_normal(match, (size_t)n * w->values, &w->rng);
    bench_cuda_round(w->cfg.q_dtype, match, (size_t)n * w->values, match16);
    bench_cuda_upload(w->q_match, match16, (size_t)n * row);
    for (int32_t r = 0; r < n; r++)
        bench_cuda_upload(w->q + (size_t)r * row,
                          w->host_q + (size_t)((first + r) % THEME_QUERIES) * w->values, row);
    free(match);
    free(match16);
}

static void put_lengths(world *w, int32_t n)
{
    int32_t *all = memory_alloc((size_t)w->rows * sizeof *all);
    for (int32_t r = 0; r < w->rows; r++) all[r] = n;
    bench_cuda_upload(w->lengths, all, (size_t)w->rows * sizeof *all);
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
    bench_cuda_record(&w->clock);
    for (int32_t layer = 0; layer < w->n_layers; layer++) {
        const macattn_cuda_io io = io_of(w, layer, w->out[exact]);
        if (exact)
            bench_cuda_expect_ok(w->m, macattn_cuda_attend(w->m, &batch, &io, w->clock.stream),
                                 "attend");
        else
            bench_cuda_expect_ok(
                w->m, macattn_cuda_decode(w->m, layer, &batch, &io, w->clock.stream), "decode");
    }
    return bench_cuda_recorded(&w->clock);
}

/* Microseconds a layer. */
static double replay_us(const world *w, cudaGraphExec_t graph)
{
    return bench_cuda_replay(&w->clock, graph) / w->n_layers;
}

static void truncate_slots(world *w, int32_t n)
{
    for (int32_t slot = 0; slot < w->rows; slot++)
        bench_cuda_expect_ok(w->m, macattn_cuda_slot_truncate(w->m, slot, n, w->clock.stream),
                             "truncate");
}

/* Prompts of two queries, exact results of which are computed as those of two rows. */
static void teach(world *w)
{
    const int32_t n = w->n_tokens - THEME_RUN, lengths[2] = {n - 1, n}, starts[3] = {0, 0, 0};
    int32_t *tokens = bench_cuda_alloc(sizeof lengths), *zeros = bench_cuda_alloc(sizeof starts);
    bench_cuda_upload(zeros, starts, sizeof starts);
    macattn_cuda_batch both = batch_of(w);
    both.n_rows = 2, both.n_tokens = tokens, both.page_indptr = zeros;
    macattn_cuda_batch one = batch_of(w);
    one.n_rows = 1, one.n_tokens = tokens + 1;
    bench_cuda_upload(tokens, lengths, sizeof lengths);
    for (int i = 0; i < THEME_LESSONS; i++) {
        put_queries(w, i, 2);
        bench_cuda_expect_ok(w->m, macattn_cuda_slot_truncate(w->m, 0, n - 2, w->clock.stream),
                             "truncate");
        for (int32_t layer = 0; layer < w->n_layers; layer++) {
            const macattn_cuda_io io = io_of(w, layer, w->out[1]);
            bench_cuda_expect_ok(w->m, macattn_cuda_attend(w->m, &both, &io, w->clock.stream),
                                 "attend");
            bench_cuda_expect_ok(
                w->m, macattn_cuda_capture(w->m, layer, &one, 0, 2, &io, w->clock.stream),
                "capture");
        }
        bench_cuda_expect(cudaStreamSynchronize(w->clock.stream), "capture");
    }
    for (int32_t slot = 1; slot < w->rows; slot++)
        bench_cuda_expect_ok(w->m, macattn_cuda_slot_fork(w->m, 0, slot, w->clock.stream), "fork");
    bench_cuda_expect(cudaStreamSynchronize(w->clock.stream), "fork");
    bench_cuda_free(tokens);
    bench_cuda_free(zeros);
}

/* -------------------------------------------------------------------------------------- rows -- */

static void open_object(bench_session *session, const bench_shape *shape, world *w)
{
    const bench_options *o = session->options;
    macattn_cuda_config cuda;
    char error[320] = "";
    bench_config(session, shape, &w->cfg);
    w->cfg.q_dtype = shape->kv.k == MACATTN_DTYPE_F16 ? MACATTN_DTYPE_F16 : MACATTN_DTYPE_BF16;
    w->cfg.policy = MACATTN_POLICY_BUDGET;
    w->cfg.band = (int32_t)o->band;
    w->cfg.select = o->select;
    w->cfg.isa = NULL, w->cfg.n_threads = 1, w->cfg.min_tokens = 0;
    w->cfg.max_slots = shape->batch;
    w->n_tokens = (int32_t)(shape->context / BLOCK * BLOCK);
    w->cfg.max_tokens = w->n_tokens;
    w->token_bytes =
        (size_t)shape->heads.n_kv_heads * macattn_dtype_row_bytes(shape->kv.k, shape->head_dim);
    w->layer_bytes = (size_t)w->n_tokens * (size_t)shape->batch * w->token_bytes;
    w->n_layers = w->cfg.n_layers = bench_cuda_layers(session, 2 * w->layer_bytes, MOST_LAYERS);
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
    w->clock = bench_cuda_clock_make();
    w->k = bench_cuda_alloc(w->layer_bytes * (size_t)w->n_layers);
    w->v = bench_cuda_alloc(w->layer_bytes * (size_t)w->n_layers);
    w->q = bench_cuda_alloc(rows * w->values * 2);
    w->q_match = bench_cuda_alloc(rows * w->values * 2);
    w->lengths = bench_cuda_alloc(rows * sizeof *w->lengths);
    w->lse = bench_cuda_alloc(rows * (size_t)w->cfg.n_heads * sizeof *w->lse);
    for (int i = 0; i < 2; i++) {
        w->out[i] = bench_cuda_alloc(rows * w->values * sizeof **w->out);
        w->host[i] = memory_alloc(rows * w->values * sizeof **w->host);
    }
    w->pages = bench_cuda_pages((size_t)w->rows * (size_t)w->n_tokens / PAGE);
    w->themes = themes_make(&w->cfg, &w->rng);
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
    bench_cuda_expect(cudaDeviceSynchronize(), "device");
    (void)cudaGraphExecDestroy(w->decode);
    (void)cudaGraphExecDestroy(w->exact);
    macattn_cuda_destroy(w->m);
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) bench_cuda_free(memory[i]);
    bench_cuda_clock_destroy(&w->clock);
    free(w->host_q);
    free(w->themes);
    free(w->host[0]);
    free(w->host[1]);
}

/* Of all rows. */
static double error_of(const world *w)
{
    const size_t n = (size_t)w->rows * w->values;
    for (int i = 0; i < 2; i++)
        bench_cuda_expect(
            cudaMemcpy(w->host[i], w->out[i], n * sizeof **w->host, cudaMemcpyDeviceToHost), "out");
    return themes_error(w->host[0], w->host[1], n);
}

static void print_row(bench_session *session, const world *w, double share, const sample_list *us,
                      const sample_list *exact, double error)
{
    macattn_stats s = {.struct_size = sizeof s};
    bench_cuda_expect_ok(w->m, macattn_cuda_stats_get(w->m, -1, -1, &s), "statistics");
    const double group_bytes = 2.0 * (double)w->token_bytes / w->cfg.n_kv_heads * w->n_tokens;
    cJSON *row = report_row();
    bench_add_shape(row, w->shape);
    themes_add_setting(row, &w->cfg, share);
    report_add_int(row, "page_size", PAGE);
    report_add_int(row, "layers_rotated", w->n_layers);
    themes_add_result(row, &s, group_bytes, us, exact);
    report_add_real(row, "error", error);
    bench_cuda_add_device(row);
    report_add_machine(row, &session->machine, "cuda");
    report_print(&session->report, row);
}

static void measure(bench_session *session, world *w, double share)
{
    sample_list us = {0}, exact = {0};
    double spent = 0, error2 = 0;
    const int32_t before = w->n_tokens - THEME_RUN;
    int64_t rep = 0;
    for (int64_t step = -2; !bench_enough(session, rep, spent); step++) {
        if (step % THEME_RUN == 0 || step < 0) truncate_slots(w, before);
        put_lengths(w, before + 1 + (step < 0 ? 0 : (int32_t)(step % THEME_RUN)));
        put_queries(w, step < 0 ? 0 : step, w->rows);
        const double took = replay_us(w, w->decode), exact_took = replay_us(w, w->exact);
        if (step == -1)
            bench_cuda_expect_ok(w->m, macattn_cuda_stats_reset(w->m, w->clock.stream),
                                 "statistics");
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
    if (shape->context < BLOCK || shape->context < o->band + 64 * THEME_RUN) {
        die(EXIT_USAGE, "bench mac: --select-share needs a --context of %d or more",
            o->band + 64 * THEME_RUN > BLOCK ? (int)o->band + 64 * THEME_RUN : BLOCK);
    }
    for (int i = 0; i < o->select_share.n; i++) {
        world w;
        open_world(session, shape, o->select_share.values[i], &w);
        measure(session, &w, o->select_share.values[i]);
        close_world(&w);
    }
}
