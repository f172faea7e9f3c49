/* SPDX-License-Identifier: Apache-2.0 */
/* Joining: the states of a block's warps, then what the blocks computed that share a group. */
#ifndef MAI_CUDA_JOIN_CUH
#define MAI_CUDA_JOIN_CUH

#include "complete.cuh"
#include "share.cuh"
#include "tile.cuh"

namespace mai {

/* What a warp knows of the heads of a group that it completes: head warp + k * WARPS in slot k. */
template <class T>
struct Heads {
    Reused<T> reused[T::SLOTS];
    Sum<T::W> far[T::SLOTS]; /* of what this block computed, if that is all */
    Sum<T::V> out[T::SLOTS];
    Sum<T::W> old[T::SLOTS]; /* from partial results, when the group is complete */

    template <class F>
    static __device__ __forceinline__ void each(int heads, F f)
    {
#pragma unroll
        for (int k = 0; k < T::SLOTS; k++) {
            const int head = threadIdx.x / 32 + k * T::WARPS;
            if (head < heads) f(k, head);
        }
    }

    __device__ void fetch_decisions(const mai_cu_params &p, const Item &x)
    {
        each(heads_of(p, x.block), [&](int k, int head) {
            reused[k].fetch_decision(p, x.row, first_head(p, x) + head, (mai_outcome)x.outcome);
        });
    }

    __device__ void begin(const mai_cu_params &p, const Item &x)
    {
        each(heads_of(p, x.block), [&](int k, int head) { reused[k].fetch_slot(p, x.row); });
        if (!T::KEEPS) fetch_summaries(p, x);
        clear();
    }

    __device__ void clear()
    {
#pragma unroll
        for (int k = 0; k < T::SLOTS; k++) far[k].clear(), out[k].clear();
    }

    __device__ void fetch_summaries(const mai_cu_params &p, const Item &x)
    {
        each(heads_of(p, x.block),
             [&](int k, int head) { reused[k].fetch_summary(p, x.row, first_head(p, x) + head); });
    }

    /* What all parts of a class came to, normalised. */
    __device__ __forceinline__ void set(int k, int which, const Sum<T::W> &sum)
    {
        if (T::JUDGES && which == T::FIRST_CLASS) old[k] = sum;
        if (T::SELECTS && which == MAI_CLASS_OLD) {
            old[k].add(sum.top, sum.o);
            old[k].normalise();
        }
        if (which == MAI_CLASS_FAR) far[k] = sum;
        if (which == MAI_CLASS_OUT) {
            out[k].top = sum.top, out[k].sum = sum.sum;
#pragma unroll
            for (int i = 0; i < T::V; i++) out[k].o[i] = sum.o[i];
        }
    }

    __device__ void complete(const mai_cu_params &p, const Item &x)
    {
        float error = -1; /* expected of the selection that is used */
        if (T::SELECTS && x.outcome == MAI_SELECTED) error = __ldcg(&choice_of(p, x)->error);
        each(heads_of(p, x.block), [&](int k, int head) {
            complete_head<T>(p, x.row, first_head(p, x) + head, x.reads.n, (mai_outcome)x.outcome,
                             error, reused[k], old[k], far[k], out[k]);
        });
    }
};

/* Where the classes before far of a group go: what a block computes whole has no place of its own,
 * but until the block begins its last group, that one's is free. */
__device__ __forceinline__ int place_of_old(const Item &x)
{
    return x.place == MAI_PLACE_WHOLE ? MAI_PLACE_BEGINS : x.place;
}

/* A warp's sums, into the room for joining. */
template <class T>
__device__ __forceinline__ void put_rows(AttendShared<T> &sh, const Rows<T> &x)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int head = 8 * j + 2 * c + h;
#pragma unroll
            for (int m = 0; m < T::D / 16; m++) {
                sh.o[warp][head][T::Kv::value_dim(m, g, 0)] = x.of[m][j][h];
                sh.o[warp][head][T::Kv::value_dim(m, g, 1)] = x.of[m][j][2 + h];
            }
        }
    }
}

/* A head's sums of all warps, joined: a lane's dims. */
template <class T>
__device__ __forceinline__ void join_rows(const AttendShared<T> &sh, int head, float base, float *x)
{
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int w = 0; w < T::WARPS; w++) {
        const float weight = fast_exp2(sh.top[w][head] - base);
#pragma unroll
        for (int i = 0; i < T::V; i++) x[i] += weight * sh.o[w][head][lane * T::V + i];
    }
}

/* Join the warps' states of a class: kept by the warps that complete the heads or, if other blocks
 * compute some of the group, written as a partial result. Classes before far always are: they are
 * rare, and registers are not. Means of keys take the same room in their turn. */
