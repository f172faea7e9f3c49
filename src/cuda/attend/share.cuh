/* SPDX-License-Identifier: Apache-2.0 */
/* A block's share of a step: which groups, and which tokens of each (schedule.h). Every block works
 * this out for itself, from the decisions of all groups. */
#ifndef MAI_CUDA_SHARE_CUH
#define MAI_CUDA_SHARE_CUH

#include "traits.cuh"

namespace mai {

/* What is known of a group before its decisions are. */
__device__ __forceinline__ Item make_item(const mai_cu_params &p, int group)
{
    Item x;
    const int per_row = p.n_kv_heads * p.blocks_per_kv;
    x.row = group / per_row;
    const int in_row = group - x.row * per_row;
    x.kv_head = in_row / p.blocks_per_kv;
    x.block = in_row - x.kv_head * p.blocks_per_kv;
    x.pages = row_pages(p, x.row);
    x.first_unit = 0;
    x.keeps = false;
    x.outcome = MAI_USED;
    const int n = row_tokens(p, x.row), b = p.reuse ? mai_far_end(n, p.band, p.fresh) : -1;
    x.reads = {n, b, p.reuse ? b : p.window > 0 ? max(0, n - p.window) : 0, 0};
    return x;
}

/* What is wanted of a head's decision. */
struct Found {
    int start, entry, next;
};

template <class T>
__device__ __forceinline__ Found load_found(const macattn_cuda_decision *d)
{
    if (T::KEEPS) {
        const int4 x = __ldcg((const int4 *)d);
        return Found{x.x, x.y, x.w};
    }
    const int2 x = __ldcg((const int2 *)d);
    return Found{x.x, x.y, -1};
}

__device__ __forceinline__ mai_cu_choice load_choice(const mai_cu_choice *from)
{
    const int4 both[2] = {__ldcg((const int4 *)from), __ldcg((const int4 *)from + 1)};
    mai_cu_choice choice;
    static_assert(sizeof choice == sizeof both, "two loads");
    memcpy(&choice, both, sizeof choice);
    return choice;
}

/* The decisions of the heads that share a KV head: those of the group say what it reads, all of
 * them together whether candidates may be used. Eight loads at a time. */
template <class T>
__device__ __forceinline__ void take_decisions(const mai_cu_params &p, Item &x)
{
    if (!p.reuse) return;
    const size_t at = (size_t)x.row * p.n_heads + x.kv_head * p.group;
    const int head0 = x.block * p.heads_per_block, head1 = head0 + heads_of(p, x.block);
    mai_cu_choice choice;
    if (T::SELECTS) choice = load_choice(choice_of(p, x));
    int earliest = x.reads.b, latest = 0;
    bool all = true, any = false, remembers = false;
    float error2 = 0;
#pragma unroll 1
    for (int i = 0; i < p.group; i += 8) {
        Found found[8];
        float error[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const size_t head = at + min(i + j, p.group - 1);
            found[j] = load_found<T>(&p.found[head]);
            if (T::JUDGES && !T::SELECTS) error[j] = __ldcg(&p.judgements[head].error);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (i + j >= p.group) continue;
            any = any || found[j].entry >= 0, remembers = remembers || found[j].next >= 0;
            if (T::JUDGES && !T::SELECTS)
                all = all && found[j].entry >= 0, error2 += error[j] * error[j];
            if (i + j < head0 || i + j >= head1) continue;
            earliest = min(earliest, found[j].start), latest = max(latest, found[j].start);
        }
    }
    x.reads.start = earliest;
    if (!T::KEEPS) return;
    x.keeps = p.keys && remembers;
    if (T::JUDGES) {
        x.outcome = T::SELECTS                ? choice.outcome
                    : !all                    ? MAI_NO_CANDIDATE
                    : error2 <= (float)p.group ? MAI_USED
                                               : MAI_REFUSED;
        if (x.outcome == MAI_NO_CANDIDATE || x.outcome == MAI_CHECKED)
            x.reads.start = min(p.fresh, x.reads.b);
        if (x.outcome == MAI_SELECTED) x.reads.start = x.reads.b;
        if (x.outcome == MAI_REFUSED) x.reads.latest = latest;
        if (T::SELECTS && selects(x)) {
            x.reads.latest = mai_reads_listed(choice.listed);
            return;
        }
    }
    /* Nothing is taken from a ring and nothing put there: exact attention. */
    if (!any && !remembers) x.reads = {x.reads.n, -1, 0, 0};
}

__device__ __forceinline__ mai_segments segments_of(const mai_cu_params &p, const Item &x, int unit)
{
    return mai_segments_of(x.reads, p.fresh, unit);
}

/* Exclusive sums over the block; `total` gets the sum of all. */
template <int THREADS>
__device__ int block_scan(int x, int *scratch, int *total)
{
    constexpr int WARPS = THREADS / 32;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    int sum = x;
    for (int i = 1; i < 32; i <<= 1) {
        const int below = __shfl_up_sync(ALL, sum, i);
        if (lane >= i) sum += below;
    }
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < WARPS; w++) {
        if (w < warp) before += scratch[w];
        all += scratch[w];
    }
    *total = all;
    return before + sum - x;
}

/* A group and what it costs. */
struct Group {
    Item item;
    mai_segments segments;
};

/* Not inline: it is seldom needed. */
template <class T>
__device__ __noinline__ Group make_group(const mai_cu_params &p, int group)
{
    Group g;
    g.item = make_item(p, group);
    take_decisions<T>(p, g.item);
    g.segments = segments_of(p, g.item, T::UNIT);
    return g;
}

