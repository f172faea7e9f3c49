/* SPDX-License-Identifier: Apache-2.0 */
/* Complete: merge a head's partial results with its reused summary, write the output, remember the query.
 * One warp per head; each lane holds V = head_dim / 32 neighbouring dims. Weights are base 2. */
#ifndef MAI_CUDA_MERGE_CUH
#define MAI_CUDA_MERGE_CUH

#include "ring.cuh"
#include "schedule.h"

namespace mai {

/* Index of a partial result: of what a block puts at a place (schedule.h). */
__device__ __forceinline__ int partial_at(const mai_cu_params &p, int block, int place, int segment,
                                          int head_in_block)
{
    return ((block * MAI_PLACES + place) * MAI_SEGMENTS + segment) * p.heads_per_block +
           head_in_block;
}

__device__ __forceinline__ bool decides(const mai_cu_params &p)
{
    return p.reuse && p.capture_row < 0;
}

__device__ __forceinline__ macattn_cuda_decision load_decision(const macattn_cuda_decision *d)
{
    const int4 x = __ldcg((const int4 *)d);
    return macattn_cuda_decision{x.x, x.y, __int_as_float(x.z), x.w};
}

/* A group that several blocks compute. */
struct Parts {
    mai_blocks blocks, of[MAI_SEGMENTS]; /* that compute it, and each segment; last < 0: none */
    int bundle;                          /* mai_bundle */

    /* The first block of the bundle of a block. */
    __device__ int bundle_of(int block) const
    {
        return block - (block - blocks.first) % bundle;
    }
    __device__ int place(int block) const
    {
        return block == blocks.first ? MAI_PLACE_BEGINS : MAI_PLACE_CONTINUES;
    }
};

/* Softmax state: output = o / sum, log2-sum-exp = top + log2(sum). */
template <int V>
struct Sum {
    float o[V], sum, top;

    __device__ void clear()
    {
#pragma unroll
        for (int i = 0; i < V; i++) o[i] = 0;
        sum = 0, top = -INFINITY;
    }

    __device__ float lse() const { return sum == 0 ? -INFINITY : top + log2f(sum); }

    __device__ void add(float lse, const float *x)
    {
        if (lse == -INFINITY) return;
        if (lse > top) scale_to(lse);
        const float weight = fast_exp2(lse - top);
        sum += weight;
#pragma unroll
        for (int i = 0; i < V; i++) o[i] += weight * x[i];
    }

    __device__ void scale_to(float lse)
    {
        const float scale = top == -INFINITY ? 0.0f : fast_exp2(top - lse);
#pragma unroll
        for (int i = 0; i < V; i++) o[i] *= scale;
        sum *= scale;
        top = lse;
    }

