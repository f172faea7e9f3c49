/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac --select-share`: decode of groups that may not reuse, in turns with exact attention.
 *
 * Made tensors: of four themes each is that of a share of the runs of 16 tokens, whose keys all queries of
 * the theme ask for, and which carry nearly all of their mass; share 1 is flat attention, which no
 * selection approximates. Queries take the themes in turns, and match nothing, so that nothing is
 * reused. Short prompts at the end of the context teach the threshold. Slots rotate as in `bench mac`,
 * each going through sixteen lengths, so that the means of a run are made as often as in use. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/memory.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "select.h"

enum {
    RUN = 16,
    THEMES = 4,
    LESSONS = 16,  /* prompts */
    N_QUERIES = 16 /* different ones, in turns */
};
/* How much of a theme is in the keys that have it, beside noise of size 1, and in its queries. */
#define KEY_SHARE 1.2f
#define QUERY_SHARE 0.4f
#define QUERY_NOISE 0.1f

static const report_column columns[] = {BENCH_SHAPE_COLUMNS,
                                        {"threads", "threads", 7, 0},
                                        {"select_share", "runs", 6, 3},
                                        BENCH_TIME_COLUMNS,
                                        {"exact_us_median", "exact us", 10, 1},
                                        {"speedup_vs_exact", "speedup", 7, 2},
                                        {"selected_share", "selected", 8, 3},
                                        {"read_share", "read", 6, 3},
                                        {"select_us_mean", "choose us", 9, 1},
                                        {"error", "error", 9, 5},
                                        {0}};

typedef struct world {
    macattn_config cfg;
    macattn *m;
    tensors_kv kv; /* one layer; a sequence for each slot */
    int32_t n_slots;
    int64_t n_tokens;
    float *themes;  /* [THEMES][n_kv_heads][head_dim], orthogonal, each value of size 1 or so */
    float *q;       /* [N_QUERIES][n_heads][head_dim] */
    float *q_match; /* [2][n_heads][head_dim] anew for each call */
    random_state rng;
    float *out, *exact; /* [2][n_heads][v_head_dim] */
    int64_t *length;    /* [slot] */
} world;

static size_t query_values(const world *w)
{
    return (size_t)w->cfg.n_heads * (size_t)w->cfg.head_dim;
}

static float *theme(const world *w, int which, size_t kv_head)
{
    const size_t at = (size_t)which * (size_t)w->cfg.n_kv_heads + kv_head;
    return w->themes + at * (size_t)w->cfg.head_dim;
}

/* x less its part along y, of the same size as before. */
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
    for (int a = 0; a < THEMES; a++) {
        for (size_t h = 0; h < (size_t)w->cfg.n_kv_heads; h++) {
            const size_t d = (size_t)w->cfg.head_dim;
            tensors_fill_normal(theme(w, a, h), d, &w->rng);
            for (int b = 0; b < a; b++) turn_away(theme(w, a, h), theme(w, b, h), d);
        }
    }
}

/* Keys of some runs get what a theme's queries ask for. */
static void mark_runs(world *w, double share)
{
    const size_t d = (size_t)w->cfg.head_dim, heads = (size_t)w->cfg.n_kv_heads;
    const size_t row = macattn_dtype_row_bytes(w->cfg.k_dtype, w->cfg.head_dim);
    float *key = memory_alloc(d * sizeof *key);
    for (int64_t run = 0; run < w->n_tokens / RUN; run++) {
        float has[THEMES];
        for (int a = 0; a < THEMES; a++) {
            const bool chosen = (double)random_below(&w->rng, 1 << 20) * 0x1p-20 < share;
            has[a] = chosen ? KEY_SHARE : 0;
        }
        for (int64_t t = run * RUN; t < (run + 1) * RUN; t++) {
            for (size_t h = 0; h < heads; h++) {
                tensors_fill_normal(key, d, &w->rng);
                for (size_t i = 0; i < d * THEMES; i++)
                    key[i % d] += has[i / d] * theme(w, (int)(i / d), h)[i % d];
                tensors_encode(w->cfg.k_dtype, key, d,
                               w->kv.k[0] + (size_t)t * w->kv.k_row + h * row);
            }
        }
    }
    free(key);
}

static void make_queries(world *w)
{
    const size_t d = (size_t)w->cfg.head_dim;
    const size_t group = (size_t)(w->cfg.n_heads / w->cfg.n_kv_heads);
    tensors_fill_normal(w->q, N_QUERIES * query_values(w), &w->rng);
    for (size_t i = 0; i < N_QUERIES * query_values(w); i++) {
        const size_t head = i / d % (size_t)w->cfg.n_heads, query = i / query_values(w);
        w->q[i] = QUERY_NOISE * w->q[i] +
                  QUERY_SHARE * theme(w, (int)(query % THEMES), head / group)[i % d];
    }
}

static void call(world *w, int32_t slot, int32_t page, int64_t n, int32_t n_queries, const float *q,
                 float *out, double *us)
{
    const macattn_row row = {.slot = slot, .n_queries = n_queries, .n_tokens = n, .page = page};
    const macattn_batch batch = {
        .struct_size = sizeof batch, .n_rows = 1, .rows = &row, .n_pages = w->kv.n_sequences};
    tensors_fill_normal(w->q_match, 2 * query_values(w), &w->rng);
    const macattn_io io = {.struct_size = sizeof io,
                           .q = q,
                           .q_match = w->q_match,
                           .kv = tensors_kv_view(&w->kv, 0, 0),
                           .out = out};
    die_unless_ok(w->m, macattn_plan(w->m, &batch), "macattn_plan");
    const double start = clock_now_us();
    const macattn_status status = slot < 0         ? macattn_attend(w->m, &io)
                                  : n_queries == 1 ? macattn_decode(w->m, 0, &io)
                                                   : macattn_prefill(w->m, 0, &io);
    *us = clock_now_us() - start;
    die_unless_ok(w->m, status, "attention");
}

/* The slot's next step; at the end of the context it goes back by sixteen tokens. */
static double decode(world *w, int32_t slot, const float *q)
{
    double us;
    if (w->length[slot] >= w->n_tokens) {
        w->length[slot] = w->n_tokens - RUN;
        die_unless_ok(w->m, macattn_slot_truncate(w->m, slot, w->length[slot]),
                      "macattn_slot_truncate");
    }
    call(w, slot, slot % w->n_slots, ++w->length[slot], 1, q, w->out, &us);
    return us;
}

static void teach(world *w)
{
    double us;
    for (int i = 0; i < LESSONS; i++) {
        report_progress("prompt %d of %d", i + 1, LESSONS);
        const int64_t n = w->n_tokens - RUN;
        if (i > 0) {
            die_unless_ok(w->m, macattn_slot_truncate(w->m, 0, n - 2), "macattn_slot_truncate");
        }
        call(w, 0, 0, n, 2, w->q + (size_t)(i % (N_QUERIES - 1)) * query_values(w), w->out, &us);
    }
    for (int32_t slot = 0; slot < w->n_slots; slot++) {
        if (slot > 0) die_unless_ok(w->m, macattn_slot_fork(w->m, 0, slot), "macattn_slot_fork");
        w->length[slot] = w->n_tokens - RUN;
    }
    /* The first of them copies what forks share. */
    for (int32_t slot = 0; slot < w->n_slots; slot++) (void)decode(w, slot, w->q);
}

static void open_world(bench_session *session, const bench_shape *shape, double share, world *w)
{
    const bench_options *o = session->options;
    const size_t bytes = tensors_kv_bytes(shape->kv, shape->heads.n_kv_heads, shape->head_dim,
                                          shape->v_head_dim, shape->context);
    const int32_t layers = bench_layers(session, bytes);
    *w = (world){.n_slots = layers < 2 && !o->warm ? 2
                            : layers > 16          ? 16
                                                   : layers,
                 .n_tokens = shape->context / RUN * RUN,
                 .rng = {(uint64_t)o->seed}};
    bench_config(session, shape, &w->cfg);
    w->cfg.policy = MACATTN_POLICY_BUDGET;
    w->cfg.band = (int32_t)o->band;
    w->cfg.min_tokens = 0;
    w->cfg.max_tokens = w->n_tokens;
    w->cfg.max_slots = w->n_slots;
    w->m = bench_create(&w->cfg);
    die_unless_ok(w->m, macattn_get_config(w->m, &w->cfg), "macattn_get_config");
    w->themes = memory_alloc(THEMES * query_values(w) * sizeof *w->themes);
    w->q_match = memory_alloc(2 * query_values(w) * sizeof *w->q_match);
    w->q = memory_alloc(N_QUERIES * query_values(w) * sizeof *w->q);
    const size_t out = (size_t)w->cfg.n_heads * (size_t)w->cfg.v_head_dim;
    w->out = memory_alloc(2 * out * sizeof *w->out);
    w->exact = memory_alloc(out * sizeof *w->exact);
    w->length = memory_alloc((size_t)w->n_slots * sizeof *w->length);
    tensors_kv_create(&w->kv, shape->kv, shape->heads.n_kv_heads, shape->head_dim,
                      shape->v_head_dim, w->n_slots, w->n_tokens, 1, o->huge, true, &w->rng);
    make_themes(w);
    report_progress("[%d/%d] making the cache", session->rows_done + 1, session->n_rows);
    mark_runs(w, share);
    tensors_kv_copy_first(&w->kv);
    make_queries(w);
    teach(w);
}

static void close_world(world *w)
{
    macattn_destroy(w->m);
    tensors_kv_destroy(&w->kv);
    free(w->themes);
    free(w->q_match);
    free(w->q);
    free(w->out);
    free(w->exact);
    free(w->length);
}

/* Of all heads' outputs, relative to their size: the unit that the budget counts in. */
static double error_of(const world *w)
{
    double off2 = 0, all2 = 0;
    for (size_t i = 0; i < (size_t)w->cfg.n_heads * (size_t)w->cfg.v_head_dim; i++) {
        const double off = (double)w->out[i] - (double)w->exact[i];
        off2 += off * off;
        all2 += (double)w->exact[i] * (double)w->exact[i];
    }
    return sqrt(off2 / all2);
}

static void print_row(bench_session *session, const bench_shape *shape, const world *w,
                      double share, const sample_list *us, const sample_list *exact, double error)
{
    macattn_stats s = {.struct_size = sizeof s};
    die_unless_ok(w->m, macattn_stats_get(w->m, -1, -1, &s), "macattn_stats_get");
    double groups = 0, read = 0, runs = 0;
    for (int i = 0; i < MACATTN_WAYS; i++) {
        groups += (double)s.groups[i];
        read += (double)s.kv_bytes[i];
        runs += (double)s.run_bytes[i];
    }
    const double all =
        (double)tensors_kv_bytes(shape->kv, 1, w->cfg.head_dim, w->cfg.v_head_dim, w->n_tokens) *
        groups;
    const double median = sample_list_median(us), exact_median = sample_list_median(exact);
    cJSON *row = report_row();
    bench_add_shape(row, shape);
    report_add_text(row, "policy", "budget");
    report_add_real(row, "budget", (double)w->cfg.budget);
    report_add_int(row, "band", w->cfg.band);
    report_add_real(row, "select_share", share);
    report_add_int(row, "slots_rotated", w->n_slots);
    report_add_int(row, "reps", (int64_t)us->n);
    bench_add_times(row, "", us);
    bench_add_times(row, "exact_", exact);
    report_add_real(row, "speedup_vs_exact", exact_median / median);
    report_add_real(row, "selected_share", (double)s.groups[MACATTN_SELECTED] / groups);
    report_add_real(row, "reused_share", (double)s.groups[MACATTN_REUSED] / groups);
    report_add_real(row, "read_share", (read + runs) / all);
    report_add_real(row, "run_share", runs / all);
    report_add_real(row, "select_us_mean", (double)s.select_ns * 1e-3 / (double)us->n);
    report_add_real(row, "error", error);
    report_add_machine(row, &session->machine, w->cfg.isa);
    report_print(&session->report, row);
}

static void measure(bench_session *session, const bench_shape *shape, world *w, double share)
{
    sample_list us = {0}, exact = {0};
    double spent = 0, error2 = 0;
    die_unless_ok(w->m, macattn_stats_reset(w->m), "macattn_stats_reset");
    int64_t rep = 0;
    for (; !bench_enough(session, rep, spent); rep++) {
        const int32_t slot = (int32_t)(rep % w->n_slots);
        const float *q = w->q + (size_t)(rep % N_QUERIES) * query_values(w);
        bench_step_progress(session, "measuring", rep, spent);
        sample_list_add(&us, decode(w, slot, q));
        double took;
        call(w, -1, (slot + w->n_slots / 2) % w->n_slots, w->length[slot], 1, q, w->exact, &took);
        sample_list_add(&exact, took);
        spent += us.values[us.n - 1] + took;
        error2 += error_of(w) * error_of(w);
    }
    print_row(session, shape, w, share, &us, &exact, sqrt(error2 / (double)rep));
    sample_list_free(&us);
    sample_list_free(&exact);
}

static void select_shape(bench_session *session, const bench_shape *shape)
{
    const bench_options *o = session->options;
    if (shape->context < o->band + 64 * RUN) {
        die(EXIT_USAGE, "bench mac: --select-share with a band of %d needs a --context of %d",
            (int)o->band, (int)o->band + 64 * RUN);
    }
    for (int i = 0; i < o->select_share.n; i++) {
        world w;
        open_world(session, shape, o->select_share.values[i], &w);
        measure(session, shape, &w, o->select_share.values[i]);
        close_world(&w);
    }
}

int bench_select(bench_session *session)
{
    session->report.columns = columns;
    bench_each_shape(session, select_shape);
    return session->n_failed == 0 ? EXIT_OK : EXIT_FAILED;
}
