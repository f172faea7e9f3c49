/* SPDX-License-Identifier: Apache-2.0 */
/* What some of a prompt's queries show of selection: for a group and each threshold, by how much its
 * selection would have been off, from the exact results at hand.
 *
 * The runs fall into buckets, by the largest threshold at which they are read. Of each bucket both is
 * computed, attention to its tokens, and what its runs' means make of them; any threshold's selection
 * is then the former of some buckets, and the latter of the others. That reads what one decoded token
 * reads. */
#include "shown.h"

#include <math.h>
#include <string.h>

#include "sums.h"

enum {
    BUCKETS = MAI_THETAS + 1, /* the last one's runs are never read */
    PARTS = 2 * BUCKETS + 1,  /* of each bucket its tokens and its means; the rest before b */
};

/* One query of a row, for the heads of a group. The arrays lie in the worker's scratch. */
typedef struct shown {
    const mai_run *run;
    const mai_row_plan *p;
    void *kernel;
    int kv_head, query; /* of the row */
    int32_t first, n_runs;
    float *q, *scores;         /* [group][d], [group][n_runs] */
    float *out, *lse, *totals; /* [PARTS][group][dv], [PARTS][group], [group] */
    int32_t *order;            /* runs by buckets: bucket k is [start[k], start[k + 1]) */
    uint8_t *bucket;           /* [n_runs] */
    int32_t start[BUCKETS + 1];
} shown;

size_t mai_shown_bytes(const macattn *m, int32_t n_runs)
{
    const size_t group = (size_t)m->shape.group, n = (size_t)n_runs;
    const size_t floats = group * ((size_t)m->shape.d + n + PARTS * ((size_t)m->shape.dv + 1) + 1);
    return floats * sizeof(float) + n * (sizeof(int32_t) + 1);
}

static void lay_out(shown *x, void *scratch)
{
    const mai_shape *shape = &x->run->m->shape;
    const size_t group = (size_t)shape->group, n = (size_t)x->n_runs;
    x->q = scratch;
    x->scores = x->q + group * (size_t)shape->d;
    x->out = x->scores + group * n;
    x->lse = x->out + PARTS * group * (size_t)shape->dv;
    x->totals = x->lse + PARTS * group;
    x->order = (int32_t *)(void *)(x->totals + group);
    x->bucket = (uint8_t *)(x->order + n);
}

static int64_t far_end(const shown *x)
{
    const macattn_row *row = &x->p->row;
    return row->n_tokens - row->n_queries + x->query + 1 - x->run->m->cfg.band;
}

/* The exact results of one of the row's queries that are remembered. */
static mai_exact exact_of(const shown *x, int query, int head)
{
    const mai_run *run = x->run;
    const size_t hq = (size_t)run->m->shape.n_heads;
    const size_t at = (size_t)(x->p->first_capture + query - x->p->capture0) * hq + (size_t)head;
    const size_t full = (size_t)(x->p->first_query + query) * hq + (size_t)head;
    return (mai_exact){.out = mai_run_out(run, x->p->first_query + query, head),
                       .far = (const float *)run->work->capture_out.ptr +
                              at * (size_t)run->m->ring_dims.width,
                       .lse = ((const float *)run->work->lse.ptr)[full],
                       .far_lse = ((const float *)run->work->capture_lse.ptr)[at]};
}

/* Scores, and the estimates of the whole: with the share of the query before, as in decoding.
 * Returns whether those are numbers. */
static bool score(const shown *x)
{
    const macattn *m = x->run->m;
    const int group = m->shape.group;
    const int before = x->query > x->p->capture0 ? x->query - 1 : x->query;
    const float factor = (float)m->backend->q_factor(&m->shape);
    bool finite = true;
    for (int h = 0; h < group; h++) {
        m->backend->load_q(&m->shape,
                           mai_run_q(x->run, x->p->first_query + x->query, x->kv_head * group + h),
                           factor, x->q + (size_t)h * (size_t)m->shape.d);
    }
    const mai_score_args args = {.shape = &m->shape,
                                 .dims = &m->runs_dims,
                                 .segments = mai_run_segments_of(x->run, x->p),
                                 .kv_head = x->kv_head,
                                 .run0 = x->first,
                                 .run1 = x->n_runs,
                                 .q = x->q,
                                 .scores = x->scores,
                                 .stride = x->n_runs,
                                 .lse = x->lse,
                                 .scratch = x->kernel};
    m->backend->score(&args);
    for (int h = 0; h < group; h++) {
        const mai_exact exact = exact_of(x, before, x->kv_head * group + h);
        x->totals[h] = mai_select_total(x->lse[h], mai_share(exact.far_lse, exact.lse));
        finite = finite && isfinite(x->totals[h]);
    }
    return finite;
}

