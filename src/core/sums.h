/* SPDX-License-Identifier: Apache-2.0 */
/* Sums over a head's values, whose number is a multiple of 8: eight side by side, so that they
 * need not wait for one another, always in the same order. */
#ifndef MAI_SUMS_H
#define MAI_SUMS_H

#define MAI_SUM_LANES 8

static inline float mai_sum_lanes(const float *x)
{
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* |x|^2 */
static inline float mai_norm2(const float *x, int n)
{
    float sum[MAI_SUM_LANES] = {0};
    for (int i = 0; i < n; i += MAI_SUM_LANES) {
        for (int j = 0; j < MAI_SUM_LANES; j++) sum[j] += x[i + j] * x[i + j];
    }
    return mai_sum_lanes(sum);
}

/* |x - y|^2 */
static inline float mai_off2(const float *x, const float *y, int n)
{
    float sum[MAI_SUM_LANES] = {0};
    for (int i = 0; i < n; i += MAI_SUM_LANES) {
        for (int j = 0; j < MAI_SUM_LANES; j++) {
            const float off = x[i + j] - y[i + j];
            sum[j] += off * off;
        }
    }
    return mai_sum_lanes(sum);
}

/* x.y, in double: keys have large parts in common, which cancel later. */
static inline double mai_dot(const float *x, const float *y, int n)
{
    double sum[MAI_SUM_LANES] = {0};
    for (int i = 0; i < n; i += MAI_SUM_LANES) {
        for (int j = 0; j < MAI_SUM_LANES; j++) sum[j] += (double)x[i + j] * (double)y[i + j];
    }
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

#endif /* MAI_SUMS_H */
