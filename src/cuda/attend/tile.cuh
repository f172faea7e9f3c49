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
    int token, token_after; /* SELECTS: which token those are */
    const int32_t *list;    /* SELECTS: of the runs that are read; NULL: all tokens */
    int run_after;          /* of the list: of the tile after the one after */
    const float *scores;    /* SELECTS: of the item's first head */
    int score_stride;
    const char *k, *v;
    int stage;

    __device__ Loader(const mai_cu_params &p_, AttendShared<T> &sh_, int n)
        : p(p_), sh(sh_), n_items(n), warp(threadIdx.x / 32), lane(threadIdx.x % 32), item(0),
          segment(-1), t(0), t1(0), pages(0), page(0), page_after(0), token(0), token_after(0),
          list(nullptr), run_after(0), scores(nullptr), score_stride(0), k(nullptr), v(nullptr), stage(0)
    {
        seek();
    }

    /* The run that a tile's tokens are of. It is loaded a tile before the page it leads to is, so
     * that none of the two waits for the other. */
    __device__ int run_of(int tile) const
    {
        return list && tile < t1 ? __ldcg(list + (tile >> MAI_CU_RUN_SHIFT)) : 0;
    }

    /* `run`: run_of. Of a tile of means it is their segment. */
    __device__ int page_of(int tile, int run)
    {
        int token = tile + lane % T::TILE;
        if (T::SELECTS) {
            if (segment == MAI_REST)
                return tile < t1 ? (int)__ldg(p.runs.table + pages + (tile >> MAI_CU_SEGMENT_SHIFT))
                                 : 0;
            if (token >= t1) {
                token = 0; /* not read */
            } else if (list) {
                token = run * MAI_CU_RUN + token % MAI_CU_RUN;
            }
            token_after = token;
            if (p.page_shift < 0) return (int)pages;
            return __ldg(p.pages + pages + (token >> p.page_shift));
        }
        if (p.page_shift < 0) return (int)pages;
        return token < t1 ? __ldg(p.pages + pages + (token >> p.page_shift)) : 0;
    }

    /* To the next tile, if t is past the segment's end. */
    __device__ void seek()
    {
        page = page_after;
        if (T::SELECTS) token = token_after;
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
            if (T::SELECTS) begin_selected(x);
            const int run = T::SELECTS ? run_of(t) : 0;
            if (T::SELECTS) run_after = run_of(t + T::UNIT);
            page = page_of(t, run);
            if (T::SELECTS) token = token_after;
        }
        page_after = page_of(t + T::UNIT, run_after);
        if (T::SELECTS) run_after = run_of(t + 2 * T::UNIT);
    }

    /* What is particular to segments of a selection. */
    __device__ void begin_selected(const Item &x)
    {
        list = nullptr;
        if (segment > MAI_OLD || !selects(x)) return;
        const mai_cu_choice *choice = choice_of(p, x);
        const size_t first = (size_t)__ldcg(&choice->first);
        const size_t n = ((size_t)__ldcg(&choice->n_runs) + MAI_CU_SEGMENT - 1) / MAI_CU_SEGMENT *
                         MAI_CU_SEGMENT;
        if (segment == MAI_OLD) list = p.lists + first * p.n_kv_heads + x.kv_head * n;
        scores = p.scores + first * p.n_heads + first_head(p, x) * n;
        score_stride = (int)n;
        if (segment == MAI_REST) pages = (int64_t)max(row_slot(p, x.row), 0) * p.runs.most;
    }

    /* A tile of means: where keys go their codes, then the scores by heads; where values go their
     * codes, their scales, the scales of the keys. */
    __device__ void copy_means()
    {
        constexpr int D = T::D, P8 = D / 16;
        const Item &x = sh.items[item];
        const uint32_t to_k = shared_address(sh.stage[warp][stage][0]);
        const uint32_t to_v = shared_address(sh.stage[warp][stage][1]);
        const size_t row = ((size_t)page * p.n_layers + p.layer) * p.n_kv_heads + x.kv_head;
        const size_t at = row * MAI_CU_SEGMENT + t % MAI_CU_SEGMENT;
        const char *k_codes = (const char *)p.runs.k + at * D;
        const char *v_codes = (const char *)p.runs.v + at * D;
        const int heads = heads_of(p, x.block);
#pragma unroll
        for (int j = 0; j < T::TILE * P8 / 32; j++) {
            const int i = lane + 32 * j, to = i / P8 * P8 + piece_at<P8>(i / P8, i % P8);
            copy16(to_v + to * 16, v_codes + i * 16, true);
            if (x.keeps) copy16(to_k + to * 16, k_codes + i * 16, true);
        }
        if (lane < D / 16) {
            const char *k_scale = (const char *)(p.runs.k_scale + at * (D / 32));
            const char *v_scale = (const char *)(p.runs.v_scale + at * (D / 32));
            copy16(to_v + 16 * D + lane * 16, v_scale + lane * 16, true);
            if (x.keeps) copy16(to_v + 17 * D + lane * 16, k_scale + lane * 16, true);
        }
#pragma unroll
        for (int i = lane; i < 4 * T::HEADS; i += 32) {
            const int head = min(i / 4, heads - 1);
            copy16(to_k + 16 * D + i * 16, scores + (size_t)head * score_stride + t + i % 4 * 4,
                   true);
        }
    }

    __device__ void copy()
    {
        if (T::SELECTS && segment == MAI_REST) return copy_means();
        const uint32_t to_k = shared_address(sh.stage[warp][stage][0]);
        const int mask = p.page_shift < 0 ? -1 : (1 << p.page_shift) - 1;
        const int64_t in = (T::SELECTS ? token : t + lane % T::TILE) & mask;
        const int64_t token_k = page * p.k_page_stride + in * p.k_token_stride;
        const int64_t token_v = page * p.v_page_stride + in * p.v_token_stride;
        /* The rows of 32 pieces; those of the next 32 differ in other bits (matrix_address). */
        constexpr int ROWS = 32 / T::PIECES;
        const int row0 = lane / T::PIECES, piece = lane % T::PIECES;
        const uint32_t first =
            to_k + (uint32_t)(row0 * T::PIECES + piece_at<T::PIECES>(row0, piece)) * 16;
#pragma unroll
        for (int j = 0; j < T::TILE / ROWS; j++) {
            const int row = row0 + ROWS * j;
            const int64_t from_k = __shfl_sync(ALL, token_k, row) + piece * 16;
            const int64_t from_v = __shfl_sync(ALL, token_v, row) + piece * 16;
            const uint32_t at = (first ^ (uint32_t)(piece_at<T::PIECES>(ROWS * j, 0) * 16)) +
                                (uint32_t)(ROWS * j * T::PIECES * 16);
            copy16(at, k + from_k, t + row < t1);
            copy16(at + T::TILE_BYTES, v + from_v, t + row < t1);
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

/* One warp's sums of weighted rows of V, or K: transposed, as accumulators. */
template <class T>
struct Rows {
    float of[T::D / 16][T::NT][4];

    __device__ __forceinline__ void clear()
    {
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int m = 0; m < T::D / 16; m++)
                of[m][j][0] = of[m][j][1] = of[m][j][2] = of[m][j][3] = 0.0f;
        }
    }

    __device__ __forceinline__ void rescale(int j, const float scale[2])
    {
#pragma unroll
        for (int m = 0; m < T::D / 16; m++) {
            of[m][j][0] *= scale[0], of[m][j][1] *= scale[1];
            of[m][j][2] *= scale[0], of[m][j][3] *= scale[1];
        }
    }
};

