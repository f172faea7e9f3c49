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

/* Of all lanes' V values. */
template <int V>
__device__ __forceinline__ bool all_finite(const float *x, float lse)
{
    bool finite = isfinite(lse);
#pragma unroll
    for (int i = 0; i < V; i++) finite = finite && isfinite(x[i]);
    return __all_sync(ALL, finite);
}

/* scale q.kbar: by how much the lse of a summary is more for q than its lse0. Pairs of pairs are
 * added, so that what all keys have in common costs few digits. */
template <int V>
__device__ __forceinline__ float key_logit(const mai_cu_params &p, const float *q,
                                           const float *kbar)
{
    float sum[V];
#pragma unroll
    for (int i = 0; i < V; i++) sum[i] = q[i] * kbar[i];
#pragma unroll
    for (int n = V / 2; n > 0; n /= 2) {
#pragma unroll
        for (int i = 0; i < n; i++) sum[i] += sum[i + n];
    }
    return p.scale * p.k_scale * warp_sum(sum[0]);
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

/* Then the summary: V values per lane, and as many of the mean of keys if there is one. */
template <int V>
__device__ void ring_summarise(const mai_cu_params &p, size_t entry, const float *out,
                               const float *kbar, float lse0, mai_cu_judged judged)
{
    constexpr int D = 32 * V;
    const int lane = threadIdx.x & 31;
    const mai_cu_rings &r = p.rings;
    char *summary = (char *)(r.summary + entry * (size_t)width_of(p));
    store_values<V>(MACATTN_DTYPE_F32, summary, lane * V, out);
    if (p.keys) store_values<V>(MACATTN_DTYPE_F32, summary, D + lane * V, kbar);
    if (lane != 0) return;
    r.lse0[entry] = lse0;
    if (r.judged) r.judged[entry] = judged;
}

} // namespace mai

#endif /* MAI_CUDA_RING_CUH */
