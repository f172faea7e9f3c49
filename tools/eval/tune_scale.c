/* SPDX-License-Identifier: Apache-2.0 */
#include "tune_scale.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "budgets.h"
#include "common/memory.h"

#define WORST_ERROR 2.0

void tune_scale_free(tune_scale *scale)
{
    free(scale->at);
    *scale = (tune_scale){NULL, 0, 0};
}

static macattn_ggml_layer layer_of(const eval_session *session, int32_t l)
{
    macattn_ggml_layer layer = {.struct_size = sizeof layer};
    eval_model_plugin(session->model)->layer(eval_model_attention(session->model), l, &layer);
    return layer;
}

/* All layers alike, and numbered within their count. */
static bool is_regular(const eval_session *session, int32_t n_layers)
{
    const macattn_ggml_layer first = layer_of(session, 0);
    for (int32_t l = 0; l < n_layers; l++) {
        const macattn_ggml_layer layer = layer_of(session, l);
        if (layer.number < 0 || layer.number >= n_layers || layer.n_heads != first.n_heads ||
            layer.n_kv_heads != first.n_kv_heads) {
            return false;
        }
    }
    return n_layers > 0;
}

/* Mean over all steps of the sum of the squared errors of heads [h0, h0 + group). */
static double squared_errors(const eval_result *r, int32_t l, int32_t h0, int32_t group)
{
    double sum = 0.0;
    for (int32_t h = h0; h < h0 + group; h++) {
        const eval_head *head = &r->heads[l * r->n_heads + h];
        double squares = 0.0;
        for (size_t i = 0; i < head->layer_errors.n; i++) {
            const double e = fmin(head->layer_errors.values[i], WORST_ERROR);
            squares += e * e;
        }
        if (head->layer_errors.n > 0 && head->steps > 0) {
            sum +=
                squares / (double)head->layer_errors.n * (double)head->hits / (double)head->steps;
        }
    }
    return sum;
}

/* What is left of the divergence without what rounding makes; that is known to a tenth or so. */
static double divergence(const eval_result *r)
{
    const double floor = metrics_kl_mean(&r->floor), kl = metrics_kl_mean(&r->all);
    return isnan(floor) ? kl : fmax(kl - floor, 0.1 * floor);
}

tune_scale tune_scale_measure(eval_session *session, const eval_plan *plan,
                              const macattn_ggml_options *like)
{
    const int32_t n_layers =
        eval_model_plugin(session->model)->n_layers(eval_model_attention(session->model));
    tune_scale scale = {NULL, 0, 0};
    if (!is_regular(session, n_layers)) {
        return scale;
    }
    const macattn_ggml_layer first = layer_of(session, 0);
    const int32_t n_heads = first.n_heads, n_kv = first.n_kv_heads, group = n_heads / n_kv;
    const int n = n_layers * n_kv;
    const size_t size = (size_t)n_layers * (size_t)n_heads;
    macattn_ggml_options *settings = memory_alloc((size_t)n * sizeof *settings);
    float *probes = memory_alloc((size_t)n * size * sizeof *probes);
    memset(probes, 0, (size_t)n * size * sizeof *probes);
    for (int i = 0; i < n; i++) {
        float *probe = probes + (size_t)i * size;
        const int32_t at = layer_of(session, i / n_kv).number * n_heads + i % n_kv * group;
        for (int32_t h = at; h < at + group; h++) {
            probe[h] = 1.0f;
        }
        settings[i] = *like;
        settings[i].policy = MACATTN_POLICY_BUDGET;
        settings[i].budget = 1.0f; /* whatever it costs: small changes drown in rounding */
        settings[i].budget_scale = probe;
        settings[i].scale_layers = n_layers;
        settings[i].scale_heads = n_heads;
        settings[i].audit_every = like->audit_every > 0 ? like->audit_every : 8;
    }
    eval_plan probing = *plan;
    eval_result *results = eval_session_measure(session, &probing, settings, n, false);
    double *kl = memory_alloc((size_t)n * sizeof *kl),
           *error2 = memory_alloc((size_t)n * sizeof *kl);
    double *factors = memory_alloc((size_t)n * sizeof *factors);
    for (int i = 0; i < n; i++) {
        kl[i] = divergence(&results[i]);
        error2[i] = squared_errors(&results[i], i / n_kv, i % n_kv * group, group);
        eval_result_free(&results[i]);
    }
    budgets_factors(n, kl, error2, factors);
    scale = (tune_scale){memory_alloc(size * sizeof *scale.at), n_layers, n_heads};
    for (int i = 0; i < n; i++) {
        const int32_t at = layer_of(session, i / n_kv).number * n_heads + i % n_kv * group;
        for (int32_t h = at; h < at + group; h++) {
            scale.at[h] = (float)factors[i];
        }
    }
    free(results);
    free(settings);
    free(probes);
    free(kl);
    free(error2);
    free(factors);
    return scale;
}
