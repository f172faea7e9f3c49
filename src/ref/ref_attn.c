/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

static double from_f16(uint16_t h)
{
    const int sign = h >> 15, exponent = h >> 10 & 31, mantissa = h & 1023;
    double x;
    if (exponent == 31) {
        x = mantissa ? NAN : INFINITY;
    } else if (exponent == 0) {
        x = ldexp(mantissa, -24);
    } else {
        x = ldexp(1024 + mantissa, exponent - 25);
    }
    return sign ? -x : x;
}

static double from_f8_e4m3(uint8_t b)
{
    const int exponent = b >> 3 & 15, mantissa = b & 7;
    double x = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
    if ((b & 127) == 127) x = NAN;
    return b >> 7 ? -x : x;
}

/* ggml's blocks of 4 and 5 bits a value. */
static double small_value(macattn_dtype dtype, const uint8_t *row, int64_t i)
{
    static const int table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
    const int n = (int)(i % 32);
    const uint8_t *at = row + i / 32 * (int64_t)macattn_dtype_row_bytes(dtype, 32);
    uint16_t d, m;
    uint32_t high;
    memcpy(&d, at, 2);
    at += 2;
    memcpy(&m, at, 2);
    if (dtype == MACATTN_DTYPE_Q4_1 || dtype == MACATTN_DTYPE_Q5_1) at += 2;
    memcpy(&high, at, 4);
    if (dtype == MACATTN_DTYPE_Q5_0 || dtype == MACATTN_DTYPE_Q5_1) at += 4;
    const int low = n < 16 ? at[n] & 15 : at[n - 16] >> 4;
    const int five = low | (int)(high >> n & 1u) << 4;
    switch ((int)dtype) {
    case MACATTN_DTYPE_Q4_0: return from_f16(d) * (low - 8);
    case MACATTN_DTYPE_Q4_1: return from_f16(d) * low + from_f16(m);
    case MACATTN_DTYPE_Q5_0: return from_f16(d) * (five - 16);
    case MACATTN_DTYPE_Q5_1: return from_f16(d) * five + from_f16(m);
    default: return from_f16(d) * table[low];
    }
}

double ref_value(macattn_dtype dtype, const void *row, int64_t i)
{
    const char *at = row;
    uint16_t h;
    uint32_t w;
    float f;
    switch (dtype) {
    case MACATTN_DTYPE_F16: memcpy(&h, at + 2 * i, 2); return from_f16(h);
    case MACATTN_DTYPE_BF16:
        memcpy(&h, at + 2 * i, 2);
        w = (uint32_t)h << 16;
        memcpy(&f, &w, 4);
        return (double)f;
    case MACATTN_DTYPE_Q8_0:
        memcpy(&h, at + i / 32 * 34, 2);
        return from_f16(h) * (double)(int8_t)at[i / 32 * 34 + 2 + i % 32];
    case MACATTN_DTYPE_Q4_0:
    case MACATTN_DTYPE_Q4_1:
    case MACATTN_DTYPE_Q5_0:
    case MACATTN_DTYPE_Q5_1:
    case MACATTN_DTYPE_IQ4_NL: return small_value(dtype, row, i);
    case MACATTN_DTYPE_F8_E4M3: return from_f8_e4m3((uint8_t)at[i]);
    case MACATTN_DTYPE_F32:
    default: memcpy(&f, at + 4 * i, 4); return (double)f;
    }
}

static int v_dim(const macattn_config *cfg)
{
    return cfg->v_head_dim ? cfg->v_head_dim : cfg->head_dim;
}

/* `slope`: the soft cap's derivative. */
static double logit(const macattn_config *cfg, const double *q, const void *k, double *slope)
{
    double s = 0;
    for (int i = 0; i < cfg->head_dim; i++) s += q[i] * ref_value(cfg->k_dtype, k, i);
    s *= cfg->scale != 0 ? (double)cfg->scale : 1 / sqrt(cfg->head_dim);
    *slope = 1;
    if (!(cfg->softcap > 0)) return s;
    const double t = tanh(s / (double)cfg->softcap);
    *slope = 1 - t * t;
    return (double)cfg->softcap * t;
}

