/* SPDX-License-Identifier: Apache-2.0 */
/* Range attention: for each group (a row and the query heads that share a KV head), attention over its
 * segments (schedule.h), split over all thread blocks; whichever block finishes a group last merges its parts
 * with the reused summaries, writes the output and remembers the queries (merge.cuh).
 *
 * Memory read: the tokens of the segments once, head_dim values of K and of V each. That is what bounds the
 * time: everything else is arranged so that loads never stop. One block per multiprocessor; each of its
 * warps takes every WARPS-th tile of 16 tokens and works alone, with its own stages of asynchronous copies
 * in shared memory, which run ahead across segments and groups. The products are tensor-core products with
 * tokens as rows and query heads as columns,
 *
 *     S[16 tokens][8 heads] = K[16][d] Q^T[d][8],     O^T[d][8] += V^T[d][16] P[16][8],
 *
 * so a group of 8 wastes nothing. The softmax is the online one, base 2. */
#ifndef MAI_CUDA_ATTEND_CUH
#define MAI_CUDA_ATTEND_CUH

#include "kv.cuh"
#include "learn.cuh"
#include "merge.cuh"
#include "schedule.h"

namespace mai {

/* HEADS: query heads computed together, a multiple of 8. JUDGES: for policies that judge, whose code would take
 * registers and time from the others. */
template <class Kv_, int D_, int HEADS_, int WARPS_, int STAGES_, bool JUDGES_>
struct Traits {
    using Kv = Kv_;
    static constexpr bool JUDGES = JUDGES_;
    static constexpr int FIRST_SEGMENT = JUDGES ? MAI_OLD : MAI_FAR;
    static constexpr int FIRST_CLASS = JUDGES ? MAI_CLASS_OLD : MAI_CLASS_FAR;
    static constexpr int D = D_, HEADS = HEADS_, WARPS = WARPS_, STAGES = STAGES_;
    static constexpr int THREADS = 32 * WARPS, NT = HEADS / 8, TILE = 16, UNIT = WARPS * TILE;
    static constexpr int PIECES = D * Kv::BYTES / 16; /* 16-byte pieces of a token's K */
    static constexpr int TILE_BYTES = TILE * PIECES * 16;
    static constexpr int O_STRIDE = D + 4; /* floats: neighbouring heads in different banks */
    static constexpr int SLOTS = (HEADS + WARPS - 1) / WARPS; /* heads a warp completes */
    static constexpr int V = D / 32;                          /* dims a lane then holds */
    static constexpr int MOST_ITEMS = 16;
};

/* A group of which this block computes something. */
struct Item {
    int row, kv_head, block; /* block: of query heads, within kv_head */
    mai_reads reads;
    mai_outcome outcome; /* of its candidates; without a judge what was found is used, if anything was */
    int64_t pages;       /* row_pages */
    int first_unit;
    int place;               /* where this block's partial results go; -1: it has only the group's cost */
    int2 part[MAI_SEGMENTS]; /* tokens of each segment that this block computes; y < 0: none */
};

template <class T>
struct AttendShared {
    unsigned char stage[T::WARPS][T::STAGES][2][T::TILE_BYTES]; /* K, V */
    float o[T::WARPS][T::HEADS][T::O_STRIDE];                   /* of one part, to be joined */
    float top[T::WARPS][T::HEADS], sum[T::WARPS][T::HEADS];
    Item items[T::MOST_ITEMS];
    Parts parts; /* of the item being computed, if its group is shared */
    int begin, end, first_group, last_group, is_last;
    int first_cost; /* of group 0 */
    int listed; /* the share is within one group, which is in items[0] */
    int completed[T::MOST_ITEMS], n_completed; /* KV heads of groups that this block completed */

