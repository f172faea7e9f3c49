/* SPDX-License-Identifier: Apache-2.0 */
/* One remembered query: encoding it for the search, and writing an entry. One warp does both. */
#ifndef MAI_CUDA_RING_CUH
#define MAI_CUDA_RING_CUH

#include "common.cuh"

namespace mai {

/* V neighbouring values of a query per lane (V = head_dim / 32), as int8 with one scale:
 * q = scale * int8 + residual. A query that is not finite has a scale that is not. */
template <int V>
struct EncodedQuery {
    int8_t q8[V];
    float scale, residual, norm2;
};

template <int V>
__device__ EncodedQuery<V> encode_query(const float *q)
{
    EncodedQuery<V> e;
    float top = 0, bad = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        top = fmaxf(top, fabsf(q[i]));
        bad += q[i] - q[i]; /* 0, or NaN if q is not finite: fmaxf drops NaN */
    }
    top = warp_max(top) + warp_sum(bad);
    e.scale = top / 127.0f;
    const float inverse = top > 0 ? 127.0f / top : 0.0f;
    float residual2 = 0, norm2 = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        const float x = fminf(fmaxf(rintf(q[i] * inverse), -127.0f), 127.0f);
        const float off = q[i] - e.scale * x;
        e.q8[i] = (int8_t)(int)x;
        residual2 += off * off;
        norm2 += x * x;
    }
    /* A little more than it is, so that bounds made from it hold in spite of rounding. */
    e.residual = sqrtf(warp_sum(residual2)) * 1.0001f;
    e.norm2 = warp_sum(norm2) * e.scale * e.scale;
    return e;
}

template <int V>
__device__ __forceinline__ bool all_finite(const float *x, float lse)
{
    bool finite = isfinite(lse);
#pragma unroll
    for (int i = 0; i < V; i++) finite = finite && isfinite(x[i]);
    return __all_sync(ALL, finite);
}

/* An entry is made in two steps. First the query: what is searched. `q`: V values per lane, of
 * q_row. */
template <int V>
__device__ void ring_begin(const mai_cu_params &p, size_t ring, int next, const EncodedQuery<V> &e,
                           const float *q, int pos, int end)
{
    constexpr int D = 32 * V;
    const int lane = threadIdx.x & 31;
    const mai_cu_rings &r = p.rings;
    const size_t entry = ring * (size_t)p.ring + (size_t)next;
    store_values<V>(p.q_dtype, r.q + entry * (size_t)(D * dtype_bytes(p.q_dtype)), lane * V, q);
    uint32_t packed[(V + 3) / 4] = {};
#pragma unroll
    for (int i = 0; i < V; i++) packed[i / 4] |= (uint32_t)(uint8_t)e.q8[i] << 8 * (i % 4);
    int8_t *q8 = r.q8 + entry * D + lane * V;
    if (V == 2) *(uint16_t *)q8 = (uint16_t)packed[0];
    if (V >= 4) *(uint32_t *)q8 = packed[0];
    if (V == 8) *(uint32_t *)(q8 + 4) = packed[V / 4 - 1];
    if (lane == 0) {
        r.meta[entry] = mai_cu_meta{e.scale, e.residual, e.norm2, end};
        r.pos[entry] = pos;
    }
}

/* Then the summary, with which it counts. One that is not finite voids the entry: whatever was
 * there before is gone. `count`: entries before. */
template <int V>
__device__ void ring_complete(const mai_cu_params &p, size_t ring, int next, int count,
                              const float *summary, float lse, mai_cu_judged judged)
{
    constexpr int D = 32 * V;
    const int lane = threadIdx.x & 31;
    const mai_cu_rings &r = p.rings;
    const size_t entry = ring * (size_t)p.ring + (size_t)next;
    if (!all_finite<V>(summary, lse)) {
        if (lane == 0) r.meta[entry].end = INT32_MAX;
        return;
    }
    store_values<V>(MACATTN_DTYPE_F32, (char *)(r.out + entry * D), lane * V, summary);
    if (lane == 0) {
        r.lse[entry] = lse;
        if (r.judged) r.judged[entry] = judged;
        r.head[ring] = next + 1 == p.ring ? 0 : next + 1;
        if (count < p.ring) r.count[ring] = count + 1;
    }
}

} // namespace mai

#endif /* MAI_CUDA_RING_CUH */
