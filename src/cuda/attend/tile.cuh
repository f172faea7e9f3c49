/* SPDX-License-Identifier: Apache-2.0 */
/* A warp's tiles of 16 tokens: copies into shared memory, scores, softmax, sums of values. */
#ifndef MAI_CUDA_TILE_CUH
#define MAI_CUDA_TILE_CUH

#include "traits.cuh"

namespace mai {

/* One warp's tiles in the order in which it computes them, ahead of the computation. */
template <class T>
struct Loader {
    const mai_cu_params &p;
    AttendShared<T> &sh;
    const int n_items, warp, lane;
    int item, segment; /* of the next tile to copy; item == n_items: none */
    int t, t1;
    int64_t pages;        /* row_pages */
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

/* The queries of an item as B operands. They are on their way to registers while the item before is
 * computed, and change hands in shared memory, in the room for joining, which is free between
 * items. */
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

/* One warp's state of a part: O^T as accumulators, and for the lane's two heads of each n-tile the
 * greatest logit and the lane's share of the sum. */
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
    return p.softcap.top > 0 ? mai_softcapped(p.softcap, s * factor) : s * factor;
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
        T::Kv::template load_values<T::PIECES>(a, v_tile, m);
#pragma unroll
        for (int i = 0; i < T::Kv::MTILES; i++) {
#pragma unroll
            for (int j = 0; j < T::NT; j++) {
                T::Kv::multiply(state.o[m + i][j], a[i], probability[j][0], probability[j][1]);
            }
        }
    }
}

} // namespace mai

#endif /* MAI_CUDA_TILE_CUH */
