/* SPDX-License-Identifier: Apache-2.0 */
/* Scoring runs by their mean keys, and their outliers where these are kept, for the heads of a
 * group: in decoding, and for what a prompt shows.
 *
 * Memory read: head_dim + head_dim / 16 bytes a run, twice that with outliers. A warp takes 16 runs as the rows of
 * tensor-core products and eight heads as the columns, straight from global memory: a quad of lanes
 * reads the 32 codes of a run that share a scale in one sector. Products are added up by these
 * scales. They are of f16 whatever K is: codes are exact in it, and what is rounded to bf16, but
 * for what is beyond its range: then scores are not numbers, and all is read. */
#ifndef MAI_CUDA_SCORE_CUH
#define MAI_CUDA_SCORE_CUH

#include "cuda/run_score.h"
#include "runs.cuh"

namespace mai
{

constexpr int SCORE_THREADS = 256, SCORE_WARPS = SCORE_THREADS / 32, SCORE_HEADS = 8;

/* A group's runs in a row, or those of a prompt's query. */
struct Scored {
    int slot, kv_head, n_runs, first; /* first: mai_select_first */
    int64_t pages;
    const char *q; /* of the group's first head */
    int64_t q_head_stride;
    float *scores; /* [group][stride] */
    int stride;
    float *piece_lse; /* [piece][n_heads], of the group's first head */
};

template <int D>
struct ScoreShared {
    float q[SCORE_HEADS][D + 4];
    float base[SCORE_HEADS]; /* q.common */
    float top[SCORE_WARPS][SCORE_HEADS], sum[SCORE_WARPS][SCORE_HEADS];
};

/* A lane's part of the mean keys, or the outliers, of 16 runs: rows g and g + 8, of each 32 codes
 * eight, and all scales. */
template <int D>
struct KeyTile {
    static constexpr int B = D / 32;
    uint2 codes[2][B];
    uint32_t scales[2][B / 2]; /* two f16 each */

    __device__ __forceinline__ void load(const int8_t *all, const uint16_t *all_scales, size_t row)
    {
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int8_t *from = all + (row + g + 8 * h) * D + 8 * c;
            const uint16_t *scale = all_scales + (row + g + 8 * h) * B;
#pragma unroll
            for (int b = 0; b < B; b++) codes[h][b] = *(const uint2 *)(from + 32 * b);
#pragma unroll
            for (int b = 0; b < B / 2; b++) scales[h][b] = *(const uint32_t *)(scale + 2 * b);
        }
    }

    /* Products with heads 2c and 2c + 1: of row g, then of row g + 8. */
    __device__ __forceinline__ void multiply(const uint32_t q[B][2][2], float s[4]) const
    {
        s[0] = s[1] = s[2] = s[3] = 0;
#pragma unroll
        for (int b = 0; b < B; b++) {
            float sum[4] = {};
            const uint32_t low[2] = {bias_codes(codes[0][b].x), bias_codes(codes[0][b].y)};
            const uint32_t high[2] = {bias_codes(codes[1][b].x), bias_codes(codes[1][b].y)};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t a[4] = {codes_half<0, 1>(low[i]), codes_half<0, 1>(high[i]),
                                       codes_half<2, 3>(low[i]), codes_half<2, 3>(high[i])};
                Half16::multiply(sum, a, q[b][i][0], q[b][i][1]);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const __half2 two = *(const __half2 *)&scales[h][b / 2];
                const float scale = b % 2 ? __high2float(two) : __low2float(two);
                s[2 * h] += scale * sum[2 * h], s[2 * h + 1] += scale * sum[2 * h + 1];
            }
        }
    }
};

/* What a warp scores, tile by tile: two are on their way while one is computed. With outliers these
 * are the same runs' means and outliers, else the means of two tiles. */
template <int D, bool OUTLIERS>
struct KeyTiles {
    KeyTile<D> ahead[2];
    size_t row;

    /* `at`: first of the runs, if there are any. */
    __device__ __forceinline__ void load(const mai_cu_params &p, const Scored &x, int which, int at)
    {
        if (!OUTLIERS || which == 0) row = run_row(p, x.slot, x.kv_head, at);
        if (OUTLIERS && which == 1) ahead[1].load(p.runs.outlier, p.runs.outlier_scale, row);
        else ahead[which].load(p.runs.k, p.runs.k_scale, row);
    }
};

