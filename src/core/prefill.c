/* SPDX-License-Identifier: Apache-2.0 */
/* Prefill: causal attention of chunks of queries, and the ring entries of the last of them. */
#include "prefill.h"

#include <string.h>

typedef struct prefill_job {
    mai_run *run;
    bool single_rows_too;
} prefill_job;

static int block_queries(const prefill_job *x)
{
    return x->run->m->backend->prefill_queries(&x->run->m->shape);
}

static int row_blocks(const prefill_job *x, const mai_row_plan *p)
{
    if (p->row.n_queries == 1 && !x->single_rows_too) return 0;
    const int most = block_queries(x);
    return (p->row.n_queries + most - 1) / most;
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
    const int block = row_blocks(x, p) - 1 - i / m->shape.n_kv_heads, most = block_queries(x);
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
        .far_out = (float *)run->work->capture_out.ptr + capture * (size_t)m->shape.dv,
        .far_lse = (float *)run->work->capture_lse.ptr + capture,
        .scratch = mai_work_scratch(run->work, worker).kernel,
    };
    m->backend->prefill(&args);
    finish_block(run, p, &args);
}

static bool query_finite(const mai_run *run, const char *q)
{
    float x[MAI_MAX_DIM];
    run->m->backend->load_q(&run->m->shape, q, 1.0f, x);
    return mai_all_finite(x, run->m->shape.d);
}

/* Item i: (row, head), its remembered queries from the oldest to the newest. */
static void remember_task(void *arg, int i, int worker)
{
    (void)worker;
    const mai_run *run = ((prefill_job *)arg)->run;
    const macattn *m = run->m;
    const int head = i % m->shape.n_heads;
    if (!mai_remembers(run, head / m->shape.group)) return;
    const mai_row_plan *p = &run->plan->rows[i / m->shape.n_heads];
    const mai_ring *ring = m->slots[p->row.slot].rings[run->layer];
    const size_t hq = (size_t)m->shape.n_heads, dv = (size_t)m->shape.dv;
    for (int query = p->capture0; query < p->row.n_queries; query++) {
        const size_t at = (size_t)(p->first_capture + query - p->capture0) * hq + (size_t)head;
        const int64_t pos = p->row.n_tokens - p->row.n_queries + query;
        const char *q = mai_run_q_match(run, p->first_query + query, head);
        const float *out = (const float *)run->work->capture_out.ptr + at * dv;
        const float lse = ((const float *)run->work->capture_lse.ptr)[at];
        if (!query_finite(run, q) || !mai_all_finite(&lse, 1) || !mai_all_finite(out, (int)dv))
            continue;
        const size_t full = (size_t)(p->first_query + query) * hq + (size_t)head;
        const size_t entry =
            (size_t)head * (size_t)m->ring_dims.capacity + (size_t)ring->view.head[head];
        m->backend->insert(&m->ring_dims, &ring->view, m->shape.q_dtype, head, q, (int32_t)pos,
                           (int32_t)(pos + 1 - m->cfg.band), lse, out);
        ring->view.share[entry] = mai_share(lse, ((const float *)run->work->lse.ptr)[full]);
    }
}

void mai_prefill_rows(mai_run *run, bool single_rows_too)
{
    macattn *m = run->m;
    prefill_job x = {run, single_rows_too};
    int n = 0;
    for (int r = 0; r < run->plan->n_rows; r++) {
        n += row_blocks(&x, &run->plan->rows[r]) * m->shape.n_kv_heads;
    }
    for (int r = 0; run->reuse && r < run->plan->n_rows; r++) {
        mai_slot_ring(m, run->plan->rows[r].row.slot, run->layer);
    }
    mai_threads_run(m->threads, n, prefill_task, &x);
    if (run->reuse)
        mai_threads_run(m->threads, run->plan->n_rows * m->shape.n_heads, remember_task, &x);
}
