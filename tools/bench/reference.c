/* SPDX-License-Identifier: Apache-2.0 */
/* One head of the float64 reference, over part of a row. */
#include "reference.h"

#include "ref.h"

double bench_value(macattn_dtype dtype, const void *row, int64_t i)
{
    return ref_value(dtype, row, i);
}

void bench_reference(const macattn_config *cfg, const macattn_kv *kv, const macattn_row *where,
                     int32_t page_size, int32_t head, const float *q, int64_t first, int64_t last,
                     double *out, double *lse)
{
    int32_t kv_head = head / (cfg->n_heads / cfg->n_kv_heads);
    macattn_config one = *cfg;
    one.n_heads = one.n_kv_heads = 1;
    /* Moving the start of K and V cuts the row: it is contiguous, or cut at no token. */
    macattn_io io = {
        .struct_size = sizeof io, .q = q + (size_t)head * (size_t)cfg->head_dim, .kv = *kv};
    io.kv.k = (const char *)kv->k + kv_head * kv->k_head_stride + first * kv->k_token_stride;
    io.kv.v = (const char *)kv->v + kv_head * kv->v_head_stride + first * kv->v_token_stride;
    macattn_row row = *where;
    row.n_queries = 1;
    row.n_tokens = last - first;
    macattn_batch batch = {
        .struct_size = sizeof batch, .n_rows = 1, .rows = &row, .page_size = page_size};
    ref_attend(&one, &batch, &io, out, lse);
}
