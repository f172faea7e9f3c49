/* SPDX-License-Identifier: Apache-2.0 */
/* What the GPU is, in a benchmark's row. */
#ifndef MACATTN_TOOLS_BENCH_CUDA_DEVICE_H
#define MACATTN_TOOLS_BENCH_CUDA_DEVICE_H

#include "bench.h"

void bench_cuda_add_device(cJSON *row);

#endif /* MACATTN_TOOLS_BENCH_CUDA_DEVICE_H */
