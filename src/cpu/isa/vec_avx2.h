/* SPDX-License-Identifier: Apache-2.0 */
/* Vector vocabulary: AVX2 + FMA + F16C. See vec_scalar.h for what each word means. */
#ifndef MAI_VEC_H
#define MAI_VEC_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"
#include "core/backend.h"
#include "x86.h"

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
static inline V v_where_above(V a, V b, V x, V y)
{
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
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
MAI_INLINE V v_f16_of_rows(const char *const *rows, int64_t at)
{
    return _mm256_cvtph_ps(v_words_of_rows(rows, at));
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

/* Words of body/whole.h. */

#define TURN_TOKENS 8
#define TURN_STEP 4 /* bytes of a token in a turned vector */
/* Four tokens' quads 0 to 3, of each 128 bits, side by side. */
MAI_INLINE void turn_four(const __m256i x[4], __m256i t[4])
{
    const __m256i a = _mm256_unpacklo_epi32(x[0], x[1]), b = _mm256_unpackhi_epi32(x[0], x[1]);
    const __m256i c = _mm256_unpacklo_epi32(x[2], x[3]), d = _mm256_unpackhi_epi32(x[2], x[3]);
    t[0] = _mm256_unpacklo_epi64(a, c);
    t[1] = _mm256_unpackhi_epi64(a, c);
    t[2] = _mm256_unpacklo_epi64(b, d);
    t[3] = _mm256_unpackhi_epi64(b, d);
}

static inline void v_turn(const __m256i *x, uint8_t *quads)
{
    __m256i t[8]; /* the halves: quads 0 to 3 and 4 to 7 of four tokens */
    for (int i = 0; i < 8; i += 4) turn_four(x + i, t + i);
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256((__m256i *)(void *)(quads + i * 64),
                            _mm256_permute2x128_si256(t[i], t[i + 4], 0x20));
        _mm256_storeu_si256((__m256i *)(void *)(quads + (i + 4) * 64),
                            _mm256_permute2x128_si256(t[i], t[i + 4], 0x31));
    }
}

/* The same for the rows' half bytes of types of 4 bits, from `at` on. */
MAI_INLINE void v_turn_nibbles(macattn_dtype type, const char *const *rows, int64_t at,
                               uint8_t *quads)
{
    static const int8_t iq4_nl[16] = {IQ4_NL_TABLE};
    const __m256i low = _mm256_set1_epi8(15);
    __m256i x[4];
    MAI_UNROLL for (int i = 0; i < 4; i++) x[i] = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(rows[i] + at))),
        _mm_loadu_si128((const __m128i *)(const void *)(rows[i + 4] + at)), 1);
    turn_four(x, x);
    MAI_UNROLL for (int i = 0; i < 8; i++)
    {
        __m256i y = _mm256_and_si256(i < 4 ? x[i] : _mm256_srli_epi16(x[i - 4], 4), low);
        if (type == MACATTN_DTYPE_IQ4_NL) {
            const __m256i table = _mm256_xor_si256(
                _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)iq4_nl)),
                _mm256_set1_epi8(-128));
            y = _mm256_shuffle_epi8(table, y);
        }
        _mm256_storeu_si256((__m256i *)(void *)(quads + i * 64), y);
    }
}

static inline int32_t sum_of_words(__m256i x)
{
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
}
/* 32 numbers of 32 bits to bytes. */
static inline __m256i bytes_of_words(const __m256i *x)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i y =
        _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
    return _mm256_permutevar8x32_epi32(y, order);
}

#ifdef __AVXVNNI__
#    define MOST_WHOLE 8323072.0f /* 127 * 65536 */
#    define WHOLE_BASE 65536.0f
/* parts: [3][8], four bytes each. */
static inline void whole_split(const float *x, int zero, int32_t *parts, int32_t *start)
{
    __m256i part[3][4];
    for (int i = 0; i < 4; i++) {
        const __m256i w = _mm256_cvtps_epi32(_mm256_loadu_ps(x + 8 * i));
        const __m256i c = _mm256_srai_epi32(_mm256_slli_epi32(w, 24), 24);
        const __m256i rest = _mm256_srai_epi32(_mm256_sub_epi32(w, c), 8);
        const __m256i b = _mm256_srai_epi32(_mm256_slli_epi32(rest, 24), 24);
        part[0][i] = _mm256_srai_epi32(_mm256_sub_epi32(rest, b), 8);
        part[1][i] = b;
        part[2][i] = c;
    }
    for (int k = 0; k < 3; k++) {
        const __m256i bytes = bytes_of_words(part[k]);
        _mm256_storeu_si256((__m256i *)(void *)(parts + 8 * k), bytes);
        start[k] = -zero * sum_of_words(_mm256_dpbusd_avx_epi32(_mm256_setzero_si256(),
                                                                _mm256_set1_epi8(1), bytes));
    }
}

typedef __m256i whole_keys;
typedef struct whole_sums {
    __m256i part[3];
} whole_sums;

