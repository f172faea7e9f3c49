/* SPDX-License-Identifier: Apache-2.0 */
/* Policy BUDGET on the GPU beside the CPU. */
#include <math.h>
#include <stdlib.h>

#include "duo.h"

enum { BUDGET_HEADS = 8, BUDGET_DIM = 64, BUDGET_ROWS = 2, BUDGET_TOKENS = 500 };

/* The GPU beside the CPU backend. */
typedef struct budget_run {
    duo x;
    macattn *cpu;
    int64_t groups, hits,
        differ;    /* groups judged, used by the GPU, and decided otherwise by the CPU */
    double error2; /* sum over the heads used, against exact attention */
} budget_run;

static void budget_create(budget_run *t, float budget)
{
    macattn_config cfg = reuse_config(F16, BUDGET_HEADS, 2, BUDGET_DIM);
    cfg.policy = MACATTN_POLICY_BUDGET;
    cfg.budget = budget;
    cfg.ring = 48, cfg.band = 16, cfg.fresh_tokens = 3, cfg.min_tokens = 0, cfg.n_layers = 1;
    *t = (budget_run){0};
    duo_create(&t->x, &cfg, BUDGET_ROWS, BUDGET_TOKENS, 1);
    t->cpu = test_create(&t->x.cfg);
}

static void budget_destroy(budget_run *t)
{
    macattn_destroy(t->cpu);
    duo_destroy(&t->x);
}

