/* SPDX-License-Identifier: Apache-2.0 */
/* Decode: match -> decide (and judge) -> range attention over what must be read -> merge and remember.
 *
 * A head that hits takes part from `start` = the summary's end on, a head that misses from F on; the
 * chunks of the plan's grid are computed for the kv heads of which any head takes part. The output is
 * the merge of the summary and all partial results in order; the new summary is the merge of the
 * summary and those before b. Nothing is ever subtracted, and a head that misses gets exactly the
 * partial results, in the order, that it would get without reuse. */
#include <math.h>

#include "run.h"

static mai_decision *decision_of(const mai_run *run, int r, int head)
{
    return (mai_decision *)run->plan->decisions.ptr + (size_t)r * (size_t)run->m->shape.n_heads +
           (size_t)head;
}

/* Index of an entry in a ring's arrays by head. */
static size_t entry_at(const mai_run *run, int head, int entry)
{
    return (size_t)head * (size_t)run->m->ring_dims.capacity + (size_t)entry;
}

/* --------------------------------------------------------------------------------------- match -- */

static mai_ring *run_ring(const mai_run *run, const mai_row_plan *p)
{
    return run->m->slots[p->row.slot].rings[run->layer];
}

static bool judges(const mai_run *run)
{
    return run->reuse && mai_policy_get(run->m->cfg.policy)->judges;
}

static mai_record *record_of(const mai_run *run, int head)
{
    return &run->m->records[(size_t)run->layer * (size_t)run->m->shape.n_heads + (size_t)head];
}

static mai_habit *habit_of(const mai_run *run, int kv_head)
{
    return &run->m->habits[(size_t)run->layer * (size_t)run->m->shape.n_kv_heads + (size_t)kv_head];
}

/* Bit i: head h0 + i does not search in this step. */
static uint32_t heads_asleep(const mai_run *run, int h0, int n)
{
    const int group = run->m->shape.group;
    uint32_t asleep = 0;
    for (int i = 0; i < n && judges(run); i++) {
        const int kv_head = (h0 + i) / group;
        const mai_record *records = record_of(run, kv_head * group);
        if (!mai_group_searches(records, group, habit_of(run, kv_head))) asleep |= 1u << i;
    }
    return asleep;
}

/* Search the rings of heads [h0, h0 + n) of a row. */
static void match_heads(const mai_run *run, const mai_row_plan *p, int h0, int n, void *scratch,
                        mai_match *matches)
{
    const macattn *m = run->m;
    const mai_match_args args = {
        .shape = &m->shape,
        .dims = &m->ring_dims,
        .ring = &run_ring(run, p)->view,
        .head0 = h0,
        .n_heads = n,
        .q = mai_run_q_match(run, p->first_query, h0),
        .q_head_stride = run->io.q_match_head_stride,
        .radius = mai_policy_get(m->cfg.policy)->radius(&m->cfg, p->row.n_tokens),
        .asleep = heads_asleep(run, h0, n),
        .max_end = p->far_end,
        .scratch = scratch,
    };
    m->backend->match(&args, matches);
}

static mai_decision decide(const mai_run *run, const mai_row_plan *p, int head,
                           const mai_match *match)
{
    const macattn *m = run->m;
    /* Under a window the first tokens are nothing special. */
    mai_decision decision = {.entry = -1, .start = m->cfg.window > 0 ? 0 : p->fresh_end};
    if (!run->reuse) return decision;
    const int group = m->shape.group;
    decision.remember =
        match->finite && p->far_end > p->fresh_end &&
        (!judges(run) || mai_group_remembers(record_of(run, head / group * group), group));
    if (match->entry >= 0) {
        decision.hit = true;
        decision.entry = match->entry;
        decision.distance2 = match->distance2;
        decision.start = run_ring(run, p)->view.end[entry_at(run, head, match->entry)];
    }
    return decision;
}

static int head_blocks(const mai_run *run)
{
    return (run->m->shape.n_heads + MAI_MATCH_HEADS - 1) / MAI_MATCH_HEADS;
}

static void match_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const macattn *m = run->m;
    const int r = i / head_blocks(run), h0 = i % head_blocks(run) * MAI_MATCH_HEADS;
    const int left = m->shape.n_heads - h0, n = left < MAI_MATCH_HEADS ? left : MAI_MATCH_HEADS;
    const mai_row_plan *p = &run->plan->rows[r];
    if (p->row.n_queries != 1) return;
    mai_match matches[MAI_MATCH_HEADS];
    if (run->reuse) match_heads(run, p, h0, n, mai_run_scratch(run, worker), matches);
    const float factor = (float)m->backend->q_factor(&m->shape);
    for (int k = 0; k < n; k++) {
        const size_t at = (size_t)r * (size_t)m->shape.n_heads + (size_t)(h0 + k);
        m->backend->load_q(&m->shape, mai_run_q(run, p->first_query, h0 + k), factor,
                           (float *)run->plan->q.ptr + at * (size_t)m->shape.d);
        const mai_decision decision = decide(run, p, h0 + k, &matches[k]);
        *decision_of(run, r, h0 + k) = decision;
        ((int64_t *)run->plan->start.ptr)[at] = decision.start;
    }
}

