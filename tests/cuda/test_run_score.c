/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU's score of a run (src/cuda/run_score.h), the same formula without a GPU, against double
 * precision: what the instructions of a GPU add is seen in test_select.c. */
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/run_score.h"
#include "support.h"

#define LOG2E 1.4426950408889634

static double capped(double cap, double logit)
{
    return cap > 0 ? cap * tanh(logit / cap) : logit;
}

static double add(double a, double b)
{
    const double top = fmax(a, b);
    return top + log(exp(a - top) + exp(b - top));
}

static void check_run(float cap, float scale, float base, float mean, float outlier)
{
    const mai_softcap s = mai_softcap_of(cap);
    const float factor = scale * (float)LOG2E;
    const double x = (double)factor / LOG2E, c = (double)cap;
    const double k = x * ((double)base + (double)mean), one = x * ((double)base + (double)outlier);
    const double by_mean = capped(c, k) + log(16);
    const double by_both = add(capped(c, (16 * k - one) / 15) + log(15), capped(c, one));
    /* Logits are of f32, and as large as their parts. */
    const double size = x * (fabs((double)base) + fabs((double)mean) + fabs((double)outlier));
    const double most = 1e-6 + 4e-7 * size + (c > 0 ? 4e-7 * c : 0);
    const double got_mean = (double)mai_mean_score(s, factor, base, mean) / LOG2E;
    const double got_both = (double)mai_outlier_score(s, factor, base, mean, outlier) / LOG2E;
    if (!(fabs(got_mean - by_mean) <= most && fabs(got_both - by_both) <= most))
        fail_msg("cap %g, scale %g, base %g, mean %g, outlier %g: %.9g and %.9g, not %.9g and %.9g",
                 (double)cap, (double)scale, (double)base, (double)mean, (double)outlier, got_mean,
                 got_both, by_mean, by_both);
}

static void test_scores(void **state)
{
    (void)state;
    test_rng rng = {5};
    static const float caps[] = {0, 5, 30, 1e4f}, scales[] = {0.01f, 0.125f, 1};
    for (int i = 0; i < 12; i++) {
        for (int k = 0; k < 100000; k++) {
            const double spread = pow(10, -2 + 4 * test_uniform(&rng));
            check_run(caps[i % 4], scales[i / 4], (float)(300 * test_normal(&rng)),
                      (float)(spread * test_normal(&rng)), (float)(spread * test_normal(&rng)));
        }
    }
}

/* An outlier that is the mean changes nothing; one far above the rest is all there is. */
static void test_limits(void **state)
{
    (void)state;
    const mai_softcap none = mai_softcap_of(0);
    for (float x = -40; x < 40; x += 0.37f) {
        const float same = mai_outlier_score(none, 0.5f, 2, x, x);
        assert_true(fabsf(same - mai_mean_score(none, 0.5f, 2, x)) <= 1e-5f);
    }
    const float alone = mai_outlier_score(none, 1, 0, 10, 160);
    assert_true(fabsf(alone - 160) <= 1e-4f);
}

/* What has no mean is read, and so must not score. */
static void test_not_a_number(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const mai_softcap s = mai_softcap_of(i ? 20.0f : 0.0f);
        assert_true(isnan(mai_mean_score(s, 1, 0, NAN)));
        assert_true(isnan(mai_outlier_score(s, 1, 0, NAN, 1)));
        assert_true(isnan(mai_outlier_score(s, 1, 0, 1, NAN)));
        assert_true(isnan(mai_outlier_score(s, 1, NAN, 1, 1)));
    }
    assert_true(isnan(mai_add_log2(INFINITY, INFINITY)));
    assert_true(mai_add_log2(3, 3) == 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_not_a_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