/* Add two scores to a running sum of powers of 2. What is not a number stays out. */
__device__ __forceinline__ void add_scores(float a, float b, float *top, float *sum)
{
    a = fmaxf(a, -INFINITY), b = fmaxf(b, -INFINITY);
    const float most = fmaxf(*top, fmaxf(a, b)), from = most == -INFINITY ? 0.0f : most;
    *sum = *sum * fast_exp2(*top - from) + fast_exp2(a - from) + fast_exp2(b - from);
    *top = most;
}

__device__ __forceinline__ void join_sums(float *top, float *sum, float other_top, float other_sum)
{
    if (other_top == -INFINITY) return;
    const float most = fmaxf(*top, other_top);
    *sum = *sum * fast_exp2(*top - most) + other_sum * fast_exp2(other_top - most);
    *top = most;
}

/* What a lane knows of a slot's runs: how many are made, its dims of what keys are relative to. */
template <int V>
struct MadeRuns {
    int made;
    float common[V];

    /* `first`: the block has the first run. */
    __device__ __forceinline__ void load(const mai_cu_params &p, const Scored &x, bool first)
    {
        const int lane = threadIdx.x & 31;
        const size_t of = runs_of(p, x.slot, x.kv_head);
        float *kept = p.runs.common + of * (32 * V) + lane * V;
        made = __ldcg(p.runs.made + of);
#pragma unroll
        for (int i = 0; i < V; i++) common[i] = __ldcg(kept + i);
        if (made > 0) return;
        common_of<V>(p, x.pages, x.kv_head, common);
#pragma unroll
        for (int i = 0; i < V; i++) {
            if (first && threadIdx.x < 32) kept[i] = common[i];
        }
    }
};

/* The queries of heads [h0, h0 + 8) of the group, rounded as the products take them. */
template <int D>
__device__ __forceinline__ void take_score_queries(const mai_cu_params &p, const Scored &x, int h0,
                                                   const MadeRuns<D / 32> &runs, ScoreShared<D> &sh)
{
    constexpr int V = D / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const int head = min(h0 + warp, p.group - 1);
    float q[V];
    double dot = 0;
    load_values<V>(p.q_dtype, x.q + head * x.q_head_stride, lane * V, q);
    round_query<V>(p.kv_dtype, q);
#pragma unroll
    for (int i = 0; i < V; i++) {
        sh.q[warp][lane * V + i] = q[i];
        dot += (double)q[i] * (double)runs.common[i];
    }
    dot = warp_sum(dot);
    if (lane == 0) sh.base[warp] = (float)dot;
}

/* The queries in shared memory as B operands, in the order of the codes' bytes. */
template <int D>
__device__ __forceinline__ void load_score_queries(const ScoreShared<D> &sh,
                                                   uint32_t q[D / 32][2][2])
{
    const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int b = 0; b < D / 32; b++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int byte = 32 * b + 8 * c + 2 * i;
            q[b][i / 2][i % 2] = Half16::pack(sh.q[g][code_dim(byte)], sh.q[g][code_dim(byte + 1)]);
        }
    }
}

/* A lane's running sums of its two heads, joined over the block: the lse of n pieces, which counts
 * as that of the first. */
template <int D>
__device__ __forceinline__ void finish_pieces(const mai_cu_params &p, const Scored &x, int piece,
                                              int n, int h0, float *top, float *sum,
                                              ScoreShared<D> &sh)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int i = 4; i < 32; i <<= 1) {
            const float other_top = __shfl_xor_sync(ALL, top[h], i);
            const float other_sum = __shfl_xor_sync(ALL, sum[h], i);
            join_sums(&top[h], &sum[h], other_top, other_sum);
        }
        if (g == 0) sh.top[warp][2 * c + h] = top[h], sh.sum[warp][2 * c + h] = sum[h];
    }
    __syncthreads();
    if (threadIdx.x < min(SCORE_HEADS, p.group - h0)) {
        float all_top = -INFINITY, all = 0;
        for (int w = 0; w < SCORE_WARPS; w++)
            join_sums(&all_top, &all, sh.top[w][threadIdx.x], sh.sum[w][threadIdx.x]);
        float *lse = x.piece_lse + (size_t)piece * p.n_heads + h0 + threadIdx.x;
        lse[0] = all == 0 ? -INFINITY : all_top + log2f(all);
        for (int i = 1; i < n; i++) lse[(size_t)i * p.n_heads] = -INFINITY;
    }
    __syncthreads();
}