/* --------------------------------------------------------------------------------------- items -- */

/* The chunks that a pass over the row reads: all, or those before `below` but for the first tokens. */
typedef struct pass {
    bool again;           /* after candidates were refused */
    const int64_t *below; /* again: [row] */
} pass;

static bool in_pass(const mai_run *run, const pass *which, int r, const mai_chunk *chunk)
{
    return !which->again ||
           (chunk->t1 > run->plan->rows[r].fresh_end && chunk->t0 < which->below[r]);
}

static bool kv_head_takes_part(const mai_run *run, int r, int kv_head, const mai_chunk *chunk)
{
    const mai_shape *shape = &run->m->shape;
    if (chunk->t1 <= run->plan->rows[r].fresh_end) return true;
    const int64_t *start =
        (const int64_t *)run->plan->start.ptr + (size_t)r * (size_t)shape->n_heads;
    for (int h = kv_head * shape->group; h < (kv_head + 1) * shape->group; h++) {
        if (start[h] < chunk->t1) return true;
    }
    return false;
}

/* The kv heads that take part in a chunk, in pieces of at most `most`: each reaches from the first to the
 * last that does; those between are passed over. Rows of a token lie side by side, so what one thread reads of
 * them should be read together. */
static int add_items(const mai_run *run, int r, int c, int most, mai_item *items, int n)
{
    const int n_kv_heads = run->m->shape.n_kv_heads;
    const mai_chunk *chunk = &run->plan->chunks[run->plan->rows[r].first_chunk + c];
    for (int kv = 0; kv < n_kv_heads; kv++) {
        if (!kv_head_takes_part(run, r, kv, chunk)) continue;
        const int first = kv;
        int end = kv + 1;
        for (; kv < n_kv_heads && kv - first < most; kv++) {
            if (kv_head_takes_part(run, r, kv, chunk)) end = kv + 1;
        }
        items[n++] = (mai_item){r, c, first, end};
        kv = end - 1;
    }
    return n;
}

static int list_items(const mai_run *run, const pass *which, int most, mai_item *items)
{
    int n = 0;
    for (int r = 0; r < run->plan->n_rows; r++) {
        const mai_row_plan *p = &run->plan->rows[r];
        for (int c = 0; c < p->n_chunks; c++) {
            if (!in_pass(run, which, r, &run->plan->chunks[p->first_chunk + c])) continue;
            n = add_items(run, r, c, most, items, n);
        }
    }
    return n;
}

/* Whole rows of all kv heads are read fastest, but every thread must have work: with few items, divide
 * them by kv heads. */
static int make_items(const mai_run *run, const pass *which, mai_item *items)
{
    const int n_kv_heads = run->m->shape.n_kv_heads, enough = 3 * run->m->cfg.n_threads;
    const int n = list_items(run, which, n_kv_heads, items);
    if (n == 0 || n >= enough || run->m->cfg.n_threads == 1) return n;
    const int pieces = (enough + n - 1) / n;
    const int most = (n_kv_heads + pieces - 1) / pieces;
    return most < n_kv_heads ? list_items(run, which, most, items) : n;
}

static void attend_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const macattn *m = run->m;
    const mai_plan *plan = run->plan;
    const mai_item *item = (const mai_item *)plan->items.ptr + i;
    const mai_row_plan *p = &plan->rows[item->row];
    const size_t hq = (size_t)m->shape.n_heads, at = (size_t)(p->first_chunk + item->chunk);
    const mai_chunk *chunk = &plan->chunks[at];
    const bool fresh = chunk->t1 <= p->fresh_end;
    const mai_attend_args args = {
        .shape = &m->shape,
        .tokens = mai_run_tokens(run, p),
        .t0 = chunk->t0,
        .t1 = chunk->t1,
        .kv0 = item->kv0,
        .kv1 = item->kv1,
        .q = (const float *)plan->q.ptr + (size_t)item->row * hq * (size_t)m->shape.d,
        .start = fresh ? NULL : (const int64_t *)plan->start.ptr + (size_t)item->row * hq,
        .out = (float *)plan->partial_out.ptr + at * hq * (size_t)m->shape.dv,
        .lse = (float *)plan->partial_lse.ptr + at * hq,
        .scratch = mai_run_scratch(run, worker),
    };
    m->backend->attend(&args);
}

