/* SPDX-License-Identifier: Apache-2.0 */
/* A run's score (core/policy/select.h), in powers of 2: the same on host and device, so that it can
 * be tested without a GPU. */
#ifndef MAI_CUDA_RUN_SCORE_H
#define MAI_CUDA_RUN_SCORE_H

#include "launch.h"

#define MAI_REST_LOG2 3.90689059560851852932f /* of a run's tokens without the outlier */

#ifdef __CUDA_ARCH__
#    define MAI_EXP2(y, x) asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x))
#    define MAI_LOG2(y, x) asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x))
#else
#    define MAI_EXP2(y, x) (y = exp2f(x))
#    define MAI_LOG2(y, x) (y = log2f(x))
#endif

/* log2(2^a + 2^b); not a number if a or b is none. */
MAI_HOST_DEVICE float mai_add_log2(float a, float b)
{
    const float off = a - b;
    float less, more;
    MAI_EXP2(less, -fabsf(off));
    MAI_LOG2(more, 1.0f + less);
    return fmaxf(a, b) + more + 0.0f * off;
}

#undef MAI_EXP2
#undef MAI_LOG2

/* By the mean key alone, as often as it has tokens. `factor`: the scale times log2(e); `mean`: the
 * product of the query and the mean, less `base`, that of the query and what all runs have in
 * common. */
MAI_HOST_DEVICE float mai_mean_score(mai_softcap softcap, float factor, float base, float mean)
{
    const float logit = (mean + base) * factor;
    return (softcap.top > 0 ? mai_softcapped(softcap, logit) : logit) + MAI_CU_RUN_SHIFT;
}

/* And by the outlier, which counts by itself. The others' mean is (16 mean - outlier) / 15. */
MAI_HOST_DEVICE float mai_outlier_score(mai_softcap softcap, float factor, float base, float mean,
                                        float outlier)
{
    float others = (mean + base) * factor + (mean - outlier) * (factor * (1.0f / 15.0f));
    float one = (outlier + base) * factor;
    if (softcap.top > 0) {
        others = mai_softcapped(softcap, others);
        one = mai_softcapped(softcap, one);
    }
    return mai_add_log2(others + MAI_REST_LOG2, one);
}

#endif /* MAI_CUDA_RUN_SCORE_H */
