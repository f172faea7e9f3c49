/* SPDX-License-Identifier: Apache-2.0 */
/* What the judge needs by many threads (core/policy/judge.h). */
#ifndef MAI_CUDA_JUDGE_CUH
#define MAI_CUDA_JUDGE_CUH

#include "common.cuh"

namespace mai {

/* One warp: mai_layer_unit2, added in the same order, but loaded 32 at a time. */
__device__ __forceinline__ float layer_unit2(const mai_record *records, int n_heads)
{
    const int lane = threadIdx.x & 31;
    float sum = 0;
    for (int h = 0; h < n_heads; h += 32) {
        const float x = h + lane < n_heads ? records[h + lane].output2 : 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) sum += __shfl_sync(ALL, x, i);
    }
    return sum / (float)n_heads;
}

} // namespace mai

#endif /* MAI_CUDA_JUDGE_CUH */
