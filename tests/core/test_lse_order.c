/* SPDX-License-Identifier: Apache-2.0 */
/* The lse of a summary follows the query that reuses it: to first order, with whatever the keys
 * have in common, with a soft cap, for every cache; not under order 0, the published rule. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { DIM = 64, TOKENS = 640, CHAIN = 6, PAGE = 16 };

static macattn_config order_config(int32_t n_heads, int32_t n_kv_heads, int32_t order)
{
    macattn_config cfg = test_config(n_heads, n_kv_heads, DIM);
    cfg.ring = 1; /* what is remembered is what was made in the step before */
    cfg.band = 8;
    cfg.min_tokens = 0;
    cfg.lse_order = order;
    return cfg;
}

/* A model whose keys are noise and `common` times a direction that all of them share. */
typedef struct made_model {
    test_bench b;
    double common;
    float u[DIM]; /* that direction, of length 1 */
    int32_t pages[TOKENS / PAGE];
} made_model;

static void model_create(made_model *x, macattn *m, double common)
{
    const test_sequence seq = {31, 4, 0.5};
    x->b = test_bench_of(m, 1, TOKENS, 1);
    x->common = common;
    test_rng rng = {5};
    double norm2 = 0;
    for (int i = 0; i < DIM; i++) {
        x->u[i] = (float)test_normal(&rng);
        norm2 += (double)x->u[i] * (double)x->u[i];
    }
    for (int i = 0; i < DIM; i++) x->u[i] /= (float)sqrt(norm2);
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int32_t h = 0; h < x->b.cfg.n_kv_heads; h++) {
            float k[DIM], v[DIM];
            test_token(&seq, &x->b.cfg, t, h, k, v);
            for (int i = 0; i < DIM; i++) k[i] += (float)common * x->u[i];
            test_kv_put(&x->b.kv, &x->b.cfg, 0, t, h, k, v);
        }
    }
}

/* The same tokens in pages. */
static void use_pages(made_model *x)
{
    macattn_kv *kv = &x->b.io.kv;
    kv->k_page_stride = PAGE * kv->k_token_stride;
    kv->v_page_stride = PAGE * kv->v_token_stride;
    for (int32_t i = 0; i < TOKENS / PAGE; i++) x->pages[i] = i;
    x->b.batch.page_size = PAGE;
    x->b.batch.n_pages = TOKENS / PAGE;
}

/* Step i: the first query of every head has nothing of the common direction; each further one is
 * the same but for `along` of that direction, and some noise of length `off`. */
static void set_step(made_model *x, int i, double along, double off)
{
    test_bench *b = &x->b;
    b->rows[0] = (macattn_row){.n_queries = 1, .n_tokens = TOKENS - CHAIN + i};
    b->rows[0].pages = b->batch.page_size ? x->pages : NULL;
    b->batch.n_rows = 1;
    b->n_queries = 1;
    for (int32_t h = 0; h < b->cfg.n_heads; h++) {
        test_rng rng = {(uint64_t)h + 1}, noise = {(uint64_t)(h * 100 + i) + 77};
        float q[DIM];
        double dot = 0;
        for (int k = 0; k < DIM; k++) {
            q[k] = (float)test_normal(&rng);
            dot += (double)q[k] * (double)x->u[k];
        }
        for (int k = 0; k < DIM; k++) {
            q[k] += (float)((along * i - dot) * (double)x->u[k] +
                            off * test_normal(&noise) / sqrt(DIM));
        }
        test_bench_set_query(b, 0, h, q, q);
    }
    test_bench_poison(b);
}

/* Largest errors of the lse and of the output over a chain of hits. */
typedef struct worst {
    double lse, out;
    int64_t hits;
} worst;

static worst run_chain(macattn *m, made_model *x, double along, double off)
{
    test_bench *b = &x->b;
    worst w = {0};
    for (int i = 0; i < CHAIN; i++) {
        set_step(x, i, along, off);
        assert_ok(m, macattn_plan(m, &b->batch));
        assert_ok(m, macattn_decode(m, 0, &b->io));
        ref_attend(&b->cfg, &b->batch, &b->io, b->want, b->want_lse);
        for (int32_t h = 0; h < b->cfg.n_heads; h++) {
            w.hits += test_decision(m, 0, h)->hit;
            w.lse = fmax(w.lse, fabs((double)b->lse[h] - b->want_lse[h]));
            for (int32_t k = h * DIM; k < (h + 1) * DIM; k++)
                w.out = fmax(w.out, fabs((double)b->out[k] - b->want[k]));
        }
    }
    return w;
}

