/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU's soft cap (src/cuda/softcap.h), the same formula without a GPU, against double
 * precision: what the instructions of a GPU add is seen in test_exact.c. */
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/softcap.h"
#include "support.h"

static const float caps[] = {1e-30f, 1, 30, 1e3f, 1e4f, 1e6f, 1e30f};
enum { N_CAPS = sizeof caps / sizeof *caps };

#define LOG2E 1.4426950408889634

static void check_one(float cap, float x)
{
    const mai_softcap s = mai_softcap_of(cap);
    const double got = (double)mai_softcapped(s, x);
    const double want = (double)cap * LOG2E * tanh((double)x / LOG2E / (double)cap);
    /* Of numbers that are not normal the last place is worth more. */
    if (!(fabs(got - want) <= 3e-7 * fabs(want) + 3e-45)) {
        fail_msg("cap %g: %.9g becomes %.9g, not %.9g", (double)cap, (double)x, got, want);
    }
    assert_true((double)mai_softcapped(s, -x) == -got);
}

/* From far below the cap to far above it. */
static void test_relative_error(void **state)
{
    (void)state;
    test_rng rng = {3};
    for (int i = 0; i < N_CAPS; i++) {
        for (int k = 0; k < 200000; k++) {
            const double x = (double)caps[i] * pow(10, -12 + 14 * test_uniform(&rng));
            check_one(caps[i], (float)x);
        }
        /* Close to where the two formulas meet. */
        for (int k = 0; k < 20000; k++) {
            const double u = 2.2 + 0.2 * test_uniform(&rng);
            check_one(caps[i], (float)(u * (double)caps[i] / 2));
        }
    }
}

static void test_extremes(void **state)
{
    (void)state;
    static const float any[] = {FLT_MIN, 1e-30f, 1, 1e6f, 1e30f, FLT_MAX / 2};
    assert_true(mai_softcap_of(0).top == 0);
    for (size_t i = 0; i < sizeof any / sizeof *any; i++) {
        const mai_softcap s = mai_softcap_of(any[i]);
        assert_true(s.top > 0 && isfinite(s.top) && isfinite(s.rate));
        assert_true(mai_softcapped(s, 0) == 0);
        assert_true(mai_softcapped(s, INFINITY) == s.top);
        assert_true(mai_softcapped(s, -INFINITY) == -s.top);
        assert_true(isnan(mai_softcapped(s, NAN)));
        assert_true(mai_softcapped(s, FLT_MAX) <= s.top);
    }
    /* A cap far above the logits changes nothing. */
    const mai_softcap s = mai_softcap_of(1e30f);
    for (float x = 1e-20f; x < 1e20f; x *= 3) assert_true(mai_softcapped(s, x) == x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_relative_error),
        cmocka_unit_test(test_extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
