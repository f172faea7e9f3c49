/* SPDX-License-Identifier: Apache-2.0 */
/* How a head begins: its ring is searched if there is anything to reuse, and it is decided what
 * is reused and from where on is computed. */
#include "decode.h"

/* Whether the query of a KV head's group is remembered. */
static bool remembers_step(const mai_run *run, int kv_head)
{
    const int group = run->m->shape.group;
    return !mai_judges(run) || mai_group_remembers_step(mai_record_of(run, kv_head * group), group,
                                                        mai_habit_of(run, kv_head));
}

static bool searches_step(const mai_run *run, int kv_head)
{
    const int group = run->m->shape.group;
    return !mai_judges(run) || mai_group_searches(mai_record_of(run, kv_head * group), group,
                                                  mai_habit_of(run, kv_head));
}

/* Bit i: head h0 + i does not search in this step. `idle`: nor is any of them remembered. */
static uint32_t heads_asleep(const mai_run *run, int h0, int n, bool *idle)
{
    const int group = run->m->shape.group;
    uint32_t asleep = 0;
    *idle = true;
    for (int i = 0; i < n; i++) {
        const int kv_head = (h0 + i) / group;
        if (!searches_step(run, kv_head)) asleep |= 1u << i;
        if (remembers_step(run, kv_head)) *idle = false;
    }
    return asleep;
}

/* Search the rings of heads [h0, h0 + n) of a row. */
static void match_heads(const mai_run *run, const mai_row_plan *p, int h0, int n, void *scratch,
                        mai_match *matches)
{
    const macattn *m = run->m;
    bool idle;
    const uint32_t asleep = heads_asleep(run, h0, n, &idle);
    for (int i = 0; i < n; i++) matches[i] = (mai_match){.entry = -1};
    if (idle) return;
    const mai_match_args args = {
        .shape = &m->shape,
        .dims = &m->ring_dims,
        .ring = &mai_run_ring(run, p)->view,
        .head0 = h0,
        .n_heads = n,
        .q = mai_run_q_match(run, p->first_query, h0),
        .q_head_stride = run->io.q_match_head_stride,
        .radius = mai_policy_get(m->cfg.policy)->radius(&m->cfg, p->row.n_tokens),
        .asleep = asleep,
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
    decision.remember =
        match->finite && p->far_end > p->fresh_end && remembers_step(run, head / m->shape.group);
    decision.searched = match->finite && searches_step(run, head / m->shape.group);
    if (match->entry >= 0) {
        decision.hit = true;
        decision.entry = match->entry;
        decision.distance2 = match->distance2;
        decision.start = mai_run_ring(run, p)->view.end[mai_entry_at(run, head, match->entry)];
    }
    return decision;
}

void mai_begin_heads_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const macattn *m = run->m;
    const int n_blocks = mai_head_blocks(run), r = i / n_blocks;
    const int h0 = mai_head_block(run, i % n_blocks),
              n = mai_head_block(run, i % n_blocks + 1) - h0;
    const mai_row_plan *p = &run->plan->rows[r];
    if (p->row.n_queries != 1) return;
    mai_match matches[MAI_MATCH_HEADS];
    if (run->reuse) match_heads(run, p, h0, n, mai_work_scratch(run->work, worker).kernel, matches);
    const float factor = (float)m->backend->q_factor(&m->shape);
    for (int k = 0; k < n; k++) {
        const size_t at = (size_t)r * (size_t)m->shape.n_heads + (size_t)(h0 + k);
        m->backend->load_q(&m->shape, mai_run_q(run, p->first_query, h0 + k), factor,
                           (float *)run->work->q.ptr + at * (size_t)m->shape.d);
        const mai_decision decision = decide(run, p, h0 + k, &matches[k]);
        *mai_decision_of(run, r, h0 + k) = decision;
        ((int64_t *)run->work->start.ptr)[at] = decision.start;
    }
}