/* --------------------------------------------------------------------------------------- merge -- */

/* Parts of one head's result, in the worker's scratch. */
typedef struct parts {
    const float **o;
    float *lse;
    int n;
    float *summary; /* [dv] */
} part_list;

static part_list parts_in_scratch(const mai_run *run, int worker)
{
    const size_t most = (size_t)run->plan->max_row_chunks + 2;
    part_list p = {.o = (const float **)(void *)mai_run_scratch(run, worker)};
    p.lse = (float *)(void *)(p.o + most);
    p.summary = p.lse + most;
    return p;
}

static void add_part(part_list *parts, const float *o, float lse)
{
    parts->o[parts->n] = o;
    parts->lse[parts->n++] = lse;
}

/* Replace the parts from `first` on, those of [F, b), by their merge: the summary. The result is built
 * on it whether it is kept or not, so that reuse costs no second merge and changes no bit. */
static void merge_summary(const mai_run *run, part_list *parts, int first)
{
    float lse;
    if (parts->n == first) return;
    run->m->backend->merge(run->m->shape.dv, parts->n - first, parts->o + first, parts->lse + first,
                           parts->summary, &lse);
    parts->n = first;
    add_part(parts, parts->summary, lse);
}

static void remember(const mai_run *run, const mai_row_plan *p, int head, const float *summary,
                     float lse, float moved, float share)
{
    const macattn *m = run->m;
    const mai_ring_view *ring = &run_ring(run, p)->view;
    const size_t at = entry_at(run, head, ring->head[head]);
    if (!mai_all_finite(&lse, 1) || !mai_all_finite(summary, m->shape.dv)) return;
    m->backend->insert(&m->ring_dims, ring, m->shape.q_dtype, head,
                       mai_run_q_match(run, p->first_query, head), (int32_t)(p->row.n_tokens - 1),
                       (int32_t)p->far_end, lse, summary);
    ring->moved[at] = moved;
    ring->share[at] = share;
}

/* Add the partial results of the row's chunks from `c` on that end by `end`, and that the head took part
 * in. Returns the chunk after them. */
static int add_chunks(const mai_run *run, int r, int head, int c, int64_t end, int64_t start,
                      part_list *parts)
{
    const mai_plan *plan = run->plan;
    const mai_row_plan *p = &plan->rows[r];
    const size_t hq = (size_t)run->m->shape.n_heads, dv = (size_t)run->m->shape.dv;
    for (; c < p->n_chunks && plan->chunks[p->first_chunk + c].t1 <= end; c++) {
        const size_t at = (size_t)(p->first_chunk + c) * hq + (size_t)head;
        if (start >= plan->chunks[p->first_chunk + c].t1) continue;
        add_part(parts, (const float *)plan->partial_out.ptr + at * dv,
                 ((const float *)plan->partial_lse.ptr)[at]);
    }
    return c;
}

static void add_summary(const mai_run *run, const mai_row_plan *p, int head, int entry,
                        part_list *parts)
{
    const mai_ring_view *ring = &run_ring(run, p)->view;
    const size_t at = entry_at(run, head, entry);
    add_part(parts, ring->out + at * (size_t)run->m->shape.dv, ring->lse[at]);
}

static void merge_head(const mai_run *run, int r, int head, part_list *parts)
{
    const macattn *m = run->m;
    const mai_plan *plan = run->plan;
    const mai_row_plan *p = &plan->rows[r];
    const size_t hq = (size_t)m->shape.n_heads, dv = (size_t)m->shape.dv;
    const mai_decision *decision = decision_of(run, r, head);
    parts->n = 0;
    int c = add_chunks(run, r, head, 0, p->fresh_end, 0, parts);
    const int far = parts->n;
    if (decision->hit) add_summary(run, p, head, decision->entry, parts);
    const float used_lse = decision->hit ? parts->lse[far] : -INFINITY;
    c = add_chunks(run, r, head, c, p->far_end, decision->start, parts);
    merge_summary(run, parts, far);
    const float summary_lse = parts->n > far ? parts->lse[far] : -INFINITY;
    add_chunks(run, r, head, c, p->row.n_tokens, decision->start, parts);
    if (run->io.sinks) add_part(parts, plan->zeros, run->io.sinks[head]);
    float lse;
    m->backend->merge((int32_t)dv, parts->n, parts->o, parts->lse,
                      mai_run_out(run, p->first_query, head), &lse);
    if (run->io.lse) run->io.lse[(size_t)p->first_query * hq + (size_t)head] = lse;
    if (decision->remember) {
        const float moved =
            decision->hit ? mai_moved_on(&decision->judgement, used_lse, summary_lse) : 0.0f;
        remember(run, p, head, parts->summary, summary_lse, moved, mai_share(summary_lse, lse));
    }
}

