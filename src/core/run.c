/* SPDX-License-Identifier: Apache-2.0 */
/* Checking the arguments of a call. */
#include "run.h"

#include "sums.h"

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
    *run = (mai_run){.m = m, .plan = m->plan, .work = &m->work, .io = *io, .layer = -1};
    MAI_TRY(check_pointer(m, "q", io->q, 1));
    MAI_TRY(check_pointer(m, "out", io->out, sizeof(float)));
    if (io->lse) MAI_TRY(check_pointer(m, "lse", io->lse, sizeof(float)));
    if (io->sinks) MAI_TRY(check_pointer(m, "sinks", io->sinks, sizeof(float)));
    MAI_TRY(check_kv(m, &io->kv));
    return check_strides(m, &run->io);
}

mai_tokens mai_run_tokens(const mai_run *run, const mai_row_plan *p)
{
    return (mai_tokens){.kv = &run->io.kv,
                        .pages = run->plan->paged ? p->row.pages : NULL,
                        .base_page = p->row.page,
                        .page_shift = run->plan->page_shift};
}

double mai_key_logit(const macattn *m, const float *q, const float *summary)
{
    const mai_shape *shape = &m->shape;
    if (m->ring_dims.width == shape->dv) return 0;
    const double factor = (double)(float)m->backend->q_factor(shape);
    return mai_dot(q, summary + shape->dv, shape->d) * ((double)shape->scale / factor);
}