/* A lane's part of a tile of 16 runs: scores, at x.scores and to its running sums. */
template <int D, bool OUTLIERS>
__device__ __forceinline__ void finish_tile(const mai_cu_params &p, const Scored &x, int h0, int run,
                                            const float *base, const float *means,
                                            const float *outliers, float *top, float *sum)
{
    const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
    const float factor = p.scale * LOG2E * p.k_scale;
    float score[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = run + g + i / 2 * 8, head = h0 + 2 * c + i % 2;
        score[i] = OUTLIERS ? mai_outlier_score(p.softcap, factor, base[i % 2], means[i], outliers[i])
                            : mai_mean_score(p.softcap, factor, base[i % 2], means[i]);
        if (at < x.first || at >= x.n_runs) score[i] = -INFINITY;
        if (head < p.group) x.scores[(size_t)head * x.stride + at] = score[i];
    }
#pragma unroll
    for (int h = 0; h < 2; h++) add_scores(score[h], score[2 + h], &top[h], &sum[h]);
}

/* The whole block: n pieces of a group's runs, made first if they are missing: scores, and their
 * lse. Runs that are not scored get -inf up to the end of the segment. */
template <int D, bool OUTLIERS>
__device__ __forceinline__ void score_pieces(const mai_cu_params &p, const Scored &x, int piece,
                                             int n, ScoreShared<D> &sh)
{
    /* Runs from a tile of a warp to the next, and from where it looks at two to the next two. */
    constexpr int STEP = 16 * SCORE_WARPS, TWO = OUTLIERS ? STEP : 2 * STEP;
    const int warp = threadIdx.x / 32, c = threadIdx.x & 3;
    const int run0 = piece * MAI_CU_PIECE, end = min(run0 + n * MAI_CU_PIECE, x.stride);
    MadeRuns<D / 32> runs;
    runs.load(p, x, run0 == 0);
    if (runs.made < min(end, x.n_runs)) {
        for (int run = max(run0, runs.made) + warp; run < min(end, x.n_runs); run += SCORE_WARPS)
            make_run<D / 32>(p, x.pages, x.kv_head, run, run_row(p, x.slot, x.kv_head, run),
                             runs.common);
        __syncthreads();
    }
#pragma unroll 1
    for (int h0 = 0; h0 < p.group; h0 += SCORE_HEADS) {
        uint32_t q[D / 32][2][2];
        float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
        KeyTiles<D, OUTLIERS> tiles;
        const int begin = run0 + 16 * warp;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int at = begin + (OUTLIERS ? 0 : k * STEP);
            if (at < end) tiles.load(p, x, k, at);
        }
        take_score_queries<D>(p, x, h0, runs, sh);
        __syncthreads();
        load_score_queries<D>(sh, q);
        const float base[2] = {sh.base[2 * c], sh.base[2 * c + 1]};
#pragma unroll 1
        for (int run = begin; run < end; run += TWO) {
            float s[2][4];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int at = run + (OUTLIERS ? 0 : k * STEP);
                const KeyTile<D> now = tiles.ahead[k];
                if (at + TWO < end) tiles.load(p, x, k, at + TWO);
                now.multiply(q, s[k]);
                if (!OUTLIERS && at < end)
                    finish_tile<D, OUTLIERS>(p, x, h0, at, base, s[k], s[k], top, sum);
            }
            if (OUTLIERS) finish_tile<D, OUTLIERS>(p, x, h0, run, base, s[0], s[1], top, sum);
        }
        finish_pieces<D>(p, x, piece, n, h0, top, sum, sh);
    }
}

/* One warp: the lse of all of a group's runs for a head, natural. */
__device__ __forceinline__ float all_pieces(const mai_cu_params &p, const Scored &x, int head)
{
    const int lane = threadIdx.x & 31;
    float top = -INFINITY, sum = 0;
    for (int i = lane; i * MAI_CU_PIECE < x.n_runs; i += 32)
        join_sums(&top, &sum, __ldcg(x.piece_lse + (size_t)i * p.n_heads + head), 1.0f);
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
        const float other_top = __shfl_xor_sync(ALL, top, i);
        const float other_sum = __shfl_xor_sync(ALL, sum, i);
        join_sums(&top, &sum, other_top, other_sum);
    }
    return sum == 0 ? -INFINITY : (top + log2f(sum)) * LN2;
}

} // namespace mai

#endif /* MAI_CUDA_SCORE_CUH */
