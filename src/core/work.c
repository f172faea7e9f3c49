/* SPDX-License-Identifier: Apache-2.0 */
/* Work memory: how much a plan's calls need. */
#include "work.h"

#include "object.h"

static size_t align_up(size_t n)
{
    return (n + MAI_ALIGN - 1) / MAI_ALIGN * MAI_ALIGN;
}

/* What a head's output is merged of besides the row's chunks: a reused summary, and a sink. */
#define OTHER_PARTS 2

/* For rows of up to `max_row_chunks` chunks, and no fewer than before: an older plan may stay in
 * force. */
static mai_scratch_layout layout_scratch(const macattn *m, int32_t max_row_chunks)
{
    mai_scratch_layout s = {.most_parts = max_row_chunks + OTHER_PARTS};
    if (s.most_parts < m->work.layout.most_parts) s.most_parts = m->work.layout.most_parts;
    const size_t parts = (size_t)s.most_parts;
    s.o = align_up(m->backend->scratch_bytes(&m->shape, &m->ring_dims));
    s.lse = s.o + align_up(parts * sizeof(float *));
    s.summary = s.lse + align_up(parts * sizeof(float));
    s.bytes = s.summary + align_up(sizeof(float) * (size_t)m->ring_dims.width);
    return s;
}

mai_scratch mai_work_scratch(const mai_work *work, int worker)
{
    const mai_scratch_layout *s = &work->layout;
    char *base = (char *)work->scratch.ptr + (size_t)worker * s->bytes;
    return (mai_scratch){.kernel = base,
                         .o = (const float **)(void *)(base + s->o),
                         .lse = (float *)(void *)(base + s->lse),
                         .summary = (float *)(void *)(base + s->summary)};
}

static macattn_status take_zeros(macattn *m)
{
    if (m->work.zeros) return MACATTN_OK;
    m->work.zeros = mai_alloc_zero(&m->cfg, sizeof(float) * (size_t)m->shape.dv);
    return m->work.zeros ? MACATTN_OK : mai_fail(m, MACATTN_E_NOMEM, "no memory for the plan");
}

macattn_status mai_work_reserve(macattn *m, const mai_work_sizes *s)
{
    mai_work *work = &m->work;
    const size_t hq = (size_t)m->shape.n_heads, d = (size_t)m->shape.d, dv = (size_t)m->shape.dv;
    const size_t width = (size_t)m->ring_dims.width;
    const size_t rows = (size_t)s->n_rows, chunks = (size_t)s->n_chunks;
    const mai_scratch_layout layout = layout_scratch(m, s->max_row_chunks);
    MAI_TRY(take_zeros(m));
    MAI_TRY(mai_buffer_reserve(m, &work->q, rows * hq * d * sizeof(float), "queries"));
    MAI_TRY(mai_buffer_reserve(m, &work->start, rows * hq * sizeof(int64_t), "start tokens"));
    MAI_TRY(mai_buffer_reserve(m, &work->keys, rows * (size_t)m->shape.n_kv_heads, "key sums"));
    MAI_TRY(mai_buffer_reserve(m, &work->decisions, rows * hq * sizeof(mai_decision), "decisions"));
    MAI_TRY(mai_buffer_reserve(
        m, &work->items, chunks * (size_t)m->shape.n_kv_heads * sizeof(mai_item), "work items"));
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
    MAI_TRY(mai_buffer_reserve(m, &work->scratch, layout.bytes * (size_t)m->cfg.n_threads,
                               "scratch memory"));
    work->layout = layout;
    return MACATTN_OK;
}

void mai_work_destroy(macattn *m)
{
    mai_work *work = &m->work;
    mai_buffer *const buffers[] = {&work->q,           &work->start,   &work->keys,
                                   &work->decisions,   &work->items,   &work->partial_out,
                                   &work->partial_lse, &work->lse,     &work->capture_out,
                                   &work->capture_lse, &work->samples, &work->refused_out,
                                   &work->below,       &work->scratch};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        mai_free(&m->cfg, buffers[i]->ptr);
    mai_free(&m->cfg, work->zeros);
    *work = (mai_work){0};
}
