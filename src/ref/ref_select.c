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

void ref_run(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
             const macattn_kv *kv, int kv_head, int64_t i, double *k, double *v)
{
    memset(k, 0, sizeof *k * (size_t)cfg->head_dim);
    memset(v, 0, sizeof *v * (size_t)v_dim(cfg));
    for (int64_t t = RUN * i; t < RUN * i + RUN; t++) {
        int64_t page = row->page, within = t;
        if (batch->page_size > 0) {
            page = row->pages[t / batch->page_size];
            within = t % batch->page_size;
        }
        const char *key = (const char *)kv->k + page * kv->k_page_stride +
                          within * kv->k_token_stride + kv_head * kv->k_head_stride;
        const char *value = (const char *)kv->v + page * kv->v_page_stride +
                            within * kv->v_token_stride + kv_head * kv->v_head_stride;
        for (int j = 0; j < cfg->head_dim; j++) k[j] += ref_value(cfg->k_dtype, key, j) / RUN;
        for (int j = 0; j < v_dim(cfg); j++) v[j] += ref_value(cfg->v_dtype, value, j) / RUN;
    }
}

static double score(const macattn_config *cfg, const double *q, const double *k)
{
    double s = 0;
    for (int j = 0; j < cfg->head_dim; j++) s += q[j] * k[j];
    s *= scale_of(cfg);
    if (cfg->softcap > 0) s = (double)cfg->softcap * tanh(s / (double)cfg->softcap);
    return s + log(RUN);
}

void ref_select(const macattn_config *cfg, const double *q, const double *share, const double *k,
                int first, int n_runs, double theta, ref_selection *out)
{
    const int group = cfg->n_heads / cfg->n_kv_heads, d = cfg->head_dim;
    for (int i = 0; i < n_runs; i++) out->ratio[i] = i < first ? INFINITY : 0;
    for (int h = 0; h < group; h++) {
        double *scores = out->scores + (size_t)h * (size_t)n_runs, top = -INFINITY, sum = 0;
        for (int i = first; i < n_runs; i++) {
            scores[i] = score(cfg, q + (size_t)h * (size_t)d, k + (size_t)i * (size_t)d);
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
