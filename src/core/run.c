/* SPDX-License-Identifier: Apache-2.0 */
/* The three attention calls: check everything, then hand over to decode.c and prefill.c. */
#include <string.h>

#include "run.h"

static macattn_status check_stride(macattn *m, const char *name, int64_t *stride, int64_t packed,
                                   int64_t at_least)
{
    if (*stride == 0) *stride = packed;
    if (*stride < at_least) {
        return mai_fail(m, MACATTN_E_ARG, "io.%s is %lld bytes; at least %lld are needed", name,
                        (long long)*stride, (long long)at_least);
    }
    return MACATTN_OK;
}

static macattn_status check_pointer(macattn *m, const char *name, const void *ptr, size_t alignment)
{
    if (!ptr) return mai_fail(m, MACATTN_E_ARG, "io.%s is NULL", name);
    if ((uintptr_t)ptr % alignment != 0) {
        return mai_fail(m, MACATTN_E_ARG, "io.%s is not aligned to %zu bytes", name, alignment);
    }
    return MACATTN_OK;
}

/* A token's or head's row must not overlap the next one, where there is a next one. */
static macattn_status check_kv_strides(macattn *m, char which, int64_t row, int64_t token,
                                       int64_t head, int64_t page)
{
    if (token < row) {
        return mai_fail(m, MACATTN_E_ARG, "io.kv.%c_token_stride is %lld; a row has %lld bytes",
                        which, (long long)token, (long long)row);
    }
    if (head < 0 || (m->shape.n_kv_heads > 1 && head < row)) {
        return mai_fail(m, MACATTN_E_ARG, "io.kv.%c_head_stride is %lld; a row has %lld bytes",
                        which, (long long)head, (long long)row);
    }
    if (page < 0) {
        return mai_fail(m, MACATTN_E_ARG, "io.kv.%c_page_stride is %lld; it must not be negative",
                        which, (long long)page);
    }
    return MACATTN_OK;
}

static macattn_status check_kv(macattn *m, const macattn_kv *kv)
{
    MAI_TRY(check_pointer(m, "kv.k", kv->k, 1));
    MAI_TRY(check_pointer(m, "kv.v", kv->v, 1));
    const int64_t k_row = (int64_t)macattn_dtype_row_bytes(m->shape.k_dtype, m->shape.d);
    const int64_t v_row = (int64_t)macattn_dtype_row_bytes(m->shape.v_dtype, m->shape.dv);
    MAI_TRY(
        check_kv_strides(m, 'k', k_row, kv->k_token_stride, kv->k_head_stride, kv->k_page_stride));
    return check_kv_strides(m, 'v', v_row, kv->v_token_stride, kv->v_head_stride,
                            kv->v_page_stride);
}

static macattn_status check_strides(macattn *m, macattn_io *io)
{
    const int64_t hq = m->shape.n_heads;
    const int64_t q = (int64_t)macattn_dtype_row_bytes(m->shape.q_dtype, m->shape.d);
    const int64_t o = (int64_t)sizeof(float) * m->shape.dv;
    MAI_TRY(check_stride(m, "q_head_stride", &io->q_head_stride, q, q));
    MAI_TRY(check_stride(m, "q_row_stride", &io->q_row_stride, hq * q, q));
    MAI_TRY(check_stride(m, "q_match_head_stride", &io->q_match_head_stride, q, q));
    MAI_TRY(check_stride(m, "q_match_row_stride", &io->q_match_row_stride, hq * q, q));
    MAI_TRY(check_stride(m, "out_head_stride", &io->out_head_stride, o, o));
    MAI_TRY(check_stride(m, "out_row_stride", &io->out_row_stride, hq * o, o));
    if (io->out_row_stride % 4 != 0 || io->out_head_stride % 4 != 0) {
        return mai_fail(m, MACATTN_E_ARG, "io.out strides %lld and %lld are no multiples of 4",
                        (long long)io->out_row_stride, (long long)io->out_head_stride);
    }
    return MACATTN_OK;
}

