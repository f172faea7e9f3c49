/* SPDX-License-Identifier: Apache-2.0 */
/* Merging the parts of each head's result, and remembering the new summary. */
#include <math.h>

#include "decode.h"

/* Replace the parts from `first` on, those of [F, b), by their merge: the summary. The result is
 * built on it whether it is kept or not, so that reuse costs no second merge and changes no bit;
 * only then has it, and have its parts, more than the output. */
static void merge_summary(const mai_run *run, mai_parts *parts, int first, bool remember)
{
    float lse;
    if (parts->n == first) return;
    const int32_t width = remember ? run->m->ring_dims.width : run->m->shape.dv;
    run->m->backend->merge(width, parts->n - first, parts->in.o + first, parts->in.lse + first,
                           parts->in.summary, &lse);
    parts->n = first;
    mai_add_part(parts, parts->in.summary, lse);
}

/* What the judge wants to know of a summary later (backend.h). */
typedef struct remarks {
    float moved, share;
} remarks;

static void remember(const mai_run *run, int r, int head, const float *summary, float lse,
                     const remarks *with)
{
    const macattn *m = run->m;
    const mai_row_plan *p = &run->plan->rows[r];
    const mai_ring_view *ring = &mai_run_ring(run, p)->view;
    const size_t at = mai_entry_at(run, head, ring->head[head]);
    const float lse0 = (float)((double)lse - mai_key_logit(m, mai_query_of(run, r, head), summary));
    if (!mai_all_finite(&lse0, 1) || !mai_all_finite(summary, m->ring_dims.width)) return;
    m->backend->insert(&m->ring_dims, ring, m->shape.q_dtype, head,
                       mai_run_q_match(run, p->first_query, head), (int32_t)(p->row.n_tokens - 1),
                       (int32_t)p->far_end, lse0, summary);
    ring->moved[at] = with->moved;
    ring->share[at] = with->share;
}

int mai_add_chunks(const mai_run *run, int r, int head, int c, int64_t end, int64_t start,
                   mai_parts *parts)
{
    const mai_plan *plan = run->plan;
    const mai_row_plan *p = &plan->rows[r];
    const size_t hq = (size_t)run->m->shape.n_heads, width = (size_t)run->m->ring_dims.width;
    for (; c < p->n_chunks && plan->chunks[p->first_chunk + c].t1 <= end; c++) {
        const size_t at = (size_t)(p->first_chunk + c) * hq + (size_t)head;
        if (start >= plan->chunks[p->first_chunk + c].t1) continue;
        mai_add_part(parts, (const float *)run->work->partial_out.ptr + at * width,
                     ((const float *)run->work->partial_lse.ptr)[at]);
    }
    return c;
}

void mai_add_summary(const mai_run *run, int r, int head, int entry, mai_parts *parts)
{
    const macattn *m = run->m;
    const mai_ring_view *ring = &mai_run_ring(run, &run->plan->rows[r])->view;
    const size_t at = mai_entry_at(run, head, entry);
    const float *summary = ring->out + at * (size_t)m->ring_dims.width;
    const double logit = mai_key_logit(m, mai_query_of(run, r, head), summary);
    mai_add_part(parts, summary, (float)((double)ring->lse0[at] + logit));
}

/* The selection that a head uses, or that is checked; NULL: none. */
static const mai_choice *selection_of(const mai_run *run, int r, int head)
{
    if (!mai_selects(run)) return NULL;
    const mai_choice *choice = mai_choice_of(run, r, head / run->m->shape.group);
    return choice->selects ? choice : NULL;
}

/* So that the judge expects of what is made by selection the error that is expected of that. */
static float selection_moved(const mai_run *run, int head, const mai_choice *choice, float share)
{
    const mai_selector *selector = mai_selector_of(run, head / run->m->shape.group);
    return mai_select_moved(mai_record_of(run, head), mai_select_error(selector, choice->k), share);
}

static void merge_head(const mai_run *run, int r, int head, mai_parts *parts)
{
    const macattn *m = run->m;
    const mai_plan *plan = run->plan;
    const mai_row_plan *p = &plan->rows[r];
    const size_t hq = (size_t)m->shape.n_heads, dv = (size_t)m->shape.dv;
    const mai_decision *decision = mai_decision_of(run, r, head);
    const mai_choice *choice = selection_of(run, r, head);
    const bool selects = choice && !choice->checks;
    parts->n = 0;
    int c = mai_add_chunks(run, r, head, 0, p->fresh_end, 0, parts);
    const int far = parts->n;
    if (decision->hit) mai_add_summary(run, r, head, decision->entry, parts);
    const float used_lse = decision->hit ? parts->in.lse[far] : -INFINITY;
    if (selects) mai_add_selection(run, r, head, parts);
    c = mai_add_chunks(run, r, head, c, p->far_end, decision->start, parts);
    merge_summary(run, parts, far, decision->remember);
    const float summary_lse = parts->n > far ? parts->in.lse[far] : -INFINITY;
    mai_add_chunks(run, r, head, c, p->row.n_tokens, decision->start, parts);
    if (run->io.sinks) mai_add_part(parts, run->work->zeros, run->io.sinks[head]);
    float lse, *out = mai_run_out(run, p->first_query, head);
    m->backend->merge((int32_t)dv, parts->n, parts->in.o, parts->in.lse, out, &lse);
    if (run->io.lse) run->io.lse[(size_t)p->first_query * hq + (size_t)head] = lse;
    if (decision->remember) {
        remarks with = {.share = mai_share(summary_lse, lse)};
        if (decision->hit) with.moved = mai_moved_on(&decision->judgement, used_lse, summary_lse);
        if (selects) with.moved = selection_moved(run, head, choice, with.share);
        remember(run, r, head, parts->in.summary, summary_lse, &with);
    }
    if (choice && choice->checks) {
        const mai_exact exact = {out, parts->in.summary, lse, summary_lse};
        mai_note_check(run, r, head, &exact, parts);
    }
}

void mai_merge_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const int n_blocks = mai_head_blocks(run), r = i / n_blocks, block = i % n_blocks;
    if (run->plan->rows[r].row.n_queries != 1) return;
    mai_parts parts = {.in = mai_work_scratch(run->work, worker)};
    for (int head = mai_head_block(run, block); head < mai_head_block(run, block + 1); head++)
        merge_head(run, r, head, &parts);
}
