/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that compute: attend, decode, capture. */
#include "arguments.h"
#include "core/policy/policy.h"
#include "cuda/schedule.h"
#include "device.h"

static macattn_status launch(macattn_cuda *m, mai_cu_params *p, bool matches, void *stream)
{
    int before;
    p->even_blocks = mai_even_blocks(m->n_blocks, p->n_rows * p->n_kv_heads * p->blocks_per_kv);
    MAI_TRY(mai_cu_use_device(m, &before));
    macattn_status status = MACATTN_OK;
    if (matches) status = mai_cu_device_status(m, "match", mai_cu_match_launch(p, stream));
    if (status == MACATTN_OK) {
        status = mai_cu_device_status(
            m, "attend", mai_cu_attend_launch(m->kernel, p, m->n_blocks, matches, stream));
    }
    mai_cu_restore_device(m, before);
    return status;
}

macattn_status macattn_cuda_attend(macattn_cuda *m, const macattn_cuda_batch *batch,
                                   const macattn_cuda_io *in, void *stream)
{
    macattn_cuda_io io;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(mai_cu_check_batch(m, batch));
    MAI_TRY(mai_cu_check_io(m, batch, in, &io));
    mai_cu_params p = mai_cu_params_of(m, batch, &io);
    return launch(m, &p, false, stream);
}

static macattn_status check_layer(macattn_cuda *m, int32_t layer)
{
    if (layer >= 0 && layer < m->cfg.n_layers) return MACATTN_OK;
    return mai_cu_fail(m, MACATTN_E_RANGE, "layer is %d; it must be in [0, %d)", (int)layer,
                       (int)m->cfg.n_layers);
}

/* Without slots row i has slot i, if it exists. */
static macattn_status check_slots(macattn_cuda *m, const macattn_cuda_batch *batch, int32_t n_rows)
{
    if (batch->slots || n_rows <= m->cfg.max_slots) return MACATTN_OK;
    return mai_cu_fail(m, MACATTN_E_RANGE, "slots is NULL and there are %d rows for %d slots",
                       (int)n_rows, (int)m->cfg.max_slots);
}

macattn_status macattn_cuda_decode(macattn_cuda *m, int32_t layer, const macattn_cuda_batch *batch,
                                   const macattn_cuda_io *in, void *stream)
{
    macattn_cuda_io io;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_layer(m, layer));
    MAI_TRY(mai_cu_check_batch(m, batch));
    MAI_TRY(mai_cu_check_io(m, batch, in, &io));
    mai_cu_params p = mai_cu_params_of(m, batch, &io);
    p.layer = layer;
    p.reuse = mai_keeps_rings(&m->cfg) && io.q_match;
    if (p.reuse) MAI_TRY(check_slots(m, batch, batch->n_rows));
    return launch(m, &p, p.reuse, stream);
}

/* Queries [first, first + n) of the row: their fresh and near tokens, then the entries. */
static macattn_status capture_some(macattn_cuda *m, mai_cu_params *p, int32_t first, int32_t n,
                                   const macattn_cuda_io *io, int32_t slot_row, void *stream)
{
    p->capture_query = first;
    p->n_rows = n;
    p->q = (const char *)io->q + first * p->q_row_stride;
    MAI_TRY(launch(m, p, false, stream));
    const int status = mai_cu_capture_insert(p, io->out, io->out_row_stride, io->out_head_stride,
                                             m->cuda.out_dtype, io->lse, slot_row, stream);
    return mai_cu_device_status(m, "capture", status);
}

macattn_status macattn_cuda_capture(macattn_cuda *m, int32_t layer, const macattn_cuda_batch *batch,
                                    int32_t row, int32_t n_queries, const macattn_cuda_io *in,
                                    void *stream)
{
    macattn_cuda_io io;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_layer(m, layer));
    MAI_TRY(mai_cu_check_batch(m, batch));
    MAI_TRY(mai_cu_check_io(m, batch, in, &io));
    if (!mai_keeps_rings(&m->cfg)) {
        return mai_cu_fail(m, MACATTN_E_STATE, "this configuration remembers nothing");
    }
    if (!io.q_match || !io.lse) return mai_cu_fail(m, MACATTN_E_ARG, "q_match or lse is NULL");
    if (row < 0 || row >= batch->n_rows || n_queries < 1) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "row is %d of %d, n_queries is %d", (int)row,
                           (int)batch->n_rows, (int)n_queries);
    }
    MAI_TRY(check_slots(m, batch, row + 1));
    mai_cu_params p = mai_cu_params_of(m, batch, &io);
    p.layer = layer, p.reuse = 1;
    p.capture_row = row, p.capture_queries = n_queries;
    p.out_dtype = MACATTN_DTYPE_F32;
    p.out = (char *)m->capture_out, p.lse = m->capture_lse;
    p.out_head_stride = (int64_t)sizeof(float) * m->cfg.head_dim;
    p.out_row_stride = p.out_head_stride * m->cfg.n_heads;
    int32_t first = n_queries > m->cfg.ring ? n_queries - m->cfg.ring : 0;
    for (; first < n_queries; first += m->cuda.max_rows) {
        const int32_t left = n_queries - first;
        const int32_t n = left < m->cuda.max_rows ? left : m->cuda.max_rows;
        MAI_TRY(capture_some(m, &p, first, n, &io, row, stream));
    }
    return MACATTN_OK;
}