static worst run(const macattn_config *cfg, double common, double along, double off, bool paged)
{
    macattn *m = test_create(cfg);
    made_model x;
    model_create(&x, m, common);
    if (paged) use_pages(&x);
    const worst w = run_chain(m, &x, along, off);
    assert_int_equal(w.hits, (CHAIN - 1) * cfg->n_heads);
    test_bench_destroy(&x.b);
    macattn_destroy(m);
    return w;
}

/* K = K0 + 300 u, which moves all logits alike: without it in the lse, the old part and the new one
 * no longer agree on the unit. */
static void test_common_component(void **state)
{
    (void)state;
    static const macattn_dtype types[] = {MACATTN_DTYPE_F32, MACATTN_DTYPE_F16, MACATTN_DTYPE_BF16,
                                          MACATTN_DTYPE_Q8_0};
    for (int i = 0; i < 8; i++) {
        macattn_config cfg = order_config(4, 2, 0);
        cfg.k_dtype = types[i % 4];
        const worst zero = run(&cfg, 300, 0.03, 0.003, i >= 4);
        cfg.lse_order = 1;
        const worst one = run(&cfg, 300, 0.03, 0.003, i >= 4);
        print_message("%s: order 0 is off by %.2g (output %.2g), order 1 by %.2g (%.2g)\n",
                      macattn_dtype_name(cfg.k_dtype), zero.lse, zero.out, one.lse, one.out);
        assert_true(zero.lse > 1 && zero.out > 0.5);
        /* The output of a summary is still that of the query it was made for. */
        assert_true(one.lse < 1e-3 && one.out < 0.02);
    }
}

/* Without anything in common, and with a soft cap, whose derivative is in it: what is left is of
 * second order in the distance. */
static void test_second_order(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        macattn_config cfg = order_config(4, 1, 1);
        cfg.k_dtype = MACATTN_DTYPE_F32;
        cfg.softcap = i % 2 ? 2.0f : 0.0f;
        cfg.scale = i < 2 ? 0.125f : -0.3f;
        cfg.ring = 64; /* the first query stays the nearest: no chain */
        macattn *m = test_create(&cfg);
        made_model x;
        model_create(&x, m, i < 2 ? 3 : 0);
        double errors[2];
        for (int half = 0; half < 2; half++) {
            assert_ok(m, macattn_slot_reset(m, 0));
            worst w = {0};
            /* Steps 0 and 1 of two lengths. */
            for (int step = 0; step < 2; step++) {
                set_step(&x, step, half ? 0.1 : 0.2, 0);
                assert_ok(m, macattn_plan(m, &x.b.batch));
                assert_ok(m, macattn_decode(m, 0, &x.b.io));
                ref_attend(&x.b.cfg, &x.b.batch, &x.b.io, x.b.want, x.b.want_lse);
                for (int32_t h = 0; step > 0 && h < 4; h++) {
                    assert_true(test_decision(m, 0, h)->hit);
                    w.lse = fmax(w.lse, fabs((double)x.b.lse[h] - x.b.want_lse[h]));
                }
            }
            errors[half] = w.lse;
        }
        cfg.lse_order = 0;
        const double zero = run(&cfg, i < 2 ? 3 : 0, 0.2, 0, false).lse;
        print_message("soft cap %g: off by %.3g, at half the distance %.3g; order 0 %.3g\n",
                      (double)cfg.softcap, errors[0], errors[1], zero);
        assert_true(errors[0] < 0.1 * zero);
        assert_true(errors[0] < 1e-4 || errors[1] < 0.35 * errors[0]);
        test_bench_destroy(&x.b);
        macattn_destroy(m);
    }
}

/* Order 0 keeps, computes and uses nothing of the keys. */
static void test_order_zero(void **state)
{
    (void)state;
    macattn_config cfg = order_config(4, 2, 1);
    size_t one = 0, zero = 0;
    assert_int_equal(macattn_config_state_bytes(&cfg, &one), MACATTN_OK);
    macattn *m = test_create(&cfg);
    assert_int_equal(m->ring_dims.width, 2 * DIM);
    macattn_destroy(m);
    cfg.lse_order = 0;
    assert_int_equal(macattn_config_state_bytes(&cfg, &zero), MACATTN_OK);
    assert_true(one - zero >= 4 * DIM * sizeof(float));
    m = test_create(&cfg);
    assert_int_equal(m->ring_dims.width, DIM);
    macattn_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_common_component),
        cmocka_unit_test(test_second_order),
        cmocka_unit_test(test_order_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
