/* SPDX-License-Identifier: Apache-2.0 */
/* Vector vocabulary of one lane: plain C. Every other vocabulary has the same words:
 *   VL lanes; v_load_n / v_store_n: the first n < VL lanes, others 0 / untouched
 *   v_max(a, b): b if either is NaN; v_min the same
 *   v_first_n(a, b, n): lanes i < n of a, the others of b; 0 <= n <= VL
 *   v_scale2(a, n): a * 2^n for whole n in [LEAST_POWER, 128]; 2^LEAST_POWER is 0, and may be from
 *     -127 on; 2^128 is infinite
 *   v_f16_of_rows(rows, at): the f16 at byte `at` of VL rows
 *   v_any_above(a, b): whether a > b in any lane
 *   v_where_above(a, b, x, y): lanes of x where a > b, of y elsewhere
 *   v_not_above(a, b): bit i is set unless a > b in lane i
 *   v_hsum(acc, out): out[i] = sum of the lanes of acc[i], i < HSUM, all by the same tree
 *   v_dot_block(block, q, dot): dot[lane] = sum over MAI_CHUNK dims of uint8 row times int8 q */
#ifndef MAI_VEC_H
#define MAI_VEC_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"
#include "core/backend.h"

#define VL 1
#define HSUM 16             /* sums that v_hsum forms at a time */
#define LEAST_POWER -150.0f /* the largest n for which v_scale2 gives 0 */
#define TUNE_SCALAR
#include "tuning.h"

typedef float V;

static inline V v_zero(void)
{
    return 0;
}
static inline V v_set1(float x)
{
    return x;
}
static inline V v_load(const float *p)
{
    return *p;
}
static inline void v_store(float *p, V a)
{
    *p = a;
}
static inline V v_load_n(const float *p, int n)
{
    return n > 0 ? *p : 0;
}
static inline void v_store_n(float *p, V a, int n)
{
    if (n > 0) *p = a;
}
static inline V v_add(V a, V b)
{
    return a + b;
}
static inline V v_sub(V a, V b)
{
    return a - b;
}
static inline V v_mul(V a, V b)
{
    return a * b;
}
static inline V v_div(V a, V b)
{
    return a / b;
}
static inline V v_fma(V a, V b, V c)
{
    return a * b + c;
}
static inline V v_max(V a, V b)
{
    return a > b ? a : b;
}
static inline V v_min(V a, V b)
{
    return a < b ? a : b;
}
static inline float v_reduce_add(V a)
{
    return a;
}
static inline float v_reduce_max(V a)
{
    return a;
}
static inline V v_round(V a)
{
    return rintf(a);
}
static inline V v_scale2(V a, V n)
{
    return n < -140.0f ? a * 0.0f : ldexpf(a, isnan(n) ? 0 : (int)n);
}
static inline V v_first_n(V a, V b, int n)
{
    return n > 0 ? a : b;
}
static inline uint32_t v_not_above(V a, V b)
{
    return !(a > b);
}
static inline bool v_any_above(V a, V b)
{
    return a > b;
}
static inline V v_where_above(V a, V b, V x, V y)
{
    return a > b ? x : y;
}
static inline V v_from_i32(const int32_t *p)
{
    return (float)*p;
}

static inline float v_f16_scalar(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    uint32_t bits;
    float f;
    if (exponent == 0) { /* zero and denormals: mantissa * 2^-24 */
        f = (float)mantissa * 5.9604644775390625e-8f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    } else if (exponent == 31) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else {
        bits = sign | (exponent + 112u) << 23 | mantissa << 13;
    }
    memcpy(&f, &bits, 4);
    return f;
}
/* not necessarily aligned to 4 */
static inline V v_load_f32(const void *p)
{
    V a;
    memcpy(&a, p, sizeof a);
    return a;
}
static inline V v_load_f16(const void *p)
{
    uint16_t h;
    memcpy(&h, p, 2);
    return v_f16_scalar(h);
}
static inline V v_f16_of_rows(const char *const *rows, int64_t at)
{
    return v_load_f16(rows[0] + at);
}
static inline V v_load_bf16(const void *p)
{
    uint16_t h;
    float f;
    memcpy(&h, p, 2);
    const uint32_t bits = (uint32_t)h << 16;
    memcpy(&f, &bits, 4);
    return f;
}
static inline V v_load_i8(const void *p)
{
    return (float)*(const int8_t *)p;
}
static inline V v_load_f16_n(const void *p, int n)
{
    return n > 0 ? v_load_f16(p) : 0;
}
static inline V v_load_bf16_n(const void *p, int n)
{
    return n > 0 ? v_load_bf16(p) : 0;
}

static inline void v_hsum(const V *acc, float *out)
{
    memcpy(out, acc, sizeof(float) * HSUM);
}

static inline void v_dot_block(const uint8_t *block, const int8_t *q, int32_t *dot)
{
    for (int lane = 0; lane < MAI_LANES; lane++) dot[lane] = 0;
    for (int quad = 0; quad < MAI_CHUNK / 4; quad++) {
        for (int lane = 0; lane < MAI_LANES; lane++) {
            for (int i = 0; i < 4; i++)
                dot[lane] += (int32_t)block[(quad * MAI_LANES + lane) * 4 + i] * q[quad * 4 + i];
        }
    }
}

#endif