static double head_error(const float *got, const float *want)
{
    double error = 0, norm = 0;
    for (int i = 0; i < BUDGET_DIM; i++) {
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(error / norm);
}

static void check_budget_group(budget_run *t, int32_t r, int32_t h0, const float *out,
                               const macattn_cuda_decision *got, bool cpu_hit)
{
    const int32_t group = BUDGET_HEADS / 2;
    const bool hit = got[r * BUDGET_HEADS + h0].entry >= 0;
    t->groups++;
    t->hits += hit;
    t->differ += hit != cpu_hit;
    for (int32_t h = h0; h < h0 + group; h++) {
        const size_t at = (size_t)(r * BUDGET_HEADS + h);
        const double e = head_error(out + at * BUDGET_DIM, t->x.b.out + at * BUDGET_DIM);
        assert_int_equal(got[at].entry >= 0, hit); /* as one */
        if (hit)
            t->error2 += e * e;
        else
            assert_true(e <= relative_tolerance(F16, F32));
    }
}

/* Steps n = from .. to - 1 of two duo_sequences, without RoPE. */
static void budget_steps(budget_run *t, int from, int to)
{
    duo *x = &t->x;
    for (int n = from; n < to; n++) {
        for (int32_t r = 0; r < BUDGET_ROWS; r++) duo_row(x, r, r, n, 1);
        x->b.batch.n_rows = BUDGET_ROWS;
        assert_ok(t->cpu, macattn_plan(t->cpu, &x->b.batch));
        test_bench_queries(&x->b, BUDGET_ROWS, duo_sequences, 0);
        for (int32_t r = 0; r < BUDGET_ROWS; r++) {
            for (int32_t h = 0; h < BUDGET_HEADS; h++) {
                static const test_sequence slow = {11, 5, 0.05};
                float q[BUDGET_DIM], q_match[BUDGET_DIM];
                test_query(&slow, &x->cfg, n - 1 + 7 * r, 0, h, q, q_match);
                test_bench_set_query(&x->b, r, h, q_match, q_match);
            }
        }
        duo_upload(x);
        assert_gpu_ok(x->m, macattn_cuda_decode(x->m, 0, &x->batch, &x->io, NULL));
        assert_ok(t->cpu, macattn_decode(t->cpu, 0, &x->b.io));
        bool hits[BUDGET_ROWS][2];
        for (int32_t i = 0; i < 2 * BUDGET_ROWS; i++)
            hits[i / 2][i % 2] = test_decision(t->cpu, i / 2, i % 2 * BUDGET_HEADS / 2)->hit;
        assert_ok(t->cpu, macattn_attend(t->cpu, &x->b.io));
        const size_t heads = BUDGET_ROWS * BUDGET_HEADS;
        float *out = download(x->io.out, heads * BUDGET_DIM * sizeof *out);
        macattn_cuda_decision *got = download(macattn_cuda_decisions(x->m), heads * sizeof *got);
        for (int32_t i = 0; i < 2 * BUDGET_ROWS; i++)
            check_budget_group(t, i / 2, i % 2 * BUDGET_HEADS / 2, out, got, hits[i / 2][i % 2]);
        free(out), free(got);
    }
}

/* The GPU judges as the CPU does: what differs are candidates near the bound, since what is learnt
 * contains each side's rounding. What is used stays within the budget; what is not is exact;
 * nothing is used without one. */
static void test_budget(void **state)
{
    (void)state;
    const float budgets[] = {0.05f, 0.2f};
    const int steps = small() ? 150 : BUDGET_TOKENS;
    for (int i = 0; i < 2; i++) {
        budget_run t;
        budget_create(&t, budgets[i]);
        budget_steps(&t, 1, steps);
        const double rms = sqrt(t.error2 / (double)(t.hits * BUDGET_HEADS / 2));
        print_message("budget %g: %lld of %lld groups hit, errors %.4f, %lld differ from the CPU\n",
                      (double)budgets[i], (long long)t.hits, (long long)t.groups, rms,
                      (long long)t.differ);
        assert_true(4 * t.hits > t.groups);
        assert_true(rms <= (double)budgets[i]);
        assert_true(20 * t.differ <= t.groups);
        budget_destroy(&t);
    }
    budget_run t;
    budget_create(&t, 1e-30f);
    budget_steps(&t, 1, 100);
    assert_int_equal(t.hits, 0);
    /* What rests or was refused is found again with a larger budget, but for a group one head of
     * which has none. */
    assert_gpu_ok(t.x.m, macattn_cuda_set_head_budget(t.x.m, 0, -1, 0.5f, NULL));
    assert_gpu_ok(t.x.m, macattn_cuda_set_head_budget(t.x.m, 0, 2, 0, NULL));
    assert_ok(t.cpu, macattn_set_head_budget(t.cpu, 0, -1, 0.5f));
    assert_ok(t.cpu, macattn_set_head_budget(t.cpu, 0, 2, 0));
    budget_steps(&t, 100, 200);
    assert_in_range(t.hits, 30, 100 * BUDGET_ROWS);
    assert_int_equal(macattn_cuda_set_head_budget(t.x.m, 1, 0, 0.1f, NULL), MACATTN_E_RANGE);
    assert_int_equal(macattn_cuda_set_head_budget(t.x.m, 0, 0, NAN, NULL), MACATTN_E_RANGE);
    budget_destroy(&t);
}

/* A prompt captured while a head has no budget leaves its group nothing to find; the other group
 * finds it. */
static void test_capture_without_budget(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(F16, BUDGET_HEADS, 2, BUDGET_DIM);
    cfg.policy = MACATTN_POLICY_BUDGET, cfg.budget = 1;
    cfg.ring = 40, cfg.min_tokens = 0, cfg.n_layers = 1;
    duo x;
    duo_create(&x, &cfg, 1, 200, 150);
    assert_gpu_ok(x.m, macattn_cuda_set_head_budget(x.m, 0, 2, 0, NULL));
    duo_capture(&x, 0, 2, 150);
    assert_gpu_ok(x.m, macattn_cuda_set_head_budget(x.m, 0, 2, 1, NULL));
    duo_row(&x, 0, 2, 151, 1);
    test_bench_queries(&x.b, 1, &duo_sequences[2], 0);
    duo_upload(&x);
    assert_gpu_ok(x.m, macattn_cuda_decode(x.m, 0, &x.batch, &x.io, NULL));
    macattn_cuda_decision *got = download(macattn_cuda_decisions(x.m), BUDGET_HEADS * sizeof *got);
    for (int h = 0; h < BUDGET_HEADS; h++) {
        assert_int_equal(isfinite(got[h].distance2) != 0, h >= BUDGET_HEADS / 2);
        assert_true(got[h].next >= 0); /* from now on it is remembered */
    }
    free(got);
    duo_destroy(&x);
}

int main(void)
{
    if (gpu_missing()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_capture_without_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
