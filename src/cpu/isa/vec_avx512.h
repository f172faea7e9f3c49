/* SPDX-License-Identifier: Apache-2.0 */
/* Vector vocabulary: AVX-512 F+BW+DQ+VL. See vec_scalar.h for what each word means. */
#ifndef MAI_VEC_H
#define MAI_VEC_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"
#include "core/backend.h"
#include "x86.h"

#define VL 16
#define HSUM 16             /* sums that v_hsum forms at a time */
#define LEAST_POWER -150.0f /* the largest n for which v_scale2 gives 0 */
#define TUNE_AVX512
#include "tuning.h"

typedef __m512 V;

static inline V v_zero(void)
{
    return _mm512_setzero_ps();
}
static inline V v_set1(float x)
{
    return _mm512_set1_ps(x);
}
static inline V v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, V a)
{
    _mm512_storeu_ps(p, a);
}
static inline V v_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void v_store_n(float *p, V a, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);
}
static inline V v_add(V a, V b)
{
    return _mm512_add_ps(a, b);
}
static inline V v_sub(V a, V b)
{
    return _mm512_sub_ps(a, b);
}
static inline V v_mul(V a, V b)
{
    return _mm512_mul_ps(a, b);
}
static inline V v_div(V a, V b)
{
    return _mm512_div_ps(a, b);
}
static inline V v_fma(V a, V b, V c)
{
    return _mm512_fmadd_ps(a, b, c);
}
static inline V v_max(V a, V b)
{
    return _mm512_max_ps(a, b);
}
static inline V v_min(V a, V b)
{
    return _mm512_min_ps(a, b);
}
static inline float v_reduce_add(V a)
{
    return _mm512_reduce_add_ps(a);
}
static inline float v_reduce_max(V a)
{
    return _mm512_reduce_max_ps(a);
}
static inline V v_round(V a)
{
    return _mm512_roundscale_ps(a, 8);
}
static inline V v_scale2(V a, V n)
{
    return _mm512_scalef_ps(a, n);
}
/* lanes i < n keep a, the others get b */
static inline V v_first_n(V a, V b, int n)
{
    return _mm512_mask_blend_ps((__mmask16)((1u << n) - 1), b, a);
}

/* not necessarily aligned to 4 */
static inline V v_load_f32(const void *p)
{
    return _mm512_loadu_ps(p);
}
static inline V v_load_f16(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
MAI_INLINE V v_f16_of_rows(const char *const *rows, int64_t at)
{
    const __m128i low = v_words_of_rows(rows, at), high = v_words_of_rows(rows + 8, at);
    return _mm512_cvtph_ps(_mm256_set_m128i(high, low));
}
static inline V v_load_bf16(const void *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
static inline V v_load_i8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* Of q4_0 or iq4_nl: the low or the high halves of VL bytes; both are constants. */
MAI_INLINE V v_load_nibbles(macattn_dtype type, const char *p, const bool high)
{
    const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    static const float tables[2][16] = {{IQ4_NL_TABLE},
                                        {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}};
    const V table = _mm512_loadu_ps(tables[type == MACATTN_DTYPE_Q4_0]);
    /* of an index only the low four bits count */
    return _mm512_permutexvar_ps(high ? _mm512_srli_epi32(x, 4) : x, table);
}
static inline V v_load_f16_n(const void *p, int n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
}
static inline V v_load_bf16_n(const void *p, int n)
{
    __m256i h = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
static inline float v_f16_scalar(uint16_t h)
{
    return _cvtsh_ss(h);
}

static inline uint32_t v_not_above(V a, V b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_NGT_UQ);
}
static inline bool v_any_above(V a, V b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
}
static inline V v_where_above(V a, V b, V x, V y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
static inline V v_from_i32(const int32_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(p));
}

/* out[i] = sum of the lanes of acc[i]; every sum is formed by the same tree */
static inline void v_hsum(const V *acc, float *out)
{
    __m512 s[8], u[4], w[2];
    for (int i = 0; i < 8; i++) {
        s[i] = _mm512_add_ps(_mm512_shuffle_f32x4(acc[i], acc[i + 8], 0x44),
                             _mm512_shuffle_f32x4(acc[i], acc[i + 8], 0xEE));
    }
    for (int i = 0; i < 4; i++) {
        u[i] = _mm512_add_ps(_mm512_shuffle_f32x4(s[i], s[i + 4], 0x88),
                             _mm512_shuffle_f32x4(s[i], s[i + 4], 0xDD));
    }
    for (int i = 0; i < 2; i++) {
        w[i] = _mm512_add_ps(_mm512_shuffle_ps(u[i], u[i + 2], 0x44),
                             _mm512_shuffle_ps(u[i], u[i + 2], 0xEE));
    }
    __m512 r =
        _mm512_add_ps(_mm512_shuffle_ps(w[0], w[1], 0x88), _mm512_shuffle_ps(w[0], w[1], 0xDD));
    /* Lane 4a + b of r holds the sum of acc[8 (a & 1) + 4 (a >> 1) + 2 (b & 1) + (b >> 1)]. */
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, r));
}

