/* SPDX-License-Identifier: Apache-2.0 */
/* How a ring's arrays lie in its one allocation. */
#include "core/backend.h"
#include "core/base.h"

void mai_ring_dims_init(mai_ring_dims *dims, const mai_shape *shape, int32_t capacity, bool keys)
{
    const size_t heads = (size_t)shape->n_heads, K = (size_t)capacity;
    *dims = (mai_ring_dims){
        .n_heads = shape->n_heads, .d = shape->d, .dv = shape->dv, .capacity = capacity};
    dims->width = shape->dv + (keys ? shape->d : 0);
    dims->n_blocks = (capacity + MAI_LANES - 1) / MAI_LANES;
    dims->n_chunks = (shape->d + MAI_CHUNK - 1) / MAI_CHUNK;
    dims->q_bytes = macattn_dtype_row_bytes(shape->q_dtype, shape->d);
    const size_t rows = (size_t)dims->n_blocks * MAI_LANES, chunks = (size_t)dims->n_chunks;
    const struct {
        size_t *offset, bytes;
    } arrays[] = {
        {&dims->off_head, heads * sizeof(int32_t)},
        {&dims->off_count, heads * sizeof(int32_t)},
        {&dims->off_pos, heads * K * sizeof(int32_t)},
        {&dims->off_end, heads * K * sizeof(int32_t)},
        {&dims->off_lse0, heads * K * sizeof(float)},
        {&dims->off_moved, heads * K * sizeof(float)},
        {&dims->off_share, heads * K * sizeof(float)},
        {&dims->off_scale, heads * rows * sizeof(float)},
        {&dims->off_residual, heads * rows * sizeof(float)},
        {&dims->off_norm2, heads * chunks * rows * sizeof(float)},
        {&dims->off_q8, heads * chunks * rows * MAI_CHUNK},
        {&dims->off_q, heads * K * dims->q_bytes},
        {&dims->off_out, heads * K * (size_t)dims->width * sizeof(float)},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        *arrays[i].offset = dims->bytes;
        dims->bytes += mai_align_up(arrays[i].bytes);
    }
}

void mai_ring_view_init(mai_ring_view *view, const mai_ring_dims *dims, void *base)
{
    char *at = base;
    *view = (mai_ring_view){
        .head = (int32_t *)(void *)(at + dims->off_head),
        .count = (int32_t *)(void *)(at + dims->off_count),
        .pos = (int32_t *)(void *)(at + dims->off_pos),
        .end = (int32_t *)(void *)(at + dims->off_end),
        .lse0 = (float *)(void *)(at + dims->off_lse0),
        .moved = (float *)(void *)(at + dims->off_moved),
        .share = (float *)(void *)(at + dims->off_share),
        .scale = (float *)(void *)(at + dims->off_scale),
        .residual = (float *)(void *)(at + dims->off_residual),
        .norm2 = (float *)(void *)(at + dims->off_norm2),
        .q8 = (uint8_t *)(at + dims->off_q8),
        .q = at + dims->off_q,
        .out = (float *)(void *)(at + dims->off_out),
    };
}
