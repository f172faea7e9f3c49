/* SPDX-License-Identifier: Apache-2.0 */
/* Work memory: how much a plan's calls need. */
#include "work.h"

#include "object.h"

/* What a head's output is merged of besides the row's chunks: a reused summary, or a selection, and
 * a sink. */
#define OTHER_PARTS (2 + MAI_SELECT_PARTS)

static int32_t max32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* What shown.c lays out of `shown`. */
static size_t shown_bytes(const macattn *m, int32_t n_runs)
{
    const size_t group = (size_t)m->shape.group, n = (size_t)n_runs;
    const size_t floats =
        group * ((size_t)m->shape.d + n + MAI_SHOWN_PARTS * ((size_t)m->shape.dv + 1) + 1);
    return floats * sizeof(float) + n * (sizeof(int32_t) + 1);
}

/* For such a plan, and no smaller than before: an older one may stay in force. */
static mai_scratch_layout layout_scratch(const macattn *m, const mai_work_sizes *needs)
{
    mai_scratch_layout s = {
        .most_parts = max32(needs->max_row_chunks + OTHER_PARTS, m->work.layout.most_parts),
        .shown_runs = max32(needs->max_shown_runs, m->work.layout.shown_runs)};
    const size_t parts = (size_t)s.most_parts;
    s.o = mai_align_up(m->backend->scratch_bytes(&m->shape, &m->ring_dims));
    s.lse = s.o + mai_align_up(parts * sizeof(float *));
    s.summary = s.lse + mai_align_up(parts * sizeof(float));
    s.shown = s.summary + mai_align_up(sizeof(float) * (size_t)m->ring_dims.width);
    s.bytes = s.shown + mai_align_up(s.shown_runs > 0 ? shown_bytes(m, s.shown_runs) : 0);
    return s;
}

mai_scratch mai_work_scratch(const mai_work *work, int worker)
{
    const mai_scratch_layout *s = &work->layout;
    char *base = (char *)work->scratch.ptr + (size_t)worker * s->bytes;
    return (mai_scratch){.kernel = base,
                         .o = (const float **)(void *)(base + s->o),
                         .lse = (float *)(void *)(base + s->lse),
                         .summary = (float *)(void *)(base + s->summary),
                         .shown = base + s->shown};
}

static macattn_status take_zeros(macattn *m)
{
    if (m->work.zeros) return MACATTN_OK;
    m->work.zeros = mai_alloc_zero(&m->cfg, sizeof(float) * (size_t)m->shape.dv);
    return m->work.zeros ? MACATTN_OK : mai_fail(m, MACATTN_E_NOMEM, "no memory for the plan");
}

/* What selections need. */
static macattn_status reserve_runs(macattn *m, const mai_work_sizes *s)
{
    mai_work *work = &m->work;
    const size_t hq = (size_t)m->shape.n_heads, hkv = (size_t)m->shape.n_kv_heads;
    const size_t rows = (size_t)s->n_select_rows, runs = (size_t)s->n_runs;
    const size_t parts = rows * MAI_SELECT_PARTS * hq, width = (size_t)m->ring_dims.width;
    const struct {
        mai_buffer *buffer;
        size_t bytes;
    } wanted[] = {
        {&work->segments, (size_t)s->n_segments * sizeof(mai_runs_view)},
        {&work->made, (size_t)s->n_rows * sizeof(int32_t)},
        {&work->choices, (size_t)s->n_rows * hkv * sizeof(mai_choice)},
        {&work->scores, runs * hq * sizeof(float)},
        {&work->list, runs * hkv * sizeof(int32_t)},
        {&work->piece_lse, (size_t)s->n_pieces * hq * sizeof(float)},
        {&work->totals, rows * hq * sizeof(float)},
        {&work->select_out, parts * width * sizeof(float)},
        {&work->select_lse, parts * sizeof(float)},
        {&work->select_off2, rows * hq * sizeof(float)},
        {&work->shown, (size_t)s->n_shown * hkv * MAI_THETAS * sizeof(float)},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++)
        MAI_TRY(mai_buffer_reserve(m, wanted[i].buffer, wanted[i].bytes, "selections"));
    return MACATTN_OK;
}