static inline void v_dot_block(const uint8_t *block, const int8_t *q, int32_t *dot)
{
    __m512i acc = _mm512_setzero_si512();
    for (int quad = 0; quad < MAI_CHUNK / 4; quad++) {
        const __m512i x = _mm512_loadu_si512(block + quad * 4 * MAI_LANES);
#ifdef __AVX512VNNI__
        int32_t y;
        memcpy(&y, q + quad * 4, 4);
        acc = _mm512_dpbusd_epi32(acc, x, _mm512_set1_epi32(y));
#else
        /* 16-bit products of even and odd bytes apart: 8-bit ones would saturate. */
        const int8_t *y = q + quad * 4;
        const __m512i even =
            _mm512_set1_epi32((int)((uint32_t)(uint16_t)y[0] | (uint32_t)y[2] << 16));
        const __m512i odd =
            _mm512_set1_epi32((int)((uint32_t)(uint16_t)y[1] | (uint32_t)y[3] << 16));
        acc = _mm512_add_epi32(
            acc, _mm512_madd_epi16(_mm512_and_si512(x, _mm512_set1_epi16(0xff)), even));
        acc = _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_srli_epi16(x, 8), odd));
#endif
    }
    _mm512_storeu_si512(dot, acc);
}

#ifdef __AVX512VNNI__
/* Words of body/whole.h. */

#    define TURN_TOKENS 16
#    define TURN_STEP 4 /* bytes of a token in a turned vector */
/* Four tokens' quads 0 to 3, of each 128 bits, side by side. */
MAI_INLINE void turn_four(const __m512i x[4], __m512i t[4])
{
    const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
    t[0] = _mm512_unpacklo_epi64(a, c);
    t[1] = _mm512_unpackhi_epi64(a, c);
    t[2] = _mm512_unpacklo_epi64(b, d);
    t[3] = _mm512_unpackhi_epi64(b, d);
}

static inline void v_turn(const __m256i *x, uint8_t *quads)
{
    __m512i t[8];
    for (int i = 0; i < 2;
         i++) { /* tokens 8 i to 8 i + 3, and the four after them in the upper half */
        __m512i w[4];
        for (int j = 0; j < 4; j++)
            w[j] = _mm512_inserti64x4(_mm512_castsi256_si512(x[8 * i + j]), x[8 * i + j + 4], 1);
        turn_four(w, t + 4 * i);
    }
    /* quarters of t[i]: quad i, quad i + 4 of four tokens, the same of the next four */
    for (int i = 0; i < 4; i++) {
        _mm512_storeu_si512(quads + i * 64, _mm512_shuffle_i64x2(t[i], t[i + 4], 0x88));
        _mm512_storeu_si512(quads + (i + 4) * 64, _mm512_shuffle_i64x2(t[i], t[i + 4], 0xDD));
    }
}

