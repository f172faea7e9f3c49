/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments of a call: checked, and as the kernels want them. */
#include <math.h>

#include "arguments.h"
#include "device.h"

/* What the kernels load at a time. */
enum { VECTOR = 16 };

macattn_status mai_cu_check_batch(macattn_cuda *m, const macattn_cuda_batch *b)
{
    if (!b || b->struct_size != sizeof *b) {
        return mai_cu_fail(m, MACATTN_E_ARG, "batch is NULL or its struct_size is not set");
    }
    if (b->n_rows < 1 || b->n_rows > m->cuda.max_rows) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "n_rows is %d; it must be in [1, %d]",
                           (int)b->n_rows, (int)m->cuda.max_rows);
    }
    if (!b->n_tokens) return mai_cu_fail(m, MACATTN_E_ARG, "n_tokens is NULL");
    if (b->page_size < 0 || (b->page_size & (b->page_size - 1)) != 0) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "page_size is %d; it must be 0 or a power of two",
                           (int)b->page_size);
    }
    if (b->page_size > 0 && !b->pages) return mai_cu_fail(m, MACATTN_E_ARG, "pages is NULL");
    if (b->page_size > 0 && !b->page_indptr && b->page_table_stride < 1) {
        return mai_cu_fail(m, MACATTN_E_ARG,
                           "page_indptr is NULL and page_table_stride is not set");
    }
    return MACATTN_OK;
}

static macattn_status check_pointer(macattn_cuda *m, const char *name, const void *p,
                                    size_t alignment)
{
    if (!p) return mai_cu_fail(m, MACATTN_E_ARG, "io.%s is NULL", name);
    if ((uintptr_t)p % alignment != 0) {
        return mai_cu_fail(m, MACATTN_E_ARG, "io.%s is not aligned to %zu bytes", name, alignment);
    }
    return MACATTN_OK;
}

/* 0 becomes the packed one. Whatever the stride leads to must not overlap the `row` bytes
 * before. */
static macattn_status check_stride(macattn_cuda *m, const char *name, int64_t *stride,
                                   int64_t packed, int64_t row)
{
    if (*stride == 0) *stride = packed;
    if (*stride < row) {
        return mai_cu_fail(m, MACATTN_E_ARG, "io.%s is %lld; a row has %lld bytes", name,
                           (long long)*stride, (long long)row);
    }
    if (*stride % VECTOR != 0) {
        return mai_cu_fail(m, MACATTN_E_ARG, "io.%s is %lld; it must be a multiple of %d", name,
                           (long long)*stride, VECTOR);
    }
    return MACATTN_OK;
}

/* Strides of [page][token][KV head][dim]. How long contiguous rows may grow is not known: their
 * page stride has to be given, unless the run of a single row is the whole tensor. */
static macattn_status check_kv_strides(macattn_cuda *m, const macattn_cuda_batch *b,
                                       const char *const names[3], int64_t *page, int64_t *token,
                                       int64_t *head)
{
    const int64_t row = (int64_t)macattn_dtype_row_bytes(m->cfg.k_dtype, m->cfg.head_dim);
    MAI_TRY(check_stride(m, names[2], head, row, m->cfg.n_kv_heads > 1 ? row : 0));
    MAI_TRY(check_stride(m, names[1], token, row * m->cfg.n_kv_heads, row));
    const bool is_alone = b->page_size == 0 && b->n_rows == 1 && !b->pages;
    if (b->page_size == 0 && *page == 0 && !is_alone) {
        return mai_cu_fail(m, MACATTN_E_ARG,
                           "io.%s is 0, and the batch is not paged: how far apart "
                           "its runs of tokens lie has to be given",
                           names[0]);
    }
    return check_stride(m, names[0], page, *token * (b->page_size > 0 ? b->page_size : 1), row);
}

static macattn_status check_pointers(macattn_cuda *m, const macattn_cuda_io *io)
{
    MAI_TRY(check_pointer(m, "q", io->q, VECTOR));
    MAI_TRY(check_pointer(m, "kv.k", io->kv.k, VECTOR));
    MAI_TRY(check_pointer(m, "kv.v", io->kv.v, VECTOR));
    MAI_TRY(check_pointer(m, "out", io->out, VECTOR));
    if (io->q_match) MAI_TRY(check_pointer(m, "q_match", io->q_match, VECTOR));
    if (io->lse) MAI_TRY(check_pointer(m, "lse", io->lse, sizeof(float)));
    if (io->sinks) MAI_TRY(check_pointer(m, "sinks", io->sinks, sizeof(float)));
    return MACATTN_OK;
}

