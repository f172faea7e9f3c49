/* SPDX-License-Identifier: Apache-2.0 */
/* Runs that stand in for their tokens: their scores are known (select.cu), so that there is neither
 * a product for them nor a maximum to look for; their values, and their keys, are codes.
 *
 * The codes are widened to bf16, which is exact; weights are multiplied by the codes' scales before
 * they are rounded to bf16, whose range is that of floats. */
#ifndef MAI_CUDA_REST_CUH
#define MAI_CUDA_REST_CUH

#include "cuda/device/runs.cuh"
#include "tile.cuh"

namespace mai
{

/* For runs 2c, 2c + 1, 2c + 8, 2c + 9 of a tile and the lane's head lane / 4 of each n-tile. */
template <class T>
struct MeanWeights {
    float w[T::NT][4];

    /* As B operands, multiplied by the runs' scales of 32 dims. */
    __device__ __forceinline__ void take(const float scale[4], uint32_t b[T::NT][2]) const
    {
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
            b[j][0] = Brain16::pack(w[j][0] * scale[0], w[j][1] * scale[1]);
            b[j][1] = Brain16::pack(w[j][2] * scale[2], w[j][3] * scale[3]);
        }
    }
};

/* What a lane needs of a tile's codes and their scales: loaded before any of it is wanted. */
template <class T>
struct MeanTile {
    static constexpr int B = T::D / 32;
    uint32_t codes[B][4];      /* as widen_matrices takes them */
    uint32_t scales[4][B / 2]; /* two f16 each, of the runs that MeanWeights has */

    __device__ __forceinline__ void load(const unsigned char *tile, const unsigned char *scale)
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
            for (int n = 0; n < B / 2; n++) scales[i][n] = row[n];
        }
    }

    /* A run that weighs nothing may have any scale: those that have not been made, do. */
    __device__ __forceinline__ void forget(const MeanWeights<T> &weights)
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool any = false;
#pragma unroll
            for (int j = 0; j < T::NT; j++) any = any || weights.w[j][i] != 0;
#pragma unroll
            for (int n = 0; n < B / 2; n++) scales[i][n] = any ? scales[i][n] : 0;
        }
    }

    __device__ __forceinline__ void add(const MeanWeights<T> &weights, Rows<T> &sums)
    {
        forget(weights);
#pragma unroll
        for (int block = 0; block < B; block++) {
            uint32_t a[2][4], b[T::NT][2];
            float scale[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const __half2 two = *(const __half2 *)&scales[i][block / 2];
                scale[i] = block % 2 ? __high2float(two) : __low2float(two);
            }
            weights.take(scale, b);
            widen_matrices(a, codes[block]);
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < T::NT; j++)
                    Brain16::multiply(sums.of[2 * block + i][j], a[i], b[j][0], b[j][1]);
            }
        }
    }
};

/* A warp's sums of weights: of the lane's head lane / 4 of each n-tile, and of its runs. Weights
 * are relative to the least score that is read: below 1. */
template <class T>
struct MeanSums {
    float least[T::NT], sum[T::NT], slopes[T::NT];

    __device__ __forceinline__ MeanSums(const mai_cu_params &p, const Item &x)
    {
        const int g = (threadIdx.x & 31) / 4, heads = heads_of(p, x.block);
        const float *from = p.least + (size_t)x.row * p.n_heads + first_head(p, x);
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
            least[j] = __ldcg(from + min(8 * j + g, heads - 1));
            sum[j] = slopes[j] = 0;
        }
    }

    /* Scores of a tile, [heads][16], to weights. */
    __device__ __forceinline__ void take(const mai_cu_params &p, int heads, const float *scores,
                                         MeanWeights<T> &values, MeanWeights<T> &keys)
    {
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float s = scores[(8 * j + g) * 16 + 2 * c + i % 2 + i / 2 * 8];
                const float w = 8 * j + g < heads ? fast_exp2(s - least[j]) : 0.0f;
                values.w[j][i] = keys.w[j][i] = w;
                if (p.softcap.top > 0)
                    keys.w[j][i] = w != 0 ? w * slope_at(p, s - MAI_CU_RUN_SHIFT) : 0.0f;
                sum[j] += w, slopes[j] += keys.w[j][i];
            }
        }
    }

    /* Sums to where a tile of tokens would have left them: heads 2c and 2c + 1, of one lane of
     * eight. The keys get what they are relative to. */
    __device__ __forceinline__ void finish(bool keeps, const float *common, State<T> &state,
                                           Rows<T> &keys)
    {
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int i = 1; i < 4; i <<= 1) {
                sum[j] += __shfl_xor_sync(ALL, sum[j], i);
                slopes[j] += __shfl_xor_sync(ALL, slopes[j], i);
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int owner = (2 * c + h) * 4;
                const float all = __shfl_sync(ALL, sum[j], owner);
                const float slope = __shfl_sync(ALL, slopes[j], owner);
                state.top[j][h] = __shfl_sync(ALL, least[j], owner);
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
        tile.load(v, v + 16 * D);
        sums.take(p, heads, (const float *)(k + 16 * D), values, for_keys);
        tile.add(values, state.o);
        if (keeps) {
            tile.load(k, v + 17 * D);
            tile.add(for_keys, keys);
        }
        __syncwarp();
        loader.next();
        stage = stage + 1 == T::STAGES ? 0 : stage + 1;
    }
    const size_t of = runs_of(p, max(row_slot(p, x.row), 0), x.kv_head);
    sums.finish(keeps, p.runs.common + of * D, state, keys);
}

} // namespace mai

#endif /* MAI_CUDA_REST_CUH */
