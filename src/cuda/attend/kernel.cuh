/* SPDX-License-Identifier: Apache-2.0 */
/* Range attention: for each group (a row and the query heads that share a KV head), attention over
 * its segments (schedule.h), split over all thread blocks; whichever block finishes a group last
 * merges its parts with the reused summaries, writes the output and remembers the queries
 * (complete.cuh).
 *
 * Memory read: the tokens of the segments once, head_dim values of K and of V each. That is what
 * bounds the time: everything else is arranged so that loads never stop. One block per
 * multiprocessor; each of its warps takes every WARPS-th tile of 16 tokens and works alone, with
 * its own stages of asynchronous copies in shared memory, which run ahead across segments and
 * groups. The products are tensor-core products with tokens as rows and query heads as columns,
 *
 *     S[16 tokens][8 heads] = K[16][d] Q^T[d][8],     O^T[d][8] += V^T[d][16] P[16][8],
 *
 * so a group of 8 wastes nothing. The softmax is the online one, base 2. */
#ifndef MAI_CUDA_KERNEL_CUH
#define MAI_CUDA_KERNEL_CUH

#include "join.cuh"
#include "learn.cuh"
#include "rest.cuh"

namespace mai {

/* What is not needed while tiles are computed is kept in (local) memory, and leaves its registers to
 * them: nvcc keeps in registers what it can, and then has too few for tiles. */
template <class X>
__device__ __forceinline__ void keep_in_memory(X &x)
{
    asm volatile("" ::"l"(&x) : "memory");
}

/* One warp's part of an item: what this block reads of each segment, the classes joined as they
 * end. `stage`: of the next tile. */
template <class T>
__device__ __forceinline__ void compute_segments(const mai_cu_params &p, AttendShared<T> &sh,
                                                 const Item &x, const Queries<T> &queries,
                                                 Loader<T> &loader, int &stage, Heads<T> &heads)
{
    const int warp = threadIdx.x / 32;
    const float factor = p.scale * LOG2E * p.k_scale;
    State<T> state;
    Rows<T> keys;
    bool is_empty = true;
#pragma unroll 1
    for (int segment = T::FIRST_SEGMENT; segment < MAI_SEGMENTS; segment++) {
        const int2 part = x.part[segment];
        const bool keeps = T::KEEPS && x.keeps && segment <= MAI_FAR;
        Seen<T> seen;
        if (part.y >= 0) {
            seen.load(p, x, segment, part.y);
            if (is_empty) state.clear();
            if (keeps) keys.clear();
            is_empty = false;
        }
        if (T::SELECTS && segment == MAI_REST) {
            if (part.y < 0) continue;
            add_means<T>(p, sh, x, part, keeps, loader, stage, state, keys);
            join_warps<T>(p, sh, state, keys, x, MAI_CLASS_REST, heads);
            is_empty = true;
            continue;
        }
#pragma unroll 1
        for (int t = part.x + T::TILE * warp; t < part.y; t += T::UNIT) {
            float s[T::NT][4];
            KeyWeights<T> key_weights;
            Weights<T> weights;
            copy_wait<T::STAGES - 2>();
            __syncwarp();
            scores<T>(s, queries, shared_address(sh.stage[warp][stage][0]));
            softmax<T>(p, factor, s, state, seen, t, key_weights);
            weights.take(s);
            add_rows<T>(weights, state.o, shared_address(sh.stage[warp][stage][1]));
            if (keeps) {
                add_keys<T>(p, s, key_weights, weights, keys,
                            shared_address(sh.stage[warp][stage][0]));
            }
            __syncwarp();
            loader.next();
            stage = stage + 1 == T::STAGES ? 0 : stage + 1;
        }
        /* Fresh and near tokens are of one class: the state goes on. */
        if (is_empty || segment == MAI_FRESH) continue;
        if (T::KEEPS && segment == MAI_NEAR && x.place == MAI_PLACE_WHOLE)
            heads.fetch_summaries(p, x);
        join_warps<T>(p, sh, state, keys, x, mai_class_of(segment), heads);
        is_empty = true;
    }
}

/* The item's part is computed. If it is all of the group, or its last part: write the outputs.
 * Every group has a block that comes to the end of this: the one that computes it whole, or the
 * last to arrive. */
template <class T>
__device__ __forceinline__ void finish_item(const mai_cu_params &p, AttendShared<T> &sh,
                                            const Item &x, int group, Heads<T> &heads)
{
    if (x.place < 0) return;
    if (x.place != MAI_PLACE_WHOLE) {
        if (T::KEEPS) heads.fetch_summaries(p, x);
        if (!gather_parts<T>(p, sh, x, group, heads)) return;
    } else if (T::JUDGES && (x.outcome == MAI_REFUSED || (T::SELECTS && selects(x)))) {
        fetch_old<T>(p, x, heads);
    }
    heads.complete(p, x);
    if (T::JUDGES) note_complete<T>(p, sh, x);
}

template <class T>
__global__ void __launch_bounds__(T::THREADS, 1)
    attend_kernel(const __grid_constant__ mai_cu_params p)
{
    extern __shared__ __align__(512) unsigned char memory[]; /* matrix_address */
    AttendShared<T> &sh = *(AttendShared<T> *)memory;
    const int warp = threadIdx.x / 32;
    Own<T> own;
    own.begin(p); /* not the search's results */
    wait_for_previous();
    const Share share = find_share<T>(p, sh, own);
    if (share.begin == share.end) return;
    const int first_group = sh.first_group, last_group = sh.last_group;

    for (int g0 = first_group; g0 <= last_group; g0 += T::MOST_ITEMS) {
        if (!sh.listed) {
            __syncthreads();
            list_items<T>(p, sh, g0, own, share);
            __syncthreads();
        }
        const int n_items = min(T::MOST_ITEMS, last_group + 1 - g0);
        Heads<T> heads, ahead;
        if (T::JUDGES && T::D * T::HEADS > 512) keep_in_memory(heads); /* fewer fit */
        Queries<T> queries;
        ahead.fetch_decisions(p, sh.items[0]);
        queries.fetch(p, sh.items[0]);
        Loader<T> loader(p, sh, n_items);
#pragma unroll 1
        for (int i = 0; i < T::STAGES - 1; i++) loader.next();
        int stage = 0;
#pragma unroll 1
        for (int i = 0; i < n_items; i++) {
            const Item &x = sh.items[i];
            queries.take(sh);
#pragma unroll
            for (int k = 0; k < T::SLOTS; k++) heads.reused[k].decision = ahead.reused[k].decision;
            heads.begin(p, x);
            if (warp == 0 && x.place != MAI_PLACE_WHOLE) make_parts<T>(p, sh, x, share);
            if (i + 1 < n_items) {
                queries.fetch(p, sh.items[i + 1]);
                ahead.fetch_decisions(p, sh.items[i + 1]);
            }
            compute_segments<T>(p, sh, x, queries, loader, stage, heads);
            finish_item<T>(p, sh, x, g0 + i, heads);
        }
        copy_wait<0>();
        if (T::JUDGES) learn<T>(p, sh);
    }
}

} // namespace mai

#endif /* MAI_CUDA_KERNEL_CUH */
