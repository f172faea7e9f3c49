/* SPDX-License-Identifier: Apache-2.0 */
/* The budget policy: what is refused is exact to the bit, what is used stays within the budget as a rule, a
 * group is refused as a whole, and none of it depends on threads. */
#include <math.h>
#include <string.h>

#include "core/judge.h"
#include "support.h"

enum { HEADS = 8, DIM = 32, CAPACITY = 700 };

static const test_sequence seq = {11, 5, 0.05};

static macattn_config budget_config(float budget)
{
    macattn_config cfg = test_config(HEADS, 2, DIM);
    cfg.policy = MACATTN_POLICY_BUDGET;
    cfg.budget = budget;
    cfg.ring = 48;
    cfg.band = 16;
    cfg.fresh_tokens = 3;
    cfg.min_tokens = 0;
    return cfg;
}

static void plan_step(macattn *m, test_bench *b, int64_t n)
{
    test_bench_row(b, 0, 0, 0, &seq, n, 1);
    b->batch.n_rows = 1;
    assert_ok(m, macattn_plan(m, &b->batch));
    test_bench_queries(b, 1, &seq, 0);
    /* Without RoPE: how far a query is then says how far its result is. */
    for (int32_t h = 0; h < HEADS; h++) {
        float q[DIM], q_match[DIM];
        test_query(&seq, &b->cfg, n - 1, 0, h, q, q_match);
        test_bench_set_query(b, 0, h, q_match, q_match);
    }
}

/* A budget of nothing: exact attention, bit for bit, although candidates are tried at every step. */
static void test_nothing_allowed(void **state)
{
    (void)state;
    const macattn_config cfg = budget_config(0);
    macattn_config exact_cfg = cfg;
    exact_cfg.policy = MACATTN_POLICY_EXACT;
    macattn *m = test_create(&cfg), *exact = test_create(&exact_cfg);
    const macattn_config resolved = test_resolved(m);
    const float sinks[HEADS] = {0.5f, -1, 2, 0, 1, -3, 0.25f, 4};
    test_bench b;
    test_bench_create(&b, &resolved, 1, CAPACITY, 1);
    float out[HEADS * DIM];
    for (int64_t n = 1; n < 300; n++) {
        plan_step(m, &b, n);
        b.io.sinks = n % 2 ? sinks : NULL;
        assert_ok(m, macattn_decode(m, 0, &b.io));
        memcpy(out, b.out, sizeof out);
        plan_step(exact, &b, n);
        assert_ok(exact, macattn_attend(exact, &b.io));
        test_same_bits("a step", out, b.out, sizeof out);
        for (int32_t h = 0; h < HEADS; h++) assert_false(test_decision(m, 0, h)->hit);
    }
    for (int32_t h = 0; h < HEADS; h++) assert_in_range(m->records[h].n_samples, 8, 64);
    test_bench_destroy(&b);
    macattn_destroy(m);
    macattn_destroy(exact);
}

typedef struct tally {
    int64_t hits, steps, over;
    double sum;
} tally;

static double error_of(const float *x, const float *y, int n)
{
    double error = 0, norm = 0;
    for (int i = 0; i < n; i++) {
        error += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        norm += (double)y[i] * (double)y[i];
    }
    return sqrt(error / norm);
}

static tally run(float budget)
{
    const macattn_config cfg = budget_config(budget);
    macattn *m = test_create(&cfg);
    const macattn_config resolved = test_resolved(m);
    test_bench b;
    test_bench_create(&b, &resolved, 1, CAPACITY, 1);
    float out[HEADS * DIM];
    tally t = {0};
    for (int64_t n = 1; n < CAPACITY; n++) {
        plan_step(m, &b, n);
        assert_ok(m, macattn_decode(m, 0, &b.io));
        memcpy(out, b.out, sizeof out);
        bool hit[HEADS];
        for (int32_t h = 0; h < HEADS; h++) {
            hit[h] = test_decision(m, 0, h)->hit;
            /* A refusal in a group is the group's. */
            const bool refused = test_decision(m, 0, h)->refused;
            for (int32_t i = h / 4 * 4; refused && i < h / 4 * 4 + 4; i++) {
                assert_false(test_decision(m, 0, i)->hit);
            }
        }
        assert_ok(m, macattn_attend(m, &b.io));
        for (int32_t h = 0; h < HEADS; h++) {
            const double e = error_of(out + h * DIM, b.out + h * DIM, DIM);
            t.steps++;
            if (!hit[h]) {
                assert_true(e == 0);
                continue;
            }
            t.hits++;
            t.sum += e;
            t.over += e > (double)budget;
        }
    }
    macattn_stats stats = {.struct_size = sizeof stats};
    assert_ok(m, macattn_stats_get(m, -1, -1, &stats));
    assert_int_equal((int64_t)stats.hits, t.hits);
    test_bench_destroy(&b);
    macattn_destroy(m);
    return t;
}

