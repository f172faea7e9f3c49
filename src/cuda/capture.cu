/* SPDX-License-Identifier: Apache-2.0 */
/* The entries of a prompt that an engine has computed. */
#include "device/ring.cuh"
#include "schedule.h"

namespace mai {
namespace {

/* What an engine computed of the queries of a prompt. */
struct Engine {
    const char *out;
    int64_t row_stride, head_stride;
    macattn_dtype dtype;
    const float *lse;
    int slot_row;
};

/* The smallest share of the mass that is remembered: below, the difference of two nearly equal
 * numbers has too few digits left. */
constexpr float LEAST_SHARE = 1e-3f;

/* Take the tokens of (near_o, near_lse) out of (o, lse); the far share of the mass is returned. */
template <int V>
__device__ float take_out(float *o, float *lse, const float *near_o, float near_lse)
{
    const float near_share = near_lse == -INFINITY ? 0.0f : expf(near_lse - *lse);
    const float share = 1.0f - near_share;
#pragma unroll
    for (int i = 0; i < V; i++) o[i] = (o[i] - near_share * near_o[i]) / share;
    *lse += logf(share);
    return share;
}

/* Whether a KV head's group remembers: not if a head of it has no budget. */
__device__ __forceinline__ bool remembers(const mai_cu_params &p, int kv_head)
{
    const mai_record *records = p.records + (size_t)p.layer * p.n_heads + kv_head * p.group;
    return !p.judges || mai_group_remembers(records, p.group);
}

/* One warp per head, query after query: only those that are finite get an entry, in their order. */
template <int D>
__global__ void __launch_bounds__(32)
    capture_kernel(const __grid_constant__ mai_cu_params p, const Engine engine)
{
    constexpr int V = D / 32;
    const int head = blockIdx.x, lane = threadIdx.x & 31;
    const int slot = row_slot(p, engine.slot_row);
    if (slot < 0 || !remembers(p, head / p.group)) return;
    const size_t ring = ring_of(p, slot, head);
    for (int i = 0; i < p.n_rows; i++) {
        const int n = row_tokens(p, i), b = mai_far_end(n, p.band, p.fresh),
                  query = p.capture_query + i;
        if (b <= p.fresh) continue;
        const char *q_row = p.q_match + query * p.m_row_stride + head * p.m_head_stride;
        float q[V], o[V], near_o[V];
        load_values<V>(p.q_dtype, q_row, lane * V, q);
        load_values<V>(engine.dtype,
                       engine.out + query * engine.row_stride + head * engine.head_stride, lane * V,
                       o);
        load_values<V>(MACATTN_DTYPE_F32, p.out + i * p.out_row_stride + head * p.out_head_stride,
                       lane * V, near_o);
        float lse = engine.lse[(size_t)query * p.n_heads + head];
        const float share = take_out<V>(o, &lse, near_o, p.lse[(size_t)i * p.n_heads + head]);
        /* Summaries are kept in units of the stored V. */
#pragma unroll
        for (int j = 0; j < V; j++) o[j] /= p.v_scale;
        const EncodedQuery<V> e = encode_query<V>(q);
        if (!(share >= LEAST_SHARE) || !all_finite<V>(o, lse) || !all_finite<V>(q, e.scale))
            continue;
        const int next = p.rings.head[ring];
        ring_begin<V>(p, ring, next, e, q, n - 1, b);
        ring_complete<V>(p, ring, next, p.rings.count[ring], o, lse,
                         mai_cu_judged{0.0f, fminf(share, 1.0f)});
        __syncwarp();
    }
}

} // namespace
} // namespace mai

extern "C" int mai_cu_capture_insert(const mai_cu_params *p, const void *full_out,
                                     int64_t full_row_stride, int64_t full_head_stride,
                                     macattn_dtype full_dtype, const float *full_lse,
                                     int32_t slot_row, void *stream)
{
    const mai::Engine engine = {
        (const char *)full_out, full_row_stride, full_head_stride, full_dtype, full_lse, slot_row};
    const cudaStream_t s = (cudaStream_t)stream;
    switch (p->head_dim) {
    case 64: mai::capture_kernel<64><<<p->n_heads, 32, 0, s>>>(*p, engine); break;
    case 128: mai::capture_kernel<128><<<p->n_heads, 32, 0, s>>>(*p, engine); break;
    case 256: mai::capture_kernel<256><<<p->n_heads, 32, 0, s>>>(*p, engine); break;
    default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
}
