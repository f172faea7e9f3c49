/* SPDX-License-Identifier: Apache-2.0 */
/* How far one prediction of the next token is from another. */
#ifndef MACATTN_TOOLS_EVAL_METRICS_H
#define MACATTN_TOOLS_EVAL_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/samples.h"

/* One position: `exact` is what is taken as right, `policy` what is judged. */
typedef struct metrics_step {
    double kl;         /* KL(exact || policy) in nats, of the softmax of both */
    double nll_exact;  /* -log of the probability that each gives to the token that follows */
    double nll_policy;
    bool has_target;   /* a token follows; if not, both are 0 */
    bool agree;        /* the most likely token is the same; the first one among equals */
    double margin;     /* by how many nats `exact` prefers its own to that of `policy` */
} metrics_step;

/* Logits of `n` tokens each. `target` is the token that follows, -1 if there is none. */
metrics_step metrics_compare(const float *exact, const float *policy, int32_t n, int32_t target);

/* The token with the largest logit, the first one among equals. */
int32_t metrics_argmax(const float *logits, int32_t n);

/* Many positions. */
typedef struct metrics {
    sample_list kl;
    size_t n_agree;
    double margin_max;
    size_t n_targets; /* positions with a token that follows */
    double nll_exact, nll_policy;
} metrics;

void metrics_add(metrics *m, const metrics_step *step);
void metrics_free(metrics *m);

/* Of everything added; NAN if there was nothing. */
double metrics_kl_mean(const metrics *m);
double metrics_kl_max(const metrics *m);
double metrics_agreement(const metrics *m);
double metrics_margin_max(const metrics *m);
double metrics_ppl_exact(const metrics *m);
double metrics_ppl_policy(const metrics *m);

/* Mean and largest of samples; NAN if there are none. */
double metrics_mean(const sample_list *s);
double metrics_max(const sample_list *s);

#endif /* MACATTN_TOOLS_EVAL_METRICS_H */