static inline whole_keys whole_load(const uint8_t *quad)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)quad);
}
static inline whole_sums whole_start(const int32_t *start)
{
    return (whole_sums){
        {_mm256_set1_epi32(start[0]), _mm256_set1_epi32(start[1]), _mm256_set1_epi32(start[2])}};
}
/* Half of a block's values are added. */
static inline void whole_half(whole_sums *s, const int32_t *start)
{
    (void)s, (void)start;
}
/* Quad i of a block's values of n vectors of tokens. */
MAI_INLINE void whole_add(whole_sums *s, const whole_keys *k, int n, const int32_t *parts, int i)
{
    MAI_UNROLL for (int p = 0; p < 3; p++)
    {
        const __m256i q = _mm256_set1_epi32(parts[8 * p + i]);
        MAI_UNROLL for (int t = 0; t < n; t++)
        {
            s[t].part[p] = _mm256_dpbusd_avx_epi32(s[t].part[p], k[t], q);
            IN_REGISTER(s[t].part[p]);
        }
    }
}
static inline V whole_value(const whole_sums *s, float base)
{
    const __m256i low = _mm256_add_epi32(_mm256_slli_epi32(s->part[1], 8), s->part[2]);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(s->part[0]), _mm256_set1_ps(base),
                           _mm256_cvtepi32_ps(low));
}
#else
#    define MOST_WHOLE 2064321.0f /* 63 * 32767 */
#    define WHOLE_BASE 63.0f
/* parts: [8][2], words of values 0 and 2 of a quad, of 1 and 3; [8], four bytes each. */
static inline void whole_split(const float *x, int zero, int32_t *parts, int32_t *start)
{
    __m256i high[4], low[4];
    for (int i = 0; i < 4; i++) {
        const V w = _mm256_loadu_ps(x + 8 * i);
        const V a = v_round(_mm256_mul_ps(w, _mm256_set1_ps(1 / WHOLE_BASE)));
        low[i] = _mm256_cvtps_epi32(_mm256_fnmadd_ps(a, _mm256_set1_ps(WHOLE_BASE), w));
        high[i] = _mm256_cvtps_epi32(a);
    }
    for (int i = 0; i < 4; i += 2) {
        const __m256i pairs = _mm256_packs_epi32(_mm256_shuffle_epi32(high[i], 0xD8),
                                                 _mm256_shuffle_epi32(high[i + 1], 0xD8));
        _mm256_storeu_si256((__m256i *)(void *)(parts + 4 * i),
                            _mm256_permute4x64_epi64(pairs, 0xD8));
    }
    const __m256i bytes = bytes_of_words(low);
    _mm256_storeu_si256((__m256i *)(void *)(parts + 16), bytes);
    start[0] = -zero * sum_of_words(_mm256_add_epi32(_mm256_add_epi32(high[0], high[1]),
                                                     _mm256_add_epi32(high[2], high[3])));
    __m256i sum = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes); /* a half is four quads */
    sum = _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0x4E));
    sum = _mm256_add_epi16(sum, _mm256_shuffle_epi32(sum, 0xB1));
    sum = _mm256_mullo_epi16(sum, _mm256_set1_epi16((short)-zero));
    start[1] = _mm256_extract_epi32(sum, 0);
    start[2] = _mm256_extract_epi32(sum, 4);
}

typedef struct whole_keys {
    __m256i bytes, even, odd; /* the latter as words */
} whole_keys;
typedef struct whole_sums {
    __m256i high, low, first; /* of 32 bits; of 16; low of the first half, of 32 */
} whole_sums;

static inline whole_keys whole_load(const uint8_t *quad)
{
    const __m256i x = _mm256_loadu_si256((const __m256i *)(const void *)quad);
    return (whole_keys){x, _mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(x, 8)};
}
static inline whole_sums whole_start(const int32_t *start)
{
    return (whole_sums){_mm256_set1_epi32(start[0]), _mm256_set1_epi32(start[1]),
                        _mm256_setzero_si256()};
}
/* Half of a block's values are added. */
static inline void whole_half(whole_sums *s, const int32_t *start)
{
    s->first = _mm256_madd_epi16(s->low, _mm256_set1_epi16(1));
    s->low = _mm256_set1_epi32(start[2]);
}
/* Quad i of a block's values of n vectors of tokens. */
MAI_INLINE void whole_add(whole_sums *s, const whole_keys *k, int n, const int32_t *parts, int i)
{
    const __m256i even = _mm256_set1_epi32(parts[2 * i]);
    MAI_UNROLL for (int t = 0; t < n; t++)
    {
        s[t].high = _mm256_add_epi32(s[t].high, _mm256_madd_epi16(k[t].even, even));
        IN_REGISTER(s[t].high);
    }
    const __m256i odd = _mm256_set1_epi32(parts[2 * i + 1]);
    MAI_UNROLL for (int t = 0; t < n; t++)
    {
        s[t].high = _mm256_add_epi32(s[t].high, _mm256_madd_epi16(k[t].odd, odd));
        IN_REGISTER(s[t].high);
    }
    const __m256i low = _mm256_set1_epi32(parts[16 + i]);
    MAI_UNROLL for (int t = 0; t < n; t++)
    {
        s[t].low = _mm256_add_epi16(s[t].low, _mm256_maddubs_epi16(k[t].bytes, low));
        IN_REGISTER(s[t].low);
    }
}
static inline V whole_value(const whole_sums *s, float base)
{
    const __m256i low = _mm256_add_epi32(s->first, _mm256_madd_epi16(s->low, _mm256_set1_epi16(1)));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(s->high), _mm256_set1_ps(base),
                           _mm256_cvtepi32_ps(low));
}
#endif

#endif
