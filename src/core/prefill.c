/* SPDX-License-Identifier: Apache-2.0 */
/* Prefill: causal attention of chunks of queries, and the ring entries of the last of them. */
#include "prefill.h"

#include <string.h>

#include "shown.h"
#include "summarise.h"
#include "sums.h"

typedef struct prefill_job {
    mai_run *run;
    bool single_rows_too;
    int most; /* queries of a block */
} prefill_job;

static int row_blocks(const prefill_job *x, const mai_row_plan *p)
{
    if (p->row.n_queries == 1 && !x->single_rows_too) return 0;
    return (p->row.n_queries + x->most - 1) / x->most;
}

static int count_items(const prefill_job *x)
{
    const mai_plan *plan = x->run->plan;
    int n = 0;
    for (int r = 0; r < plan->n_rows; r++) n += row_blocks(x, &plan->rows[r]);
    return n * x->run->m->shape.n_kv_heads;
}

/* Blocks as large as the kernel has them; halves or quarters where there would be too few for all threads to
 * end at about the same time. What a query gives does not depend on its block. */
static void size_blocks(prefill_job *x)
{
    enum { ITEMS_PER_THREAD = 4, SMALLEST = 4 };
    const int largest = x->run->m->backend->prefill_queries(&x->run->m->shape);
    const int enough = ITEMS_PER_THREAD * x->run->m->cfg.n_threads;
    x->most = largest;
    while (x->most > 1 && x->most * SMALLEST > 2 * largest && count_items(x) < enough &&
           x->run->m->cfg.n_threads > 1)
        x->most /= 2;
}

/* With a sink, a further logit adds to the denominator: o and lse change accordingly. */
static void apply_sink(const mai_run *run, int32_t query, int32_t head, float *lse)
{
    const macattn *m = run->m;
    float *out = mai_run_out(run, query, head);
    float merged[MAI_MAX_DIM];
    const float *const o[2] = {out, run->work->zeros};
    const float l[2] = {*lse, run->io.sinks[head]};
    m->backend->merge(m->shape.dv, 2, o, l, merged, lse);
    memcpy(out, merged, sizeof(float) * (size_t)m->shape.dv);
}

static void finish_block(const mai_run *run, const mai_row_plan *p, const mai_prefill_args *args)
{
    const int n_heads = run->m->shape.n_heads, group = run->m->shape.group;
    for (int i = args->q0; i < args->q1; i++) {
        const int query = p->first_query + i;
        for (int head = args->kv_head * group; head < (args->kv_head + 1) * group; head++) {
            float *lse = &args->lse[(size_t)i * (size_t)n_heads + (size_t)head];
            if (run->io.sinks) apply_sink(run, query, head, lse);
            if (run->io.lse) run->io.lse[(size_t)query * (size_t)n_heads + (size_t)head] = *lse;
        }
    }
}

/* Item i: rows in order, in each the blocks of queries from the last (the longest) to the first,
 * in each the kv heads. */
static void prefill_task(void *arg, int i, int worker)
{
    const prefill_job *x = arg;
    const mai_run *run = x->run;
    const macattn *m = run->m;
    const mai_plan *plan = run->plan;
    const mai_row_plan *p = plan->rows;
    while (i >= row_blocks(x, p) * m->shape.n_kv_heads)
        i -= row_blocks(x, p++) * m->shape.n_kv_heads;
    const int block = row_blocks(x, p) - 1 - i / m->shape.n_kv_heads, most = x->most;
    const int n = p->row.n_queries, kv_head = i % m->shape.n_kv_heads;
    const size_t hq = (size_t)m->shape.n_heads, capture = (size_t)p->first_capture * hq;
    const mai_prefill_args args = {
        .shape = &m->shape,
        .tokens = mai_run_tokens(run, p),
        .pos0 = p->row.n_tokens - n,
        .window = m->cfg.window,
        .q0 = block * most,
        .q1 = (block + 1) * most < n ? (block + 1) * most : n,
        .kv_head = kv_head,
        .n_queries = n,
        .q = mai_run_q(run, p->first_query, 0),
        .q_row_stride = run->io.q_row_stride,
        .q_head_stride = run->io.q_head_stride,
        .out = mai_run_out(run, p->first_query, 0),
        .out_row_stride = run->io.out_row_stride,
        .out_head_stride = run->io.out_head_stride,
        .lse = (float *)run->work->lse.ptr + (size_t)p->first_query * hq,
        .capture0 = mai_remembers(run, kv_head) ? p->capture0 : n,
        .band = m->cfg.band,
        .fresh = m->cfg.fresh_tokens,
        .far_out = (float *)run->work->capture_out.ptr + capture * (size_t)m->ring_dims.width,
        .far_lse = (float *)run->work->capture_lse.ptr + capture,
        .far_keys = m->ring_dims.width > m->shape.dv,
        .scratch = mai_work_scratch(run->work, worker).kernel,
    };
    m->backend->prefill(&args);
    finish_block(run, p, &args);
}

