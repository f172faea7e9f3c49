/* SPDX-License-Identifier: Apache-2.0 */
/* Complete: merge a head's partial results with its reused summary, write the output, remember the
 * query. One warp per head; each lane holds V = head_dim / 32 neighbouring dims. Weights are powers
 * of 2. */
#ifndef MAI_CUDA_COMPLETE_CUH
#define MAI_CUDA_COMPLETE_CUH

#include "cuda/device/ring.cuh"
#include "cuda/device/state.cuh"
#include "traits.cuh"

namespace mai {

/* Index of a partial result: of what a block puts at a place for a class (schedule.h). */
__device__ __forceinline__ int partial_at(const mai_cu_params &p, int block, int place, int which,
                                          int head_in_block)
{
    return ((block * MAI_PLACES + place) * MAI_CLASSES + which) * p.heads_per_block + head_in_block;
}

__device__ __forceinline__ macattn_cuda_decision load_decision(const macattn_cuda_decision *d)
{
    const int4 x = __ldcg((const int4 *)d);
    return macattn_cuda_decision{x.x, x.y, __int_as_float(x.z), x.w};
}

/* A lane's values of a partial result. */
template <int V>
__device__ __forceinline__ void load_partial(const float *from, float *x)
{
    if constexpr (V == 2) {
        const float2 two = __ldcg((const float2 *)from);
        x[0] = two.x, x[1] = two.y;
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            const float4 four = __ldcg((const float4 *)(from + i));
            x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
        }
    }
}

/* Write a partial result: a normalised one. */
template <int V>
__device__ __forceinline__ void put_partial(const mai_cu_params &p, int at, const Sum<V> &x)
{
    const int lane = threadIdx.x & 31;
    store_values<V>(MACATTN_DTYPE_F32, (char *)(p.partial_out + (size_t)at * (32 * V)), lane * V,
                    x.o);
    if (lane == 0) p.partial_lse[at] = x.top;
}

/* N partial results, this lane's values of each, of those that are there: from the index that lane
 * i0 + j holds. */
template <int V, int N>
__device__ __forceinline__ void load_partials(const mai_cu_params &p, int from, int i0, int n,
                                              float x[N][V])
{
    const float *values = p.partial_out + (threadIdx.x & 31) * V;
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int at = __shfl_sync(ALL, from, i0 + j);
#pragma unroll
        for (int i = 0; i < V; i++) x[j][i] = 0.0f;
        if (i0 + j < n) load_partial<V>(values + (size_t)at * (32 * V), x[j]);
    }
}

/* What blocks first, first + step, ... up to `last` computed of a class, or their bundles did,
 * together. Added in the order of the blocks: so the result does not depend on which finished when.
 * Each lane looks after the weight of one of 32 partial results. */
template <int V>
__device__ __forceinline__ Sum<V> gather(const mai_cu_params &p, const Parts &parts, int which,
                                         int head_in_block, int first, int last, int step)
{
    /* Loads in flight; more make code that takes longer to fetch than they save. */
    constexpr int AT_A_TIME = 8;
    const int lane = threadIdx.x & 31;
    const mai_blocks of = parts.of[which];
    /* In steps, the first is the bundle that the class begins in. */
    const int b0 = step > 1 ? parts.bundle_of(of.first) : max(of.first, first),
              b1 = min(of.last, last);
    Sum<V> sum;
    sum.clear();
#pragma unroll 1
    for (int b = b0; b <= b1; b += 32 * step) {
        const int block = b + lane * step;
        const int from = partial_at(p, block, parts.place(block), which, head_in_block);
        const float lse = block <= b1 ? __ldcg(p.partial_lse + from) : -INFINITY;
        const int n = __popc(__ballot_sync(ALL, block <= b1));
        float weight = 0;
#pragma unroll 1
        for (int i0 = 0; i0 < n; i0 += AT_A_TIME) {
            float x[AT_A_TIME][V];
            load_partials<V, AT_A_TIME>(p, from, i0, n, x);
            if (i0 == 0) {
                sum.scale_to(fmaxf(sum.top, warp_max(lse)));
                weight = fast_exp2(lse - (sum.top == -INFINITY ? 0.0f : sum.top));
                sum.sum += warp_sum(weight);
            }
#pragma unroll
            for (int j = 0; j < AT_A_TIME; j++) {
                const float w = __shfl_sync(ALL, weight, i0 + j);
#pragma unroll
                for (int i = 0; i < V; i++) sum.o[i] += w * x[j][i];
            }
        }
    }
    sum.normalise();
    return sum;
}