/* One warp's state of a part: for the lane's two heads of each n-tile also the greatest logit and
 * the lane's share of the sum. */
template <class T>
struct State {
    Rows<T> o;
    float top[T::NT][2], sum[T::NT][2];

    __device__ __forceinline__ void clear()
    {
        o.clear();
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
            top[j][0] = top[j][1] = -INFINITY;
            sum[j][0] = sum[j][1] = 0.0f;
        }
    }
};

/* What the softmax of a tile means for sums of keys: how sums so far are scaled, and by what each
 * token's weight differs from that of its value. That is the soft cap's derivative, so that the
 * mean of keys is the gradient of the lse; without a cap it is not set. */
template <class T>
struct KeyWeights {
    float scale[T::NT][2], slope[T::NT][4];
};

/* For the lane's two heads of each n-tile: the tokens they see of a part, [first, end). */
template <class T>
struct Seen {
    int first[T::NT][2], end[T::NT][2];

    __device__ void load(const mai_cu_params &p, const Item &x, int segment, int part_end)
    {
        const int c = threadIdx.x & 3, heads = heads_of(p, x.block);
        const macattn_cuda_decision *d = p.found + (size_t)x.row * p.n_heads + first_head(p, x);
        const bool own = segment <= MAI_FAR && p.reuse &&
                         (!T::JUDGES || x.outcome == MAI_USED || x.outcome == MAI_REFUSED);
        const bool listed = T::SELECTS && segment == MAI_OLD && selects(x);
        const bool is_old = T::JUDGES && segment == MAI_OLD && !listed;
        /* The run that the first tokens end in is listed as a whole. */
        const int skip = listed ? min(p.fresh, x.reads.b) % MAI_CU_RUN : 0;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int head = 8 * j + 2 * c + i;
                const int start = own && head < heads ? __ldcg(&d[head].start) : 0;
                first[j][i] = listed ? skip : is_old ? 0 : start;
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

/* The derivative of the soft cap where it gives `capped`. */
__device__ __forceinline__ float slope_at(const mai_cu_params &p, float capped)
{
    const float x = capped / p.softcap.top;
    return 1.0f - x * x;
}

/* Logits to probabilities relative to the new maximum, the old state scaled to it. */
template <class T>
__device__ __forceinline__ void softmax(const mai_cu_params &p, float factor, float s[T::NT][4],
                                        State<T> &state, const Seen<T> &seen, int t,
                                        KeyWeights<T> &keys)
{
    const int g = (threadIdx.x & 31) / 4;
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
        float *const scale = keys.scale[j];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int first = seen.first[j][h], end = seen.end[j][h];
            const int t_low = t + g, t_high = t + g + 8;
            float low = logit(p, factor, s[j][h]), high = logit(p, factor, s[j][2 + h]);
            if (T::KEEPS && p.softcap.top > 0) {
                keys.slope[j][h] = slope_at(p, low);
                keys.slope[j][2 + h] = slope_at(p, high);
            }
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
        state.o.rescale(j, scale);
    }
}

/* Probabilities as B operands. */
template <class T>
struct Weights {
    uint32_t b[T::NT][2];

