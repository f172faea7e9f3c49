/* SPDX-License-Identifier: Apache-2.0 */
/* Match and decide: for each (row, head), the remembered query nearest to the new one, and whether its
 * summary is reused. One thread block each.
 *
 * Reads head_dim + 16 bytes for each of the ring's entries: int8 codes and what bounds their error. Since
 * q = q^ + residual on both sides, the true distance lies within |residual_q| + |residual_p| of the codes'
 * distance, which is computed exactly with byte products. Entries whose lower bound is not above the least
 * upper bound are compared again, in double precision, on the queries as they came: so the decision is the
 * one a plain search would make. There are seldom more than two. */
#include "common.cuh"
#include "ring.cuh"
#include "schedule.h"

namespace mai {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;

struct Nearest {
    double distance2;
    int entry, pos;
};

__device__ __forceinline__ bool is_nearer(const Nearest &a, const Nearest &b)
{
    return a.distance2 < b.distance2 || (a.distance2 == b.distance2 && a.pos > b.pos);
}

template <int D>
struct Shared {
    float q[D];
    int8_t q8[D];
    float least[WARPS]; /* upper bounds */
    Nearest best[WARPS];
    float scale, residual, norm2;
    int n_candidates;
    float lower[1]; /* [ring], and behind it uint16_t [ring]: the candidates */