template <class T>
__device__ void join_warps(const mai_cu_params &p, AttendShared<T> &sh, const State<T> &state,
                           const Rows<T> &keys, const Item &x, int which, Heads<T> &heads)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
    const bool keeps = T::KEEPS && x.keeps && which != MAI_CLASS_OUT;
    Sum<T::W> joined[T::SLOTS];
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int head = 8 * j + 2 * c + h;
            float sum = state.sum[j][h];
            for (int i = 4; i < 32; i <<= 1) sum += __shfl_xor_sync(ALL, sum, i);
            if (g == 0) sh.top[warp][head] = state.top[j][h], sh.sum[warp][head] = sum;
        }
    }
    put_rows<T>(sh, state.o);
    __syncthreads();
    heads.each(heads_of(p, x.block), [&](int k, int head) {
        float top = -INFINITY;
        for (int w = 0; w < T::WARPS; w++) top = fmaxf(top, sh.top[w][head]);
        joined[k].clear();
        joined[k].top = top;
        const float base = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int w = 0; w < T::WARPS; w++)
            joined[k].sum += fast_exp2(sh.top[w][head] - base) * sh.sum[w][head];
        join_rows<T>(sh, head, base, joined[k].o);
    });
    if (keeps) {
        __syncthreads();
        put_rows<T>(sh, keys);
        __syncthreads();
        heads.each(heads_of(p, x.block), [&](int k, int head) {
            join_rows<T>(sh, head, joined[k].top == -INFINITY ? 0.0f : joined[k].top,
                         joined[k].o + T::W - T::V);
        });
    }
    heads.each(heads_of(p, x.block), [&](int k, int head) {
        joined[k].normalise();
        const bool is_old = T::JUDGES && which < MAI_CLASS_FAR;
        if (x.place == MAI_PLACE_WHOLE && !is_old) heads.set(k, which, joined[k]);
        else
            put_partial<T>(p, partial_at(p, blockIdx.x, place_of_old(x), which, head), keeps,
                           joined[k]);
    });
    __syncthreads();
}

/* One warp: what the block has to know of a shared group when it has computed its part. Each lane
 * finds one of the blocks, since every one costs a division. */
template <class T>
__device__ void make_parts(const mai_cu_params &p, AttendShared<T> &sh, const Item &x,
                           const Share &share)
{
    const int lane = threadIdx.x & 31;
    const mai_segments s = segments_of(p, x, T::UNIT);
    int first = x.first_unit, unit = mai_first_at(share.all, x.first_unit, s);
    if (lane == 1) unit = mai_last_at(share.all, x.first_unit, s);
#pragma unroll
    for (int i = 0; i < MAI_CLASSES; i++) {
        if (lane == 2 + 2 * i) unit = first;
        first += mai_class_units(s, i);
        if (lane == 3 + 2 * i) unit = first - 1;
    }
    const int block = mai_block_of(share.all, unit);
    const mai_blocks all = {__shfl_sync(ALL, block, 0), __shfl_sync(ALL, block, 1)};
    if (lane == 0) sh.parts.blocks = all, sh.parts.bundle = mai_bundle(all);
#pragma unroll
    for (int i = 0; i < MAI_CLASSES; i++) {
        const int b0 = __shfl_sync(ALL, block, 2 + 2 * i), b1 = __shfl_sync(ALL, block, 3 + 2 * i);
        if (lane != 0) continue;
        sh.parts.of[i].first = min(max(b0, all.first), all.last);
        sh.parts.of[i].last = mai_class_units(s, i) > 0 ? min(max(b1, all.first), all.last) : -1;
    }
}

/* Whether `n` have arrived, this block the last of them; then what the others wrote is visible to
 * all threads of this one. */
template <class T>
__device__ bool arrives_last(AttendShared<T> &sh, uint32_t *arrived, int n)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const bool is_last = atomicAdd(arrived, 1u) == (unsigned)(n - 1);
        if (is_last) *arrived = 0;
        sh.is_last = is_last;
        __threadfence();
    }
    __syncthreads();
    return sh.is_last;
}

/* This block's part of a shared group is written. If all parts are, their sums are left in
 * `heads`. */
template <class T>
__device__ bool gather_parts(const mai_cu_params &p, AttendShared<T> &sh, const Item &x, int group,
                             Heads<T> &heads)
{
    const Parts &parts = sh.parts;
    const int n = parts.blocks.last - parts.blocks.first + 1;
    const int begin = parts.bundle_of(blockIdx.x);
    const int end = min(begin + parts.bundle - 1, parts.blocks.last), place = parts.place(begin);
    if (!arrives_last<T>(sh, &p.arrived[2 * begin + place], end - begin + 1)) return false;
    const bool is_all = n <= parts.bundle;
#pragma unroll 1
    for (int step = 1;; step = parts.bundle) {
        const int last = step > 1 ? parts.blocks.last : end;
        const bool is_final = is_all || step > 1;
        heads.each(heads_of(p, x.block), [&](int k, int head) {
#pragma unroll 1
            for (int which = T::FIRST_CLASS; which < MAI_CLASSES; which++) {
                const bool keeps = T::KEEPS && x.keeps && which != MAI_CLASS_OUT;
                const Sum<T::W> sum =
                    gather<T>(p, parts, which, keeps, head, begin, last, step);
                if (is_final) heads.set(k, which, sum);
                else put_partial<T>(p, partial_at(p, begin, place, which, head), keeps, sum);
            }
        });
        if (is_final) return true;
        uint32_t *bundles = p.arrived + 2 * gridDim.x + group;
        if (!arrives_last<T>(sh, bundles, (n + parts.bundle - 1) / parts.bundle)) return false;
    }
}

/* The classes before far of a group that only this block computes, which join_warps wrote. */
template <class T>
__device__ void fetch_old(const mai_cu_params &p, const Item &x, Heads<T> &heads)
{
    heads.each(heads_of(p, x.block), [&](int k, int head) {
        heads.old[k].clear();
#pragma unroll
        for (int which = T::FIRST_CLASS; which < MAI_CLASS_FAR; which++) {
            Sum<T::W> sum;
            sum.clear();
            if (x.part[which].y >= 0) {
                const int at = partial_at(p, blockIdx.x, place_of_old(x), which, head);
                load_partial_sum<T>(p, at, T::KEEPS && x.keeps, sum.o);
                sum.top = __ldcg(p.partial_lse + at);
                sum.sum = sum.top == -INFINITY ? 0.0f : 1.0f;
            }
            heads.set(k, which, sum);
        }
    });
}

} // namespace mai

#endif /* MAI_CUDA_JOIN_CUH */
