/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the GPU share: device memory, and comparison with the float64 reference. */
#ifndef TEST_CUDA_GPU_H
#define TEST_CUDA_GPU_H

#include <cuda_runtime_api.h>

#include "macattn/cuda.h"
#include "support.h"

#define F16 MACATTN_DTYPE_F16
#define BF16 MACATTN_DTYPE_BF16
#define F8 MACATTN_DTYPE_F8_E4M3
#define F32 MACATTN_DTYPE_F32

#define assert_cuda(expr)                                                \
    do {                                                                 \
        const cudaError_t cuda_status_ = (expr);                         \
        if (cuda_status_ != cudaSuccess)                                 \
            fail_msg("%s: %s", #expr, cudaGetErrorString(cuda_status_)); \
    } while (0)

#define assert_gpu_ok(m, expr)                                                \
    do {                                                                      \
        const macattn_status gpu_status_ = (expr);                            \
        if (gpu_status_ != MACATTN_OK) {                                      \
            fail_msg("%s: %s: %s", #expr, macattn_status_string(gpu_status_), \
                     macattn_cuda_last_error(m));                             \
        }                                                                     \
    } while (0)

/* MACATTN_TEST_SMALL=1: fewer and shorter cases, for compute-sanitizer. */
bool small(void);
/* Device memory, all 0xff: NaN in every type. */
void *device(size_t bytes);
void *upload(const void *from, size_t bytes);
/* To memory that is to be freed, when the device is done. */
void *download(const void *from, size_t bytes);
macattn_cuda *gpu_create(const macattn_config *cfg, int32_t max_rows, macattn_dtype out_dtype);
/* Relative error allowed: probabilities are rounded to V's type (fp8: f16), outputs to
 * out_dtype. */
double relative_tolerance(macattn_dtype kv, macattn_dtype out);
/* || got - want || <= tolerance ||want|| for one head; NaN where the reference has NaN, and only
 * there. */
void check_head(const char *what, int32_t row, int32_t head, const char *got, macattn_dtype dtype,
                const double *want, int32_t d, double tolerance);
void check_lse(const char *what, int32_t row, int32_t head, float got, double want);
/* Whether there is none; main then ends with 77. */
bool gpu_missing(void);

#endif /* TEST_CUDA_GPU_H */