    __device__ uint16_t *candidates(const mai_cu_params &p)
    {
        return (uint16_t *)(lower + p.ring);
    }
};

/* The squared distance of the codes, and how far rounding may have moved it. */
__device__ __forceinline__ void code_distance(float qn2, float pn2, float product, float *distance2,
                                              float *slack)
{
    *distance2 = qn2 + pn2 - 2.0f * product;
    *slack = 1e-6f * (qn2 + pn2);
}

/* Lower bounds of all entries that may be used; returns the thread's least upper bound. Lanes of a team of
 * D / 16 read one entry together. */
template <int D>
__device__ float scan(const mai_cu_params &p, Shared<D> &sh, size_t ring, int n, int b)
{
    constexpr int TEAM = D / 16, STEP = 32 / TEAM, UNROLL = 8;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, K = p.ring;
    const int head = p.rings.head[ring], count = p.rings.count[ring];
    const int8_t *codes = p.rings.q8 + ring * (size_t)K * D;
    const mai_cu_meta *meta = p.rings.meta + ring * (size_t)K;
    const int32_t *pos = p.rings.pos + ring * (size_t)K;
    const int4 mine = *(const int4 *)(sh.q8 + 16 * (lane % TEAM));
    float least = INFINITY;
    for (int i0 = warp * STEP * UNROLL; i0 < K; i0 += WARPS * STEP * UNROLL) {
        int4 code[UNROLL];
        mai_cu_meta about[UNROLL];
        int made[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int i = min(i0 + u * STEP + lane / TEAM, K - 1);
            code[u] = __ldg((const int4 *)(codes + (size_t)i * D) + lane % TEAM);
            const int4 raw = __ldg((const int4 *)(meta + i));
            about[u] = mai_cu_meta{__int_as_float(raw.x), __int_as_float(raw.y),
                                   __int_as_float(raw.z), raw.w};
            made[u] = __ldg(pos + i);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            int dot = __dp4a(code[u].x, mine.x, 0);
            dot = __dp4a(code[u].y, mine.y, dot);
            dot = __dp4a(code[u].z, mine.z, dot);
            dot = __dp4a(code[u].w, mine.w, dot);
#pragma unroll
            for (int s = 1; s < TEAM; s <<= 1) dot += __shfl_xor_sync(ALL, dot, s);
            const int i = i0 + u * STEP + lane / TEAM;
            if (i >= K || lane % TEAM != 0) continue;
            int age = head - 1 - i; /* 0: the newest */
            if (age < 0) age += K;
            float distance2, slack;
            code_distance(sh.norm2, about[u].norm2, sh.scale * about[u].scale * (float)dot,
                          &distance2, &slack);
            const float off = sh.residual + about[u].residual;
            const bool usable = age < count && about[u].end <= b && made[u] < n - 1;
            sh.lower[i] = usable ? sqrtf(fmaxf(distance2 - slack, 0.0f)) * 0.9999f - off : INFINITY;
            if (usable) least = fminf(least, sqrtf(fmaxf(distance2, 0.0f) + slack) * 1.0001f + off);
        }
    }
    return least;
}

/* The nearest of the candidates, each compared by one warp. */
template <int D>
__device__ Nearest compare(const mai_cu_params &p, Shared<D> &sh, size_t ring)
{
    constexpr int V = D / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Nearest best = {INFINITY, -1, -1};
    for (int c = warp; c < sh.n_candidates; c += WARPS) {
        const int i = sh.candidates(p)[c];
        const size_t entry = ring * (size_t)p.ring + (size_t)i;
        float q[V];
        load_values<V>(p.q_dtype, p.rings.q + entry * (size_t)(D * dtype_bytes(p.q_dtype)),
                       lane * V, q);
        double sum = 0;
#pragma unroll
        for (int j = 0; j < V; j++) {
            const double off = (double)sh.q[lane * V + j] - (double)q[j];
            sum += off * off;
        }
        const Nearest x = {warp_sum(sum), i, p.rings.pos[entry]};
        if (is_nearer(x, best)) best = x;
    }
    return best;
}

template <int D>
__global__ void __launch_bounds__(THREADS) match_kernel(const __grid_constant__ mai_cu_params p)
{
    constexpr int V = D / 32;
    extern __shared__ __align__(16) unsigned char memory[];
    Shared<D> &sh = *(Shared<D> *)memory;
    const int head = blockIdx.x, row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    let_next_start();
    macattn_cuda_decision *decision = p.decisions + (size_t)row * p.n_heads + head;
    const int n = row_tokens(p, row), slot = row_slot(p, row);
    const int b = mai_far_end(n, p.band, p.fresh), fresh = min(p.fresh, b);
    if (slot < 0 || n < p.min_tokens || n < 2 || b <= fresh || !(p.radius2 > 0)) {
        if (threadIdx.x == 0) *decision = macattn_cuda_decision{fresh, -1, INFINITY, 0};
        return;
    }
    const size_t ring = ring_of(p, slot, head);
    if (warp == 0) {
        const char *q_row = p.q_match + row * p.m_row_stride + head * p.m_head_stride;
        float q[V];
        load_values<V>(p.q_dtype, q_row, lane * V, q);
        const EncodedQuery<V> e = encode_query<V>(q);
#pragma unroll
        for (int i = 0; i < V; i++) sh.q[lane * V + i] = q[i], sh.q8[lane * V + i] = e.q8[i];
        if (lane == 0) {
            sh.scale = e.scale, sh.residual = e.residual, sh.norm2 = e.norm2;
            sh.n_candidates = 0;
        }
    }
    __syncthreads();
    float least = scan<D>(p, sh, ring, n, b);
    least = -warp_max(-least);
    if (lane == 0) sh.least[warp] = least;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) least = fminf(least, sh.least[w]);
    /* What is certainly not within the radius need not be compared. */
    least = fminf(least, sqrtf(p.radius2) * 1.0001f);
    for (int i = threadIdx.x; i < p.ring; i += THREADS) {
        if (sh.lower[i] <= least) sh.candidates(p)[atomicAdd(&sh.n_candidates, 1)] = (uint16_t)i;
    }
    __syncthreads();
    const Nearest mine = compare<D>(p, sh, ring);
    if (lane == 0) sh.best[warp] = mine;
    __syncthreads();
    if (threadIdx.x > 0) return;
    Nearest best = sh.best[0];
    for (int w = 1; w < WARPS; w++) {
        if (is_nearer(sh.best[w], best)) best = sh.best[w];
    }
    const bool hit = best.entry >= 0 && best.distance2 < (double)p.radius2;
    *decision = macattn_cuda_decision{
        hit ? p.rings.meta[ring * (size_t)p.ring + best.entry].end : fresh, hit ? best.entry : -1,
        best.entry >= 0 ? (float)best.distance2 : INFINITY, sh.n_candidates};
}

template <int D>
cudaError_t launch(const mai_cu_params *p, cudaStream_t stream)
{
    const size_t bytes =
        sizeof(Shared<D>) + (size_t)p->ring * (sizeof(float) + sizeof(uint16_t));
    match_kernel<D><<<dim3(p->n_heads, p->n_rows), THREADS, bytes, stream>>>(*p);
    return cudaGetLastError();
}

} // namespace
} // namespace mai

extern "C" int mai_cu_match_launch(const mai_cu_params *p, void *stream)
{
    const cudaStream_t s = (cudaStream_t)stream;
    switch (p->head_dim) {
    case 64: return mai::launch<64>(p, s);
    case 128: return mai::launch<128>(p, s);
    case 256: return mai::launch<256>(p, s);
    default: return cudaErrorInvalidValue;
    }
}
