/* SPDX-License-Identifier: Apache-2.0 */
/* A softmax in the making, of one head: V = head_dim / 32 dims a lane, weights powers of 2. */
#ifndef MAI_CUDA_STATE_CUH
#define MAI_CUDA_STATE_CUH

#include "common.cuh"

namespace mai {

/* Softmax state: output = o / sum, log2-sum-exp = top + log2(sum). */
template <int V>
struct Sum {
    float o[V], sum, top;

    __device__ void clear()
    {
#pragma unroll
        for (int i = 0; i < V; i++) o[i] = 0;
        sum = 0, top = -INFINITY;
    }

    __device__ float lse() const { return sum == 0 ? -INFINITY : top + log2f(sum); }

    __device__ void add(float lse, const float *x)
    {
        if (lse == -INFINITY) return;
        if (lse > top) scale_to(lse);
        const float weight = fast_exp2(lse - top);
        sum += weight;
#pragma unroll
        for (int i = 0; i < V; i++) o[i] += weight * x[i];
    }

    __device__ void scale_to(float lse)
    {
        const float scale = top == -INFINITY ? 0.0f : fast_exp2(top - lse);
#pragma unroll
        for (int i = 0; i < V; i++) o[i] *= scale;
        sum *= scale;
        top = lse;
    }

    __device__ void normalise()
    {
        const float inverse = sum == 0 ? 0.0f : 1.0f / sum;
        const float l = lse();
#pragma unroll
        for (int i = 0; i < V; i++) o[i] *= inverse;
        sum = l == -INFINITY ? 0.0f : 1.0f;
        top = l;
    }
};

} // namespace mai

#endif /* MAI_CUDA_STATE_CUH */