static int bucket_of(const shown *x, int32_t run)
{
    int bucket = BUCKETS - 1;
    for (int h = 0; h < x->run->m->shape.group; h++) {
        const float score = x->scores[h * x->n_runs + run];
        int k = 0;
        while (k < bucket && score < mai_select_least(x->totals[h], k)) k++;
        bucket = k;
    }
    return bucket;
}

/* The first bucket begins with what is always read. */
static void sort(shown *x)
{
    const bool always = mai_list_always(x->p->fresh_end);
    int32_t next[BUCKETS];
    memset(x->start, 0, sizeof x->start);
    x->start[1] = always;
    for (int32_t i = x->first; i < x->n_runs; i++) {
        x->bucket[i] = (uint8_t)bucket_of(x, i);
        x->start[x->bucket[i] + 1]++;
    }
    for (int k = 0; k < BUCKETS; k++) {
        next[k] = x->start[k];
        x->start[k + 1] += x->start[k];
    }
    if (always) x->order[next[0]++] = x->first - 1;
    for (int32_t i = x->first; i < x->n_runs; i++) x->order[next[x->bucket[i]]++] = i;
}

static float *part_out(const shown *x, int part, int h)
{
    const mai_shape *shape = &x->run->m->shape;
    return x->out + ((size_t)part * (size_t)shape->group + (size_t)h) * (size_t)shape->dv;
}

static float *part_lse(const shown *x, int part)
{
    return x->lse + part * x->run->m->shape.group;
}

/* Parts [0, BUCKETS): attention to a bucket's tokens. */
static void read_bucket(const shown *x, int k)
{
    const int64_t n = x->start[k + 1] - x->start[k];
    const mai_some_heads listed = {
        .kv_head = x->kv_head,
        .n_heads = x->run->m->shape.group,
        .q = x->q,
        .runs = x->order + x->start[k],
        .t0 = k == 0 && mai_list_always(x->p->fresh_end) ? mai_list_skip(x->p->fresh_end) : 0,
        .t1 = n << MAI_RUN_SHIFT,
        .out = part_out(x, k, 0),
        .lse = part_lse(x, k)};
    mai_attend_some(x->run, x->p, &listed, x->kernel);
}

/* Parts [BUCKETS, 2 BUCKETS): its means. */
static void stand_in(const shown *x, int k)
{
    const macattn *m = x->run->m;
    const mai_stand_in_args args = {.shape = &m->shape,
                                    .dims = &m->runs_dims,
                                    .segments = mai_run_segments_of(x->run, x->p),
                                    .kv_head = x->kv_head,
                                    .n = x->start[k + 1] - x->start[k],
                                    .runs = x->order + x->start[k],
                                    .scores = x->scores,
                                    .stride = x->n_runs,
                                    .top = x->totals,
                                    .out = part_out(x, BUCKETS + k, 0),
                                    .out_stride = m->shape.dv,
                                    .lse = part_lse(x, BUCKETS + k),
                                    .scratch = x->kernel};
    m->backend->stand_in(&args);
}

/* The first bucket's runs are read at every threshold, the last one's at none. */
static void compute_parts(const shown *x)
{
    const mai_some_heads gap = {.kv_head = x->kv_head,
                                .n_heads = x->run->m->shape.group,
                                .q = x->q,
                                .t0 = (int64_t)x->n_runs << MAI_RUN_SHIFT,
                                .t1 = far_end(x),
                                .out = part_out(x, PARTS - 1, 0),
                                .lse = part_lse(x, PARTS - 1)};
    for (int k = 0; k < BUCKETS; k++) {
        if (x->start[k] == x->start[k + 1]) continue;
        if (k < BUCKETS - 1) read_bucket(x, k);
        if (k > 0) stand_in(x, k);
    }
    if (gap.t0 < gap.t1) mai_attend_some(x->run, x->p, &gap, x->kernel);
}