/* ------------------------------------------------------------------------------- remembering -- */

/* A query that is to be remembered, and its results. */
typedef struct captured {
    const mai_run *run;
    const mai_row_plan *p;
    int head, query; /* of the row */
    int64_t pos;
    float q[MAI_MAX_DIM]; /* as the kernels get it */
    const char *q_match;
    const float *out, *summary; /* [dv]; [width] */
    float lse, far_lse;
} captured;

static void captured_init(captured *x, const mai_run *run, const mai_row_plan *p, int head,
                          int query)
{
    const macattn *m = run->m;
    const size_t hq = (size_t)m->shape.n_heads;
    const size_t at = (size_t)(p->first_capture + query - p->capture0) * hq + (size_t)head;
    const size_t full = (size_t)(p->first_query + query) * hq + (size_t)head;
    x->run = run;
    x->p = p;
    x->head = head;
    x->query = query;
    x->pos = p->row.n_tokens - p->row.n_queries + query;
    m->backend->load_q(&m->shape, mai_run_q(run, p->first_query + query, head),
                       (float)m->backend->q_factor(&m->shape), x->q);
    x->q_match = mai_run_q_match(run, p->first_query + query, head);
    x->out = mai_run_out(run, p->first_query + query, head);
    x->summary = (const float *)run->work->capture_out.ptr + at * (size_t)m->ring_dims.width;
    x->lse = ((const float *)run->work->lse.ptr)[full];
    x->far_lse = ((const float *)run->work->capture_lse.ptr)[at];
}

static const mai_ring_view *ring_of(const captured *x)
{
    return &x->run->m->slots[x->p->row.slot].rings[x->run->layer]->view;
}

static bool query_finite(const captured *x)
{
    float q[MAI_MAX_DIM];
    x->run->m->backend->load_q(&x->run->m->shape, x->q_match, 1.0f, q);
    return mai_all_finite(q, x->run->m->shape.d);
}

static void insert(const captured *x)
{
    const macattn *m = x->run->m;
    const mai_ring_view *ring = ring_of(x);
    const float lse0 = (float)((double)x->far_lse - mai_key_logit(m, x->q, x->summary));
    const size_t at = (size_t)x->head * (size_t)m->ring_dims.capacity + (size_t)ring->head[x->head];
    if (!query_finite(x) || !mai_all_finite(&lse0, 1) ||
        !mai_all_finite(x->summary, m->ring_dims.width))
        return;
    m->backend->insert(&m->ring_dims, ring, m->shape.q_dtype, x->head, x->q_match, (int32_t)x->pos,
                       (int32_t)(x->pos + 1 - m->cfg.band), lse0, x->summary);
    ring->share[at] = mai_share(x->far_lse, x->lse);
}

/* ----------------------------------------------------------------------------- what it shows -- */

static mai_match search(const captured *x, void *scratch)
{
    const macattn *m = x->run->m;
    const mai_match_args args = {
        .shape = &m->shape,
        .dims = &m->ring_dims,
        .ring = ring_of(x),
        .head0 = x->head,
        .n_heads = 1,
        .q = x->q_match,
        .radius = mai_policy_get(m->cfg.policy)->radius(&m->cfg, x->pos + 1),
        .max_end = x->pos + 1 - m->cfg.band,
        .scratch = scratch,
    };
    mai_match found;
    m->backend->match(&args, &found);
    return found;
}

/* What using entry `at` instead of the exact summary would have changed, squared. */
static float used_off2(const captured *x, size_t at, void *scratch)
{
    const macattn *m = x->run->m;
    const mai_ring_view *ring = ring_of(x);
    const int dv = m->shape.dv;
    const mai_exact exact = {x->out, x->summary, x->lse, x->far_lse};
    float gap[MAI_MAX_DIM], used[MAI_MAX_DIM], lse[2], used_lse;
    const float *const o[2] = {ring->out + at * (size_t)m->ring_dims.width, gap};
    lse[0] = (float)((double)ring->lse0[at] + mai_key_logit(m, x->q, o[0]));
    const mai_some_heads since = {.kv_head = x->head / m->shape.group,
                                  .n_heads = 1,
                                  .q = x->q,
                                  .t0 = ring->end[at],
                                  .t1 = x->pos + 1 - m->cfg.band,
                                  .out = gap,
                                  .lse = &lse[1]};
    mai_attend_some(x->run, x->p, &since, scratch);
    m->backend->merge(dv, 2, o, lse, used, &used_lse);
    return mai_swap_off2(&exact, used, used_lse, dv);
}