static macattn_status check_strides(macattn_cuda *m, const macattn_cuda_batch *b,
                                    macattn_cuda_io *io)
{
    static const char *const k[] = {"kv.k_page_stride", "kv.k_token_stride", "kv.k_head_stride"};
    static const char *const v[] = {"kv.v_page_stride", "kv.v_token_stride", "kv.v_head_stride"};
    const int64_t hq = m->cfg.n_heads;
    const int64_t q = (int64_t)macattn_dtype_row_bytes(m->cfg.q_dtype, m->cfg.head_dim);
    const int64_t o = (int64_t)macattn_dtype_row_bytes(m->cuda.out_dtype, m->cfg.head_dim);
    macattn_kv *kv = &io->kv;
    MAI_TRY(check_stride(m, "q_head_stride", &io->q_head_stride, q, q));
    MAI_TRY(check_stride(m, "q_row_stride", &io->q_row_stride, hq * q, q));
    MAI_TRY(check_stride(m, "q_match_head_stride", &io->q_match_head_stride, q, q));
    MAI_TRY(check_stride(m, "q_match_row_stride", &io->q_match_row_stride, hq * q, q));
    MAI_TRY(check_stride(m, "out_head_stride", &io->out_head_stride, o, o));
    MAI_TRY(check_stride(m, "out_row_stride", &io->out_row_stride, hq * o, o));
    MAI_TRY(check_kv_strides(m, b, k, &kv->k_page_stride, &kv->k_token_stride, &kv->k_head_stride));
    return check_kv_strides(m, b, v, &kv->v_page_stride, &kv->v_token_stride, &kv->v_head_stride);
}

macattn_status mai_cu_check_io(macattn_cuda *m, const macattn_cuda_batch *b,
                               const macattn_cuda_io *in, macattn_cuda_io *io)
{
    if (!in || in->struct_size != sizeof *in) {
        return mai_cu_fail(m, MACATTN_E_ARG, "io is NULL or its struct_size is not set");
    }
    *io = *in;
    MAI_TRY(check_pointers(m, io));
    MAI_TRY(check_strides(m, b, io));
    if (!isfinite(io->k_scale) || !isfinite(io->v_scale)) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "k_scale and v_scale must be finite");
    }
    if (io->k_scale == 0) io->k_scale = 1;
    if (io->v_scale == 0) io->v_scale = 1;
    return MACATTN_OK;
}

mai_cu_params mai_cu_params_of(const macattn_cuda *m, const macattn_cuda_batch *b,
                               const macattn_cuda_io *io)
{
    mai_cu_params p = m->params;
    p.n_rows = b->n_rows;
    p.slots = b->slots, p.n_tokens = b->n_tokens;
    p.pages = b->pages, p.page_indptr = b->page_indptr, p.page_table_stride = b->page_table_stride;
    p.page_shift = -1;
    for (int32_t size = b->page_size; size > 0; size >>= 1) p.page_shift++;
    p.q = io->q, p.q_match = io->q_match;
    p.q_row_stride = io->q_row_stride, p.q_head_stride = io->q_head_stride;
    p.m_row_stride = io->q_match_row_stride, p.m_head_stride = io->q_match_head_stride;
    p.out_row_stride = io->out_row_stride, p.out_head_stride = io->out_head_stride;
    p.k = io->kv.k, p.v = io->kv.v;
    p.k_page_stride = io->kv.k_page_stride, p.v_page_stride = io->kv.v_page_stride;
    p.k_token_stride = io->kv.k_token_stride, p.v_token_stride = io->kv.v_token_stride;
    p.k_head_stride = io->kv.k_head_stride, p.v_head_stride = io->kv.v_head_stride;
    p.k_scale = io->k_scale, p.v_scale = io->v_scale;
    p.sinks = io->sinks, p.out = io->out, p.lse = io->lse;
    return p;
}
