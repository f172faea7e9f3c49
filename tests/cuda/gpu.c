/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

bool small(void)
{
    return test_env("MACATTN_TEST_SMALL", 0) != 0;
}

void *device(size_t bytes)
{
    void *p = NULL;
    assert_cuda(cudaMalloc(&p, bytes ? bytes : 1));
    assert_cuda(cudaMemset(p, 0xff, bytes ? bytes : 1)); /* NaN in every type */
    return p;
}

void *upload(const void *from, size_t bytes)
{
    void *p = device(bytes);
    assert_cuda(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

void *download(const void *from, size_t bytes)
{
    void *p = malloc(bytes);
    assert_non_null(p);
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaMemcpy(p, from, bytes, cudaMemcpyDeviceToHost));
    return p;
}

macattn_cuda *gpu_create(const macattn_config *cfg, int32_t max_rows, macattn_dtype out_dtype)
{
    macattn_cuda *m = NULL;
    macattn_cuda_config c;
    char error[256] = "";
    assert_int_equal(macattn_cuda_config_init(&c), MACATTN_OK);
    c.max_rows = max_rows;
    c.out_dtype = out_dtype;
    if (macattn_cuda_create(cfg, &c, &m, error, sizeof error) != MACATTN_OK) fail_msg("%s", error);
    return m;
}

double relative_tolerance(macattn_dtype kv, macattn_dtype out)
{
    const double p = kv == MACATTN_DTYPE_BF16 ? 4e-3 : 6e-4;
    const double o = out == MACATTN_DTYPE_BF16 ? 3e-3 : out == MACATTN_DTYPE_F16 ? 4e-4 : 0;
    return p + o;
}

void check_head(const char *what, int32_t row, int32_t head, const char *got, macattn_dtype dtype,
                const double *want, int32_t d, double tolerance)
{
    double error = 0, norm = 0;
    for (int32_t i = 0; i < d; i++) {
        const double x = ref_value(dtype, got, i);
        if (isnan(want[i]) != isnan(x))
            fail_msg("%s: row %d head %d dim %d is %g, not %g", what, row, head, i, x, want[i]);
        if (isnan(x)) continue;
        error += (x - want[i]) * (x - want[i]);
        norm += want[i] * want[i];
    }
    if (!(sqrt(error) <= tolerance * sqrt(norm) + 1e-6))
        fail_msg("%s: row %d head %d: relative error %g > %g", what, row, head, sqrt(error / norm),
                 tolerance);
}

void check_lse(const char *what, int32_t row, int32_t head, float got, double want)
{
    if (isnan(want) && isnan(got)) return;
    if ((double)got == want) return; /* infinities */
    if (!(fabs((double)got - want) <= 2e-3 + 2e-4 * fabs(want)))
        fail_msg("%s: row %d head %d: lse %.9g, not %.9g", what, row, head, (double)got, want);
}

bool gpu_missing(void)
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0) return false;
    printf("no GPU\n");
    return true;
}