static void merge_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const int r = i / head_blocks(run), h0 = i % head_blocks(run) * MAI_MATCH_HEADS;
    if (run->plan->rows[r].row.n_queries != 1) return;
    part_list parts = parts_in_scratch(run, worker);
    for (int head = h0; head < h0 + MAI_MATCH_HEADS && head < run->m->shape.n_heads; head++) {
        merge_head(run, r, head, &parts);
    }
}

/* --------------------------------------------------------------------------------------- judge -- */

/* What is expected of one head's candidate, in units of its budget. */
static float expect_head(const mai_run *run, int r, int head)
{
    mai_decision *decision = decision_of(run, r, head);
    const mai_ring_view *ring = &run_ring(run, &run->plan->rows[r])->view;
    const size_t at = entry_at(run, head, decision->entry);
    decision->judgement =
        mai_expect(record_of(run, head), decision->distance2, ring->share[at], ring->moved[at]);
    return decision->judgement.error;
}

/* Judge the candidates of a group as one: its keys and values are read as a whole, so where one head has no
 * candidate, those of the others are of no use. Returns whether they are refused. */
static bool judge_group(const mai_run *run, int r, int kv_head)
{
    const int group = run->m->shape.group, h0 = kv_head * group;
    int64_t *start = (int64_t *)run->plan->start.ptr + (size_t)r * (size_t)run->m->shape.n_heads;
    bool all = true;
    float error2 = 0;
    for (int h = h0; h < h0 + group; h++) all = all && decision_of(run, r, h)->hit;
    for (int h = h0; h < h0 + group; h++) {
        if (all) {
            const float error = expect_head(run, r, h);
            error2 += error * error;
        } else {
            decision_of(run, r, h)->hit = false;
            decision_of(run, r, h)->start = start[h] = run->plan->rows[r].fresh_end;
        }
    }
    if (!all) return false;
    if (!mai_is_check(habit_of(run, kv_head), r, run->plan->n_rows) &&
        mai_group_accepts(record_of(run, h0), group, error2))
        return false;
    for (int h = h0; h < h0 + group; h++) decision_of(run, r, h)->refused = true;
    return true;
}

/* Judge all candidates, before anything is read. Returns whether any group's are refused. */
static bool judge_rows(mai_run *run)
{
    const int64_t begin = mai_now_ns();
    bool any = false;
    for (int r = 0; r < run->plan->n_rows; r++) {
        if (run->plan->rows[r].row.n_queries != 1) continue;
        for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++) {
            if (judge_group(run, r, kv_head)) any = true;
        }
    }
    run->judge_ns += mai_now_ns() - begin;
    return any;
}

static float *refused_out(const mai_run *run, int r, int head)
{
    const size_t at = (size_t)r * (size_t)run->m->shape.n_heads + (size_t)head;
    return (float *)run->plan->refused_out.ptr + at * (size_t)run->m->shape.dv;
}

/* What a head's output is made of if its candidate is used, the candidate's summary first. */
static void candidate_parts(const mai_run *run, int r, int head, part_list *parts)
{
    const mai_row_plan *p = &run->plan->rows[r];
    const mai_decision *decision = decision_of(run, r, head);
    parts->n = 0;
    add_summary(run, p, head, decision->entry, parts);
    const int c = add_chunks(run, r, head, 0, p->fresh_end, 0, parts);
    add_chunks(run, r, head, c, p->row.n_tokens, decision->start, parts);
    if (run->io.sinks) add_part(parts, run->plan->zeros, run->io.sinks[head]);
}

/* Note what the refused candidates of a group would have given, to learn from. */
static void note_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const mai_shape *shape = &run->m->shape;
    const int r = i / shape->n_kv_heads, h0 = i % shape->n_kv_heads * shape->group;
    float lse;
    if (run->plan->rows[r].row.n_queries != 1 || !decision_of(run, r, h0)->refused) return;
    part_list parts = parts_in_scratch(run, worker);
    for (int h = h0; h < h0 + shape->group; h++) {
        candidate_parts(run, r, h, &parts);
        run->m->backend->merge(shape->dv, parts.n, parts.o, parts.lse, refused_out(run, r, h),
                               &lse);
    }
}

