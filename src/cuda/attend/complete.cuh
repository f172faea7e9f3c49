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

/* Where a lane's values of a partial result are: V of a row of D, and in the second half of the
 * room, if there is one, V of the mean of keys. */
template <class T>
__device__ __forceinline__ float *partial_values(const mai_cu_params &p, int at)
{
    return p.partial_out + (size_t)at * (32 * T::W) + (threadIdx.x & 31) * T::V;
}

template <class T>
__device__ __forceinline__ void load_partial_sum(const mai_cu_params &p, int at, bool keeps,
                                                 float *x)
{
    const float *from = partial_values<T>(p, at);
    load_partial<T::V>(from, x);
    if (T::KEEPS && keeps) load_partial<T::V>(from + T::D, x + T::W - T::V);
}

/* Write a partial result: a normalised one. */
template <class T>
__device__ __forceinline__ void put_partial(const mai_cu_params &p, int at, bool keeps,
                                            const Sum<T::W> &x)
{
    char *to = (char *)partial_values<T>(p, at);
    store_values<T::V>(MACATTN_DTYPE_F32, to, 0, x.o);
    if (T::KEEPS && keeps) store_values<T::V>(MACATTN_DTYPE_F32, to, T::D, x.o + T::W - T::V);
    if ((threadIdx.x & 31) == 0) p.partial_lse[at] = x.top;
}

/* N partial results, this lane's values of each, of those that are there: from the index that lane
 * i0 + j holds. */
template <class T, int N>
__device__ __forceinline__ void load_partials(const mai_cu_params &p, int from, bool keeps, int i0,
                                              int n, float x[N][T::W])
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int at = __shfl_sync(ALL, from, i0 + j);
#pragma unroll
        for (int i = 0; i < T::W; i++) x[j][i] = 0.0f;
        if (i0 + j < n) load_partial_sum<T>(p, at, keeps, x[j]);
    }
}

/* What blocks first, first + step, ... up to `last` computed of a class, or their bundles did,
 * together. Added in the order of the blocks: so the result does not depend on which finished when.
 * Each lane looks after the weight of one of 32 partial results. */
template <class T>
__device__ __forceinline__ Sum<T::W> gather(const mai_cu_params &p, const Parts &parts, int which,
                                            bool keeps, int head_in_block, int first, int last,
                                            int step)
{
    /* Loads in flight; more make code that takes longer to fetch than they save, and take registers
     * from the tiles. */
    constexpr int AT_A_TIME = T::W <= 4 ? 8 : 4;
    const int lane = threadIdx.x & 31;
    const mai_blocks of = parts.of[which];
    /* In steps, the first is the bundle that the class begins in. */
    const int b0 = step > 1 ? parts.bundle_of(of.first) : max(of.first, first),
              b1 = min(of.last, last);
    Sum<T::W> sum;
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
            float x[AT_A_TIME][T::W];
            load_partials<T, AT_A_TIME>(p, from, keeps, i0, n, x);
            if (i0 == 0) {
                sum.scale_to(fmaxf(sum.top, warp_max(lse)));
                weight = fast_exp2(lse - (sum.top == -INFINITY ? 0.0f : sum.top));
                sum.sum += warp_sum(weight);
            }
#pragma unroll
            for (int j = 0; j < AT_A_TIME; j++) {
                const float w = __shfl_sync(ALL, weight, i0 + j);
#pragma unroll
                for (int i = 0; i < T::W; i++) sum.o[i] += w * x[j][i];
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

/* What is reused for one head. Where there are registers to spare it is on its way to them while
 * its group is computed. */
template <class T>
struct Reused {
    macattn_cuda_decision decision; /* as found; entry < 0: nothing that could be used */
    int slot;
    float summary[T::W];
    float q[T::V]; /* after RoPE; KEEPS only */
    float lse;     /* of the summary for q, base 2; before take_keys, lse0 */
    float moved;   /* mai_judgement */
    int count;     /* of the ring's entries */

    __device__ void fetch_decision(const mai_cu_params &p, int row, int head, mai_outcome outcome)
    {
        decision = {0, -1, 0, -1};
        if (p.reuse) decision = load_decision(p.found + (size_t)row * p.n_heads + head);
        if (T::JUDGES && outcome != MAI_USED && outcome != MAI_REFUSED) decision.entry = -1;
    }

    __device__ __forceinline__ void fetch_slot(const mai_cu_params &p, int row)
    {
        slot = max(row_slot(p, row), 0);
    }

    __device__ __forceinline__ void fetch_summary(const mai_cu_params &p, int row, int head)
    {
        const size_t ring = ring_of(p, slot, head);
        const size_t entry = ring * (size_t)p.ring + (size_t)decision.entry;
        const char *from = (const char *)(p.rings.summary + entry * (size_t)width_of(p));
        const int lane = threadIdx.x & 31;
        count = decision.next >= 0 ? p.rings.count[ring] : 0;
        if (T::KEEPS && p.keys && (decision.entry >= 0 || decision.next >= 0)) {
            load_values<T::V>(p.q_dtype, p.q + row * p.q_row_stride + head * p.q_head_stride,
                              lane * T::V, q);
        }
        if (decision.entry < 0) return;
        load_values<T::V>(MACATTN_DTYPE_F32, from, lane * T::V, summary);
        lse = p.rings.lse0[entry] * LOG2E;
        if (T::JUDGES) moved = __ldcg(&p.judgements[(size_t)row * p.n_heads + head].moved);
        if (T::KEEPS && p.keys) {
            load_values<T::V>(MACATTN_DTYPE_F32, from, T::D + lane * T::V,
                              summary + T::W - T::V);
        }
    }

    __device__ __forceinline__ void take_keys(const mai_cu_params &p)
    {
        if (!p.keys || (decision.entry < 0 && decision.next < 0)) return;
        round_query<T::V>(p.kv_dtype, q);
        if (decision.entry >= 0) lse += key_logit<T::V>(p, q, summary + T::W - T::V) * LOG2E;
    }
};

/* A head's result, normalised: `out` and the far tokens, `far`, with the head's sink. */
template <int V>
__device__ __forceinline__ Sum<V> with_far(const mai_cu_params &p, int head, Sum<V> out,
                                           float far_lse, const float *far)
{
    out.add(far_lse, far);
    if (p.sinks) {
        const float sink = p.sinks[head] * LOG2E;
        if (sink > out.top) out.scale_to(sink);
        if (sink > -INFINITY) out.sum += fast_exp2(sink - out.top);
    }
    out.normalise();
    return out;
}

/* The squared norm of x - y, or of x, over all lanes. */
template <int V>
__device__ __forceinline__ float norm2_of(const float *x)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < V; i++) sum += x[i] * x[i];
    return warp_sum(sum);
}