/* Squared error of one head's selection by threshold k. */
static float off2(const shown *x, int h, int k)
{
    const int head = x->kv_head * x->run->m->shape.group + h, dv = x->run->m->shape.dv;
    const mai_exact exact = exact_of(x, x->query, head);
    const float *o[BUCKETS + 1];
    float lse[BUCKETS + 1], used[MAI_MAX_DIM], used_lse;
    int n = 0;
    for (int bucket = 0; bucket < BUCKETS; bucket++) {
        const int part = bucket <= k ? bucket : BUCKETS + bucket;
        if (x->start[bucket] == x->start[bucket + 1]) continue;
        o[n] = part_out(x, part, h);
        lse[n++] = part_lse(x, part)[h];
    }
    if ((int64_t)x->n_runs << MAI_RUN_SHIFT < far_end(x)) {
        o[n] = part_out(x, PARTS - 1, h);
        lse[n++] = part_lse(x, PARTS - 1)[h];
    }
    x->run->m->backend->merge(dv, n, o, lse, used, &used_lse);
    return mai_swap_off2(&exact, used, used_lse, dv);
}

static float *shown_of(const mai_run *run, const mai_row_plan *p, int i, int kv_head)
{
    const size_t at =
        (size_t)(p->first_shown + i) * (size_t)run->m->shape.n_kv_heads + (size_t)kv_head;
    return (float *)run->work->shown.ptr + at * MAI_THETAS;
}

/* The mean over the heads; NaN teaches nothing. */
static void show(shown *x, void *scratch, float *error2)
{
    const int group = x->run->m->shape.group;
    for (int k = 0; k < MAI_THETAS; k++) error2[k] = NAN;
    if (x->n_runs <= x->first || !mai_remembers(x->run, x->kv_head)) return;
    lay_out(x, scratch);
    if (!score(x)) return;
    sort(x);
    compute_parts(x);
    for (int k = 0; k < MAI_THETAS; k++) {
        error2[k] = 0;
        for (int h = 0; h < group; h++) error2[k] += off2(x, h, k) / (float)group;
    }
}

/* Which of a row's queries is the i-th that shows selections. */
static int shown_query(const mai_row_plan *p, int i)
{
    return p->capture0 + mai_prompt_sample_at(i, p->n_shown, p->row.n_queries - p->capture0);
}

/* Item i: rows in order, in each the queries, in each the kv heads. */
static void show_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const int n_kv_heads = run->m->shape.n_kv_heads;
    const mai_row_plan *p = run->plan->rows;
    const mai_scratch scratch = mai_work_scratch(run->work, worker);
    while (i >= p->n_shown * n_kv_heads) i -= p++->n_shown * n_kv_heads;
    shown x = {.run = run,
               .p = p,
               .kernel = scratch.kernel,
               .kv_head = i % n_kv_heads,
               .query = shown_query(p, i / n_kv_heads),
               .first = mai_select_first(run->m->cfg.fresh_tokens, MAI_RUN_TOKENS)};
    x.n_runs = mai_runs_kept(&run->m->cfg, p->row.n_tokens - p->row.n_queries + x.query + 1);
    show(&x, scratch.shown, shown_of(run, p, i / n_kv_heads, x.kv_head));
}

void mai_show_selections(mai_run *run)
{
    const int64_t start = mai_now_ns();
    const int n = run->plan->n_shown * run->m->shape.n_kv_heads;
    if (n > 0) mai_threads_run(run->m->threads, n, show_task, run);
    run->select_ns += mai_now_ns() - start;
}

void mai_note_shown(const mai_run *run, const mai_row_plan *p)
{
    for (int i = 0; p->n_samples == 0 && i < p->n_shown; i++) {
        for (int h = 0; h < run->m->shape.n_heads; h++) {
            const float *out = mai_run_out(run, p->first_query + shown_query(p, i), h);
            mai_note_output(mai_record_of(run, h), mai_norm2(out, run->m->shape.dv));
        }
    }
}

void mai_learn_shown(const mai_run *run, int kv_head, float unit2)
{
    for (int r = 0; r < run->plan->n_rows; r++) {
        const mai_row_plan *p = &run->plan->rows[r];
        for (int i = 0; i < p->n_shown; i++) {
            float error2[MAI_THETAS];
            for (int k = 0; k < MAI_THETAS; k++)
                error2[k] = shown_of(run, p, i, kv_head)[k] / unit2;
            mai_select_sample(mai_selector_of(run, kv_head), error2);
        }
    }
}
