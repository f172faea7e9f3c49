/* SPDX-License-Identifier: Apache-2.0 */
/* Selection: what of the far tokens is read, and what comes of it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

enum { RUN = 16 };

static int v_dim(const macattn_config *cfg)
{
    return cfg->v_head_dim ? cfg->v_head_dim : cfg->head_dim;
}

static double scale_of(const macattn_config *cfg)
{
    return cfg->scale != 0 ? (double)cfg->scale : 1 / sqrt(cfg->head_dim);
}

/* Token t's key and value. */
static void token_of(const macattn_batch *batch, const macattn_row *row, const macattn_kv *kv,
                     int kv_head, int64_t t, const char **key, const char **value)
{
    int64_t page = row->page, within = t;
    if (batch->page_size > 0) {
        page = row->pages[t / batch->page_size];
        within = t % batch->page_size;
    }
    *key = (const char *)kv->k + page * kv->k_page_stride + within * kv->k_token_stride +
           kv_head * kv->k_head_stride;
    *value = (const char *)kv->v + page * kv->v_page_stride + within * kv->v_token_stride +
             kv_head * kv->v_head_stride;
}

void ref_run(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
             const macattn_kv *kv, int kv_head, int64_t i, double *k, double *v, double *outlier)
{
    const char *key, *value;
    double most = -1;
    memset(k, 0, sizeof *k * (size_t)cfg->head_dim);
    memset(v, 0, sizeof *v * (size_t)v_dim(cfg));
    for (int64_t t = RUN * i; t < RUN * i + RUN; t++) {
        token_of(batch, row, kv, kv_head, t, &key, &value);
        for (int j = 0; j < cfg->head_dim; j++) k[j] += ref_value(cfg->k_dtype, key, j) / RUN;
        for (int j = 0; j < v_dim(cfg); j++) v[j] += ref_value(cfg->v_dtype, value, j) / RUN;
    }
    for (int64_t t = RUN * i; t < RUN * i + RUN; t++) {
        double distance2 = 0;
        token_of(batch, row, kv, kv_head, t, &key, &value);
        for (int j = 0; j < cfg->head_dim; j++)
            distance2 += pow(ref_value(cfg->k_dtype, key, j) - k[j], 2);
        if (!(distance2 > most)) continue;
        most = distance2;
        for (int j = 0; j < cfg->head_dim; j++) outlier[j] = ref_value(cfg->k_dtype, key, j);
    }
}

static double dot(const double *x, const double *y, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++) s += x[i] * y[i];
    return s;
}

static double capped(const macattn_config *cfg, double logit)
{
    const double cap = (double)cfg->softcap;
    return cap > 0 ? cap * tanh(logit / cap) : logit;
}

static double score(const macattn_config *cfg, const double *q, const double *k,
                    const double *outlier)
{
    const double mean = scale_of(cfg) * dot(q, k, cfg->head_dim);
    if (!outlier) return capped(cfg, mean) + log(RUN);
    const double one = scale_of(cfg) * dot(q, outlier, cfg->head_dim);
    const double others = capped(cfg, (RUN * mean - one) / (RUN - 1)) + log(RUN - 1);
    const double top = fmax(others, capped(cfg, one));
    return top + log(exp(others - top) + exp(capped(cfg, one) - top));
}

void ref_select(const macattn_config *cfg, const double *q, const double *share, const double *k,
                const double *outlier, int first, int n_runs, double theta, ref_selection *out)
{
    const int group = cfg->n_heads / cfg->n_kv_heads, d = cfg->head_dim;
    for (int i = 0; i < n_runs; i++) out->ratio[i] = i < first ? INFINITY : 0;
    for (int h = 0; h < group; h++) {
        double *scores = out->scores + (size_t)h * (size_t)n_runs, top = -INFINITY, sum = 0;
        for (int i = first; i < n_runs; i++) {
            const size_t at = (size_t)i * (size_t)d;
            scores[i] =
                score(cfg, q + (size_t)h * (size_t)d, k + at, outlier ? outlier + at : NULL);
            top = fmax(top, scores[i]);
        }
        for (int i = first; i < n_runs; i++) sum += exp(scores[i] - top);
        const double total = top + log(sum) - log(fmax(share[h], 1e-6));
        for (int i = first; i < n_runs; i++)
            out->ratio[i] = fmax(out->ratio[i], exp(scores[i] - total) / theta);
    }
}

double ref_selected(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
                    const macattn_kv *kv, int head, const double *q, const ref_selection *selection,
                    const double *v, int n_runs, double *out)
{
    const int dv = v_dim(cfg), group = cfg->n_heads / cfg->n_kv_heads;
    const int64_t first = cfg->fresh_tokens;
    double *part = malloc(sizeof *part * (size_t)dv);
    double lse = ref_range(cfg, batch, row, kv, head, q, 0, first, out);
    for (int i = 0; i < n_runs; i++) {
        const int64_t from = RUN * i < first ? first : RUN * i;
        if (from >= RUN * i + RUN) continue;
        if (selection->ratio[i] >= 1) {
            const double l = ref_range(cfg, batch, row, kv, head, q, from, RUN * i + RUN, part);
            ref_merge(dv, out, &lse, part, l);
        } else {
            ref_merge(dv, out, &lse, v + (size_t)i * (size_t)dv,
                      selection->scores[(size_t)(head % group) * (size_t)n_runs + (size_t)i]);
        }
    }
    const double l =
        ref_range(cfg, batch, row, kv, head, q, RUN * (int64_t)n_runs, row->n_tokens, part);
    ref_merge(dv, out, &lse, part, l);
    free(part);
    return lse;
}
