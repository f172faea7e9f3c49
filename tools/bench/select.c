/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac --select-share`: decode of groups that may not reuse, in turns with exact
 * attention.
 *
 * Tensors are those of themes.h; queries match nothing,
 * so that nothing is reused. Short prompts at the end of the context teach the threshold. Slots
 * rotate as in `bench mac`, each going through sixteen lengths, so that the means of a run are made
 * as often as in use. */
#include <math.h>
#include <stdlib.h>

#include "common/clock.h"
#include "common/memory.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "select.h"
#include "themes.h"

static const report_column columns[] = {BENCH_SHAPE_COLUMNS,
                                        {"threads", "threads", 7, 0},
                                        THEME_COLUMNS,
                                        {"select_us_mean", "choose us", 9, 1},
                                        {0}};

typedef struct world {
    macattn_config cfg;
    macattn *m;
    tensors_kv kv; /* one layer; a sequence for each slot */
    int32_t n_slots;
    int64_t n_tokens;
    float *themes;  /* themes_make's */
    float *q;       /* [THEME_QUERIES][n_heads][head_dim] */
    float *q_match; /* [2][n_heads][head_dim] anew for each call */
    random_state rng;
    float *out, *exact; /* [2][n_heads][v_head_dim] */
    int64_t *length;    /* [slot] */
} world;

static size_t query_values(const world *w)
{
    return (size_t)w->cfg.n_heads * (size_t)w->cfg.head_dim;
}

/* Keys of some runs get what a theme's queries ask for. */
static void mark_runs(world *w, double share)
{
    const size_t d = (size_t)w->cfg.head_dim, heads = (size_t)w->cfg.n_kv_heads;
    const size_t row = macattn_dtype_row_bytes(w->cfg.k_dtype, w->cfg.head_dim);
    float *key = memory_alloc(d * sizeof *key);
    for (int64_t run = 0; run < w->n_tokens / THEME_RUN; run++) {
        float has[THEMES];
        for (int a = 0; a < THEMES; a++) {
            has[a] = themes_chosen(share, &w->rng) ? THEME_KEY_SHARE : 0;
        }
        for (int64_t t = run * THEME_RUN; t < (run + 1) * THEME_RUN; t++) {
            for (size_t h = 0; h < heads; h++) {
                tensors_fill_normal(key, d, &w->rng);
                for (size_t i = 0; i < d * THEMES; i++)
                    key[i % d] += has[i / d] * themes_at(w->themes, &w->cfg, i / d, h)[i % d];
                tensors_encode(w->cfg.k_dtype, key, d,
                               w->kv.k[0] + (size_t)t * w->kv.k_row + h * row);
            }
        }
    }
    free(key);
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
        w->length[slot] = w->n_tokens - THEME_RUN;
        die_unless_ok(w->m, macattn_slot_truncate(w->m, slot, w->length[slot]),
                      "macattn_slot_truncate");
    }
    call(w, slot, slot % w->n_slots, ++w->length[slot], 1, q, w->out, &us);
    return us;
}

static void teach(world *w)
{
    double us;
    for (int i = 0; i < THEME_LESSONS; i++) {
        report_progress("prompt %d of %d", i + 1, THEME_LESSONS);
        const int64_t n = w->n_tokens - THEME_RUN;
        if (i > 0) {
            die_unless_ok(w->m, macattn_slot_truncate(w->m, 0, n - 2), "macattn_slot_truncate");
        }
        call(w, 0, 0, n, 2, w->q + (size_t)(i % (THEME_QUERIES - 1)) * query_values(w), w->out,
             &us);
    }
    for (int32_t slot = 0; slot < w->n_slots; slot++) {
        if (slot > 0) die_unless_ok(w->m, macattn_slot_fork(w->m, 0, slot), "macattn_slot_fork");
        w->length[slot] = w->n_tokens - THEME_RUN;
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
                 .n_tokens = shape->context / THEME_RUN * THEME_RUN,
                 .rng = {(uint64_t)o->seed}};
    bench_config(session, shape, &w->cfg);
    w->cfg.policy = MACATTN_POLICY_BUDGET;
    w->cfg.band = (int32_t)o->band;
    w->cfg.select = o->select;
    w->cfg.min_tokens = 0;
    w->cfg.max_tokens = w->n_tokens;
    w->cfg.max_slots = w->n_slots;
    w->m = bench_create(&w->cfg);
    die_unless_ok(w->m, macattn_get_config(w->m, &w->cfg), "macattn_get_config");
    w->q_match = memory_alloc(2 * query_values(w) * sizeof *w->q_match);
    w->q = memory_alloc(THEME_QUERIES * query_values(w) * sizeof *w->q);
    const size_t out = (size_t)w->cfg.n_heads * (size_t)w->cfg.v_head_dim;
    w->out = memory_alloc(2 * out * sizeof *w->out);
    w->exact = memory_alloc(out * sizeof *w->exact);
    w->length = memory_alloc((size_t)w->n_slots * sizeof *w->length);
    tensors_kv_create(&w->kv, shape->kv, shape->heads.n_kv_heads, shape->head_dim,
                      shape->v_head_dim, w->n_slots, w->n_tokens, 1, o->huge, true, &w->rng);
    w->themes = themes_make(&w->cfg, &w->rng);
    report_progress("[%d/%d] making the cache", session->rows_done + 1, session->n_rows);
    mark_runs(w, share);
    tensors_kv_copy_first(&w->kv);
    themes_queries(w->themes, &w->cfg, w->q, &w->rng);
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

static void print_row(bench_session *session, const bench_shape *shape, const world *w,
                      double share, const sample_list *us, const sample_list *exact, double error)
{
    macattn_stats s = {.struct_size = sizeof s};
    die_unless_ok(w->m, macattn_stats_get(w->m, -1, -1, &s), "macattn_stats_get");
    const double group_bytes =
        (double)tensors_kv_bytes(shape->kv, 1, w->cfg.head_dim, w->cfg.v_head_dim, w->n_tokens);
    cJSON *row = report_row();
    bench_add_shape(row, shape);
    themes_add_setting(row, &w->cfg, share);
    report_add_int(row, "slots_rotated", w->n_slots);
    themes_add_result(row, &s, group_bytes, us, exact);
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
        const float *q = w->q + (size_t)(rep % THEME_QUERIES) * query_values(w);
        bench_step_progress(session, "measuring", rep, spent);
        sample_list_add(&us, decode(w, slot, q));
        double took;
        call(w, -1, (slot + w->n_slots / 2) % w->n_slots, w->length[slot], 1, q, w->exact, &took);
        sample_list_add(&exact, took);
        spent += us.values[us.n - 1] + took;
        const double error =
            themes_error(w->out, w->exact, (size_t)w->cfg.n_heads * (size_t)w->cfg.v_head_dim);
        error2 += error * error;
    }
    print_row(session, shape, w, share, &us, &exact, sqrt(error2 / (double)rep));
    sample_list_free(&us);
    sample_list_free(&exact);
}

static void select_shape(bench_session *session, const bench_shape *shape)
{
    const bench_options *o = session->options;
    if (shape->context < o->band + 64 * THEME_RUN) {
        die(EXIT_USAGE, "bench mac: --select-share with a band of %d needs a --context of %d",
            (int)o->band, (int)o->band + 64 * THEME_RUN);
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
