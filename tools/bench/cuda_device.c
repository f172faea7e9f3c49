/* SPDX-License-Identifier: Apache-2.0 */
/* What the GPU is, in a benchmark's row. */
#include "cuda_device.h"

#include <cuda_runtime_api.h>

void bench_cuda_add_device(cJSON *row)
{
    struct cudaDeviceProp about;
    int device = 0, driver = 0, runtime = 0;
    (void)cudaGetDevice(&device);
    if (cudaGetDeviceProperties(&about, device) != cudaSuccess) return;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    report_add_text(row, "device", about.name);
    report_add_int(row, "multiprocessors", about.multiProcessorCount);
    report_add_int(row, "cuda_driver", driver);
    report_add_int(row, "cuda_runtime", runtime);
}
