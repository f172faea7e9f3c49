/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU object on the host. */
#ifndef MAI_CUDA_OBJECT_H
#define MAI_CUDA_OBJECT_H

#include <cuda_runtime_api.h>

#include "core/base.h"
#include "cuda/launch.h"

enum { MAX_MEMORY = 64 };

struct macattn_cuda {
    macattn_config cfg; /* validated, all defaults resolved */
    macattn_cuda_config cuda;
    const mai_cu_attend_kernel *kernel;
    mai_cu_params params; /* what does not change from call to call */
    int n_blocks;         /* of the attention kernel: as many as run at a time */
    int n_select_blocks;  /* of the one that selects */
    cudaStream_t stats_stream;
    mai_cu_counters *host_counters;             /* page-locked, [n_layers][n_heads] */
    mai_cu_group_counters *host_group_counters; /* [n_layers][n_kv_heads], NULL unless it judges */
    void *memory[MAX_MEMORY];                   /* device memory, to be freed */
    int n_memory;
    mai_cu_prompt prompt; /* its work memory */
    char error[320];
};

#endif /* MAI_CUDA_OBJECT_H */
