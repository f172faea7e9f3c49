/* SPDX-License-Identifier: Apache-2.0 */
/* The algebra of merging: an identity, commutative, associative within rounding, and attention over
 * parts of a sequence, split anywhere, merges to attention over the whole. */
#include "support.h"

#include <math.h>
#include <string.h>

#define DV 24

typedef struct part {
    float o[DV], lse;
} part;

static part random_part(test_rng *rng)
{
    part p = {.lse = (float)(10 * test_normal(rng))};
    for (int i = 0; i < DV; i++) p.o[i] = (float)test_normal(rng);
    return p;
}

static part merge(const part *x, const part *y)
{
    part out;
    memset(&out, 0xff, sizeof out);
    assert_int_equal(macattn_merge(1, DV, x->o, &x->lse, y->o, &y->lse, out.o, &out.lse),
                     MACATTN_OK);
    return out;
}

static const part empty = {.lse = -INFINITY};

/* Largest difference of outputs, and of lse relative to their size. */
static double difference(const part *x, const part *y)
{
    double worst = fabs((double)x->lse - (double)y->lse) / (1 + fabs((double)x->lse));
    for (int i = 0; i < DV; i++) worst = fmax(worst, fabs((double)x->o[i] - (double)y->o[i]));
    return worst;
}

static void test_identity(void **state)
{
    (void)state;
    test_rng rng = {1};
    part nothing = empty;
    for (int i = 0; i < DV; i++) nothing.o[i] = i % 2 ? NAN : INFINITY; /* is not looked at */
    for (int i = 0; i < 200; i++) {
        const part x = random_part(&rng), a = merge(&x, &empty), b = merge(&nothing, &x);
        test_same_bits("merge with an empty range", &a, &x, sizeof x);
        test_same_bits("merge of an empty range", &b, &x, sizeof x);
    }
}

static void test_empty(void **state)
{
    (void)state;
    part nothing = empty;
    for (int i = 0; i < DV; i++) nothing.o[i] = NAN;
    const part p = merge(&nothing, &nothing);
    assert_true(p.lse == -INFINITY);
    for (int i = 0; i < DV; i++) assert_true(p.o[i] == 0);
}

static void test_commutative(void **state)
{
    (void)state;
    test_rng rng = {2};
    for (int i = 0; i < 500; i++) {
        const part x = random_part(&rng), y = random_part(&rng);
        const part a = merge(&x, &y), b = merge(&y, &x);
        test_same_bits("x with y and y with x", &a, &b, sizeof a);
    }
}

static void test_associative(void **state)
{
    (void)state;
    test_rng rng = {3};
    for (int i = 0; i < 500; i++) {
        const part x = random_part(&rng), y = random_part(&rng), z = random_part(&rng);
        const part xy = merge(&x, &y), yz = merge(&y, &z);
        const part a = merge(&xy, &z), b = merge(&x, &yz);
        /* The lse in between is rounded to half an ulp of at most 32: 2^-20. */
        assert_true(difference(&a, &b) < 4e-6);
    }
}

/* Against float64, with lse so far apart that one side vanishes, and equal ones. */
static void test_values(void **state)
{
    (void)state;
    test_rng rng = {4};
    static const float apart[] = {0, 1e-3f, 1, 20, 80, 200, 1e4f, 1e30f};
    for (int i = 0; i < 400; i++) {
        part x = random_part(&rng), y = random_part(&rng);
        if (i < 160) y.lse = x.lse + (i % 2 ? 1.0f : -1.0f) * apart[i / 2 % 8];
        const part got = merge(&x, &y);
        double o[DV], oy[DV], lse = (double)x.lse;
        for (int j = 0; j < DV; j++) o[j] = (double)x.o[j], oy[j] = (double)y.o[j];
        ref_merge(DV, o, &lse, oy, (double)y.lse);
        test_close("merge", got.o, o, DV, 1e-6);
        test_close_lse("merge lse", &got.lse, &lse, 1, 1e-6);
    }
}

static void test_nan(void **state)
{
    (void)state;
    test_rng rng = {5};
    const part x = random_part(&rng);
    part bad = random_part(&rng);
    bad.lse = NAN;
    const part with_nan[] = {merge(&x, &bad), merge(&bad, &x), merge(&bad, &empty),
                             merge(&empty, &bad)};
    for (int i = 0; i < 4; i++) {
        assert_true(isnan(with_nan[i].lse));
        for (int j = 0; j < DV; j++) assert_true(isnan(with_nan[i].o[j]));
    }
}