/* Chunks and parts of selections, and pieces of what is scored. */
static size_t most_items(const macattn *m, const mai_work_sizes *s)
{
    const size_t parts = (size_t)s->n_select_rows * MAI_SELECT_PARTS;
    const size_t n = (size_t)s->n_chunks + parts, pieces = (size_t)s->n_pieces;
    return (n > pieces ? n : pieces) * (size_t)m->shape.n_kv_heads;
}

macattn_status mai_work_reserve(macattn *m, const mai_work_sizes *s)
{
    mai_work *work = &m->work;
    const size_t hq = (size_t)m->shape.n_heads, d = (size_t)m->shape.d, dv = (size_t)m->shape.dv;
    const size_t width = (size_t)m->ring_dims.width;
    const size_t rows = (size_t)s->n_rows, chunks = (size_t)s->n_chunks;
    const mai_scratch_layout layout = layout_scratch(m, s);
    MAI_TRY(take_zeros(m));
    MAI_TRY(mai_buffer_reserve(m, &work->q, rows * hq * d * sizeof(float), "queries"));
    MAI_TRY(mai_buffer_reserve(m, &work->start, rows * hq * sizeof(int64_t), "start tokens"));
    MAI_TRY(mai_buffer_reserve(m, &work->keys, rows * (size_t)m->shape.n_kv_heads, "key sums"));
    MAI_TRY(mai_buffer_reserve(m, &work->decisions, rows * hq * sizeof(mai_decision), "decisions"));
    MAI_TRY(mai_buffer_reserve(m, &work->items, most_items(m, s) * sizeof(mai_item), "work items"));
    MAI_TRY(mai_buffer_reserve(m, &work->partial_out, chunks * hq * width * sizeof(float),
                               "partial outputs"));
    MAI_TRY(mai_buffer_reserve(m, &work->partial_lse, chunks * hq * sizeof(float), "partial lse"));
    MAI_TRY(mai_buffer_reserve(m, &work->lse, (size_t)s->n_queries * hq * sizeof(float), "lse"));
    MAI_TRY(mai_buffer_reserve(m, &work->capture_out,
                               (size_t)s->n_captures * hq * width * sizeof(float), "summaries"));
    MAI_TRY(mai_buffer_reserve(m, &work->capture_lse, (size_t)s->n_captures * hq * sizeof(float),
                               "summaries' lse"));
    if (mai_policy_get(m->cfg.policy)->judges) {
        MAI_TRY(mai_buffer_reserve(m, &work->refused_out, rows * hq * dv * sizeof(float),
                                   "refused outputs"));
        MAI_TRY(mai_buffer_reserve(m, &work->samples,
                                   (size_t)s->n_samples * hq * sizeof(mai_prompt_sample),
                                   "samples of the prompt"));
        MAI_TRY(mai_buffer_reserve(m, &work->below, rows * sizeof(int64_t), "rows to read again"));
    }
    if (mai_keeps_runs(&m->cfg)) MAI_TRY(reserve_runs(m, s));
    MAI_TRY(mai_buffer_reserve(m, &work->scratch, layout.bytes * (size_t)m->cfg.n_threads,
                               "scratch memory"));
    work->layout = layout;
    return MACATTN_OK;
}

void mai_work_destroy(macattn *m)
{
    mai_work *work = &m->work;
    mai_buffer *const buffers[] = {
        &work->q,           &work->start,       &work->keys,        &work->decisions,
        &work->items,       &work->partial_out, &work->partial_lse, &work->lse,
        &work->capture_out, &work->capture_lse, &work->samples,     &work->refused_out,
        &work->below,       &work->scratch,     &work->segments,    &work->made,
        &work->choices,     &work->scores,      &work->list,        &work->piece_lse,
        &work->totals,      &work->select_out,  &work->select_lse,  &work->select_off2,
        &work->shown};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        mai_free(&m->cfg, buffers[i]->ptr);
    mai_free(&m->cfg, work->zeros);
    *work = (mai_work){0};
}
