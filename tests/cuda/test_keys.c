/* SPDX-License-Identifier: Apache-2.0 */
/* The lse of a summary follows the query that reuses it, with whatever the keys have in common,
 * after decoding and after a capture; not under order 0. The CPU's: core/test_lse_order.c. */
#include <math.h>
#include <stdlib.h>

#include "duo.h"

enum { DIM = 64, TOKENS = 640, CHAIN = 6, HEADS = 4 };

/* A model whose keys are noise and `common` times a direction that all of them share. */
typedef struct made_model {
    duo x;
    float u[DIM]; /* that direction, of length 1 */
} made_model;

static void model_create(made_model *t, const macattn_config *cfg, double common)
{
    const test_sequence seq = {31, 4, 0.5};
    test_rng rng = {5};
    double norm2 = 0;
    duo_create(&t->x, cfg, 1, TOKENS, TOKENS);
    for (int i = 0; i < DIM; i++) {
        t->u[i] = (float)test_normal(&rng);
        norm2 += (double)t->u[i] * (double)t->u[i];
    }
    for (int i = 0; i < DIM; i++) t->u[i] /= (float)sqrt(norm2);
    for (int64_t pos = 0; pos < TOKENS; pos++) {
        for (int32_t h = 0; h < cfg->n_kv_heads; h++) {
            float k[DIM], v[DIM];
            test_token(&seq, &t->x.b.cfg, pos, h, k, v);
            for (int i = 0; i < DIM; i++) k[i] += (float)common * t->u[i];
            test_kv_put(&t->x.b.kv, &t->x.b.cfg, 0, pos, h, k, v);
        }
    }
}

/* Query `at` of the bench, for step i: the first of every head has nothing of the common direction;
 * each further one is the same but for `along` of that direction. */
static void set_query(made_model *t, int64_t at, int i, double along)
{
    for (int32_t h = 0; h < HEADS; h++) {
        test_rng rng = {(uint64_t)h + 1};
        float q[DIM];
        double dot = 0;
        for (int k = 0; k < DIM; k++) {
            q[k] = (float)test_normal(&rng);
            dot += (double)q[k] * (double)t->u[k];
        }
        for (int k = 0; k < DIM; k++) q[k] += (float)((along * i - dot) * (double)t->u[k]);
        test_bench_set_query(&t->x.b, at, h, q, q);
    }
}

static void set_row(made_model *t, int64_t n_tokens, int32_t n_queries)
{
    test_bench *b = &t->x.b;
    b->rows[0] = (macattn_row){.n_queries = n_queries, .n_tokens = n_tokens};
    b->batch.n_rows = 1;
    b->n_queries = n_queries;
    test_bench_poison(b);
}

/* The engine's prompt, whose last query is the chain's first. */
static void capture_prompt(made_model *t, double along)
{
    duo *x = &t->x;
    const int32_t n = TOKENS - CHAIN;
    set_row(t, n, n);
    for (int32_t i = 0; i < n; i++) set_query(t, i, i == n - 1 ? 0 : 1000 + i, along);
    duo_upload(x);
    ref_attend(&x->b.cfg, &x->b.batch, &x->b.io, x->b.want, x->b.want_lse);
    const size_t heads = (size_t)n * HEADS;
    float *out = malloc(heads * DIM * sizeof *out), *lse = malloc(heads * sizeof *lse);
    assert_true(out && lse);
    for (size_t i = 0; i < heads * DIM; i++) out[i] = (float)x->b.want[i];
    for (size_t i = 0; i < heads; i++) lse[i] = (float)x->b.want_lse[i];
    assert_cuda(cudaMemcpy(x->io.out, out, heads * DIM * sizeof *out, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->io.lse, lse, heads * sizeof *lse, cudaMemcpyHostToDevice));
    assert_gpu_ok(x->m, macattn_cuda_capture(x->m, 0, &x->batch, 0, n, &x->io, NULL));
    free(out), free(lse);
}

/* Largest errors of the lse and of the output over a chain of hits. */
typedef struct worst {
    double lse, out;
    int64_t hits;
} worst;

static void run_step(made_model *t, int i, double along, worst *w)
{
    duo *x = &t->x;
    set_row(t, TOKENS - CHAIN + i, 1);
    set_query(t, 0, i, along);
    duo_upload(x);
    assert_gpu_ok(x->m, macattn_cuda_decode(x->m, 0, &x->batch, &x->io, NULL));
    ref_attend(&x->b.cfg, &x->b.batch, &x->b.io, x->b.want, x->b.want_lse);
    float *out = download(x->io.out, HEADS * DIM * sizeof *out);
    float *lse = download(x->io.lse, HEADS * sizeof *lse);
    macattn_cuda_decision *d = download(macattn_cuda_decisions(x->m), HEADS * sizeof *d);
    for (int32_t h = 0; h < HEADS; h++) {
        w->hits += d[h].entry >= 0;
        w->lse = fmax(w->lse, fabs((double)lse[h] - x->b.want_lse[h]));
        for (int32_t k = h * DIM; k < (h + 1) * DIM; k++)
            w->out = fmax(w->out, fabs((double)out[k] - x->b.want[k]));
    }
    free(out), free(lse), free(d);
}

static worst run(macattn_dtype kv, int32_t order, bool captured, double common, double along)
{
    macattn_config cfg = reuse_config(kv, HEADS, 2, DIM);
    cfg.ring = 1; /* what is remembered is what was made in the step before */
    cfg.band = 8, cfg.min_tokens = 0, cfg.n_layers = 1, cfg.lse_order = order;
    made_model t;
    worst w = {0};
    model_create(&t, &cfg, common);
    if (captured) capture_prompt(&t, along);
    for (int i = captured; i < CHAIN; i++) run_step(&t, i, along, &w);
    assert_int_equal(w.hits, (CHAIN - 1) * HEADS);
    duo_destroy(&t.x);
    return w;
}

/* K = K0 + 300 u, which moves all logits alike: without it in the lse, the old part and the new one
 * no longer agree on the unit. Weights are rounded to K's type, and the mean of keys with them: so
 * what is left is as far off as those, relative to how far the lse has moved. */
static void test_common_component(void **state)
{
    (void)state;
    static const macattn_dtype types[] = {F16, BF16};
    for (int i = 0; i < 4; i++) {
        const worst zero = run(types[i % 2], 0, i >= 2, 300, 0.03);
        const worst one = run(types[i % 2], 1, i >= 2, 300, 0.03);
        print_message("%s, %s: order 0 is off by %.2g (output %.2g), order 1 by %.2g (%.2g)\n",
                      macattn_dtype_name(types[i % 2]), i >= 2 ? "captured" : "decoded", zero.lse,
                      zero.out, one.lse, one.out);
        assert_true(zero.lse > 1 && zero.out > 0.5);
        assert_true(one.lse < (i % 2 ? 8e-3 : 1e-3) && one.out < 0.02);
    }
}

/* Under order 0 no room is taken for keys, and nothing of them is computed. */
static void test_order_zero(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(F16, HEADS, 2, DIM);
    size_t one = 0, zero = 0;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &one), MACATTN_OK);
    cfg.lse_order = 0;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &zero), MACATTN_OK);
    assert_int_equal(one - zero, (size_t)(cfg.n_layers * HEADS * cfg.ring) * DIM * sizeof(float));
}

int main(void)
{
    if (gpu_missing()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_common_component),
        cmocka_unit_test(test_order_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
