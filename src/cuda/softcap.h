/* SPDX-License-Identifier: Apache-2.0 */
/* The soft cap of logits, cap * tanh(x / cap), in powers of 2: x and cap are both multiplied by
 * log2(e). The same on host and device, so that it can be tested without a GPU.
 *
 * Its relative error is at most 2.5 units in the last place for every cap and every x: what a large
 * cap hardly changes must come out unchanged, so tanh itself, whose absolute error would be
 * multiplied by the cap, is computed only where it is large. With u = 2 x / cap (x in powers of 2,
 * cap as given) the argument of tanh is y = u ln(2) / 2, and
 *
 *     |y| < 0.8    x * (1 + u^2 P(u^2)), P a minimax polynomial for (tanh(y) / y - 1) / u^2; its
 *                  error is 1.1 * 2^-24. Where u^2 underflows the result is x.
 *     else         cap * (1 - 2 / (2^|u| + 1)) with the sign of x; the power may be infinite. */
#ifndef MAI_CUDA_SOFTCAP_H
#define MAI_CUDA_SOFTCAP_H

#include <float.h>
#include <math.h>

#include "core/host_device.h"

typedef struct mai_softcap {
    float top;  /* cap log2(e), 0: none */
    float rate; /* 2 / cap, at most FLT_MAX, so that no x becomes NaN */
} mai_softcap;

MAI_HOST_DEVICE mai_softcap mai_softcap_of(float cap)
{
    mai_softcap s = {0, 0};
    if (!(cap > 0)) return s;
    const double rate = 2.0 / (double)cap;
    s.top = (float)((double)cap * 1.4426950408889634);
    s.rate = rate < (double)FLT_MAX ? (float)rate : FLT_MAX;
    return s;
}

#ifdef __CUDA_ARCH__
#    define MAI_EXP2(y, x) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x))
#    define MAI_DIVIDE(x, y) __fdividef(x, y)
#else
#    define MAI_EXP2(y, x) (y = exp2f(x))
#    define MAI_DIVIDE(x, y) ((x) / (y))
#endif

/* s.top > 0. NaN gives NaN, infinity the cap. */
MAI_HOST_DEVICE float mai_softcapped(mai_softcap s, float x)
{
    const float u = x * s.rate, w = u * u;
    float p = -1.10275877e-7f, e;
    p = fmaf(p, w, 3.99444070e-6f);
    p = fmaf(p, w, -9.21490865e-5f);
    p = fmaf(p, w, 1.92210125e-3f);
    p = fmaf(p, w, -4.00371924e-2f);
    MAI_EXP2(e, fabsf(u));
    const float large = copysignf(s.top * (1.0f - MAI_DIVIDE(2.0f, e + 1.0f)), x);
    return fabsf(u) < 2.3f ? fmaf(w * p, x, x) : large;
}

#undef MAI_EXP2
#undef MAI_DIVIDE

#endif /* MAI_CUDA_SOFTCAP_H */