/* The groups that a thread looks after while the work is divided: [g0, g1). What it knows of the
 * first stays in registers: there is seldom another. */
template <class T>
struct Own {
    int g0, g1;
    Group first;
    int before; /* units of all groups before g0 */

    /* What does not depend on decisions. */
    __device__ __forceinline__ void begin(const mai_cu_params &p)
    {
        const int per_thread = (n_groups(p) + T::THREADS - 1) / T::THREADS;
        g0 = min((int)threadIdx.x * per_thread, n_groups(p));
        g1 = min(g0 + per_thread, n_groups(p));
        if (g0 < g1) first.item = make_item(p, g0);
    }

    /* The rest. Returns what all its groups cost. */
    __device__ __forceinline__ int end(const mai_cu_params &p)
    {
        if (g0 == g1) return 0;
        take_decisions<T>(p, first.item);
        first.segments = segments_of(p, first.item, T::UNIT);
        int sum = first.segments.cost;
#pragma unroll 1
        for (int g = g0 + 1; g < g1; g++) sum += make_group<T>(p, g).segments.cost;
        return sum;
    }

    /* f(group, what it is, its first unit) */
    template <class F>
    __device__ __forceinline__ void each(const mai_cu_params &p, F f) const
    {
        Group x = first;
        int u = before;
#pragma unroll 1
        for (int g = g0; g < g1; g++) {
            if (g > g0) x = make_group<T>(p, g);
            f(g, x, u);
            u += x.segments.cost;
        }
    }
};

/* This block's part of all units, [begin, end). */
struct Share {
    mai_division all;
    int begin, end;
};

/* What this block computes of an item, which begins at unit `first_unit`. */
__device__ inline void place_item(const mai_segments &s, int begin, int end, int unit, Item *x)
{
    const int last = x->first_unit + s.units;
    x->place = last <= begin ? -1 : mai_place(begin, end, x->first_unit, last);
    int first = x->first_unit;
#pragma unroll
    for (int i = 0; i < MAI_SEGMENTS; i++) {
        const mai_segment part = mai_segment_part(s.of[i], first, begin, end, unit);
        /* An empty part of one unit (a row without tokens) has to be told from none. */
        x->part[i] = make_int2(part.t0, part.units > 0 ? part.t1 : -1);
        first += s.of[i].units;
    }
}

/* A thread's group g, which begins at unit a: if the block's begin or end falls into it, say
 * where. */
template <class T>
__device__ __forceinline__ void place_boundaries(AttendShared<T> &sh, const mai_division &all,
                                                 int i, int g, const Group &x, int a)
{
    const int c = a + x.segments.cost;
    int begin = mai_block_begin(all, i), end = mai_block_begin(all, i + 1);
    const bool begins = a <= begin && begin < c, ends = a < end && end <= c;
    if (begins) {
        sh.begin = begin = mai_snapped(all, begin, a, c);
        sh.first_group = begin == c ? g + 1 : g;
    }
    if (ends) {
        if (end < c) end = mai_snapped(all, end, a, c);
        sh.end = end, sh.last_group = end == a ? g - 1 : g;
    }
    /* All in one group, as is usual with few rows: then this thread knows everything there is to
     * know. */
    if (begins && ends && begin < end) {
        Item &item = sh.items[0];
        item = x.item;
        item.first_unit = a;
        place_item(x.segments, begin, end, T::UNIT, &item);
        sh.listed = 1;
    }
}

/* Leaves the first and the last group of the share in `sh`. */
template <class T>
__device__ Share find_share(const mai_cu_params &p, AttendShared<T> &sh, Own<T> &own)
{
    const int sum = own.end(p);
    Share share;
    int total;
    if (threadIdx.x == 0) sh.listed = sh.n_completed = 0, sh.first_cost = own.first.segments.cost;
    own.before = block_scan<T::THREADS>(sum, sh.scratch(), &total);
    share.all = mai_divide(total, mai_is_even(total, n_groups(p), sh.first_cost) ? p.even_blocks
                                                                                 : gridDim.x);
    share.begin = share.end = 0;
    const int i = blockIdx.x;
    if (i >= share.all.blocks) return share;
    if (own.before <= mai_block_begin(share.all, i + 1) &&
        own.before + sum > mai_block_begin(share.all, i)) {
        own.each(p, [&](int g, const Group &x, int u) {
            place_boundaries<T>(sh, share.all, i, g, x, u);
        });
    }
    __syncthreads();
    share.begin = sh.begin, share.end = sh.end;
    return share;
}

/* Fill in the items of groups [g, g + MOST_ITEMS). What `own` knows of the first group is worked out
 * again: to be kept until here it would take registers from the tiles. */
template <class T>
__device__ void list_items(const mai_cu_params &p, AttendShared<T> &sh, int g, const Own<T> &own,
                           const Share &share)
{
    if (own.g1 <= g || own.g0 >= g + T::MOST_ITEMS) return;
    int u = own.before;
#pragma unroll 1
    for (int i = own.g0; i < own.g1; i++) {
        const Group group = make_group<T>(p, i);
        if (i >= g && i < g + T::MOST_ITEMS) {
            Item &x = sh.items[i - g];
            x = group.item;
            x.first_unit = u;
            place_item(group.segments, share.begin, share.end, T::UNIT, &x);
        }
        u += group.segments.cost;
    }
}

} // namespace mai

#endif /* MAI_CUDA_SHARE_CUH */
