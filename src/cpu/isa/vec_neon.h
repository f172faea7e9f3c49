/* SPDX-License-Identifier: Apache-2.0 */
/* Vector vocabulary: NEON of ARMv8-A, with dot products of bytes (FEAT_DotProd) or matrix products of
 * bytes (FEAT_I8MM) where the including file's flags allow them. See vec_scalar.h for what each word means. */
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
/* acc += a * (a lane of w, a constant), in place: of the intrinsic, GCC rotates
 * accumulators through other registers and memory. */
#define FMA_LANE(acc, a, w, i) \
    __asm__("fmla %0.4s, %1.4s, %2.s[" #i "]" : "+w"(acc) : "w"(a), "w"(w))
#define ADD_PRODUCT_LANE(acc, a, w, lane)       \
    do {                                        \
        switch (lane) {                         \
        case 0: FMA_LANE(acc, a, w, 0); break;  \
        case 1: FMA_LANE(acc, a, w, 1); break;  \
        case 2: FMA_LANE(acc, a, w, 2); break;  \
        default: FMA_LANE(acc, a, w, 3); break; \
        }                                       \
    } while (0)
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
/* Not by way of memory: a load from what was stored in pieces waits until all before it is done. */
MAI_INLINE V v_f16_of_rows(const char *const *rows, int64_t at)
{
    uint16_t x[4];
    for (int i = 0; i < 4; i++) memcpy(&x[i], rows[i] + at, 2);
    uint16x4_t h = vdup_n_u16(x[0]);
    h = vset_lane_u16(x[1], h, 1);
    h = vset_lane_u16(x[2], h, 2);
    h = vset_lane_u16(x[3], h, 3);
    return vcvt_f32_f16(vreinterpret_f16_u16(h));
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

/* Vector i, a constant, of whole numbers of 8 bits from p on: each becomes the highest byte of a number of 32, which
 * is 2^24 times as large; the conversion divides by that. */
MAI_INLINE V v_i8_at(const char *p, const int i)
{
    static const uint8_t order[4][16] = {
#define QUAD_TO_TOP(a, b, c, d) \
    {255, 255, 255, a, 255, 255, 255, b, 255, 255, 255, c, 255, 255, 255, d}
        QUAD_TO_TOP(0, 1, 2, 3), QUAD_TO_TOP(4, 5, 6, 7), QUAD_TO_TOP(8, 9, 10, 11),
        QUAD_TO_TOP(12, 13, 14, 15)
#undef QUAD_TO_TOP
    };
    const int8x16_t x = vld1q_s8((const int8_t *)p + i / 4 * 16);
    return vcvtq_n_f32_s32(vreinterpretq_s32_s8(vqtbl1q_s8(x, vld1q_u8(order[i % 4]))), 24);
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

#if defined(__ARM_FEATURE_MATMUL_INT8)
/* sum + the products of x's quads and a quad of q, a constant. */
MAI_INLINE int32x4_t v_dot_lane(int32x4_t sum, uint8x16_t x, int8x16_t q, const int lane)
{
    switch (lane) {
    case 0: return vusdotq_laneq_s32(sum, x, q, 0);
    case 1: return vusdotq_laneq_s32(sum, x, q, 1);
    case 2: return vusdotq_laneq_s32(sum, x, q, 2);
    default: return vusdotq_laneq_s32(sum, x, q, 3);
    }
}
#elif defined(__ARM_FEATURE_DOTPROD)
/* sum + the products of x's quads and a quad of q, a constant. */
MAI_INLINE int32x4_t v_dot_lane(int32x4_t sum, int8x16_t x, int8x16_t q, const int lane)
{
    switch (lane) {
    case 0: return vdotq_laneq_s32(sum, x, q, 0);
    case 1: return vdotq_laneq_s32(sum, x, q, 1);
    case 2: return vdotq_laneq_s32(sum, x, q, 2);
    default: return vdotq_laneq_s32(sum, x, q, 3);
    }
}
#endif

#define DOT_PARTS (MAI_LANES / 4) /* vectors of rows */
#if defined(__ARM_FEATURE_MATMUL_INT8)
static inline void v_dot_block(const uint8_t *block, const int8_t *q, int32_t *dot)
{
    int32x4_t sum[DOT_PARTS];
    for (int i = 0; i < DOT_PARTS; i++) sum[i] = vdupq_n_s32(0);
    for (int half = 0; half < 2; half++) {
        const int8x16_t y = vld1q_s8(q + 16 * half);
        MAI_UNROLL for (int quad = 0; quad < 4; quad++)
            MAI_UNROLL for (int i = 0; i < DOT_PARTS; i++)
        {
            sum[i] = v_dot_lane(sum[i], vld1q_u8(block), y, quad);
            block += 16;
        }
    }
    for (int i = 0; i < DOT_PARTS; i++) vst1q_s32(dot + 4 * i, sum[i]);
}
#else
/* 128 times the sum of q: what rows of signed bytes, 128 less, are short of. */
static inline int32x4_t sum_of_offsets(const int8_t *q)
{
    const int16x8_t pairs = vpaddlq_s8(vld1q_s8(q));
    return vdupq_n_s32(128 * vaddvq_s16(vpadalq_s8(pairs, vld1q_s8(q + 16))));
}
static inline int8x16_t v_signed(const uint8_t *p)
{
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(128)));
}
#    if defined(__ARM_FEATURE_DOTPROD)
static inline void v_dot_block(const uint8_t *block, const int8_t *q, int32_t *dot)
{
    int32x4_t sum[DOT_PARTS];
    sum[0] = sum_of_offsets(q);
    for (int i = 1; i < DOT_PARTS; i++) sum[i] = sum[0];
    for (int half = 0; half < 2; half++) {
        const int8x16_t y = vld1q_s8(q + 16 * half);
        MAI_UNROLL for (int quad = 0; quad < 4; quad++)
            MAI_UNROLL for (int i = 0; i < DOT_PARTS; i++)
        {
            sum[i] = v_dot_lane(sum[i], v_signed(block), y, quad);
            block += 16;
        }
    }
    for (int i = 0; i < DOT_PARTS; i++) vst1q_s32(dot + 4 * i, sum[i]);
}
#    else
/* Two products of bytes, of which q's are 127 at most, fit into 16 bits. */
static inline void v_dot_block(const uint8_t *block, const int8_t *q, int32_t *dot)
{
    const int32x4_t offset = sum_of_offsets(q);
    for (int part = 0; part < DOT_PARTS; part++) {
        int32x4_t low = vdupq_n_s32(0), high = low; /* two rows each, in two sums */
        for (int quad = 0; quad < MAI_CHUNK / 4; quad += 2) {
            const uint8_t *from = block + (quad * MAI_LANES + 4 * part) * 4;
            const int8x16_t x = v_signed(from), next = v_signed(from + 4 * MAI_LANES);
            const int32x2_t y = vreinterpret_s32_s8(vld1_s8(q + 4 * quad));
            const int8x8_t a = vreinterpret_s8_s32(vdup_lane_s32(y, 0));
            const int8x8_t b = vreinterpret_s8_s32(vdup_lane_s32(y, 1));
            const int16x8_t l = vmlal_s8(vmull_s8(vget_low_s8(x), a), vget_low_s8(next), b);
            const int16x8_t h = vmlal_s8(vmull_s8(vget_high_s8(x), a), vget_high_s8(next), b);
            low = vpadalq_s16(low, l);
            high = vpadalq_s16(high, h);
        }
        vst1q_s32(dot + 4 * part, vaddq_s32(vpaddq_s32(low, high), offset));
    }
}
#    endif
#endif

/* Words of body/whole.h. Keys are signed bytes. */
#if WHOLE_HEADS > 0
#    if defined(__ARM_FEATURE_MATMUL_INT8)
/* Two tokens' eights of values side by side, [4][TILE / 2][2][8]. */
#        define TURN_TOKENS 2
#        define TURN_STEP 8
MAI_INLINE void turn_eights(int8x16_t a, int8x16_t b, uint8_t *to)
{
    const int64x2_t x = vreinterpretq_s64_s8(a), y = vreinterpretq_s64_s8(b);
    vst1q_u8(to, vreinterpretq_u8_s64(vzip1q_s64(x, y)));
    vst1q_u8(to + 128, vreinterpretq_u8_s64(vzip2q_s64(x, y)));
}
MAI_INLINE void v_turn(const int8x16x2_t *x, uint8_t *to)
{
    turn_eights(x[0].val[0], x[1].val[0], to);
    turn_eights(x[0].val[1], x[1].val[1], to + 256);
}
#    else
#        define TURN_TOKENS 4
#        define TURN_STEP 4
/* Four tokens' quads side by side. */
MAI_INLINE void turn_quads(const int8x16_t *x, int8x16_t *t)
{
    const int32x4_t w[4] = {vreinterpretq_s32_s8(x[0]), vreinterpretq_s32_s8(x[1]),
                            vreinterpretq_s32_s8(x[2]), vreinterpretq_s32_s8(x[3])};
    const int64x2_t a = vreinterpretq_s64_s32(vzip1q_s32(w[0], w[1]));
    const int64x2_t b = vreinterpretq_s64_s32(vzip2q_s32(w[0], w[1]));
    const int64x2_t c = vreinterpretq_s64_s32(vzip1q_s32(w[2], w[3]));
    const int64x2_t d = vreinterpretq_s64_s32(vzip2q_s32(w[2], w[3]));
    t[0] = vreinterpretq_s8_s64(vzip1q_s64(a, c));
    t[1] = vreinterpretq_s8_s64(vzip2q_s64(a, c));
    t[2] = vreinterpretq_s8_s64(vzip1q_s64(b, d));
    t[3] = vreinterpretq_s8_s64(vzip2q_s64(b, d));
}
MAI_INLINE void v_turn(const int8x16x2_t *x, uint8_t *quads)
{
    MAI_UNROLL for (int half = 0; half < 2; half++)
    {
        const int8x16_t y[4] = {x[0].val[half], x[1].val[half], x[2].val[half], x[3].val[half]};
        int8x16_t t[4];
        turn_quads(y, t);
        MAI_UNROLL for (int i = 0; i < 4; i++)
            vst1q_u8(quads + (4 * half + i) * 64, vreinterpretq_u8_s8(t[i]));
    }
}
#    endif

/* Half bytes to whole numbers. */
MAI_INLINE int8x16_t whole_nibbles(macattn_dtype type, int8x16_t x, const bool high)
{
    static const int8_t iq4_nl[16] = {IQ4_NL_TABLE};
    const uint8x16_t b = vreinterpretq_u8_s8(x);
    const uint8x16_t y = high ? vshrq_n_u8(b, 4) : vandq_u8(b, vdupq_n_u8(15));
    if (type == MACATTN_DTYPE_IQ4_NL) return vqtbl1q_s8(vld1q_s8(iq4_nl), y);
    return vreinterpretq_s8_u8(y);
}

/* The same for the rows' half bytes of types of 4 bits, from `at` on. */
MAI_INLINE void v_turn_nibbles(macattn_dtype type, const char *const *rows, int64_t at, uint8_t *to)
{
#    if defined(__ARM_FEATURE_MATMUL_INT8)
    const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8((const int8_t *)rows[0] + at));
    const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8((const int8_t *)rows[1] + at));
    const int8x16_t t[2] = {vreinterpretq_s8_s64(vzip1q_s64(a, b)),
                            vreinterpretq_s8_s64(vzip2q_s64(a, b))};
    MAI_UNROLL for (int i = 0; i < 4; i++)
        vst1q_u8(to + i * 128, vreinterpretq_u8_s8(whole_nibbles(type, t[i % 2], i >= 2)));
