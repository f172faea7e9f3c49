/* SPDX-License-Identifier: Apache-2.0 */
/* Runs that stand in for their tokens: their scores are known (select.cu), so that there is neither
 * a product for them nor a maximum to look for; their values, and their keys, are codes.
 *
 * Both operands are f16 whatever K and V are: codes are exact in it, and times their scales as good
 * as these, which are f16 themselves; what would not be in its range never stands in (make_run).
 * Weights are taken relative to a score so far below the least that is read that they use the range
 * of f16 to its upper end: what is lost below weighs 2^-38 of it. */
#ifndef MAI_CUDA_REST_CUH
#define MAI_CUDA_REST_CUH

#include "cuda/device/runs.cuh"
#include "tile.cuh"

namespace mai
{

constexpr float REST_SHIFT = 14; /* weights are below 2^REST_SHIFT */

/* For runs 2c, 2c + 1, 2c + 8, 2c + 9 of a tile and the lane's head lane / 4 of each n-tile, as B
 * operands. */
template <class T>
struct MeanWeights {
    uint32_t b[T::NT][2];
};

/* What a lane needs of a tile's codes and their scales: loaded before any of it is wanted. */
template <class T>
struct MeanTile {
    static constexpr int B = T::D / 32;
    uint32_t codes[B][4];      /* as widen_matrices takes them */
    uint32_t scales[4][B / 2]; /* two f16 each, of the runs that MeanWeights has */

    /* `stands`: of these runs. What does not stand in may have any scale: runs that have not been
     * made, do. */
    __device__ __forceinline__ void load(const unsigned char *tile, const unsigned char *scale,
                                         const bool stands[4])
    {
        const int c = threadIdx.x & 3;
#pragma unroll
        for (int block = 0; block < B; block++)
            load_matrices_transposed(
                codes[block], matrix_address<T::D / 16, false>(shared_address(tile), 2 * block));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t *row =
                (const uint32_t *)scale + (2 * c + i % 2 + i / 2 * 8) * (B / 2);
#pragma unroll
            for (int n = 0; n < B / 2; n++) scales[i][n] = stands[i] ? row[n] : 0;
        }
    }

    __device__ __forceinline__ void add(const MeanWeights<T> &weights, Rows<T> &sums) const
    {
#pragma unroll
        for (int block = 0; block < B; block++) {
            const unsigned which = block % 2 ? 0x7632 : 0x5410;
            const uint32_t low = __byte_perm(scales[0][block / 2], scales[1][block / 2], which);
            const uint32_t high = __byte_perm(scales[2][block / 2], scales[3][block / 2], which);
            uint32_t a[2][4];
            widen_matrices(a, codes[block], low, high);
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < T::NT; j++)
                    Half16::multiply(sums.of[2 * block + i][j], a[i], weights.b[j][0],
                                     weights.b[j][1]);
            }
        }
    }
};

/* A warp's sums of weights: of the lane's head lane / 4 of each n-tile, and of its runs. */
template <class T>
struct MeanSums {
    float from[T::NT], sum[T::NT], slopes[T::NT]; /* from: the score of weight 1 */