    __device__ int *scratch() { return (int *)stage; } /* before the first copy */
};

/* ---------------------------------------------------------------------------------- schedule -- */

__device__ __forceinline__ int n_groups(const mai_cu_params &p)
{
    return p.n_rows * p.n_kv_heads * p.blocks_per_kv;
}

__device__ __forceinline__ int heads_of(const mai_cu_params &p, int block)
{
    return min(p.heads_per_block, p.group - block * p.heads_per_block);
}

__device__ __forceinline__ int first_head(const mai_cu_params &p, const Item &x)
{
    return x.kv_head * p.group + x.block * p.heads_per_block;
}

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
    x.outcome = MAI_USED;
    const int n = row_tokens(p, x.row), b = p.reuse ? mai_far_end(n, p.band, p.fresh) : -1;
    x.reads = {n, b, p.reuse ? b : p.window > 0 ? max(0, n - p.window) : 0, 0};
    return x;
}

/* The decisions of the heads that share a KV head: those of the group say what it reads, all of them together
 * whether candidates may be used. Eight loads at a time. */
template <class T>
__device__ __forceinline__ void take_decisions(const mai_cu_params &p, Item &x)
{
    if (!decides(p)) return;
    const size_t at = (size_t)x.row * p.n_heads + x.kv_head * p.group;
    const int head0 = x.block * p.heads_per_block, head1 = head0 + heads_of(p, x.block);
    int earliest = x.reads.b, latest = 0;
    bool all = true;
    float error2 = 0;
#pragma unroll 1
    for (int i = 0; i < p.group; i += 8) {
        int2 found[8]; /* start, entry */
        float error[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const size_t head = at + min(i + j, p.group - 1);
            found[j] = __ldcg((const int2 *)&p.found[head]);
            if (T::JUDGES) error[j] = __ldcg(&p.judgements[head].error);
        }
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (i + j >= p.group) continue;
            if (T::JUDGES) all = all && found[j].y >= 0, error2 += error[j] * error[j];
            if (i + j < head0 || i + j >= head1) continue;
            earliest = min(earliest, found[j].x), latest = max(latest, found[j].x);
        }
    }
    x.reads.start = earliest;
    if (!T::JUDGES) return;
    x.outcome = !all ? MAI_NO_CANDIDATE : error2 <= (float)p.group ? MAI_USED : MAI_REFUSED;
    if (x.outcome == MAI_NO_CANDIDATE) x.reads.start = min(p.fresh, x.reads.b);
    if (x.outcome == MAI_REFUSED) x.reads.latest = latest;
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

/* The groups that a thread looks after while the work is divided: [g0, g1). What it knows of the first
 * stays in registers: there is seldom another. */
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

/* A thread's group g, which begins at unit a: if the block's begin or end falls into it, say where. */
template <class T>
__device__ __forceinline__ void place_boundaries(AttendShared<T> &sh, const mai_division &all, int i,
                                                 int g, const Group &x, int a)
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
    /* All in one group, as is usual with few rows: then this thread knows everything there is to know. */
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
    share.all = mai_divide(total, mai_is_even(total, n_groups(p), sh.first_cost) ? p.even_blocks : gridDim.x);
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

/* Fill in the items of groups [g, g + MOST_ITEMS). */
template <class T>
__device__ void list_items(const mai_cu_params &p, AttendShared<T> &sh, int g, const Own<T> &own,
                           const Share &share)
{
    if (own.g1 <= g || own.g0 >= g + T::MOST_ITEMS) return;
    own.each(p, [&](int i, const Group &group, int u) {
        if (i < g || i >= g + T::MOST_ITEMS) return;
        Item &x = sh.items[i - g];
        x = group.item;
        x.first_unit = u;
        place_item(group.segments, share.begin, share.end, T::UNIT, &x);
    });
}

/* ------------------------------------------------------------------------------------- loads -- */

/* One warp's tiles in the order in which it computes them, ahead of the computation. */
template <class T>
struct Loader {
    const mai_cu_params &p;
    AttendShared<T> &sh;
    const int n_items, warp, lane;
    int item, segment; /* of the next tile to copy; item == n_items: none */
    int t, t1;
    int64_t pages;      /* row_pages */
    int page, page_after; /* page number of token t + lane % 16, and of the tile after it */
    const char *k, *v;
    int stage;