/* Refused groups are computed in full: their summaries are made anew for no further bytes. Returns the end
 * of what has to be read again of the row; 0: nothing. Sets the starts of that pass. */
static int64_t refuse_groups(const mai_run *run, int r)
{
    const mai_shape *shape = &run->m->shape;
    int64_t *start = (int64_t *)run->plan->start.ptr + (size_t)r * (size_t)shape->n_heads;
    int64_t below = 0;
    if (run->plan->rows[r].row.n_queries != 1) return 0;
    for (int h = 0; h < shape->n_heads; h++) {
        mai_decision *decision = decision_of(run, r, h);
        start[h] = INT64_MAX;
        if (!decision->refused) continue;
        if (decision->start > below) below = decision->start;
        decision->hit = false;
        decision->start = start[h] = run->plan->rows[r].fresh_end;
    }
    return below;
}

static float relative_error(const float *x, const float *y, int n)
{
    float error = 0, norm = 0;
    for (int i = 0; i < n; i++) {
        error += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return sqrtf(error / norm);
}

/* Where candidates are refused: what they would have given was computed first, as if they were used, since
 * a summary ends within a chunk; the chunks before that end are computed now, in full. */
static void compute_refused(mai_run *run)
{
    mai_plan *plan = run->plan;
    const int64_t begin = mai_now_ns();
    mai_threads_run(run->m->threads, plan->n_rows * run->m->shape.n_kv_heads, note_task, run);
    int64_t *below = plan->below.ptr;
    for (int r = 0; r < plan->n_rows; r++) below[r] = refuse_groups(run, r);
    run->judge_ns += mai_now_ns() - begin;
    const pass again = {true, below};
    mai_threads_run(run->m->threads, make_items(run, &again, plan->items.ptr), attend_task, run);
}

static void sample_group(const mai_run *run, int r, int kv_head)
{
    const int group = run->m->shape.group, h0 = kv_head * group, dv = run->m->shape.dv;
    for (int h = h0; h < h0 + group; h++) {
        const float *out = mai_run_out(run, run->plan->rows[r].first_query, h);
        const mai_decision *decision = decision_of(run, r, h);
        mai_record_sample(record_of(run, h), &decision->judgement, decision->distance2,
                          relative_error(refused_out(run, r, h), out, dv));
    }
}

/* Learn from what was refused. One after the other: rows share the records. */
static void learn(mai_run *run)
{
    const int64_t start = mai_now_ns();
    for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++) {
        int n_used = 0, n_refused = 0;
        for (int r = 0; r < run->plan->n_rows; r++) {
            const mai_decision *first = decision_of(run, r, kv_head * run->m->shape.group);
            if (run->plan->rows[r].row.n_queries != 1) continue;
            n_used += first->hit;
            n_refused += first->refused;
            if (first->refused) sample_group(run, r, kv_head);
        }
        mai_habit_note(habit_of(run, kv_head), n_used, n_refused);
    }
    run->judge_ns += mai_now_ns() - start;
}

static void count_row(const mai_run *run, int r)
{
    const macattn_row *row = &run->plan->rows[r].row;
    const int n_heads = run->m->shape.n_heads;
    for (int head = 0; head < n_heads; head++) {
        const mai_decision *d = decision_of(run, r, head);
        const int64_t skipped = d->hit ? d->start - run->plan->rows[r].fresh_end : 0;
        mai_stats_add(run->m, run->layer, head, d->hit, row->n_tokens, skipped, d->distance2);
    }
}

void mai_run_decode(mai_run *run)
{
    macattn *m = run->m;
    mai_plan *plan = run->plan;
    if (plan->n_chunks == 0 && !plan->single) return; /* no row with one query */
    for (int r = 0; run->reuse && r < plan->n_rows; r++) {
        mai_slot_ring_for_write(m, plan->rows[r].row.slot, run->layer);
    }
    const int n_tasks = plan->n_rows * head_blocks(run);
    const int64_t start = mai_now_ns();
    mai_threads_run(m->threads, n_tasks, match_task, run);
    const int64_t matched = mai_now_ns();
    const pass first = {false, NULL};
    const bool refused = judges(run) && judge_rows(run);
    mai_threads_run(m->threads, make_items(run, &first, plan->items.ptr), attend_task, run);
    if (refused) compute_refused(run);
    const int64_t attended = mai_now_ns();
    mai_threads_run(m->threads, n_tasks, merge_task, run);
    if (judges(run)) learn(run);
    if (run->layer < 0) return;
    mai_stats_add_times(m, run->layer, matched - start, attended - matched, mai_now_ns() - attended,
                        run->judge_ns);
    for (int r = 0; r < plan->n_rows; r++) count_row(run, r);
}