    __device__ __forceinline__ MeanSums(const mai_cu_params &p, const Item &x)
    {
        const int g = (threadIdx.x & 31) / 4, heads = heads_of(p, x.block);
        const float *least = p.least + (size_t)x.row * p.n_heads + first_head(p, x);
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
            from[j] = __ldcg(least + min(8 * j + g, heads - 1)) - REST_SHIFT;
            sum[j] = slopes[j] = 0;
        }
    }

    /* Scores of a tile, [heads][16], to weights. `stands`: whether a run has any. */
    __device__ __forceinline__ void take(const mai_cu_params &p, int heads, const float *scores,
                                         MeanWeights<T> &values, MeanWeights<T> &keys,
                                         bool stands[4])
    {
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float2 s = *(const float2 *)(scores + (8 * j + g) * 16 + 2 * c + 8 * i);
                const bool is_head = 8 * j + g < heads;
                const float w[2] = {is_head ? fast_exp2(s.x - from[j]) : 0.0f,
                                    is_head ? fast_exp2(s.y - from[j]) : 0.0f};
                values.b[j][i] = keys.b[j][i] = Half16::pack(w[0], w[1]);
                sum[j] += w[0] + w[1];
                if (!(p.softcap.top > 0)) continue;
                const float k[2] = {w[0] != 0 ? w[0] * slope_at(p, s.x - MAI_CU_RUN_SHIFT) : 0.0f,
                                    w[1] != 0 ? w[1] * slope_at(p, s.y - MAI_CU_RUN_SHIFT) : 0.0f};
                keys.b[j][i] = Half16::pack(k[0], k[1]);
                slopes[j] += k[0] + k[1];
            }
        }
        /* Of all heads or of none: any one says it. */
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float2 s = *(const float2 *)(scores + 2 * c + 8 * i);
            stands[2 * i] = s.x > -INFINITY, stands[2 * i + 1] = s.y > -INFINITY;
        }
    }

    /* Sums to where a tile of tokens would have left them: heads 2c and 2c + 1, of one lane of
     * eight. The keys get what they are relative to. */
    __device__ __forceinline__ void finish(const mai_cu_params &p, bool keeps, const float *common,
                                           State<T> &state, Rows<T> &keys)
    {
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int i = 1; i < 4; i <<= 1) {
                sum[j] += __shfl_xor_sync(ALL, sum[j], i);
                slopes[j] += __shfl_xor_sync(ALL, slopes[j], i);
            }
            if (!(p.softcap.top > 0)) slopes[j] = sum[j];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int owner = (2 * c + h) * 4;
                const float all = __shfl_sync(ALL, sum[j], owner);
                const float slope = __shfl_sync(ALL, slopes[j], owner);
                state.top[j][h] = __shfl_sync(ALL, from[j], owner);
                state.sum[j][h] = g == 0 ? all : 0.0f;
                if (!keeps) continue;
#pragma unroll
                for (int m = 0; m < T::D / 16; m++) {
                    keys.of[m][j][h] += slope * __ldcg(common + 16 * m + g);
                    keys.of[m][j][2 + h] += slope * __ldcg(common + 16 * m + g + 8);
                }
            }
        }
    }
};

/* One warp's part of the means of an item. */
template <class T>
__device__ __forceinline__ void add_means(const mai_cu_params &p, AttendShared<T> &sh,
                                          const Item &x, int2 part, bool keeps, Loader<T> &loader,
                                          int &stage, State<T> &state, Rows<T> &keys)
{
    constexpr int D = T::D;
    const int warp = threadIdx.x / 32, heads = heads_of(p, x.block);
    MeanSums<T> sums(p, x);
#pragma unroll 1
    for (int t = part.x + T::TILE * warp; t < part.y; t += T::UNIT) {
        copy_wait<T::STAGES - 2>();
        __syncwarp();
        const unsigned char *k = sh.stage[warp][stage][0], *v = sh.stage[warp][stage][1];
        MeanWeights<T> values, for_keys;
        MeanTile<T> tile;
        bool stands[4];
        sums.take(p, heads, (const float *)(k + 16 * D), values, for_keys, stands);
        tile.load(v, v + 16 * D, stands);
        tile.add(values, state.o);
        if (keeps) {
            tile.load(k, v + 17 * D, stands);
            tile.add(for_keys, keys);
        }
        __syncwarp();
        loader.next();
        stage = stage + 1 == T::STAGES ? 0 : stage + 1;
    }
    const size_t of = runs_of(p, max(row_slot(p, x.row), 0), x.kv_head);
    sums.finish(p, keeps, p.runs.common + of * D, state, keys);
}

} // namespace mai

#endif /* MAI_CUDA_REST_CUH */