/* What the query shows, as if it were decoded: before it is remembered. */
static mai_prompt_sample show(const captured *x, bool remembers, void *scratch)
{
    mai_prompt_sample s = {.distance2 = -1, .norm2 = mai_norm2(x->out, x->run->m->shape.dv)};
    const mai_match found = remembers ? search(x, scratch) : (mai_match){.entry = -1};
    if (found.entry < 0) return s;
    const mai_ring_view *ring = ring_of(x);
    const size_t at = (size_t)x->head * (size_t)x->run->m->ring_dims.capacity + (size_t)found.entry;
    s.distance2 = found.distance2;
    s.weight = ring->share[at];
    s.before = ring->moved[at];
    s.off2 = used_off2(x, at, scratch);
    return s;
}

static mai_prompt_sample *sample_of(const mai_run *run, const mai_row_plan *p, int i, int head)
{
    return (mai_prompt_sample *)run->work->samples.ptr +
           (size_t)(p->first_sample + i) * (size_t)run->m->shape.n_heads + (size_t)head;
}

/* Item i: (row, head), its remembered queries from the oldest to the newest. */
static void remember_task(void *arg, int i, int worker)
{
    const mai_run *run = ((prefill_job *)arg)->run;
    const int head = i % run->m->shape.n_heads;
    const bool remembers = mai_remembers(run, head / run->m->shape.group);
    const mai_row_plan *p = &run->plan->rows[i / run->m->shape.n_heads];
    const int n = p->row.n_queries - p->capture0;
    int sample = 0;
    for (int k = 0; k < n; k++) {
        const bool shows =
            sample < p->n_samples && k == mai_prompt_sample_at(sample, p->n_samples, n);
        captured x;
        if (!remembers && !shows) continue;
        captured_init(&x, run, p, head, p->capture0 + k);
        if (shows) {
            *sample_of(run, p, sample++, head) =
                show(&x, remembers, mai_work_scratch(run->work, worker).kernel);
        }
        if (remembers) insert(&x);
    }
}

/* The samples of a group's heads. */
static void learn_group(const mai_run *run, int kv_head, float unit2)
{
    const int group = run->m->shape.group;
    float error2 = 0;
    int n = 0;
    for (int r = 0; r < run->plan->n_rows; r++) {
        const mai_row_plan *p = &run->plan->rows[r];
        for (int i = 0; i < p->n_samples; i++) {
            for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
                const mai_prompt_sample *s = sample_of(run, p, i, h);
                if (s->distance2 < 0) continue;
                error2 += mai_record_prompt(mai_record_of(run, h), s, unit2);
                n++;
            }
        }
    }
    mai_habit_prompt(mai_habit_of(run, kv_head), error2, n);
    if (mai_selects(run)) mai_learn_shown(run, kv_head, unit2);
}

/* One after the other: rows share the records. */
static void learn(const mai_run *run)
{
    const int n_heads = run->m->shape.n_heads;
    for (int r = 0; r < run->plan->n_rows; r++) {
        const mai_row_plan *p = &run->plan->rows[r];
        for (int i = 0; i < p->n_samples; i++) {
            for (int h = 0; h < n_heads; h++)
                mai_note_output(mai_record_of(run, h), sample_of(run, p, i, h)->norm2);
        }
        mai_note_shown(run, p);
    }
    const float unit2 = mai_layer_unit2(mai_record_of(run, 0), n_heads);
    for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++)
        learn_group(run, kv_head, unit2);
}

void mai_prefill_rows(mai_run *run, bool single_rows_too)
{
    macattn *m = run->m;
    prefill_job x = {.run = run, .single_rows_too = single_rows_too};
    size_blocks(&x);
    for (int r = 0; run->reuse && r < run->plan->n_rows; r++) {
        mai_slot_ring(m, run->plan->rows[r].row.slot, run->layer);
    }
    if (mai_selects(run)) mai_summarise_rows(run);
    mai_threads_run(m->threads, count_items(&x), prefill_task, &x);
    if (!run->reuse) return;
    if (mai_selects(run)) mai_show_selections(run);
    mai_threads_run(m->threads, run->plan->n_rows * m->shape.n_heads, remember_task, &x);
    if (mai_judges(run)) learn(run);
}
