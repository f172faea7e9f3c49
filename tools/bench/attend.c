/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench attend`: exact attention, against the machine and against a peer.
 *
 * One repetition is a call of macattn_attend, a call of the peer, and a pass of the read kernel,
 * so that all three see the same machine. Layers rotate. The kernel's own speed with K and V in
 * cache is measured through a page table that names the same few pages again and again. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attend.h"
#include "common/clock.h"
#include "common/memory.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "peer_load.h"
#include "reference.h"

#define CEILING_SAMPLES 20
#define CACHE_REPS 3      /* for each sample of the ceilings */
#define CACHE_PAGE_MAX 64 /* tokens */
#define CACHE_PAGE_MIN 8
#define CACHE_TOKENS 8192 /* of the in-cache run: enough for the call's fixed cost not to show */
/* The other side's idle threads may still spin: let them go to sleep before measuring. */
#define SETTLE_US 6000
/* Calls shorter than this follow an untimed one, as layers follow one another in decoding, so that
 * waking the own threads is not what is measured. */
#define WAKE_BELOW_US 5000.0

static const report_column columns[] = {BENCH_SHAPE_COLUMNS,
                                        {"queries", "queries", 7, 0},
                                        {"batch", "batch", 5, 0},
                                        {"threads", "threads", 7, 0},
                                        BENCH_TIME_COLUMNS,
                                        {"gbps", "GB/s", 7, 2},
                                        {"ceiling_gbps", "ceiling", 7, 2},
                                        {"ceiling_share", "share", 6, 3},
                                        {"cache_gbps", "in cache", 8, 2},
                                        {"fma_share", "fma", 6, 3},
                                        {"bound", "bound", 12, 0},
                                        {"peer_us_median", "peer us", 10, 1},
                                        {"speedup_vs_peer", "speedup", 7, 2},
                                        {0}};

/* Everything one row needs. */
typedef struct attend_row {
    const bench_shape *shape;
    macattn_config cfg;
    macattn *m;
    tensors_kv kv;
    macattn_row *rows; /* [batch] */
    int32_t *pages;    /* [batch][pages of a sequence], shuffled within the sequence */
    int32_t n_pages;   /* in all */
    macattn_batch batch;
    int64_t n_tokens; /* of a sequence, the new ones included */
    int32_t n_queries;
    float *q, *out; /* [batch][query][head][dim] */
    const peer_api *api;
    peer *other;
} attend_row;

static void make_rows(attend_row *a, int32_t page_size, random_state *rng)
{
    int32_t batch = a->shape->batch;
    int32_t each = page_size > 0 ? (int32_t)(a->kv.n_rows / page_size) : 1;
    a->n_pages = batch * each;
    a->rows = memory_alloc((size_t)batch * sizeof *a->rows);
    a->pages = memory_alloc((size_t)a->n_pages * sizeof *a->pages);
    for (int32_t b = 0; b < batch; b++) {
        int32_t *pages = a->pages + (size_t)b * (size_t)each;
        /* Only pages in use are shuffled, so that the peer sees the same tokens in another
         * order. */
        int32_t used = page_size > 0 ? (int32_t)((a->n_tokens + page_size - 1) / page_size) : 1;
        for (int32_t i = 0; i < each; i++) {
            pages[i] = b * each + i;
        }
        for (int32_t i = used - 1; i > 0; i--) {
            int32_t j = (int32_t)random_below(rng, i + 1);
            int32_t page = pages[i];
            pages[i] = pages[j];
            pages[j] = page;
        }
        a->rows[b] = (macattn_row){.slot = -1,
                                   .n_queries = a->n_queries,
                                   .n_tokens = a->n_tokens,
                                   .page = page_size > 0 ? 0 : b,
                                   .pages = page_size > 0 ? pages : NULL};
    }
    a->batch = (macattn_batch){.struct_size = sizeof a->batch,
                               .n_rows = batch,
                               .rows = a->rows,
                               .page_size = page_size,
                               .n_pages = a->n_pages};
}

static void make_peer(bench_session *session, attend_row *a)
{
    const bench_options *o = session->options;
    const bench_shape *s = a->shape;
    if (!o->peer) {
        return;
    }
    if (o->page_size > 0 && (a->n_queries > 1 || a->n_tokens % o->page_size != 0)) {
        die(EXIT_USAGE, "bench: with --peer, pages need --queries 1 and a --context that is a "
                        "multiple of the page size");
    }
    a->api = peer_load(o->peer);
    peer_shape shape = {.n_heads = s->heads.n_heads,
                        .n_kv_heads = s->heads.n_kv_heads,
                        .head_dim = s->head_dim,
                        .v_head_dim = s->v_head_dim,
                        .k_type = macattn_dtype_name(s->kv.k),
                        .v_type = macattn_dtype_name(s->kv.v),
                        .scale = a->cfg.scale,
                        .softcap = a->cfg.softcap,
                        .n_streams = s->batch,
                        .n_queries = a->n_queries,
                        .n_tokens = a->n_tokens,
                        .n_rows = a->kv.n_rows,
                        .n_threads = s->threads,
                        .n_layers = a->kv.n_layers,
                        .k = (const void *const *)a->kv.k,
                        .v = (const void *const *)a->kv.v,
                        .k_bytes = a->kv.k_bytes,
                        .v_bytes = a->kv.v_bytes,
                        .q = a->q};
    char error[256] = "";
    a->other = a->api->create(&shape, error, sizeof error);
    if (!a->other) {
        die(EXIT_FAILED, "%s: %s", o->peer, error);
    }
}

static void make(bench_session *session, const bench_shape *shape, attend_row *a)
{
    const bench_options *o = session->options;
    random_state rng = {(uint64_t)o->seed};
    *a = (attend_row){.shape = shape, .n_queries = (int32_t)o->n_queries};
    a->n_tokens = shape->context + (o->n_queries > 1 ? o->n_queries : 0);
    bench_config(session, shape, &a->cfg);
    a->cfg.policy = MACATTN_POLICY_EXACT;
    a->cfg.max_tokens = a->n_tokens > CACHE_TOKENS ? a->n_tokens : CACHE_TOKENS;
    a->m = bench_create(&a->cfg);
    die_unless_ok(a->m, macattn_get_config(a->m, &a->cfg), "macattn_get_config");

    report_progress("[%d/%d] filling K and V", session->rows_done + 1, session->n_rows);
    size_t bytes = tensors_kv_bytes(shape->kv, shape->heads.n_kv_heads, shape->head_dim,
                                    shape->v_head_dim, a->n_tokens) *
                   (size_t)shape->batch;
    tensors_kv_create(&a->kv, shape->kv, shape->heads.n_kv_heads, shape->head_dim,
                      shape->v_head_dim, shape->batch, a->n_tokens, bench_layers(session, bytes),
                      o->huge, false, &rng);
    make_rows(a, (int32_t)o->page_size, &rng);
    size_t n = (size_t)shape->batch * (size_t)a->n_queries * (size_t)shape->heads.n_heads;
    a->q = memory_alloc(n * (size_t)shape->head_dim * sizeof *a->q);
    a->out = memory_alloc(n * (size_t)shape->v_head_dim * sizeof *a->out);
    tensors_fill_normal(a->q, n * (size_t)shape->head_dim, &rng);
    make_peer(session, a);
    die_unless_ok(a->m, macattn_plan(a->m, &a->batch), "macattn_plan");
}

static void unmake(attend_row *a)
{
    if (a->other) {
        a->api->destroy(a->other);
    }
    macattn_destroy(a->m);
    tensors_kv_destroy(&a->kv);
    free(a->rows);
    free(a->pages);
    free(a->q);
    free(a->out);
}

static double attend_us(attend_row *a, const macattn_kv *kv)
{
    macattn_io io = {.struct_size = sizeof io, .q = a->q, .kv = *kv, .out = a->out};
    double start = clock_now_us();
    macattn_status status = macattn_attend(a->m, &io);
    double us = clock_now_us() - start;
    die_unless_ok(a->m, status, "macattn_attend");
    return us;
}

static double peer_us(attend_row *a, int32_t layer)
{
    double start = clock_now_us();
    int status = a->api->compute(a->other, layer);
    double us = clock_now_us() - start;
    if (status != 0) {
        die(EXIT_FAILED, "the peer failed");
    }
    return us;
}

/* ------------------------------------------------------------------------------------- check -- */

/* Compares a number of (sequence, query, head) with float64: the corners and some at random. */
static double worst_error(const attend_row *a, const float *out, random_state rng)
{
    const bench_shape *s = a->shape;
    macattn_kv kv = tensors_kv_view(&a->kv, 0, a->batch.page_size);
    double *expected = memory_alloc((size_t)s->v_head_dim * sizeof *expected);
    double lse, worst = 0.0;
    int64_t affordable = ((int64_t)1 << 27) / (a->n_tokens * (s->head_dim + s->v_head_dim));
    int64_t samples = affordable < 3 ? 3 : affordable > 64 ? 64 : affordable;
    for (int64_t i = 0; i < samples; i++) {
        int64_t b = i == 0 ? 0 : i == 1 ? s->batch - 1 : random_below(&rng, s->batch);
        int64_t j = i == 0 ? 0 : i == 1 ? a->n_queries - 1 : random_below(&rng, a->n_queries);
        int64_t h = i == 0   ? 0
                    : i == 1 ? s->heads.n_heads - 1
                             : random_below(&rng, s->heads.n_heads);
        size_t at = (size_t)((b * a->n_queries + j) * s->heads.n_heads + h);
        bench_reference(&a->cfg, &kv, &a->rows[b], a->batch.page_size, (int32_t)h,
                        a->q + (at - (size_t)h) * (size_t)s->head_dim, 0,
                        a->n_tokens - a->n_queries + j + 1, expected, &lse);
        worst = fmax(worst, bench_error(out + at * (size_t)s->v_head_dim, expected, s->v_head_dim));
    }
    free(expected);
    return worst;
}

static bool check(bench_session *session, attend_row *a, double *error, double *peer_error)
{
    random_state rng = {(uint64_t)session->options->seed + 1};
    *error = *peer_error = (double)NAN;
    macattn_kv kv = tensors_kv_view(&a->kv, 0, a->batch.page_size);
    (void)attend_us(a, &kv);
    if (a->other) {
        (void)peer_us(a, 0);
    }
    if (!session->options->check) {
        return true;
    }
    report_progress("[%d/%d] checking", session->rows_done + 1, session->n_rows);
    *error = worst_error(a, a->out, rng);
    if (a->other) {
        *peer_error = worst_error(a, a->api->output(a->other), rng);
    }
    report_progress_clear();
    if (!(*error <= BENCH_TOLERANCE)) {
        say("bench: the result is off by %.2e of its largest value; no time", *error);
        return false;
    }
    if (a->other && !(*peer_error <= BENCH_PEER_TOLERANCE)) {
        say("bench: the peer's result is off by %.2e; no time", *peer_error);
        return false;
    }
    return true;
}

/* ------------------------------------------------------------------------------------ timing -- */

typedef struct attend_times {
    sample_list us, peer, ceiling, fma, isa_fma, cache;
} attend_times;

/* Plans one long decode row whose pages are the few that fit into half of a core's L2. Returns the
 * page size, 0 if not even small pages fit. */
static int32_t plan_in_cache(const bench_session *session, attend_row *a, int32_t *pages,
                             macattn_row *row)
{
    const bench_shape *s = a->shape;
    size_t row_bytes = tensors_kv_bytes(s->kv, s->heads.n_kv_heads, s->head_dim, s->v_head_dim, 1);
    int64_t n_fit = (int64_t)(session->machine.l2 / 2 / row_bytes);
    n_fit = n_fit < a->kv.n_rows ? n_fit : a->kv.n_rows;
    int32_t page_size = CACHE_PAGE_MAX;
    while (page_size >= CACHE_PAGE_MIN && n_fit < 2 * page_size) {
        page_size /= 2;
    }
    if (page_size < CACHE_PAGE_MIN) {
        return 0;
    }
    int32_t distinct = (int32_t)(n_fit / page_size);
    for (int32_t i = 0; i < CACHE_TOKENS / page_size; i++) {
        pages[i] = i % distinct;
    }
    *row = (macattn_row){
        .slot = -1, .n_queries = 1, .n_tokens = CACHE_TOKENS, .page = 0, .pages = pages};
    macattn_batch batch = {.struct_size = sizeof batch,
                           .n_rows = 1,
                           .rows = row,
                           .page_size = page_size,
                           .n_pages = distinct};
    die_unless_ok(a->m, macattn_plan(a->m, &batch), "macattn_plan");
    return page_size;
}

static void time_in_cache(const bench_session *session, attend_row *a, attend_times *times)
{
    int32_t pages[CACHE_TOKENS / CACHE_PAGE_MIN];
    macattn_row row;
    int32_t page_size = a->n_queries > 1 ? 0 : plan_in_cache(session, a, pages, &row);
    if (page_size == 0) {
        return;
    }
    macattn_kv kv = tensors_kv_view(&a->kv, 0, page_size);
    (void)attend_us(a, &kv);
    for (int rep = 0; rep < CACHE_REPS; rep++) {
        sample_list_add(&times->cache, attend_us(a, &kv));
    }
    die_unless_ok(a->m, macattn_plan(a->m, &a->batch), "macattn_plan");
}

static double timed_attend(attend_row *a, int32_t layer, attend_times *times)
{
    int32_t wake = (layer + a->kv.n_layers / 2) % a->kv.n_layers;
    macattn_kv kv = tensors_kv_view(&a->kv, wake, a->batch.page_size);
    if (times->us.n == 0 || times->us.values[times->us.n - 1] < WAKE_BELOW_US) {
        (void)attend_us(a, &kv);
    }
    kv = tensors_kv_view(&a->kv, layer, a->batch.page_size);
    double us = attend_us(a, &kv);
    sample_list_add(&times->us, us);
    return us;
}

static double timed_peer(attend_row *a, int32_t layer, attend_times *times)
{
    if (times->peer.n == 0 || times->peer.values[times->peer.n - 1] < WAKE_BELOW_US) {
        (void)peer_us(a, (layer + a->kv.n_layers / 2) % a->kv.n_layers);
    }
    double us = peer_us(a, layer);
    sample_list_add(&times->peer, us);
    return us;
}

static void measure(bench_session *session, attend_row *a, attend_times *times)
{
    double spent = 0.0;
    int64_t rep = 0;
    for (; !bench_enough(session, rep, spent); rep++) {
        int32_t layer = (int32_t)(rep % a->kv.n_layers);
        bench_step_progress(session, "measuring", rep, spent);
        if (a->other) {
            clock_sleep_us(SETTLE_US);
        }
        spent += timed_attend(a, layer, times);
        if (a->other) {
            clock_sleep_us(SETTLE_US / 6);
            spent += timed_peer(a, layer, times);
        }
        /* Spread over the row, so that a machine that changes shows in the ceilings too. */
        if ((double)times->ceiling.n <= CEILING_SAMPLES * bench_share_done(session, rep, spent)) {
            sample_list_add(&times->ceiling, machine_read_gbps(session->team));
            sample_list_add(&times->fma, machine_fma_gflops(session->team, NULL));
            sample_list_add(&times->isa_fma, machine_fma_gflops(session->team, a->cfg.isa));
            time_in_cache(session, a, times);
        }
    }
}

/* What keeps a row from being faster: what neither reading memory nor the kernel's work on data in cache
 * explains takes at least half of its time, waking threads and merging above all; else reading takes as
 * long as all of the work does; or of that work the multiply-adds of its instruction set take at least
 * half; or the rest does (conversions, loads, softmax). In microseconds; `cache` NAN: not measured, then
 * the row's own time stands for it. */
static const char *bound_by(double us, double memory, double cache, double fma)
{
    double work = isnan(cache) ? us : cache;
    if (us >= 2.0 * (memory + work)) return "overhead";
    return memory >= work ? "memory" : fma >= work / 2 ? "multiply-add" : "conversion";
}

static void print_row(bench_session *session, const attend_row *a, const attend_times *times,
                      double error, double peer_error)
{
    const bench_shape *s = a->shape;
    cJSON *row = report_row();
    bench_add_shape(row, s);
    report_add_int(row, "queries", a->n_queries);
    report_add_int(row, "page_size", a->batch.page_size);
    report_add_int(row, "layers_rotated", a->kv.n_layers);
    report_add_int(row, "reps", (int64_t)times->us.n);
    bench_add_times(row, "", &times->us);

    double us = sample_list_median(&times->us);
    double bytes = (double)tensors_kv_bytes(s->kv, s->heads.n_kv_heads, s->head_dim, s->v_head_dim,
                                            a->n_tokens) *
                   s->batch;
    double gbps = bytes / us * 1e-3, ceiling = sample_list_median(&times->ceiling);
    report_add_int(row, "bytes", (int64_t)bytes);
    report_add_real(row, "gbps", gbps);
    report_add_real(row, "ceiling_gbps", ceiling);
    report_add_real(row, "ceiling_p10", sample_list_quantile(&times->ceiling, 0.1));
    report_add_real(row, "ceiling_p90", sample_list_quantile(&times->ceiling, 0.9));
    report_add_real(row, "ceiling_share", gbps / ceiling);
    report_add_text(row, "ceiling_kernel", machine_read_variant(session->team));

    /* Two operations a value of K and V for every query head that sees the token. */
    double per_token = 2.0 * (s->head_dim + s->v_head_dim) * s->heads.n_heads;
    double n = (double)a->n_queries;
    double seen = n * ((double)a->n_tokens - (n - 1.0) / 2.0) * s->batch;
    double fma = sample_list_median(&times->fma);
    report_add_real(row, "gflops", per_token * seen / us * 1e-3);
    report_add_real(row, "fma_peak_gflops", fma);
    report_add_real(row, "fma_share", per_token * seen / us * 1e-3 / fma);

    double cache_us = sample_list_median(&times->cache);
    double cache_bytes = (double)tensors_kv_bytes(s->kv, s->heads.n_kv_heads, s->head_dim,
                                                  s->v_head_dim, CACHE_TOKENS);
    report_add_int(row, "cache_context", CACHE_TOKENS);
    report_add_real(row, "cache_us_median", cache_us);
    report_add_real(row, "cache_gbps", cache_bytes / cache_us * 1e-3);
    report_add_real(row, "cache_share", gbps / (cache_bytes / cache_us * 1e-3));
    report_add_real(row, "cache_fma_share", per_token * CACHE_TOKENS / cache_us * 1e-3 / fma);
    double isa_fma = sample_list_median(&times->isa_fma);
    double tokens = (double)a->n_tokens * s->batch;
    report_add_real(row, "isa_fma_peak_gflops", isa_fma);
    report_add_text(row, "bound",
                    bound_by(us, bytes / ceiling * 1e-3, cache_us * tokens / CACHE_TOKENS,
                             per_token * seen / isa_fma * 1e-3));
    report_add_real(row, "error", error);
    if (a->other) {
        report_add_text(row, "peer", session->options->peer);
        report_add_text(row, "peer_version", a->api->version());
        bench_add_times(row, "peer_", &times->peer);
        report_add_real(row, "peer_error", peer_error);
        report_add_real(row, "speedup_vs_peer", sample_list_median(&times->peer) / us);
    }
    report_add_machine(row, &session->machine, a->cfg.isa);
    report_print(&session->report, row);
}

static void attend_shape(bench_session *session, const bench_shape *shape)
{
    attend_row a;
    attend_times times = {0};
    double error, peer_error;
    make(session, shape, &a);
    if (check(session, &a, &error, &peer_error)) {
        measure(session, &a, &times);
        print_row(session, &a, &times, error, peer_error);
    } else {
        session->n_failed++;
    }
    sample_list_free(&times.us);
    sample_list_free(&times.peer);
    sample_list_free(&times.ceiling);
    sample_list_free(&times.fma);
    sample_list_free(&times.isa_fma);
    sample_list_free(&times.cache);
    unmake(&a);
}

int bench_attend(bench_session *session)
{
    session->report.columns = columns;
    bench_each_shape(session, attend_shape);
    return session->n_failed == 0 ? EXIT_OK : EXIT_FAILED;
}