static void token(const macattn_batch *batch, const macattn_row *row, const macattn_kv *kv,
                  int64_t t, const char **k, const char **v)
{
    int64_t page = row->page;
    if (batch->page_size > 0) {
        page = row->pages[t / batch->page_size];
        t %= batch->page_size;
    }
    *k = (const char *)kv->k + page * kv->k_page_stride + t * kv->k_token_stride;
    *v = (const char *)kv->v + page * kv->v_page_stride + t * kv->v_token_stride;
}

/* x[i] := f x[i] + p row[i], a row of K or V. */
static void add_row(int n, double *x, double f, double p, macattn_dtype dtype, const void *row)
{
    for (int i = 0; i < n; i++) x[i] = x[i] * f + p * ref_value(dtype, row, i);
}

double ref_range_keys(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
                      const macattn_kv *kv, int head, const double *q, int64_t t0, int64_t t1,
                      double *out, double *kbar)
{
    const int d = cfg->head_dim, dv = v_dim(cfg), kv_head = head / (cfg->n_heads / cfg->n_kv_heads);
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < dv; i++) out[i] = 0;
    for (int i = 0; kbar && i < d; i++) kbar[i] = 0;
    for (int64_t t = t0; t < t1; t++) {
        const char *k, *v;
        double slope, f = 1;
        token(batch, row, kv, t, &k, &v);
        k += kv_head * kv->k_head_stride;
        v += kv_head * kv->v_head_stride;
        const double s = logit(cfg, q, k, &slope);
        if (s == -INFINITY) continue;
        if (!(s <= top)) { /* also a NaN: it stays */
            f = top == -INFINITY ? 0 : exp(top - s);
            top = s;
        }
        const double p = exp(s - top);
        sum = sum * f + p;
        add_row(dv, out, f, p, cfg->v_dtype, v);
        if (kbar) add_row(d, kbar, f, p * slope, cfg->k_dtype, k);
    }
    if (top == -INFINITY) return -INFINITY;
    for (int i = 0; i < dv; i++) out[i] /= sum;
    for (int i = 0; kbar && i < d; i++) kbar[i] /= sum;
    return top + log(sum);
}

double ref_range(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
                 const macattn_kv *kv, int head, const double *q, int64_t t0, int64_t t1,
                 double *out)
{
    return ref_range_keys(cfg, batch, row, kv, head, q, t0, t1, out, NULL);
}

void ref_merge(int n, double *o, double *l, const double *ox, double lx)
{
    if (lx == -INFINITY) return;
    const double top = *l > lx ? *l : lx;
    const double a = *l == -INFINITY ? 0 : exp(*l - top), b = exp(lx - top);
    for (int i = 0; i < n; i++) o[i] = (a == 0 ? 0 : a * o[i] / (a + b)) + b * ox[i] / (a + b);
    *l = top + log(a + b);
}

void ref_attend(const macattn_config *cfg, const macattn_batch *batch, const macattn_io *io,
                double *out, double *lse)
{
    const int hq = cfg->n_heads, dv = v_dim(cfg);
    const int64_t q_bytes = (int64_t)macattn_dtype_row_bytes(cfg->q_dtype, cfg->head_dim);
    const int64_t head_stride = io->q_head_stride ? io->q_head_stride : q_bytes;
    const int64_t row_stride = io->q_row_stride ? io->q_row_stride : hq * q_bytes;
    double *q = malloc(sizeof *q * (size_t)cfg->head_dim), *zero = calloc((size_t)dv, sizeof *zero);
    int64_t at = 0; /* query row */
    for (int r = 0; r < batch->n_rows; r++) {
        const macattn_row *row = &batch->rows[r];
        for (int i = 0; i < row->n_queries; i++, at++) {
            const int64_t n =
                row->n_tokens - row->n_queries + i + 1; /* tokens it sees the end of */
            const int64_t last = row->n_tokens == 0 ? 0 : n;
            const int64_t first = cfg->window > 0 && last > cfg->window ? last - cfg->window : 0;
            for (int h = 0; h < hq; h++) {
                const char *x = (const char *)io->q + at * row_stride + h * head_stride;
                double *o = out + (at * hq + h) * dv;
                for (int j = 0; j < cfg->head_dim; j++) q[j] = ref_value(cfg->q_dtype, x, j);
                double l = ref_range(cfg, batch, row, &io->kv, h, q, first, last, o);
                if (io->sinks) ref_merge(dv, o, &l, zero, (double)io->sinks[h]);
                if (lse) lse[at * hq + h] = l;
            }
        }
    }
    free(q);
    free(zero);
}