macattn_status mai_run_init(macattn *m, const macattn_io *io, mai_run *run)
{
    if (!io) return mai_fail(m, MACATTN_E_ARG, "io is NULL");
    if (io->struct_size != sizeof *io) {
        return mai_fail(m, MACATTN_E_ARG, "io.struct_size is %zu, not sizeof(macattn_io) = %zu",
                        io->struct_size, sizeof *io);
    }
    if (!m->plan || m->plan->current < 0) {
        return mai_fail(m, MACATTN_E_STATE, "there is no plan: call macattn_plan first");
    }
    *run = (mai_run){.m = m, .plan = m->plan, .io = *io, .layer = -1};
    MAI_TRY(check_pointer(m, "q", io->q, 1));
    MAI_TRY(check_pointer(m, "out", io->out, sizeof(float)));
    if (io->lse) MAI_TRY(check_pointer(m, "lse", io->lse, sizeof(float)));
    if (io->sinks) MAI_TRY(check_pointer(m, "sinks", io->sinks, sizeof(float)));
    MAI_TRY(check_kv(m, &io->kv));
    return check_strides(m, &run->io);
}

macattn_status mai_run_check_slots(macattn *m, int32_t layer)
{
    const mai_plan *plan = m->plan;
    if (layer < 0 || layer >= m->cfg.n_layers) {
        return mai_fail(m, MACATTN_E_RANGE, "layer %d is not in [0, n_layers = %d)", (int)layer,
                        (int)m->cfg.n_layers);
    }
    if (plan->layer_done[layer]) {
        return mai_fail(m, MACATTN_E_STATE, "layer %d was already computed under this plan",
                        (int)layer);
    }
    for (int r = 0; r < plan->n_rows; r++) {
        const mai_row_plan *p = &plan->rows[r];
        if (p->row.slot < 0) {
            return mai_fail(m, MACATTN_E_STATE, "row %d has no slot: only macattn_attend takes it",
                            r);
        }
        if (p->row.n_tokens == 0) {
            return mai_fail(m, MACATTN_E_STATE,
                            "row %d has no tokens: only macattn_attend takes it", r);
        }
        if (p->generation != m->slots[p->row.slot].generation) {
            return mai_fail(
                m, MACATTN_E_STATE,
                "slot %d was reset, truncated, forked to or loaded after the plan was made",
                (int)p->row.slot);
        }
    }
    return MACATTN_OK;
}

void mai_run_commit_slots(mai_run *run)
{
    run->plan->layer_done[run->layer] = 1;
    for (int r = 0; r < run->plan->n_rows; r++) {
        const macattn_row *row = &run->plan->rows[r].row;
        run->m->slots[row->slot].length = row->n_tokens;
    }
}

mai_tokens mai_run_tokens(const mai_run *run, const mai_row_plan *p)
{
    return (mai_tokens){.kv = &run->io.kv,
                        .pages = run->plan->paged ? p->row.pages : NULL,
                        .base_page = p->row.page,
                        .page_shift = run->plan->page_shift};
}

macattn_status macattn_attend(macattn *m, const macattn_io *io)
{
    if (!m) return MACATTN_E_ARG;
    mai_run run;
    MAI_TRY(mai_run_init(m, io, &run));
    mai_run_decode(&run);
    mai_run_prefill(&run, false);
    return MACATTN_OK;
}

/* What decode and prefill begin with. Nothing has changed if it fails. */
static macattn_status begin_layer(macattn *m, int32_t layer, const macattn_io *io, mai_run *run)
{
    MAI_TRY(mai_run_init(m, io, run));
    MAI_TRY(mai_run_check_slots(m, layer));
    run->layer = layer;
    run->reuse = io->q_match && mai_keeps_rings(&m->cfg);
    return MACATTN_OK;
}

macattn_status macattn_decode(macattn *m, int32_t layer, const macattn_io *io)
{
    if (!m) return MACATTN_E_ARG;
    mai_run run;
    MAI_TRY(begin_layer(m, layer, io, &run));
    if (!m->plan->single) {
        return mai_fail(m, MACATTN_E_STATE,
                        "a row of the plan has several queries: call macattn_prefill");
    }
    mai_run_commit_slots(&run);
    mai_run_decode(&run);
    return MACATTN_OK;
}

macattn_status macattn_prefill(macattn *m, int32_t layer, const macattn_io *io)
{
    if (!m) return MACATTN_E_ARG;
    mai_run run;
    MAI_TRY(begin_layer(m, layer, io, &run));
    mai_run_commit_slots(&run);
    mai_run_prefill(&run, true);
    return MACATTN_OK;
}