    __device__ Loader(const mai_cu_params &p_, AttendShared<T> &sh_, int n)
        : p(p_), sh(sh_), n_items(n), warp(threadIdx.x / 32), lane(threadIdx.x % 32), item(0),
          segment(-1), t(0), t1(0), pages(0), page(0), page_after(0), k(nullptr), v(nullptr),
          stage(0)
    {
        seek();
    }

    __device__ int page_of(int tile) const
    {
        const int token = tile + lane % T::TILE;
        if (p.page_shift < 0) return (int)pages;
        return token < t1 ? __ldg(p.pages + pages + (token >> p.page_shift)) : 0;
    }

    /* To the next tile, if t is past the segment's end. */
    __device__ void seek()
    {
        page = page_after;
        if (t >= t1) {
            do {
                if (++segment == MAI_SEGMENTS) segment = 0, item++;
                if (item >= n_items) return;
                const int2 part = sh.items[item].part[segment];
                t = part.x + T::TILE * warp;
                t1 = part.y;
            } while (t >= t1);
            const Item &x = sh.items[item];
            pages = x.pages;
            k = p.k + x.kv_head * p.k_head_stride;
            v = p.v + x.kv_head * p.v_head_stride;
            page = page_of(t);
        }
        page_after = page_of(t + T::UNIT);
    }

    __device__ void copy()
    {
        const uint32_t to_k = shared_address(sh.stage[warp][stage][0]);
        const uint32_t to_v = shared_address(sh.stage[warp][stage][1]);
        const int mask = p.page_shift < 0 ? -1 : (1 << p.page_shift) - 1;
        const int64_t in = (t + lane % T::TILE) & mask;
        const int64_t token_k = page * p.k_page_stride + in * p.k_token_stride;
        const int64_t token_v = page * p.v_page_stride + in * p.v_token_stride;
#pragma unroll
        for (int j = 0; j < T::TILE * T::PIECES / 32; j++) {
            const int row = (lane + 32 * j) / T::PIECES, piece = (lane + 32 * j) % T::PIECES;
            const int64_t from_k = __shfl_sync(ALL, token_k, row) + piece * 16;
            const int64_t from_v = __shfl_sync(ALL, token_v, row) + piece * 16;
            const uint32_t at = (uint32_t)(row * T::PIECES + piece_at<T::PIECES>(row, piece)) * 16;
            copy16(to_k + at, k + from_k, t + row < t1);
            copy16(to_v + at, v + from_v, t + row < t1);
        }
    }

    /* Start the copies of the next tile, if there is one. */
    __device__ void next()
    {
        if (item < n_items) {
            copy();
            t += T::UNIT;
            seek();
        }
        copy_commit();
        stage = stage + 1 == T::STAGES ? 0 : stage + 1;
    }
};

/* ------------------------------------------------------------------------------- computation -- */

/* The queries of an item as B operands. They are on their way to registers while the item before is
 * computed, and change hands in shared memory, in the room for joining, which is free between items. */
template <class T>
struct Queries {
    static constexpr int WORDS = T::HEADS * T::D / 2 / T::THREADS; /* of two values */
    uint32_t b[T::D / 16][T::NT][2];
    float2 ahead[WORDS];

    __device__ void fetch(const mai_cu_params &p, const Item &x)
    {
        const int heads = heads_of(p, x.block);
        const int head0 = first_head(p, x);
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            const int word = threadIdx.x + i * T::THREADS;
            const int head = min(word / (T::D / 2), heads - 1), dim = word % (T::D / 2) * 2;
            load_values<2>(p.q_dtype,
                           p.q + x.row * p.q_row_stride + (head0 + head) * p.q_head_stride, dim,
                           (float *)&ahead[i]);
        }
    }

    /* All threads together. */
    __device__ void take(AttendShared<T> &sh)
    {
        constexpr int STRIDE = T::D / 2 + 4; /* words: other heads in other banks */
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
        uint32_t *rows = (uint32_t *)sh.o;
#pragma unroll
        for (int i = 0; i < WORDS; i++) {
            const int word = threadIdx.x + i * T::THREADS;
            rows[word / (T::D / 2) * STRIDE + word % (T::D / 2)] =
                T::Kv::pack(ahead[i].x, ahead[i].y);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int s = 0; s < T::D / 16; s++) {
                const int dim = T::Kv::key_dim(s, c);
                b[s][j][0] = rows[(8 * j + g) * STRIDE + dim / 2];
                b[s][j][1] = rows[(8 * j + g) * STRIDE + (dim + T::Kv::KEY_SECOND) / 2];
            }
        }
        __syncthreads();
    }
};

