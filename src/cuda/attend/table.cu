/* SPDX-License-Identifier: Apache-2.0 */
/* Which instantiation computes a shape, and its launch. */
#include <cuda_runtime.h>
#include <initializer_list>

#include "cuda/launch.h"

#define MAI_ATTEND(name, kv, dtype, dim, heads, warps, stages) \
    extern const mai_cu_attend_kernel mai_cu_attend_##name;
#include "kernels.inc"
#undef MAI_ATTEND

static const mai_cu_attend_kernel *const table[] = {
#define MAI_ATTEND(name, kv, dtype, dim, heads, warps, stages) &mai_cu_attend_##name,
#include "kernels.inc"
#undef MAI_ATTEND
};

/* The one with the fewest passes over a group, then the fewest idle columns, then the most copies
 * in flight: the table is in that order. */
extern "C" const mai_cu_attend_kernel *mai_cu_attend_find(macattn_dtype kv_dtype, int head_dim,
                                                          int group, size_t shared_limit)
{
    const mai_cu_attend_kernel *best = nullptr;
    int best_passes = 0;
    for (const mai_cu_attend_kernel *k : table) {
        if (k->kv_dtype != kv_dtype || k->head_dim != head_dim || k->shared_bytes > shared_limit)
            continue;
        const int passes = (group + k->heads - 1) / k->heads;
        if (!best || passes < best_passes) best = k, best_passes = passes;
    }
    return best;
}

extern "C" int mai_cu_attend_prepare(const mai_cu_attend_kernel *kernel, int *blocks_per_sm)
{
    for (const void *function :
         {kernel->plain, kernel->keeping, kernel->judging, kernel->selecting}) {
        if (!function) continue;
        const cudaError_t status = cudaFuncSetAttribute(
            function, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)kernel->shared_bytes);
        if (status != cudaSuccess) return status;
    }
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks_per_sm, kernel->plain,
                                                         kernel->threads, kernel->shared_bytes);
}

static const void *which(const mai_cu_attend_kernel *kernel, const mai_cu_params *p)
{
    if (!p->reuse) return kernel->plain;
    if (p->judges) return p->selects ? kernel->selecting : kernel->judging;
    return p->keys ? kernel->keeping : kernel->plain;
}

/* After the search the kernel may be brought in before that one has ended: it waits for its results
 * itself. */
extern "C" int mai_cu_attend_launch(const mai_cu_attend_kernel *kernel, const mai_cu_params *p,
                                    int n_blocks, int after_match, void *stream)
{
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_blocks);
    config.blockDim = dim3((unsigned)kernel->threads);
    config.dynamicSmemBytes = kernel->shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = &attribute;
    config.numAttrs = after_match ? 1 : 0;
    void *args[] = {(void *)p};
    return cudaLaunchKernelExC(&config, which(kernel, p), args);
}