    __device__ __forceinline__ void take(const float s[T::NT][4])
    {
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
            b[j][0] = transpose_matrix(T::Kv::pack(s[j][0], s[j][1]));
            b[j][1] = transpose_matrix(T::Kv::pack(s[j][2], s[j][3]));
        }
    }
};

/* Add a tile's rows of V, or of K. */
template <class T>
__device__ __forceinline__ void add_rows(const Weights<T> &weights, Rows<T> &sums, uint32_t tile)
{
#pragma unroll
    for (int m = 0; m < T::D / 16; m += T::Kv::MTILES) {
        uint32_t a[T::Kv::MTILES][4];
        T::Kv::template load_values<T::PIECES>(a, tile, m);
#pragma unroll
        for (int i = 0; i < T::Kv::MTILES; i++) {
#pragma unroll
            for (int j = 0; j < T::NT; j++)
                T::Kv::multiply(sums.of[m + i][j], a[i], weights.b[j][0], weights.b[j][1]);
        }
    }
}

/* Weights of values to weights of keys. Returns whether they differ. */
template <class T>
__device__ __forceinline__ bool weigh_keys(const mai_cu_params &p, float s[T::NT][4],
                                           const KeyWeights<T> &keys)
{
    if (!(p.softcap.top > 0)) return false;
#pragma unroll
    for (int j = 0; j < T::NT; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] *= keys.slope[j][i];
    }
    return true;
}

/* Add a tile's keys. s: weights of values, `weights` the same. */
template <class T>
__device__ __forceinline__ void add_keys(const mai_cu_params &p, float s[T::NT][4],
                                         const KeyWeights<T> &keys, Weights<T> &weights,
                                         Rows<T> &sums, uint32_t k_tile)
{
#pragma unroll
    for (int j = 0; j < T::NT; j++) sums.rescale(j, keys.scale[j]);
    if (weigh_keys<T>(p, s, keys)) weights.take(s);
    add_rows<T>(weights, sums, k_tile);
}

} // namespace mai

#endif /* MAI_CUDA_TILE_CUH */