/* One warp's state of a part: O^T as accumulators, and for the lane's two heads of each n-tile the greatest
 * logit and the lane's share of the sum. */
template <class T>
struct State {
    float o[T::D / 16][T::NT][4];
    float top[T::NT][2], sum[T::NT][2];

    __device__ void clear()
    {
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int m = 0; m < T::D / 16; m++) {
                o[m][j][0] = o[m][j][1] = o[m][j][2] = o[m][j][3] = 0.0f;
            }
            top[j][0] = top[j][1] = -INFINITY;
            sum[j][0] = sum[j][1] = 0.0f;
        }
    }
};

/* For the lane's two heads of each n-tile: the tokens they see of a part, [first, end). */
template <class T>
struct Seen {
    int first[T::NT][2], end[T::NT][2];

    __device__ void load(const mai_cu_params &p, const Item &x, int segment, int part_end)
    {
        const int c = threadIdx.x & 3, heads = heads_of(p, x.block);
        const macattn_cuda_decision *d = p.found + (size_t)x.row * p.n_heads + first_head(p, x);
        const bool own = segment <= MAI_FAR && decides(p) && x.outcome != MAI_NO_CANDIDATE;
        const bool is_old = T::JUDGES && segment == MAI_OLD;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int head = 8 * j + 2 * c + i;
                const int start = own && head < heads ? __ldcg(&d[head].start) : 0;
                first[j][i] = is_old ? 0 : start;
                end[j][i] = head >= heads ? 0 : is_old ? min(start, part_end) : part_end;
            }
        }
    }
};

__device__ __forceinline__ float logit(const mai_cu_params &p, float factor, float s)
{
    if (!(p.softcap > 0)) return s * factor;
    /* tanh(x) = 1 - 2 / (exp(2 x) + 1); exp may overflow to infinity. */
    const float e = fast_exp2(s * factor * (2.0f / p.softcap));
    return p.softcap * LOG2E * (1.0f - __fdividef(2.0f, e + 1.0f));
}

/* Scores of 16 tokens: rows g and g + 8, heads 2c and 2c + 1 of each n-tile. */
template <class T>
__device__ __forceinline__ void scores(float s[T::NT][4], const Queries<T> &q, uint32_t k_tile)
{
    float even[T::NT][4] = {}, odd[T::NT][4] = {}; /* two chains of products */
#pragma unroll
    for (int i = 0; i < T::D / 16; i += 2) {
        uint32_t a[2][4];
        if constexpr (T::Kv::KSTEPS == 2) {
            T::Kv::template load_keys<T::PIECES>(a, k_tile, i);
        } else {
            T::Kv::template load_keys<T::PIECES>(a, k_tile, i);
            T::Kv::template load_keys<T::PIECES>(a + 1, k_tile, i + 1);
        }
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
            T::Kv::multiply(even[j], a[0], q.b[i][j][0], q.b[i][j][1]);
            T::Kv::multiply(odd[j], a[1], q.b[i + 1][j][0], q.b[i + 1][j][1]);
        }
    }
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = even[j][i] + odd[j][i];
    }
}

