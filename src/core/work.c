/* SPDX-License-Identifier: Apache-2.0 */
/* Work memory: how much a plan's calls need. */
#include "work.h"

#include "object.h"

static size_t align_up(size_t n)
{
    return (n + MAI_ALIGN - 1) / MAI_ALIGN * MAI_ALIGN;
}

/* A worker's scratch: the kernels', then merge's lists of parts and one summary. */
static size_t worker_scratch(const macattn *m, int max_row_chunks)
{
    const size_t parts = (size_t)max_row_chunks + 2;
    return align_up(m->backend->scratch_bytes(&m->shape, &m->ring_dims)) +
           align_up(parts * sizeof(float *)) + align_up(parts * sizeof(float)) +
           align_up(sizeof(float) * (size_t)m->shape.dv);
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
    const size_t rows = (size_t)s->n_rows, chunks = (size_t)s->n_chunks;
    const size_t stride = worker_scratch(m, s->max_row_chunks);
    MAI_TRY(take_zeros(m));
    MAI_TRY(mai_buffer_reserve(m, &work->q, rows * hq * d * sizeof(float), "queries"));
    MAI_TRY(mai_buffer_reserve(m, &work->start, rows * hq * sizeof(int64_t), "start tokens"));
    MAI_TRY(mai_buffer_reserve(m, &work->decisions, rows * hq * sizeof(mai_decision), "decisions"));
    MAI_TRY(mai_buffer_reserve(
        m, &work->items, chunks * (size_t)m->shape.n_kv_heads * sizeof(mai_item), "work items"));
    MAI_TRY(mai_buffer_reserve(m, &work->partial_out, chunks * hq * dv * sizeof(float),
                               "partial outputs"));
    MAI_TRY(mai_buffer_reserve(m, &work->partial_lse, chunks * hq * sizeof(float), "partial lse"));
    MAI_TRY(mai_buffer_reserve(m, &work->lse, (size_t)s->n_queries * hq * sizeof(float), "lse"));
    MAI_TRY(mai_buffer_reserve(m, &work->capture_out,
                               (size_t)s->n_captures * hq * dv * sizeof(float), "summaries"));
    MAI_TRY(mai_buffer_reserve(m, &work->capture_lse, (size_t)s->n_captures * hq * sizeof(float),
                               "summaries' lse"));
    if (mai_policy_get(m->cfg.policy)->judges) {
        MAI_TRY(mai_buffer_reserve(m, &work->refused_out, rows * hq * dv * sizeof(float),
                                   "refused outputs"));
        MAI_TRY(mai_buffer_reserve(m, &work->below, rows * sizeof(int64_t), "rows to read again"));
    }
    MAI_TRY(
        mai_buffer_reserve(m, &work->scratch, stride * (size_t)m->cfg.n_threads, "scratch memory"));
    if (stride > work->scratch_stride) work->scratch_stride = stride;
    return MACATTN_OK;
}

void mai_work_destroy(macattn *m)
{
    mai_work *work = &m->work;
    mai_buffer *const buffers[] = {&work->q,           &work->start,       &work->decisions,
                                   &work->items,       &work->partial_out, &work->partial_lse,
                                   &work->lse,         &work->capture_out, &work->capture_lse,
                                   &work->refused_out, &work->below,       &work->scratch};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        mai_free(&m->cfg, buffers[i]->ptr);
    mai_free(&m->cfg, work->zeros);
    *work = (mai_work){0};
}