#    else
    int8x16_t x[4];
    MAI_UNROLL for (int i = 0; i < 4; i++) x[i] = vld1q_s8((const int8_t *)rows[i] + at);
    turn_quads(x, x);
    MAI_UNROLL for (int i = 0; i < 8; i++)
        vst1q_u8(to + i * 64, vreinterpretq_u8_s8(whole_nibbles(type, x[i % 4], i >= 4)));
#    endif
}

#    define MOST_WHOLE 8323072.0f /* 127 * 65536 */
/* parts: [3][8], four bytes each. */
static inline void whole_split(const float *x, int zero, int32_t *parts, int32_t *start)
{
    int32x4_t sum[3] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};
    for (int i = 0; i < 8; i += 2) {
        int16x4_t half[3][2];
        for (int j = 0; j < 2; j++) {
            const int32x4_t w = vcvtnq_s32_f32(vld1q_f32(x + 4 * (i + j)));
            const int32x4_t c = vshrq_n_s32(vshlq_n_s32(w, 24), 24);
            const int32x4_t rest = vshrq_n_s32(vsubq_s32(w, c), 8);
            const int32x4_t b = vshrq_n_s32(vshlq_n_s32(rest, 24), 24);
            const int32x4_t part[3] = {vshrq_n_s32(vsubq_s32(rest, b), 8), b, c};
            for (int k = 0; k < 3; k++) {
                half[k][j] = vmovn_s32(part[k]);
                sum[k] = vaddq_s32(sum[k], part[k]);
            }
        }
        for (int k = 0; k < 3; k++) {
            const int8x8_t bytes = vmovn_s16(vcombine_s16(half[k][0], half[k][1]));
            vst1_s8((int8_t *)(parts + 8 * k + i), bytes);
        }
    }
    for (int k = 0; k < 3; k++) start[k] = -zero * vaddvq_s32(sum[k]);
}
/* Of sums of the parts. */
MAI_INLINE V whole_value(int32x4_t a, int32x4_t b, int32x4_t c)
{
    const V low = vcvtq_f32_s32(vmlaq_s32(c, b, vdupq_n_s32(256)));
    return vfmaq_f32(low, vcvtq_f32_s32(a), vdupq_n_f32(65536.0f));
}
#endif

#endif
