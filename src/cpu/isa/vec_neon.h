/* SPDX-License-Identifier: Apache-2.0 */
/* Vector vocabulary: NEON of ARMv8-A. See vec_scalar.h for what each word means. */
#ifndef MAI_VEC_H
#define MAI_VEC_H

#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"
#include "core/backend.h"

#define VL 4
#define HSUM 16             /* sums that v_hsum forms at a time */
#define LEAST_POWER -127.0f /* the largest n for which v_scale2 gives 0 */
#define TUNE_NEON
#include "tuning.h"

typedef float32x4_t V;

static inline uint32x4_t v_mask(int n)
{
    static const uint32_t lane[4] = {0, 1, 2, 3};
    return vcltq_u32(vld1q_u32(lane), vdupq_n_u32((uint32_t)n));
}
static inline V v_zero(void)
{
    return vdupq_n_f32(0);
}
static inline V v_set1(float x)
{
    return vdupq_n_f32(x);
}
static inline V v_load(const float *p)
{
    return vld1q_f32(p);
}
static inline void v_store(float *p, V a)
{
    vst1q_f32(p, a);
}
static inline V v_load_n(const float *p, int n)
{
    float x[4] = {0, 0, 0, 0};
    memcpy(x, p, sizeof(float) * (size_t)n);
    return vld1q_f32(x);
}
static inline void v_store_n(float *p, V a, int n)
{
    float x[4];
    vst1q_f32(x, a);
    memcpy(p, x, sizeof(float) * (size_t)n);
}
static inline V v_add(V a, V b)
{
    return vaddq_f32(a, b);
}
static inline V v_sub(V a, V b)
{
    return vsubq_f32(a, b);
}
static inline V v_mul(V a, V b)
{
    return vmulq_f32(a, b);
}
static inline V v_div(V a, V b)
{
    return vdivq_f32(a, b);
}
static inline V v_fma(V a, V b, V c)
{
    return vfmaq_f32(c, a, b);
}
/* b where a > b does not hold, so that a NaN in b stays: what the x86 instructions do */
static inline V v_max(V a, V b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}
static inline V v_min(V a, V b)
{
    return vbslq_f32(vcltq_f32(a, b), a, b);
}
static inline float v_reduce_add(V a)
{
    return vaddvq_f32(a);
}
static inline float v_reduce_max(V a)
{
    return vmaxnmvq_f32(a);
}
static inline V v_round(V a)
{
    return vrndnq_f32(a);
}
static inline V v_first_n(V a, V b, int n)
{
    return vbslq_f32(v_mask(n), a, b);
}
static inline V v_scale2(V a, V n)
{
    const int32x4_t exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(a, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}
static inline uint32_t v_not_above(V a, V b)
{
    static const uint32_t bit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(vld1q_u32(bit), vcgtq_f32(a, b)));
}
static inline bool v_any_above(V a, V b)
{
    return vmaxvq_u32(vcgtq_f32(a, b)) != 0;
}
static inline V v_where_above(V a, V b, V x, V y)
{
    return vbslq_f32(vcgtq_f32(a, b), x, y);
}
static inline V v_from_i32(const int32_t *p)
{
    return vcvtq_f32_s32(vld1q_s32(p));
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
    uint16x4_t h;
    memcpy(&h, p, 8);
    return vcvt_f32_f16(vreinterpret_f16_u16(h));
}
static inline V v_f16_of_rows(const char *const *rows, int64_t at)
{
    uint16_t x[4];
    for (int i = 0; i < 4; i++) memcpy(&x[i], rows[i] + at, 2);
    return v_load_f16(x);
}
static inline V v_load_bf16(const void *p)
{
    uint16x4_t h;
    memcpy(&h, p, 8);
    return vreinterpretq_f32_u32(vshll_n_u16(h, 16));
}
static inline V v_load_i8(const void *p)
{
    int8_t b[8] = {0};
    memcpy(b, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(b)))));
}
/* Never needed: head_dim is a multiple of 8. */
static inline V v_load_f16_n(const void *p, int n)
{
    return v_first_n(v_load_f16(p), v_zero(), n);
}
static inline V v_load_bf16_n(const void *p, int n)
{
    return v_first_n(v_load_bf16(p), v_zero(), n);
}
static inline float v_f16_scalar(uint16_t h)
{
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

static inline void v_hsum(const V *acc, float *out)
{
    for (int i = 0; i < HSUM; i += 4) {
        vst1q_f32(out + i,
                  vpaddq_f32(vpaddq_f32(acc[i], acc[i + 1]), vpaddq_f32(acc[i + 2], acc[i + 3])));
    }
}

static inline void v_dot_block(const uint8_t *block, const int8_t *q, int32_t *dot)
{
    for (int part = 0; part < MAI_LANES; part += 4) {
        int32x4_t acc = vdupq_n_s32(0);
        for (int quad = 0; quad < MAI_CHUNK / 4; quad++) {
            const uint8x16_t x = vld1q_u8(block + (quad * MAI_LANES + part) * 4);
            const int16x4_t y = vld1_s16(
                (const int16_t[4]){q[quad * 4], q[quad * 4 + 1], q[quad * 4 + 2], q[quad * 4 + 3]});
            const int16x8_t w = vcombine_s16(y, y);
            const int16x8_t lo = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x)));
            const int16x8_t hi = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(x)));
            /* four products a row, two rows in each half */
            const int32x4_t a = vmull_s16(vget_low_s16(lo), vget_low_s16(w));
            const int32x4_t b = vmull_s16(vget_high_s16(lo), vget_high_s16(w));
            const int32x4_t c = vmull_s16(vget_low_s16(hi), vget_low_s16(w));
            const int32x4_t d = vmull_s16(vget_high_s16(hi), vget_high_s16(w));
            acc = vaddq_s32(acc, vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d)));
        }
        vst1q_s32(dot + part, acc);
    }
}

#endif