/* Errors of what is used: within the budget on average by a wide margin, and beyond it seldom. A larger
 * budget uses more. */
static void test_within_budget(void **state)
{
    (void)state;
    const float budgets[] = {0.01f, 0.05f, 0.2f};
    int64_t before = 0;
    for (size_t i = 0; i < 3; i++) {
        const tally t = run(budgets[i]);
        print_message("budget %g: %lld of %lld hit, mean error %.4f, %lld beyond\n",
                      (double)budgets[i], (long long)t.hits, (long long)t.steps,
                      t.hits > 0 ? t.sum / (double)t.hits : 0.0, (long long)t.over);
        assert_true(t.hits >= before);
        assert_true(t.sum <= 0.7 * (double)budgets[i] * (double)t.hits);
        assert_true(20 * t.over <= t.hits);
        before = t.hits;
    }
    assert_true(before > 1000);
}

static void test_threads(void **state)
{
    (void)state;
    macattn_config cfg = budget_config(0.1f);
    macattn *one = test_create(&cfg);
    cfg.n_threads = 3;
    macattn *three = test_create(&cfg);
    const macattn_config resolved = test_resolved(one);
    test_bench b;
    test_bench_create(&b, &resolved, 1, CAPACITY, 1);
    float out[HEADS * DIM];
    for (int64_t n = 1; n < 400; n++) {
        plan_step(one, &b, n);
        assert_ok(one, macattn_decode(one, 0, &b.io));
        memcpy(out, b.out, sizeof out);
        plan_step(three, &b, n);
        assert_ok(three, macattn_decode(three, 0, &b.io));
        test_same_bits("a step", out, b.out, sizeof out);
    }
    test_same_bits("what was learnt", one->records, three->records, HEADS * sizeof *one->records);
    test_bench_destroy(&b);
    macattn_destroy(one);
    macattn_destroy(three);
}

/* The estimate follows the samples: c is above their mean by two deviations. */
static void test_learning(void **state)
{
    (void)state;
    const macattn_config cfg = budget_config(0.1f);
    macattn *m = test_create(&cfg);
    mai_record record = {0};
    mai_decision d = {.hit = true, .distance2 = 4};
    for (int i = 0; i < 200; i++) {
        assert_true(i >= 8 || !mai_judge(m, &record, 0.5f, 0, &d));
        (void)mai_judge(m, &record, 0.5f, 0, &d);
        mai_record_sample(&record, &d, (i % 2 ? 0.01f : 0.02f) * d.weight * d.moved);
    }
    (void)mai_judge(m, &record, 0.5f, 0, &d);
    const float c = d.error / d.moved;
    assert_true(c > 0.02f && c < 0.06f);
    assert_true(mai_judge(m, &record, 0.5f, 0, &d));
    assert_false(mai_judge(m, &record, 0.5f, 1.0f, &d)); /* what it inherited counts */
    for (int i = 0; i < 64; i++) mai_record_use(&record);
    assert_false(mai_judge(m, &record, 0.5f, 0, &d)); /* time to look again */
    mai_record_sample(&record, &d, NAN);
    assert_true(mai_judge(m, &record, 0.5f, 0, &d)); /* and NaN teaches nothing */
    macattn_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_allowed),
        cmocka_unit_test(test_within_budget),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_learning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