__device__ inline void count(const mai_cu_params &p, int head, const macattn_cuda_decision &d,
                             int n)
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
template <int V, bool JUDGES>
struct Reused {
    macattn_cuda_decision decision; /* as found; entry < 0: nothing that could be used */
    float o[V], lse;                /* base 2 */
    float moved;                    /* mai_judgement */
    int count;                      /* of the ring's entries */

    __device__ void fetch_decision(const mai_cu_params &p, int row, int head, mai_outcome outcome)
    {
        decision = {0, -1, 0, -1};
        if (decides(p)) decision = load_decision(p.found + (size_t)row * p.n_heads + head);
        if (JUDGES && outcome == MAI_NO_CANDIDATE) decision.entry = -1;
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
        if (JUDGES) moved = __ldcg(&p.judgements[(size_t)row * p.n_heads + head].moved);
    }
};

/* A head's result, normalised: `out` and the far tokens, `far`, with the head's sink. */
template <int V>
__device__ __forceinline__ Sum<V> with_far(const mai_cu_params &p, int head, Sum<V> out,
                                           const Sum<V> &far)
{
    out.add(far.top, far.o);
    if (p.sinks) {
        const float sink = p.sinks[head] * LOG2E;
        if (sink > out.top) out.scale_to(sink);
        if (sink > -INFINITY) out.sum += fast_exp2(sink - out.top);
    }
    out.normalise();
    return out;
}

/* || x - y || / || y || over all lanes. The same stands in core's decode (f64 sums of f32) and in
 * the plug-in's audit: what they compare, and in which precision, differs. */
template <int V>
__device__ __forceinline__ float relative_error(const float *x, const float *y)
{
    float error = 0, norm = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        error += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return sqrtf(warp_sum(error) / warp_sum(norm));
}

/* `old`, `far`: the far tokens that were computed, to which the summary is added; `out`: all other
 * tokens; all normalised. `head`: of the model. n: tokens. */
template <int V, bool JUDGES>
__device__ __forceinline__ void complete_head(const mai_cu_params &p, int row, int head, int n,
                                              mai_outcome outcome, const Reused<V, JUDGES> &reused,
                                              const Sum<V> &old, Sum<V> far, Sum<V> out)
{
    const int lane = threadIdx.x & 31;
    const size_t at = (size_t)row * p.n_heads + head;
    const bool refused = JUDGES && outcome == MAI_REFUSED;
    macattn_cuda_decision d = reused.decision;
    Sum<V> would; /* have been the result with the refused candidate */
    if (refused) {
        Sum<V> all = far;
        all.add(reused.lse, reused.o);
        all.normalise();
        would = with_far<V>(p, head, out, all);
        far.add(old.top, old.o);
        d.entry = -1;
    }
    if (d.entry >= 0) far.add(reused.lse, reused.o);
    else if (JUDGES) d.start = p.fresh;
    far.normalise();
    out = with_far<V>(p, head, out, far);
    if (d.next >= 0) {
        const float lse = far.top * LN2;
        mai_cu_judged judged = {0, 0};
        if (JUDGES) {
            judged.share = mai_share(lse, out.top * LN2);
            if (d.entry >= 0) judged.moved = reused.moved * mai_share(reused.lse * LN2, lse);
        }
        ring_complete<V>(p, ring_of(p, max(row_slot(p, row), 0), head), d.next, reused.count, far.o,
                         lse, judged);
    }
    if (refused) {
        const float error = relative_error<V>(would.o, out.o);
        if (lane == 0) p.errors[at] = error;
    }
    if (decides(p) && lane == 0) {
        if (JUDGES) p.decisions[at] = d;
        if (n > 0) count(p, head, d, n);
    }
#pragma unroll
    for (int i = 0; i < V; i++) out.o[i] *= p.v_scale;
    store_values<V>(p.out_dtype, p.out + row * p.out_row_stride + head * p.out_head_stride,
                    lane * V, out.o);
    if (p.lse && lane == 0) p.lse[at] = out.top * LN2;
}

} // namespace mai

#endif /* MAI_CUDA_COMPLETE_CUH */