    __device__ void normalise()
    {
        const float inverse = sum == 0 ? 0.0f : 1.0f / sum;
        const float l = lse();
#pragma unroll
        for (int i = 0; i < V; i++) o[i] *= inverse;
        sum = l == -INFINITY ? 0.0f : 1.0f;
        top = l;
    }
};

/* The partial results of a segment together, of blocks b0, b0 + step, ... up to b1, added in the order of
 * their tokens: so the result does not depend on which block finished when. */
template <int V>
__device__ __forceinline__ Sum<V> gather(const mai_cu_params &p, const Parts &x, int segment,
                                         int head_in_block, int b0, int b1, int step)
{
    constexpr int AT_A_TIME = 48 / V; /* loads in flight */
    const int lane = threadIdx.x & 31;
    const int per_block = partial_at(p, 1, 0, 0, 0);
    const int begins = partial_at(p, 0, MAI_PLACE_BEGINS, 0, 0);
    const int at = partial_at(p, 0, MAI_PLACE_CONTINUES, segment, head_in_block);
    Sum<V> sum;
    sum.clear();
#pragma unroll 1
    for (int b = b0; b <= b1; b += AT_A_TIME * step) {
        float o[AT_A_TIME][V], lse[AT_A_TIME], top = sum.top;
#pragma unroll
        for (int i = 0; i < AT_A_TIME; i++) {
            const int block = b + i * step;
            lse[i] = -INFINITY;
#pragma unroll
            for (int j = 0; j < V; j++) o[i][j] = 0.0f;
            if (block > b1) continue;
            const int from = at + block * per_block + (block == x.blocks.first ? begins : 0);
            lse[i] = __ldcg(p.partial_lse + from);
            const float *values = p.partial_out + (size_t)from * (32 * V) + lane * V;
#pragma unroll
            for (int j = 0; j < V; j += 2) {
                const float2 two = __ldcg((const float2 *)(values + j));
                o[i][j] = two.x, o[i][j + 1] = two.y;
            }
        }
#pragma unroll
        for (int i = 0; i < AT_A_TIME; i++) top = fmaxf(top, lse[i]);
        if (top == -INFINITY) continue;
        sum.scale_to(top);
#pragma unroll
        for (int i = 0; i < AT_A_TIME; i++) {
            const float weight = fast_exp2(lse[i] - top);
            sum.sum += weight;
#pragma unroll
            for (int j = 0; j < V; j++) sum.o[j] += weight * o[i][j];
        }
    }
    sum.normalise();
    return sum;
}

/* Write a partial result: a normalised one. */
template <int V>
__device__ __forceinline__ void put_partial(const mai_cu_params &p, int at, const Sum<V> &x)
{
    const int lane = threadIdx.x & 31;
    store_values<V>(MACATTN_DTYPE_F32, (char *)(p.partial_out + (size_t)at * (32 * V)), lane * V, x.o);
    if (lane == 0) p.partial_lse[at] = x.top;
}

/* What blocks [b0, b1] computed of each segment, or of their bundles: f(segment, sum). */
template <int V, class F>
__device__ __forceinline__ void gather_segments(const mai_cu_params &p, const Parts &x,
                                                int head_in_block, int b0, int b1, int step, F f)
{
#pragma unroll 1
    for (int segment = 0; segment < MAI_SEGMENTS; segment++) {
        const mai_blocks of = x.of[segment];
        /* In steps, the first is the bundle that the segment begins in. */
        const int from = step > 1 ? x.bundle_of(of.first) : max(of.first, b0);
        const int to = min(of.last, b1);
        if (from <= to) f(segment, gather<V>(p, x, segment, head_in_block, from, to, step));
    }
}

__device__ inline void count(const mai_cu_params &p, int head, const macattn_cuda_decision &d, int n)
{
    mai_cu_counters *c = p.counters + (size_t)p.layer * p.n_heads + head;
    atomicAdd(&c->steps, 1ull);
    atomicAdd(&c->tokens_total, (unsigned long long)n);
    if (d.entry < 0) return;
    atomicAdd(&c->hits, 1ull);
    atomicAdd(&c->tokens_skipped, (unsigned long long)(d.start - p.fresh));
    const float unit = sqrtf(d.distance2 / (2.0f * (float)p.head_dim));
    const int bin = (int)(unit * (float)MACATTN_DISTANCE_BINS);
    atomicAdd(&c->distance[min(bin, MACATTN_DISTANCE_BINS - 1)], 1ull);
}

/* What is reused for one head: on its way to registers while its group is computed. */
template <int V>
struct Reused {
    macattn_cuda_decision decision;
    float o[V], lse; /* base 2 */
    int count;       /* of the ring's entries */

    __device__ void fetch_decision(const mai_cu_params &p, int row, int head)
    {
        decision = {0, -1, 0, -1};
        if (decides(p))
            decision = load_decision(p.decisions + (size_t)row * p.n_heads + head);
    }

    __device__ void fetch_summary(const mai_cu_params &p, int row, int head)
    {
        const size_t ring = ring_of(p, max(row_slot(p, row), 0), head);
        count = decision.next >= 0 ? p.rings.count[ring] : 0;
        if (decision.entry < 0) return;
        const size_t entry = ring * (size_t)p.ring + (size_t)decision.entry;
        load_values<V>(MACATTN_DTYPE_F32, (const char *)(p.rings.out + entry * 32 * V),
                       (threadIdx.x & 31) * V, o);
        lse = p.rings.lse[entry] * LOG2E;
    }
};

/* `far`: the far tokens that were computed, to which the summary is added; `out`: all other tokens.
 * `head`: of the model. n: tokens. */
template <int V>
__device__ __forceinline__ void complete_head(const mai_cu_params &p, int row, int head, int n,
                                                  const Reused<V> &reused, Sum<V> far, Sum<V> out)
{
    const int lane = threadIdx.x & 31;
    const macattn_cuda_decision &d = reused.decision;
    if (d.entry >= 0) far.add(reused.lse, reused.o);
    far.normalise();
    if (d.next >= 0) {
        const size_t ring = ring_of(p, max(row_slot(p, row), 0), head);
        ring_complete<V>(p, ring, d.next, reused.count, far.o, far.top * LN2);
    }
    if (decides(p) && lane == 0 && n > 0) count(p, head, d, n);
    out.add(far.top, far.o);
    if (p.sinks) {
        const float sink = p.sinks[head] * LOG2E;
        if (sink > out.top) out.scale_to(sink);
        if (sink > -INFINITY) out.sum += fast_exp2(sink - out.top);
    }
    out.normalise();
#pragma unroll
    for (int i = 0; i < V; i++) out.o[i] *= p.v_scale;
    store_values<V>(p.out_dtype, p.out + row * p.out_row_stride + head * p.out_head_stride, lane * V,
                    out.o);
    if (p.lse && lane == 0) p.lse[(size_t)row * p.n_heads + head] = out.top * LN2;
}

} // namespace mai

#endif /* MAI_CUDA_MERGE_CUH */