template <int V>
__device__ __forceinline__ float off2_of(const float *x, const float *y)
{
    float off[V];
#pragma unroll
    for (int i = 0; i < V; i++) off[i] = x[i] - y[i];
    return norm2_of<V>(off);
}

/* With the summary the entry counts. One that is not finite voids it: whatever was there before is
 * gone. `far`: the summary, `all_lse` the result's lse, base 2. */
template <class T>
__device__ __forceinline__ void remember(const mai_cu_params &p, int head, const Reused<T> &reused,
                                         bool is_reused, const Sum<T::W> &far, float all_lse,
                                         float selection_error)
{
    const int next = reused.decision.next;
    const size_t ring = ring_of(p, reused.slot, head);
    const size_t entry = ring * (size_t)p.ring + (size_t)next;
    const float *kbar = far.o + T::W - T::V, lse = far.top * LN2;
    float lse0 = lse;
    if (T::KEEPS && p.keys) lse0 -= key_logit<T::V>(p, reused.q, kbar);
    bool finite = all_finite<T::V>(far.o, lse0);
    if (T::KEEPS && p.keys) finite = finite && all_finite<T::V>(kbar, lse0);
    if (!finite) {
        if ((threadIdx.x & 31) == 0) p.rings.meta[entry].end = INT32_MAX;
        return;
    }
    mai_cu_judged judged = {0, 0};
    if (T::JUDGES) {
        judged.share = mai_share(lse, all_lse * LN2);
        if (is_reused) judged.moved = reused.moved * mai_share(reused.lse * LN2, lse);
        if (T::SELECTS && selection_error >= 0) {
            const mai_record record = p.records[(size_t)p.layer * p.n_heads + head];
            judged.moved = mai_select_moved(&record, selection_error, judged.share);
        }
    }
    ring_summarise<T::V>(p, entry, far.o, kbar, lse0, judged);
    if ((threadIdx.x & 31) == 0) {
        p.rings.head[ring] = next + 1 == p.ring ? 0 : next + 1;
        if (reused.count < p.ring) p.rings.count[ring] = reused.count + 1;
    }
}

/* `old`, `far`: the far tokens that were computed, to which the summary is added; `out`: all other
 * tokens; all normalised. Where a group selects, `old` is its selection. `head`: of the model. n:
 * tokens. */
template <class T>
__device__ __forceinline__ void complete_head(const mai_cu_params &p, int row, int head, int n,
                                              mai_outcome outcome, float selection_error,
                                              Reused<T> &reused, const Sum<T::W> &old,
                                              Sum<T::W> far, Sum<T::V> out)
{
    constexpr int V = T::V;
    const int lane = threadIdx.x & 31;
    const size_t at = (size_t)row * p.n_heads + head;
    const bool refused = T::JUDGES && outcome == MAI_REFUSED;
    const bool checked = T::SELECTS && outcome == MAI_CHECKED;
    macattn_cuda_decision d = reused.decision;
    if (T::KEEPS) reused.take_keys(p);
    Sum<V> would; /* have been the result with the refused candidate, or the selection */
    if (refused) {
        Sum<T::W> all = far;
        all.add(reused.lse, reused.summary);
        all.normalise();
        would = with_far<V>(p, head, out, all.top, all.o);
        far.add(old.top, old.o);
        d.entry = -1;
    }
    if (checked) would = with_far<V>(p, head, out, old.top, old.o);
    if (T::SELECTS && outcome == MAI_SELECTED) far.add(old.top, old.o);
    if (d.entry >= 0) far.add(reused.lse, reused.summary);
    else if (T::JUDGES) d.start = p.fresh;
    far.normalise();
    out = with_far<V>(p, head, out, far.top, far.o);
    if (d.next >= 0)
        remember<T>(p, head, reused, d.entry >= 0, far, out.top, selection_error);
    if (T::JUDGES) {
        mai_cu_seen seen = {n > 0 ? norm2_of<V>(out.o) : -1.0f, 0.0f};
        if (refused || checked) seen.off2 = off2_of<V>(would.o, out.o);
        if (lane == 0) p.seen[at] = seen;
    }
    if (p.reuse && lane == 0) {
        if (T::JUDGES) p.decisions[at] = d;
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