/* Logits to probabilities relative to the new maximum, the old state scaled to it. */
template <class T>
__device__ __forceinline__ void softmax(const mai_cu_params &p, float factor, float s[T::NT][4],
                                        State<T> &state, const Seen<T> &seen, int t)
{
    const int g = (threadIdx.x & 31) / 4;
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
        float scale[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int first = seen.first[j][h], end = seen.end[j][h];
            const int t_low = t + g, t_high = t + g + 8;
            float low = logit(p, factor, s[j][h]), high = logit(p, factor, s[j][2 + h]);
            if (t_low < first || t_low >= end) low = -INFINITY;
            if (t_high < first || t_high >= end) high = -INFINITY;
            float top = fmaxf(low, high);
            for (int i = 4; i < 32; i <<= 1) top = fmaxf(top, __shfl_xor_sync(ALL, top, i));
            top = fmaxf(top, state.top[j][h]);
            const float base = top == -INFINITY ? 0.0f : top;
            scale[h] = fast_exp2(state.top[j][h] - base);
            state.top[j][h] = top;
            s[j][h] = fast_exp2(low - base);
            s[j][2 + h] = fast_exp2(high - base);
            state.sum[j][h] = state.sum[j][h] * scale[h] + s[j][h] + s[j][2 + h];
        }
#pragma unroll
        for (int m = 0; m < T::D / 16; m++) {
            state.o[m][j][0] *= scale[0], state.o[m][j][1] *= scale[1];
            state.o[m][j][2] *= scale[0], state.o[m][j][3] *= scale[1];
        }
    }
}

template <class T>
__device__ __forceinline__ void add_values(const float s[T::NT][4], State<T> &state,
                                           uint32_t v_tile)
{
    uint32_t probability[T::NT][2];
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
        probability[j][0] = transpose_matrix(T::Kv::pack(s[j][0], s[j][1]));
        probability[j][1] = transpose_matrix(T::Kv::pack(s[j][2], s[j][3]));
    }
#pragma unroll
    for (int m = 0; m < T::D / 16; m += T::Kv::MTILES) {
        uint32_t a[T::Kv::MTILES][4];
        T::Kv::template load_values<T::PIECES>(a, v_tile, T::Kv::MTILES == 2 ? m : m);
#pragma unroll
        for (int i = 0; i < T::Kv::MTILES; i++) {
#pragma unroll
            for (int j = 0; j < T::NT; j++) {
                T::Kv::multiply(state.o[m + i][j], a[i], probability[j][0], probability[j][1]);
            }
        }
    }
}

/* ------------------------------------------------------------------------------------- parts -- */

/* What a warp knows of the heads of a group that it completes: head warp + k * WARPS in slot k. */
template <class T>
struct Heads {
    Reused<T::V, T::JUDGES> reused[T::SLOTS];
    Sum<T::V> far[T::SLOTS], out[T::SLOTS]; /* of what this block computed, if that is all */
    Sum<T::V> old[T::SLOTS];                /* from partial results, when the group is complete */

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
            reused[k].fetch_decision(p, x.row, first_head(p, x) + head, x.outcome);
        });
    }

    __device__ void begin(const mai_cu_params &p, const Item &x)
    {
        each(heads_of(p, x.block), [&](int k, int head) {
            reused[k].fetch_summary(p, x.row, first_head(p, x) + head);
        });
        clear();
    }

    __device__ void clear()
    {
#pragma unroll
        for (int k = 0; k < T::SLOTS; k++) far[k].clear(), out[k].clear();
    }

    /* What all parts of a class came to, normalised. */
    __device__ __forceinline__ void set(int k, int which, const Sum<T::V> &sum)
    {
        if (T::JUDGES && which == MAI_CLASS_OLD) old[k] = sum;
        if (which == MAI_CLASS_FAR) far[k] = sum;
        if (which == MAI_CLASS_OUT) out[k] = sum;
    }

    __device__ void complete(const mai_cu_params &p, const Item &x)
    {
        each(heads_of(p, x.block), [&](int k, int head) {
            complete_head<T::V, T::JUDGES>(p, x.row, first_head(p, x) + head, x.reads.n, x.outcome, reused[k], old[k],
                                far[k], out[k]);
        });
    }
};

/* Where the old class of a group goes: what a block computes whole has no place of its own, but until the
 * block begins its last group, that one's is free. */
__device__ __forceinline__ int place_of_old(const Item &x)
{
    return x.place == MAI_PLACE_WHOLE ? MAI_PLACE_BEGINS : x.place;
}

