/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include <math.h>

int32_t metrics_argmax(const float *logits, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    return best;
}

/* Natural logarithm of the sum of the exponentials; `best` is the index of the largest. */
static double log_sum_exp(const float *logits, int32_t n, int32_t best)
{
    const double top = (double)logits[best];
    double sum = 0.0;
    for (int32_t i = 0; i < n; i++) {
        sum += exp((double)logits[i] - top);
    }
    return top + log(sum);
}

metrics_step metrics_compare(const float *exact, const float *policy, int32_t n, int32_t target)
{
    const int32_t best = metrics_argmax(exact, n), chosen = metrics_argmax(policy, n);
    const double lse_exact = log_sum_exp(exact, n, best);
    const double lse_policy = log_sum_exp(policy, n, chosen);
    double kl = 0.0;
    for (int32_t i = 0; i < n; i++) {
        const double log_p = (double)exact[i] - lse_exact;
        const double p = exp(log_p);
        if (p > 0.0) {
            kl += p * (log_p - ((double)policy[i] - lse_policy));
        }
    }
    metrics_step step = {.kl = kl > 0.0 ? kl : 0.0, /* rounding */
                         .agree = best == chosen,
                         .margin = (double)exact[best] - (double)exact[chosen]};
    if (isnan(kl)) {
        step.kl = kl;
    }
    step.has_target = target >= 0;
    if (step.has_target) {
        step.nll_exact = lse_exact - (double)exact[target];
        step.nll_policy = lse_policy - (double)policy[target];
    }
    return step;
}

void metrics_add(metrics *m, const metrics_step *step)
{
    sample_list_add(&m->kl, step->kl);
    m->n_agree += step->agree;
    m->margin_max = fmax(m->margin_max, step->margin);
    m->n_targets += step->has_target;
    m->nll_exact += step->nll_exact;
    m->nll_policy += step->nll_policy;
}

void metrics_free(metrics *m)
{
    sample_list_free(&m->kl);
    *m = (metrics){0};
}

double metrics_mean(const sample_list *s)
{
    double sum = 0.0;
    for (size_t i = 0; i < s->n; i++) {
        sum += s->values[i];
    }
    return s->n ? sum / (double)s->n : (double)NAN;
}

double metrics_max(const sample_list *s)
{
    double max = (double)NAN;
    for (size_t i = 0; i < s->n; i++) {
        if (!(s->values[i] <= max)) {
            max = s->values[i];
        }
    }
    return max;
}

double metrics_kl_mean(const metrics *m)
{
    return metrics_mean(&m->kl);
}

double metrics_kl_max(const metrics *m)
{
    return metrics_max(&m->kl);
}

double metrics_agreement(const metrics *m)
{
    return m->kl.n ? (double)m->n_agree / (double)m->kl.n : (double)NAN;
}

double metrics_margin_max(const metrics *m)
{
    return m->kl.n ? m->margin_max : (double)NAN;
}

double metrics_ppl_exact(const metrics *m)
{
    return m->n_targets ? exp(m->nll_exact / (double)m->n_targets) : (double)NAN;
}

double metrics_ppl_policy(const metrics *m)
{
    return m->n_targets ? exp(m->nll_policy / (double)m->n_targets) : (double)NAN;
}