/* The same for the rows' half bytes of types of 4 bits, from `at` on. */
MAI_INLINE void v_turn_nibbles(macattn_dtype type, const char *const *rows, int64_t at,
                               uint8_t *quads)
{
#    define HALVES(i) _mm_loadu_si128((const __m128i *)(const void *)(rows[i] + at))
    static const int8_t bytes[16] = {IQ4_NL_TABLE};
    const __m512i low = _mm512_set1_epi8(15);
    __m512i x[4];
    MAI_UNROLL for (int i = 0; i < 4; i++)
    {
        x[i] = _mm512_castsi128_si512(HALVES(i));
        x[i] = _mm512_inserti32x4(x[i], HALVES(i + 4), 1);
        x[i] = _mm512_inserti32x4(x[i], HALVES(i + 8), 2);
        x[i] = _mm512_inserti32x4(x[i], HALVES(i + 12), 3);
    }
#    undef HALVES
    turn_four(x, x);
    MAI_UNROLL for (int i = 0; i < 8; i++)
    {
        __m512i y = _mm512_and_si512(i < 4 ? x[i] : _mm512_srli_epi16(x[i - 4], 4), low);
        if (type == MACATTN_DTYPE_IQ4_NL) {
            const __m512i table = _mm512_xor_si512(
                _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)bytes)),
                _mm512_set1_epi8(-128));
            y = _mm512_shuffle_epi8(table, y);
        }
        _mm512_storeu_si512(quads + i * 64, y);
    }
}

#    define MOST_WHOLE 8323072.0f /* 127 * 65536 */
#    define WHOLE_BASE 65536.0f
/* parts: [3][8], four bytes each. */
static inline void whole_split(const float *x, int zero, int32_t *parts, int32_t *start)
{
    __m512i sum[3] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int i = 0; i < 2; i++) {
        const __m512i w = _mm512_cvtps_epi32(_mm512_loadu_ps(x + 16 * i));
        const __m512i c = _mm512_srai_epi32(_mm512_slli_epi32(w, 24), 24);
        const __m512i rest = _mm512_srai_epi32(_mm512_sub_epi32(w, c), 8);
        const __m512i b = _mm512_srai_epi32(_mm512_slli_epi32(rest, 24), 24);
        const __m512i part[3] = {_mm512_srai_epi32(_mm512_sub_epi32(rest, b), 8), b, c};
        for (int k = 0; k < 3; k++) {
            _mm_storeu_si128((__m128i *)(void *)(parts + 8 * k + 4 * i),
                             _mm512_cvtepi32_epi8(part[k]));
            sum[k] = _mm512_add_epi32(sum[k], part[k]);
        }
    }
    for (int k = 0; k < 3; k++) start[k] = -zero * _mm512_reduce_add_epi32(sum[k]);
}

typedef __m512i whole_keys;
typedef struct whole_sums {
    __m512i part[3];
} whole_sums;

static inline whole_keys whole_load(const uint8_t *quad)
{
    return _mm512_loadu_si512(quad);
}
static inline whole_sums whole_start(const int32_t *start)
{
    return (whole_sums){
        {_mm512_set1_epi32(start[0]), _mm512_set1_epi32(start[1]), _mm512_set1_epi32(start[2])}};
}
/* Half of a block's values are added. */
static inline void whole_half(whole_sums *s, const int32_t *start)
{
    (void)s, (void)start;
}
/* Quad i of a block's values of n vectors of tokens. The instruction is written out because compilers load
 * what it can take from memory first. */
MAI_INLINE void whole_add(whole_sums *s, const whole_keys *k, int n, const int32_t *parts, int i)
{
    MAI_UNROLL for (int t = 0; t < n; t++) MAI_UNROLL for (int p = 0; p < 3; p++) __asm__(
        "vpdpbusd %2%{1to16%}, %1, %0" : "+v"(s[t].part[p]) : "v"(k[t]), "m"(parts[8 * p + i]));
}
static inline V whole_value(const whole_sums *s, float base)
{
    const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(s->part[1], 8), s->part[2]);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(s->part[0]), _mm512_set1_ps(base),
                           _mm512_cvtepi32_ps(low));
}
#endif

#endif
