/* SPDX-License-Identifier: Apache-2.0 */
/* Vector vocabulary: AVX2 + FMA + F16C. See vec_scalar.h for what each word means. */
#ifndef MAI_VEC_H
#define MAI_VEC_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/backend.h"

#define VL 8
#define HSUM 8              /* sums that v_hsum forms at a time */
#define LEAST_POWER -127.0f /* the largest n for which v_scale2 gives 0 */
#define TUNE_AVX2
#include "tuning.h"

typedef __m256 V;

static inline __m256i v_mask(int n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
static inline V v_zero(void)
{
    return _mm256_setzero_ps();
}
static inline V v_set1(float x)
{
    return _mm256_set1_ps(x);
}
static inline V v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
static inline void v_store(float *p, V a)
{
    _mm256_storeu_ps(p, a);
}
static inline V v_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, v_mask(n));
}
static inline void v_store_n(float *p, V a, int n)
{
    _mm256_maskstore_ps(p, v_mask(n), a);
}
static inline V v_add(V a, V b)
{
    return _mm256_add_ps(a, b);
}
static inline V v_sub(V a, V b)
{
    return _mm256_sub_ps(a, b);
}
static inline V v_mul(V a, V b)
{
    return _mm256_mul_ps(a, b);
}
static inline V v_div(V a, V b)
{
    return _mm256_div_ps(a, b);
}
static inline V v_fma(V a, V b, V c)
{
    return _mm256_fmadd_ps(a, b, c);
}
static inline V v_max(V a, V b)
{
    return _mm256_max_ps(a, b);
}
static inline V v_min(V a, V b)
{
    return _mm256_min_ps(a, b);
}
static inline V v_round(V a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline V v_first_n(V a, V b, int n)
{
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(v_mask(n)));
}
static inline float v_reduce_add(V a)
{
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float v_reduce_max(V a)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
static inline V v_scale2(V a, V n)
{
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
static inline uint32_t v_not_above(V a, V b)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NGT_UQ));
}
static inline bool v_any_above(V a, V b)
{
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
static inline V v_from_i32(const int32_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* not necessarily aligned to 4 */
static inline V v_load_f32(const void *p)
{
    return _mm256_loadu_ps((const float *)p);
}
static inline V v_load_f16(const void *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline V v_load_bf16(const void *p)
{
    const __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
static inline V v_load_i8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
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
    return _cvtsh_ss(h);
}

/* out[i] = sum of the lanes of acc[i]: three rounds of pairwise adds for all eight at once. */
static inline void v_hsum(const V *acc, float *out)
{
    V s[4], u[2];
    for (int i = 0; i < 4; i++) {
        s[i] = _mm256_add_ps(_mm256_permute2f128_ps(acc[i], acc[i + 4], 0x20),
                             _mm256_permute2f128_ps(acc[i], acc[i + 4], 0x31));
    }
    for (int i = 0; i < 2; i++) {
        u[i] = _mm256_add_ps(_mm256_shuffle_ps(s[i], s[i + 2], 0x44),
                             _mm256_shuffle_ps(s[i], s[i + 2], 0xEE));
    }
    const V r =
        _mm256_add_ps(_mm256_shuffle_ps(u[0], u[1], 0x88), _mm256_shuffle_ps(u[0], u[1], 0xDD));
    /* Each half holds the sums 0, 2, 1, 3. */
    _mm256_storeu_ps(out, _mm256_shuffle_ps(r, r, 0xD8));
}

static inline void v_dot_block(const uint8_t *block, const int8_t *q, int32_t *dot)
{
    /* 16-bit products of even and odd bytes apart: 8-bit ones would saturate. */
    const __m256i low = _mm256_set1_epi16(0xff);
    for (int half = 0; half < 2; half++) {
        __m256i acc = _mm256_setzero_si256();
        for (int quad = 0; quad < MAI_CHUNK / 4; quad++) {
            const __m256i x =
                _mm256_loadu_si256((const __m256i *)(block + quad * 4 * MAI_LANES + half * 32));
            const int8_t *y = q + quad * 4;
            const __m256i even =
                _mm256_set1_epi32((int)((uint32_t)(uint16_t)y[0] | (uint32_t)y[2] << 16));
            const __m256i odd =
                _mm256_set1_epi32((int)((uint32_t)(uint16_t)y[1] | (uint32_t)y[3] << 16));
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(x, low), even));
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16(x, 8), odd));
        }
        _mm256_storeu_si256((__m256i *)(dot + half * 8), acc);
    }
}

#endif
