/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments of a call: checked, and as the kernels want them. */
#include <math.h>

#include "arguments.h"
#include "device.h"

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

static macattn_status check_pointer(macattn_cuda *m, const char *name, const void *p)
{
    if (!p) return mai_cu_fail(m, MACATTN_E_ARG, "%s is NULL", name);
    if ((uintptr_t)p % 16 != 0) {
        return mai_cu_fail(m, MACATTN_E_ARG, "%s is not aligned to 16 bytes", name);
    }
    return MACATTN_OK;
}

static macattn_status check_stride(macattn_cuda *m, const char *name, int64_t stride)
{
    if (stride % 16 == 0) return MACATTN_OK;
    return mai_cu_fail(m, MACATTN_E_ARG, "%s is %lld; it must be a multiple of 16", name,
                       (long long)stride);
}

macattn_status mai_cu_check_io(macattn_cuda *m, const macattn_cuda_io *io)
{
    if (!io || io->struct_size != sizeof *io) {
        return mai_cu_fail(m, MACATTN_E_ARG, "io is NULL or its struct_size is not set");
    }
    const struct {
        const char *name;
        int64_t stride;
    } strides[] = {
        {"q_row_stride", io->q_row_stride},
        {"q_head_stride", io->q_head_stride},
        {"q_match_row_stride", io->q_match_row_stride},
        {"q_match_head_stride", io->q_match_head_stride},
        {"out_row_stride", io->out_row_stride},
        {"out_head_stride", io->out_head_stride},
        {"k_page_stride", io->kv.k_page_stride},
        {"k_token_stride", io->kv.k_token_stride},
        {"k_head_stride", io->kv.k_head_stride},
        {"v_page_stride", io->kv.v_page_stride},
        {"v_token_stride", io->kv.v_token_stride},
        {"v_head_stride", io->kv.v_head_stride},
    };
    MAI_TRY(check_pointer(m, "q", io->q));
    MAI_TRY(check_pointer(m, "k", io->kv.k));
    MAI_TRY(check_pointer(m, "v", io->kv.v));
    MAI_TRY(check_pointer(m, "out", io->out));
    if (io->q_match) MAI_TRY(check_pointer(m, "q_match", io->q_match));
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++) {
        MAI_TRY(check_stride(m, strides[i].name, strides[i].stride));
    }
    if (!isfinite(io->k_scale) || !isfinite(io->v_scale)) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "k_scale and v_scale must be finite");
    }
    return MACATTN_OK;
}

void mai_cu_row_strides(const macattn_cuda *m, macattn_dtype dtype, int64_t row, int64_t head,
                        int64_t *row_out, int64_t *head_out)
{
    const int64_t bytes = (int64_t)macattn_dtype_row_bytes(dtype, m->cfg.head_dim);
    *head_out = head ? head : bytes;
    *row_out = row ? row : bytes * m->cfg.n_heads;
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
    mai_cu_row_strides(m, p.q_dtype, io->q_row_stride, io->q_head_stride, &p.q_row_stride,
                       &p.q_head_stride);
    mai_cu_row_strides(m, p.q_dtype, io->q_match_row_stride, io->q_match_head_stride,
                       &p.m_row_stride, &p.m_head_stride);
    mai_cu_row_strides(m, p.out_dtype, io->out_row_stride, io->out_head_stride, &p.out_row_stride,
                       &p.out_head_stride);
    p.k = io->kv.k, p.v = io->kv.v;
    p.k_page_stride = io->kv.k_page_stride, p.v_page_stride = io->kv.v_page_stride;
    p.k_token_stride = io->kv.k_token_stride, p.v_token_stride = io->kv.v_token_stride;
    p.k_head_stride = io->kv.k_head_stride, p.v_head_stride = io->kv.v_head_stride;
    p.k_scale = io->k_scale == 0 ? 1.0f : io->k_scale;
    p.v_scale = io->v_scale == 0 ? 1.0f : io->v_scale;
    p.sinks = io->sinks, p.out = io->out, p.lse = io->lse;
    return p;
}
