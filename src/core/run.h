/* SPDX-License-Identifier: Apache-2.0 */
/* What decode, prefill and attend have in common: checked, resolved arguments of one layer. */
#ifndef MAI_RUN_H
#define MAI_RUN_H

#include "plan.h"

/* One call: the caller's io with its strides resolved. */
typedef struct mai_run {
    macattn *m;
    mai_plan *plan;
    mai_work *work;
    macattn_io io;
    int32_t layer;
    bool reuse;        /* match and remember */
    int64_t judge_ns;  /* spent so far on judging and learning */
    int64_t select_ns; /* on means of runs: making them, scoring, choosing */
} mai_run;

/* Check io against the configuration and the plan; fill `run`. */
macattn_status mai_run_init(macattn *m, const macattn_io *io, mai_run *run);
mai_tokens mai_run_tokens(const mai_run *run, const mai_row_plan *p);
static inline const char *mai_run_q(const mai_run *run, int32_t query, int32_t head)
{
    return (const char *)run->io.q + query * run->io.q_row_stride + head * run->io.q_head_stride;
}
static inline const char *mai_run_q_match(const mai_run *run, int32_t query, int32_t head)
{
    return (const char *)run->io.q_match + query * run->io.q_match_row_stride +
           head * run->io.q_match_head_stride;
}
static inline float *mai_run_out(const mai_run *run, int32_t query, int32_t head)
{
    return (float *)(void *)((char *)run->io.out + query * run->io.out_row_stride +
                             head * run->io.out_head_stride);
}

static inline bool mai_judges(const mai_run *run)
{
    return run->reuse && mai_policy_get(run->m->cfg.policy)->judges;
}

static inline mai_record *mai_record_of(const mai_run *run, int head)
{
    return &run->m->records[(size_t)run->layer * (size_t)run->m->shape.n_heads + (size_t)head];
}

static inline mai_habit *mai_habit_of(const mai_run *run, int kv_head)
{
    return &run->m->habits[(size_t)run->layer * (size_t)run->m->shape.n_kv_heads + (size_t)kv_head];
}

static inline bool mai_selects(const mai_run *run)
{
    return run->reuse && mai_keeps_runs(&run->m->cfg);
}

static inline mai_selector *mai_selector_of(const mai_run *run, int kv_head)
{
    return &run->m->selectors[(size_t)run->layer * (size_t)run->m->shape.n_kv_heads +
                              (size_t)kv_head];
}

static inline const mai_runs_view *mai_run_segments_of(const mai_run *run, const mai_row_plan *p)
{
    return (const mai_runs_view *)run->work->segments.ptr + p->first_segment;
}

/* Whether the queries of a prompt are remembered of a KV head's group. */
static inline bool mai_remembers(const mai_run *run, int kv_head)
{
    const int group = run->m->shape.group;
    return run->reuse &&
           (!mai_judges(run) || mai_group_remembers(mai_record_of(run, kv_head * group), group));
}

/* scale q.kbar, for q as the kernels get it: by how much the lse of a summary [width] is more
 * than its lse0. 0 if summaries have no mean of keys. */
double mai_key_logit(const macattn *m, const float *q, const float *summary);

/* Whether n values are neither NaN nor infinite. */
static inline bool mai_all_finite(const float *x, int n)
{
    float poison = 0;
    for (int i = 0; i < n; i++) poison += x[i] * 0.0f;
    return poison == 0.0f;
}

#endif /* MAI_RUN_H */