/* Join the warps' states of a class: kept by the warps that complete the heads or, if other blocks compute
 * some of the group, written as a partial result. The old class always is: it is rare, and registers are not. */
template <class T>
__device__ void join_warps(const mai_cu_params &p, AttendShared<T> &sh, const State<T> &state,
                           const Item &x, int which, Heads<T> &heads)
{
    constexpr int V = T::V;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int head = 8 * j + 2 * c + h;
            float sum = state.sum[j][h];
            for (int i = 4; i < 32; i <<= 1) sum += __shfl_xor_sync(ALL, sum, i);
            if (g == 0) sh.top[warp][head] = state.top[j][h], sh.sum[warp][head] = sum;
#pragma unroll
            for (int m = 0; m < T::D / 16; m++) {
                sh.o[warp][head][T::Kv::value_dim(m, g, 0)] = state.o[m][j][h];
                sh.o[warp][head][T::Kv::value_dim(m, g, 1)] = state.o[m][j][2 + h];
            }
        }
    }
    __syncthreads();
    heads.each(heads_of(p, x.block), [&](int k, int head) {
        float top = -INFINITY;
        for (int w = 0; w < T::WARPS; w++) top = fmaxf(top, sh.top[w][head]);
        Sum<V> joined;
        joined.clear();
        joined.top = top;
        const float base = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int w = 0; w < T::WARPS; w++) {
            const float weight = fast_exp2(sh.top[w][head] - base);
            joined.sum += weight * sh.sum[w][head];
#pragma unroll
            for (int i = 0; i < V; i++) joined.o[i] += weight * sh.o[w][head][lane * V + i];
        }
        joined.normalise();
        const bool is_old = T::JUDGES && which == MAI_CLASS_OLD;
        if (x.place == MAI_PLACE_WHOLE && !is_old) heads.set(k, which, joined);
        else put_partial<V>(p, partial_at(p, blockIdx.x, place_of_old(x), which, head), joined);
    });
    __syncthreads();
}

/* One warp: what the block has to know of a shared group when it has computed its part. Each lane finds one
 * of the blocks, since every one costs a division. */
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

/* Whether `n` have arrived, this block the last of them; then what the others wrote is visible to all
 * threads of this one. */
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

/* This block's part of a shared group is written. If all parts are, their sums are left in `heads`. */
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
                const Sum<T::V> sum = gather<T::V>(p, parts, which, head, begin, last, step);
                if (is_final) heads.set(k, which, sum);
                else put_partial<T::V>(p, partial_at(p, begin, place, which, head), sum);
            }
        });
        if (is_final) return true;
        uint32_t *bundles = p.arrived + 2 * gridDim.x + group;
        if (!arrives_last<T>(sh, bundles, (n + parts.bundle - 1) / parts.bundle)) return false;
    }
}

/* The old class of a group that only this block computes, which join_warps wrote. */
template <class T>
__device__ void fetch_old(const mai_cu_params &p, const Item &x, Heads<T> &heads)
{
    heads.each(heads_of(p, x.block), [&](int k, int head) {
        heads.old[k].clear();
        if (x.part[MAI_OLD].y < 0) return;
        const int at = partial_at(p, blockIdx.x, place_of_old(x), MAI_CLASS_OLD, head);
        load_partial<T::V>(p.partial_out + (size_t)at * T::D + (threadIdx.x & 31) * T::V, heads.old[k].o);
        heads.old[k].top = __ldcg(p.partial_lse + at);
    });
}

/* All of a group is computed and written. */
template <class T>
__device__ void note_complete(const mai_cu_params &p, AttendShared<T> &sh, const Item &x)
{
    if (!decides(p) || threadIdx.x != 0) return;
    p.outcomes[x.row * p.n_kv_heads + x.kv_head] = x.outcome;
    sh.completed[sh.n_completed++] = x.kv_head;
}

/* Learn from the groups that this block completed: if a KV head's are all complete, by whichever block saw the
 * last of them. */
