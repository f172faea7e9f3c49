/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that compute: attend, decode, capture. */
#include "arguments.h"
#include "configuration.h"
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
    if (status == MACATTN_OK && p->selects) {
        status =
            mai_cu_device_status(m, "select", mai_cu_select_launch(p, m->n_select_blocks, stream));
    }
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
    p.selects = p.reuse && mai_keeps_runs(&m->cfg);
    if (p.reuse) MAI_TRY(check_slots(m, batch, batch->n_rows));
    return launch(m, &p, p.reuse, stream);
}

/* One part of a prompt after the other, each at most as many queries as there is room for. */
static int capture(macattn_cuda *m, const mai_cu_params *p, mai_cu_prompt *x, void *stream)
{
    const int32_t most = mai_cu_captured(&m->cfg);
    const int n_shown = p->selects ? mai_select_samples(x->n_queries, x->n_queries) : 0;
    if (p->selects) {
        const int status = mai_cu_make_runs_launch(p, x, stream);
        if (status != 0) return status;
    }
    x->first = x->n_queries - mai_prompt_remembers(p->judges, x->n_queries, m->cfg.ring);
    for (; x->first < x->n_queries; x->first += most) {
        const int32_t left = x->n_queries - x->first;
        x->n = left < most ? left : most;
        int status = mai_cu_far_launch(p, x, stream);
        if (status == 0) status = mai_cu_place_launch(p, x, stream);
        if (status == 0 && p->judges) status = mai_cu_show_launch(p, x, stream);
        for (int i = 0; status == 0 && i < n_shown; i++)
            status = mai_cu_shown_launch(p, x, i, stream);
        if (status == 0) status = mai_cu_insert_launch(p, x, stream);
        if (status != 0) return status;
    }
    return p->judges ? mai_cu_learn_launch(p, x, stream) : 0;
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
    mai_cu_prompt x = m->prompt;
    int before;
    p.layer = layer;
    p.selects = mai_keeps_runs(&m->cfg);
    x.row = row, x.n_queries = n_queries;
    MAI_TRY(mai_cu_use_device(m, &before));
    const int status = capture(m, &p, &x, stream);
    mai_cu_restore_device(m, before);
    return mai_cu_device_status(m, "capture", status);
}