static void test_in_place(void **state)
{
    (void)state;
    test_rng rng = {6};
    part x[7], y[7];
    float ox[7 * DV], oy[7 * DV], lx[7], ly[7], out[7 * DV], lse[7];
    for (int i = 0; i < 7; i++) {
        x[i] = i == 3 ? empty : random_part(&rng);
        y[i] = i == 5 ? empty : random_part(&rng);
        memcpy(ox + i * DV, x[i].o, sizeof x[i].o);
        memcpy(oy + i * DV, y[i].o, sizeof y[i].o);
        lx[i] = x[i].lse;
        ly[i] = y[i].lse;
    }
    assert_int_equal(macattn_merge(7, DV, ox, lx, oy, ly, out, lse), MACATTN_OK);
    for (int i = 0; i < 7; i++) {
        const part one = merge(&x[i], &y[i]);
        test_same_bits("many at once", out + i * DV, one.o, sizeof one.o);
    }
    float copy[7 * DV], copy_lse[7];
    memcpy(copy, oy, sizeof copy);
    memcpy(copy_lse, ly, sizeof copy_lse);
    assert_int_equal(macattn_merge(7, DV, ox, lx, copy, copy_lse, copy, copy_lse), MACATTN_OK);
    test_same_bits("into y", copy, out, sizeof out);
    test_same_bits("into y's lse", copy_lse, lse, sizeof lse);
    assert_int_equal(macattn_merge(7, DV, ox, lx, oy, ly, ox, lx), MACATTN_OK);
    test_same_bits("into x", ox, out, sizeof out);
    test_same_bits("into x's lse", lx, lse, sizeof lse);
}

/* Attention over [0, at) and [at, n), merged, is attention over [0, n). */
static void test_split_anywhere(void **state)
{
    (void)state;
    enum { N = 70, D = DV, HEADS = 3 };
    macattn_config cfg = test_config(HEADS, 1, D);
    cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F32;
    macattn *m = test_create(&cfg);
    test_rng rng = {7};
    float k[N * D], v[N * D], q[HEADS * D], whole[HEADS * D], whole_lse[HEADS];
    for (int i = 0; i < N * D; i++)
        k[i] = (float)test_normal(&rng), v[i] = (float)test_normal(&rng);
    for (int i = 0; i < HEADS * D; i++) q[i] = 3 * (float)test_normal(&rng);
    for (int at = 0; at <= N; at++) {
        float out[2][HEADS * D], lse[2][HEADS];
        for (int part_of = at == 0 ? -1 : 0; part_of < 2; part_of++) {
            const int first = part_of == 1 ? at : 0, last = part_of == 0 ? at : N;
            macattn_row row = {.slot = -1, .n_queries = 1, .n_tokens = last - first};
            const macattn_batch batch = {
                .struct_size = sizeof batch, .n_rows = 1, .rows = &row, .n_pages = 1};
            const macattn_io io = {.struct_size = sizeof io,
                                   .q = q,
                                   .kv = {k + first * D, v + first * D, 0, D * 4, 0, 0, D * 4, 0},
                                   .out = part_of < 0 ? whole : out[part_of],
                                   .lse = part_of < 0 ? whole_lse : lse[part_of]};
            test_poison(io.out, sizeof whole);
            test_poison(io.lse, sizeof whole_lse);
            assert_ok(m, macattn_plan(m, &batch));
            assert_ok(m, macattn_attend(m, &io));
        }
        assert_int_equal(macattn_merge(HEADS, D, out[0], lse[0], out[1], lse[1], out[0], lse[0]),
                         MACATTN_OK);
        for (int i = 0; i < HEADS * D; i++) {
            assert_true(fabs((double)out[0][i] - (double)whole[i]) < 2e-6);
        }
        for (int i = 0; i < HEADS; i++) {
            assert_true(fabs((double)lse[0][i] - (double)whole_lse[i]) < 2e-6);
        }
    }
    macattn_destroy(m);
}

static void test_arguments(void **state)
{
    (void)state;
    float o[DV] = {0}, lse = 0;
    assert_int_equal(macattn_merge(0, DV, o, &lse, o, &lse, o, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(-1, DV, o, &lse, o, &lse, o, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(1, 0, o, &lse, o, &lse, o, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(1, DV, NULL, &lse, o, &lse, o, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(1, DV, o, NULL, o, &lse, o, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(1, DV, o, &lse, NULL, &lse, o, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(1, DV, o, &lse, o, NULL, o, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(1, DV, o, &lse, o, &lse, NULL, &lse), MACATTN_E_ARG);
    assert_int_equal(macattn_merge(1, DV, o, &lse, o, &lse, o, NULL), MACATTN_E_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_identity),    cmocka_unit_test(test_empty),
        cmocka_unit_test(test_commutative), cmocka_unit_test(test_associative),
        cmocka_unit_test(test_values),      cmocka_unit_test(test_nan),
        cmocka_unit_test(test_in_place),    cmocka_unit_test(test_split_anywhere),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests_name("merge", tests, NULL, NULL);
}
