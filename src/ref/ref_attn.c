/* SPDX-License-Identifier: Apache-2.0 */
/* Full attention, and attention over a range of tokens:
 *
 *     s[t] = cap(scale * q . k[t]);   lse = log sum exp s[t];   o = sum exp(s[t] - lse) v[t] */
#include <math.h>
#include <string.h>

#include "ref.h"

/* ---------------------------------------------------------------------------------- data types -- */

static double f16_value(const unsigned char *p)
{
    const unsigned bits = p[0] | (unsigned)p[1] << 8;
    const int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    double value;
    if (exponent == 31) {
        value = fraction ? NAN : INFINITY;
    } else if (exponent == 0) {
        value = ldexp(fraction, -24);
    } else {
        value = ldexp(fraction + 1024, exponent - 25);
    }
    return bits >> 15 ? -value : value;
}

static double bf16_value(const unsigned char *p)
{
    const uint32_t bits = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

static double f32_value(const unsigned char *p)
{
    float value;
    memcpy(&value, p, sizeof value);
    return (double)value;
}

/* Blocks of 32: an f16 scale, then 32 int8. */
static double q8_0_value(const unsigned char *row, int64_t i)
{
    const unsigned char *block = row + i / 32 * 34;
    int8_t value;
    memcpy(&value, block + 2 + i % 32, 1);
    return f16_value(block) * value;
}

static double element(macattn_dtype dtype, const void *row, int64_t i)
{
    const unsigned char *p = row;
    switch (dtype) {
    case MACATTN_DTYPE_F32: return f32_value(p + 4 * i);
    case MACATTN_DTYPE_F16: return f16_value(p + 2 * i);
    case MACATTN_DTYPE_BF16: return bf16_value(p + 2 * i);
    case MACATTN_DTYPE_Q8_0: return q8_0_value(p, i);
    default: return NAN;
    }
}

void ref_load(macattn_dtype dtype, const void *row, int64_t n, double *out)
{
    for (int64_t i = 0; i < n; i++) out[i] = element(dtype, row, i);
}

/* ------------------------------------------------------------------------------ where things are -- */

static int32_t value_dim(const macattn_config *cfg)
{
    return cfg->v_head_dim ? cfg->v_head_dim : cfg->head_dim;
}

static double logit_scale(const macattn_config *cfg)
{
    return cfg->scale != 0 ? (double)cfg->scale : (double)(float)(1 / sqrt((double)cfg->head_dim));
}

static const char *query_row(const macattn_config *cfg, const macattn_io *io, int64_t query,
                             int32_t head)
{
    const int64_t bytes = (int64_t)macattn_dtype_row_bytes(cfg->q_dtype, cfg->head_dim);
    const int64_t head_stride = io->q_head_stride ? io->q_head_stride : bytes;
    const int64_t row_stride = io->q_row_stride ? io->q_row_stride : cfg->n_heads * bytes;
    return (const char *)io->q + query * row_stride + head * head_stride;
}

/* Page of token t, and its place within it. */
static int64_t page_of(const macattn_batch *batch, const macattn_row *row, int64_t t,
                       int64_t *within)
{
    *within = batch->page_size ? t % batch->page_size : t;
    return batch->page_size ? row->pages[t / batch->page_size] : row->page;
}

/* ----------------------------------------------------------------------------------- attention -- */

/* Logits of at most RANGE tokens at a time, merged. */
#define RANGE 1024
#define MAX_DIM 1024

static double logit(const macattn_config *cfg, const double *q, const char *k)
{
    double dot = 0;
    for (int32_t i = 0; i < cfg->head_dim; i++) dot += q[i] * element(cfg->k_dtype, k, i);
    dot *= logit_scale(cfg);
    if (cfg->softcap > 0) dot = (double)cfg->softcap * tanh(dot / (double)cfg->softcap);
    return dot;
}

void ref_merge(int32_t dv, double *out, double *out_lse, const double *o, double lse)
{
    if (lse == -INFINITY) return;
    if (*out_lse == -INFINITY) {
        memcpy(out, o, sizeof *out * (size_t)dv);
        *out_lse = lse;
        return;
    }
    const double top = fmax(*out_lse, lse);
    const double sum = top + log(exp(*out_lse - top) + exp(lse - top));
    for (int32_t i = 0; i < dv; i++) out[i] = out[i] * exp(*out_lse - sum) + o[i] * exp(lse - sum);
    *out_lse = sum;
}

/* Tokens [t0, t1), no more than RANGE of them. */
static void attend_range(const macattn_config *cfg, const macattn_batch *batch,
                         const macattn_io *io, const macattn_row *row, int32_t kv_head,
                         const double *q, int64_t t0, int64_t t1, double *out, double *lse)
{
    const int32_t dv = value_dim(cfg);
    double s[RANGE], top = -INFINITY, sum = 0;
    for (int64_t t = t0; t < t1; t++) {
        int64_t within;
        const int64_t page = page_of(batch, row, t, &within);
        const char *k = (const char *)io->kv.k + page * io->kv.k_page_stride +
                        within * io->kv.k_token_stride + kv_head * io->kv.k_head_stride;
        s[t - t0] = logit(cfg, q, k);
        top = fmax(top, s[t - t0]);
    }
    memset(out, 0, sizeof *out * (size_t)dv);
    *lse = -INFINITY;
    for (int64_t t = t0; t < t1; t++) {
        int64_t within;
        const int64_t page = page_of(batch, row, t, &within);
        const char *v = (const char *)io->kv.v + page * io->kv.v_page_stride +
                        within * io->kv.v_token_stride + kv_head * io->kv.v_head_stride;
        const double weight = s[t - t0] == -INFINITY ? 0 : exp(s[t - t0] - top);
        for (int32_t i = 0; i < dv; i++) out[i] += weight * element(cfg->v_dtype, v, i);
        sum += weight;
    }
    if (sum == 0) return;
    for (int32_t i = 0; i < dv; i++) out[i] /= sum;
    *lse = top + log(sum);
}

void ref_range(const macattn_config *cfg, const macattn_batch *batch, const macattn_io *io,
               int32_t row, int64_t query, int32_t head, int64_t t0, int64_t t1, double *out,
               double *lse)
{
    const int32_t dv = value_dim(cfg), kv_head = head / (cfg->n_heads / cfg->n_kv_heads);
    double q[MAX_DIM], part[MAX_DIM], part_lse;
    ref_load(cfg->q_dtype, query_row(cfg, io, query, head), cfg->head_dim, q);
    memset(out, 0, sizeof *out * (size_t)dv);
    *lse = -INFINITY;
    for (int64_t t = t0; t < t1; t += RANGE) {
        const int64_t end = t + RANGE < t1 ? t + RANGE : t1;
        attend_range(cfg, batch, io, &batch->rows[row], kv_head, q, t, end, part, &part_lse);
        ref_merge(dv, out, lse, part, part_lse);
    }
}

void ref_attend(const macattn_config *cfg, const macattn_batch *batch, const macattn_io *io,
                double *out, double *lse)
{
    const int32_t dv = value_dim(cfg);
    static const double nothing[MAX_DIM];
    int64_t query = 0;
    for (int32_t r = 0; r < batch->n_rows; r++) {
        const macattn_row *row = &batch->rows[r];
        for (int32_t i = 0; i < row->n_queries; i++, query++) {
            const int64_t seen = row->n_tokens - row->n_queries + i + 1 > 0
                                     ? row->n_tokens - row->n_queries + i + 1
                                     : 0;
            const int64_t first = cfg->window > 0 && seen > cfg->window ? seen - cfg->window : 0;
            for (int32_t h = 0; h < cfg->n_heads; h++) {
                const int64_t at = query * cfg->n_heads + h;
                ref_range(cfg, batch, io, r, query, h, first, seen, out + at * dv, &lse[at]);
                if (io->sinks) {
                    ref_merge(dv, out + at * dv, &lse[at], nothing, (double)io->sinks[h]);
                }
            }
        }
    }
}
