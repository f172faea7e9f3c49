/* SPDX-License-Identifier: Apache-2.0 */
/* Complete: merge a head's partial results with its reused summary, write the output, remember the query.
 * One warp per head; each lane holds V = head_dim / 32 neighbouring dims. Weights are base 2. */
#ifndef MAI_CUDA_MERGE_CUH
#define MAI_CUDA_MERGE_CUH

#include "ring.cuh"
#include "schedule.h"

namespace mai {

/* The partial results of one group. */
struct Parts {
    mai_segments segments;
    mai_division all;
    int first_unit;
    int first_block; /* that computes some of it */
    bool whole;      /* one block computed all */
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

    /* Make room for parts of at most `lse`. */
    __device__ void raise(float lse)
    {
        if (!(lse > top)) return;
        const float scale = top == -INFINITY ? 0.0f : fast_exp2(top - lse);
#pragma unroll
        for (int i = 0; i < V; i++) o[i] *= scale;
        sum *= scale;
        top = lse;
    }

    /* After raise. */
    __device__ void add(float lse, const float *x)
    {
        if (lse == -INFINITY) return;
        const float weight = fast_exp2(lse - top);
        sum += weight;
#pragma unroll
        for (int i = 0; i < V; i++) o[i] += weight * x[i];
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

/* Add all partial results of a segment, in the order of their tokens: so the result does not depend on
 * which block finished when. */
template <int V>
__device__ void add_segment(const mai_cu_params &p, const Parts &x, int segment, int head_in_block,
                            Sum<V> &sum)
{
    constexpr int AT_A_TIME = 64 / V < 16 ? 64 / V : 16; /* loads in flight */
    const int lane = threadIdx.x & 31;
    int first = x.first_unit;
#pragma unroll
    for (int i = 0; i < MAI_SEGMENTS; i++) {
        if (i < segment) first += x.segments.of[i].units;
    }
    const int units = x.segments.of[segment].units;
    if (units == 0) return;
    const int b0 = x.whole ? (int)blockIdx.x : mai_block_of(x.all, first);
    const int b1 = x.whole ? b0 : mai_block_of(x.all, first + units - 1);
    const auto at = [&](int block) {
        const int place = x.whole                  ? MAI_PLACE_WHOLE
                          : block == x.first_block ? MAI_PLACE_BEGINS
                                                   : MAI_PLACE_CONTINUES;
        return (((size_t)block * MAI_PLACES + place) * MAI_SEGMENTS + segment) *
                   (size_t)p.heads_per_block +
               (size_t)head_in_block;
    };
    /* All lse first: many loads at a time, and no rescaling in between. */
    float top = -INFINITY;
#pragma unroll 1
    for (int b = b0 + lane; b <= b1; b += 32) top = fmaxf(top, __ldcg(p.partial_lse + at(b)));
    sum.raise(warp_max(top));
#pragma unroll 1
    for (int b = b0; b <= b1; b += AT_A_TIME) {
        float o[AT_A_TIME][V], lse[AT_A_TIME];
#pragma unroll
        for (int i = 0; i < AT_A_TIME; i++) {
            const size_t from = at(min(b + i, b1));
            lse[i] = b + i <= b1 ? __ldcg(p.partial_lse + from) : -INFINITY;
#pragma unroll
            for (int j = 0; j < V; j += 2) {
                const float2 two =
                    __ldcg((const float2 *)(p.partial_out + from * (32 * V) + lane * V + j));
                o[i][j] = two.x, o[i][j + 1] = two.y;
            }
        }
#pragma unroll
        for (int i = 0; i < AT_A_TIME; i++) sum.add(lse[i], o[i]);
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

/* `head`: of the model; `head_in_block`: of those computed together. n: tokens. */
template <int V>
__device__ void merge_head(const mai_cu_params &p, const Parts &parts, int row, int head,
                           int head_in_block, int n)
{
    const int lane = threadIdx.x & 31;
    const bool decides = p.reuse && p.capture_row < 0;
    Sum<V> out;
    out.clear();
    macattn_cuda_decision d = {0, -1, 0, -1};
    size_t ring = 0;
    if (decides) {
        d = p.decisions[(size_t)row * p.n_heads + head];
        ring = ring_of(p, max(row_slot(p, row), 0), head);
    }
    if (d.entry >= 0) {
        const size_t entry = ring * (size_t)p.ring + (size_t)d.entry;
        float o[V];
        load_values<V>(MACATTN_DTYPE_F32, (const char *)(p.rings.out + entry * 32 * V), lane * V, o);
        const float lse = p.rings.lse[entry] * LOG2E;
        out.raise(lse);
        out.add(lse, o);
    }
    /* The far tokens first: with them the summary is complete. */
#pragma unroll 1
    for (int i = 0; i < MAI_SEGMENTS; i++) {
        const int segment = i == 0 ? MAI_FAR : i == 1 ? MAI_FRESH : MAI_NEAR;
        add_segment<V>(p, parts, segment, head_in_block, out);
        if (segment != MAI_FAR) continue;
        out.normalise();
        if (d.next >= 0) ring_complete<V>(p, ring, d.next, out.o, out.lse() * LN2);
    }
    if (decides && lane == 0 && n > 0) count(p, head, d, n);
    if (p.sinks) {
        const float sink = p.sinks[head] * LOG2E;
        out.raise(sink);
        if (sink > -INFINITY) out.sum += fast_exp2(sink - out.top);
    }
    out.normalise();
#pragma unroll
    for (int i = 0; i < V; i++) out.o[i] *= p.v_scale;
    store_values<V>(p.out_dtype, p.out + row * p.out_row_stride + head * p.out_head_stride, lane * V,
                    out.o);
    if (p.lse && lane == 0) p.lse[(size_t)row * p.n_heads + head] = out.lse() * LN2;
}

} // namespace mai

#endif /* MAI_CUDA_MERGE_CUH */