template <class T>
__device__ void learn(const mai_cu_params &p, AttendShared<T> &sh)
{
    __syncthreads();
    const int n = sh.n_completed;
    if (threadIdx.x < n) {
        const int kv_head = sh.completed[threadIdx.x];
        const unsigned all = p.n_rows * p.blocks_per_kv;
        __threadfence();
        const bool is_last = atomicAdd(&p.learnt[kv_head], 1u) == all - 1;
        if (is_last) p.learnt[kv_head] = 0;
        else sh.completed[threadIdx.x] = -1;
        __threadfence();
    }
    __syncthreads();
    for (int i = threadIdx.x / 32; i < n; i += T::WARPS) {
        if (sh.completed[i] >= 0) learn_group(p, sh.completed[i]);
    }
    if (threadIdx.x == 0) sh.n_completed = 0;
}

template <class T>
__global__ void __launch_bounds__(T::THREADS, 1)
    attend_kernel(const __grid_constant__ mai_cu_params p)
{
    extern __shared__ __align__(128) unsigned char memory[];
    AttendShared<T> &sh = *(AttendShared<T> *)memory;
    const int warp = threadIdx.x / 32;
    Own<T> own;
    own.begin(p); /* not the search's results */
    wait_for_previous();
    const Share share = find_share<T>(p, sh, own);
    if (share.begin == share.end) return;
    const int first_group = sh.first_group, last_group = sh.last_group;
    const float factor = p.scale * LOG2E * p.k_scale;

    for (int g0 = first_group; g0 <= last_group; g0 += T::MOST_ITEMS) {
        if (!sh.listed) {
            __syncthreads();
            list_items<T>(p, sh, g0, own, share);
            __syncthreads();
        }
        const int n_items = min(T::MOST_ITEMS, last_group + 1 - g0);
        Heads<T> heads, ahead;
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
            State<T> state;
            bool is_empty = true;
#pragma unroll 1
            for (int segment = T::FIRST_SEGMENT; segment < MAI_SEGMENTS; segment++) {
                const int2 part = x.part[segment];
                Seen<T> seen;
                if (part.y >= 0) {
                    seen.load(p, x, segment, part.y);
                    if (is_empty) state.clear();
                    is_empty = false;
                }
#pragma unroll 1
                for (int t = part.x + T::TILE * warp; t < part.y; t += T::UNIT) {
                    float s[T::NT][4];
                    copy_wait<T::STAGES - 2>();
                    __syncwarp();
                    scores<T>(s, queries, shared_address(sh.stage[warp][stage][0]));
                    softmax<T>(p, factor, s, state, seen, t);
                    add_values<T>(s, state, shared_address(sh.stage[warp][stage][1]));
                    __syncwarp();
                    loader.next();
                    stage = stage + 1 == T::STAGES ? 0 : stage + 1;
                }
                /* Fresh and near tokens are of one class: the state goes on. */
                if (is_empty || segment == MAI_FRESH) continue;
                join_warps<T>(p, sh, state, x, mai_class_of(segment), heads);
                is_empty = true;
            }
            if (x.place < 0) continue;
            if (x.place != MAI_PLACE_WHOLE) {
                if (!gather_parts<T>(p, sh, x, g0 + i, heads)) continue;
            } else if (T::JUDGES && x.outcome == MAI_REFUSED) {
                fetch_old<T>(p, x, heads);
            }
            heads.complete(p, x);
            if (T::JUDGES) note_complete<T>(p, sh, x);
        }
        copy_wait<0>();
        if (T::JUDGES) learn<T>(p, sh);
    }
}

/* What attend_table.cu lists of an instantiation. */
template <class T, class Judging>
mai_cu_attend_kernel describe(macattn_dtype kv_dtype)
{
    return mai_cu_attend_kernel{(const void *)attend_kernel<T>,
                                (const void *)attend_kernel<Judging>,
                                kv_dtype,
                                T::D,
                                T::HEADS,
                                T::UNIT,
                                T::THREADS,
                                sizeof(AttendShared<T>)};
}

} // namespace mai

#endif /* MAI_CUDA_ATTEND_CUH */
