/* SPDX-License-Identifier: Apache-2.0 */
/* Reading K and V rows as f32 vectors, and the functions every body needs. Included once per ISA,
 * after its vector vocabulary. */
#ifndef MAI_ROWS_H
#define MAI_ROWS_H

#include "core/backend.h"

#define MAI_LOG2E 1.44269504088896340736
#define MAI_LN2 0.69314718055994530942

/* Vector j of a row, i.e. elements [j*VL, (j+1)*VL), of compile-time type, of those of
 * blocks only q8_0. */
MAI_INLINE V row_vec(macattn_dtype type, const char *row, int j)
{
    switch (type) {
    case MACATTN_DTYPE_F16: return v_load_f16(row + (size_t)j * VL * 2);
    case MACATTN_DTYPE_BF16: return v_load_bf16(row + (size_t)j * VL * 2);
    case MACATTN_DTYPE_Q8_0: {
        const char *block = row + (size_t)(j * VL / 32) * 34;
        uint16_t h;
        memcpy(&h, block, 2);
        return v_mul(v_load_i8(block + 2 + j * VL % 32), v_set1(v_f16_scalar(h)));
    }
    case MACATTN_DTYPE_F32:
    default: return v_load_f32(row + (size_t)j * VL * 4);
    }
}

/* Bytes of a row before vector j, of any type but those of blocks. */
MAI_INLINE int64_t vecs_bytes(macattn_dtype type, int j)
{
    return (int64_t)j * VL * (type == MACATTN_DTYPE_F32 ? 4 : 2);
}

/* The last `n` < VL elements of a row (head_dim is a multiple of 8); rest 0. */
MAI_INLINE V row_tail(macattn_dtype type, const char *row, int j, int n)
{
    switch (type) {
    case MACATTN_DTYPE_F16: return v_load_f16_n(row + (size_t)j * VL * 2, n);
    case MACATTN_DTYPE_BF16: return v_load_bf16_n(row + (size_t)j * VL * 2, n);
    case MACATTN_DTYPE_F32:
    default: {
        float f[VL] = {0};
        memcpy(f, row + (size_t)j * VL * 4, (size_t)n * 4);
        return v_load(f);
    }
    }
}

/* 2^x; relative error below 2e-7. 0 well below -126, +inf above 128, NaN for NaN. */
MAI_INLINE V v_exp2(V x)
{
    x = v_max(v_set1(LEAST_POWER), x); /* the second operand is what a NaN comes back from */
    x = v_min(v_set1(128.0f), x);
    V n = v_round(x);
    V f = v_sub(x, n);
    V p = v_set1(1.5403530393381606e-4f);
    p = v_fma(p, f, v_set1(1.3333558146428443e-3f));
    p = v_fma(p, f, v_set1(9.6181291076284772e-3f));
    p = v_fma(p, f, v_set1(5.5504108664821580e-2f));
    p = v_fma(p, f, v_set1(2.4022650695910072e-1f));
    p = v_fma(p, f, v_set1(6.9314718055994531e-1f));
    p = v_fma(p, f, v_set1(1.0f));
    return v_scale2(p, n);
}

/* tanh(z ln2 / 2); relative error below 3e-7, 1 from z = 26 on. From m = 2^z - 1 as m / (m + 2), where
 * m = 2^n f Q(f) + (2^n - 1), n being the nearest whole number and f the rest: the 1 is never taken
 * from something close to it, so that small z keep all their digits. */
MAI_INLINE V v_tanh2(V z)
{
    z = v_max(v_set1(-40.0f), z); /* the second operand is what a NaN comes back from */
    z = v_min(v_set1(40.0f), z);
    const V n = v_round(z);
    const V f = v_sub(z, n);
    /* (2^f - 1) / f for |f| <= 1/2: the polynomial of least relative error, 2e-8 */
    V q = v_set1(1.5403512e-4f);
    q = v_fma(q, f, v_set1(1.3390735e-3f));
    q = v_fma(q, f, v_set1(9.618238e-3f));
    q = v_fma(q, f, v_set1(5.5503573e-2f));
    q = v_fma(q, f, v_set1(2.4022649e-1f));
    q = v_fma(q, f, v_set1(6.931472e-1f));
    const V power = v_scale2(v_set1(1.0f), n);
    const V m = v_fma(power, v_mul(f, q), v_sub(power, v_set1(1.0f)));
    return v_div(m, v_add(m, v_set1(2.0f)));
}

/* A logit x under a soft cap, both it and the result in units of log 2; relative error below 6e-7 wherever
 * x / cap is a normal number. */
MAI_INLINE V v_softcap(V x, float cap)
{
    const V z = v_mul(x, v_set1(fminf(2.0f / cap, FLT_MAX)));
    return v_mul(v_tanh2(z), v_set1((float)((double)cap * MAI_LOG2E)));
}

/* The cap's derivative, 1 - tanh^2, where the capped logit is x in units of log 2; 0 for -inf. */
MAI_INLINE V v_softcap_slope(V x, float cap)
{
    const V t = v_max(v_set1(-1.0f), v_mul(x, v_set1((float)(1 / (cap * MAI_LOG2E)))));
    return v_sub(v_set1(1.0f), v_mul(t, t));
}

/* Byte offsets of token t's K and V from the caches' starts, kv_head 0. */
MAI_INLINE void token_offsets(const mai_tokens *tokens, int64_t t, int64_t *k, int64_t *v)
{
    const macattn_kv *kv = tokens->kv;
    int64_t page = tokens->base_page;
    if (tokens->runs) {
        t = ((int64_t)tokens->runs[t >> MAI_RUN_SHIFT] << MAI_RUN_SHIFT) |
            (t & (MAI_RUN_TOKENS - 1));
    }
    if (tokens->pages) {
        page = tokens->pages[t >> tokens->page_shift];
        t &= ((int64_t)1 << tokens->page_shift) - 1;
    }
    *k = page * kv->k_page_stride + t * kv->k_token_stride;
    *v = page * kv->v_page_stride + t * kv->v_token_stride;
}

/* `n` elements, any type but those of blocks, to f32; zeros up to `padded`, a multiple of VL. */
static void load_padded(macattn_dtype type, const void *row, int n, int padded, float *out)
{
    const int n_vec = n / VL;
    for (int j = 0; j < n_vec; j++) {
        switch (type) {
        case MACATTN_DTYPE_F16: v_store(out + j * VL, row_vec(MACATTN_DTYPE_F16, row, j)); break;
        case MACATTN_DTYPE_BF16: v_store(out + j * VL, row_vec(MACATTN_DTYPE_BF16, row, j)); break;
        default: v_store(out + j * VL, row_vec(MACATTN_DTYPE_F32, row, j)); break;
        }
    }
    for (int i = n_vec * VL; i < padded; i += VL) v_store(out + i, v_zero());
    if (n % VL) v_store(out + n_vec * VL, row_tail(type, row, n_vec, n % VL));
}

/* What queries are multiplied by before the dot products: logits then come in units of log 2. */
static inline double mai_q_factor(const mai_shape *shape)
{
    return (double)shape->scale * MAI_LOG2E;
}

/* A query row to f32, times factor. `out` has room for d values exactly. */
static void load_q(const mai_shape *shape, const void *q, float factor, float *out)
{
    float x[MAI_MAX_DIM];
    load_padded(shape->q_dtype, q, shape->d, (shape->d + VL - 1) / VL * VL, x);
    for (int i = 0; i < shape->d; i++) out[i] = x[i] * factor;
}

#endif
