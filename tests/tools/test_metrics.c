/* SPDX-License-Identifier: Apache-2.0 */
/* The metrics of `macattn eval`, on logits whose divergences can be worked out by hand. */
#include "support.h"

#include <math.h>

#include "eval/budgets.h"
#include "eval/metrics.h"

#define NEAR(x, y) assert_true(fabs((x) - (y)) <= 1e-6 * (1.0 + fabs(y)))

static const double ln2 = 0.693147180559945309;

static void same_logits_differ_by_nothing(void **state)
{
    (void)state;
    test_rng rng = {.state = 5};
    float logits[1000];
    for (int i = 0; i < 1000; i++) logits[i] = (float)(20 * test_normal(&rng));
    const metrics_step s = metrics_compare(logits, logits, 1000, 17);
    assert_true(s.kl == 0.0 && s.agree && s.margin == 0.0 && s.has_target);
    assert_true(s.nll_exact == s.nll_policy);
}

static void divergence_by_hand(void **state)
{
    (void)state;
    /* Softmax: 1/2 1/4 1/4 and 1/4 1/2 1/4. KL = 1/2 ln 2 - 1/4 ln 2. */
    const float p[] = {(float)ln2, 0, 0}, q[] = {0, (float)ln2, 0};
    const metrics_step s = metrics_compare(p, q, 3, 0);
    NEAR(s.kl, 0.25 * ln2);
    NEAR(s.nll_exact, ln2);
    NEAR(s.nll_policy, 2 * ln2);
    assert_false(s.agree);
    NEAR(s.margin, ln2);
}

static void divergence_is_not_symmetric(void **state)
{
    (void)state;
    /* 3/4 1/4 and 1/2 1/2. */
    const float p[] = {(float)log(3), 0}, q[] = {0, 0};
    NEAR(metrics_compare(p, q, 2, -1).kl, 0.75 * log(1.5) + 0.25 * log(0.5));
    NEAR(metrics_compare(q, p, 2, -1).kl, 0.5 * log(2.0 / 3.0) + 0.5 * log(2.0));
}

static void a_constant_changes_nothing(void **state)
{
    (void)state;
    const float p[] = {1, 2, 3}, q[] = {3, 1, 2};
    const float far_p[] = {30001, 30002, 30003}, far_q[] = {-29997, -29999, -29998};
    NEAR(metrics_compare(far_p, far_q, 3, 1).kl, metrics_compare(p, q, 3, 1).kl);
    NEAR(metrics_compare(far_p, far_q, 3, 1).nll_policy, metrics_compare(p, q, 3, 1).nll_policy);
}

static void impossible_tokens(void **state)
{
    (void)state;
    const float p[] = {0, 0, -INFINITY}, q[] = {0, -INFINITY, 0};
    assert_true(metrics_compare(p, p, 3, 0).kl == 0.0);
    assert_true(isinf(metrics_compare(p, q, 3, 0).kl));
    assert_true(isinf(metrics_compare(p, q, 3, 2).nll_exact));
}

static void nan_is_not_hidden(void **state)
{
    (void)state;
    const float p[] = {0, 1}, q[] = {NAN, 1};
    assert_true(isnan(metrics_compare(p, q, 2, -1).kl));
}

static void first_of_equals(void **state)
{
    (void)state;
    const float p[] = {1, 5, 5, 2};
    assert_int_equal(metrics_argmax(p, 4), 1);
}

static void sums(void **state)
{
    (void)state;
    metrics m = {0};
    assert_true(isnan(metrics_kl_mean(&m)) && isnan(metrics_ppl_exact(&m)));
    assert_true(isnan(metrics_agreement(&m)) && isnan(metrics_kl_max(&m)));
    assert_true(isnan(metrics_margin_max(&m)));
    for (int i = 0; i < 100; i++) {
        const metrics_step step = {.kl = i == 40 ? 3.0 : 1.0,
                                   .nll_exact = i % 2 ? ln2 : 3 * ln2,
                                   .nll_policy = 3 * ln2,
                                   .has_target = i < 50,
                                   .agree = i >= 10,
                                   .margin = i < 10 ? 0.1 * i : 0.0};
        const metrics_step last = {.kl = step.kl, .agree = step.agree, .margin = step.margin};
        metrics_add(&m, step.has_target ? &step : &last);
    }
    NEAR(metrics_kl_mean(&m), 1.02);
    NEAR(metrics_kl_max(&m), 3.0);
    NEAR(sample_list_quantile(&m.kl, 0.5), 1.0);
    NEAR(metrics_agreement(&m), 0.9);
    NEAR(metrics_margin_max(&m), 0.9);
    NEAR(metrics_ppl_exact(&m), 4.0);
    NEAR(metrics_ppl_policy(&m), 8.0);
    metrics_free(&m);
}

/* Ten times the cost for the same errors: a budget smaller by the root of that. */
static void budgets_by_cost(void **state)
{
    (void)state;
    const double kl[] = {1e-4, 1e-3, 1e-4, 0}, error2[] = {1e-2, 1e-2, 1e-1, 0};
    double f[4];
    budgets_factors(3, kl, error2, f);
    NEAR(f[0] / f[1], sqrt(10.0));
    NEAR(f[2] / f[0], sqrt(10.0));
    NEAR(f[0] * f[1] * f[2], 1.0);
    budgets_factors(4, kl, error2, f); /* nothing is known of the last, and it changes nothing */
    NEAR(f[0], 1.0);
    NEAR(f[3], 1.0);
    const double far_kl[] = {1e3, 1e-8}, same[] = {1, 1};
    budgets_factors(2, far_kl, same, f);
    NEAR(f[0], 1.0 / 16.0);
    NEAR(f[1], 16.0);
    const double none[] = {0, 0};
    budgets_factors(2, far_kl, none, f);
    NEAR(f[0], 1.0);
    NEAR(f[1], 1.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_logits_differ_by_nothing),
                                       cmocka_unit_test(divergence_by_hand),
                                       cmocka_unit_test(divergence_is_not_symmetric),
                                       cmocka_unit_test(a_constant_changes_nothing),
                                       cmocka_unit_test(impossible_tokens),
                                       cmocka_unit_test(nan_is_not_hidden),
                                       cmocka_unit_test(first_of_equals),
                                       cmocka_unit_test(sums),
                                       cmocka_unit_test(budgets_by_cost)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
