/* SPDX-License-Identifier: Apache-2.0 */
/* Memory: every allocation of every call that may allocate is made to fail in turn. Then the
 * call says E_NOMEM with a sentence, nothing changed, nothing leaked, and the same call works
 * later. The calls that may not allocate do not. */
#include "support.h"

#include <stdlib.h>
#include <string.h>

/* Counts, and fails the allocation of number `fail_at` (from 0 on; negative: none). */
typedef struct allocator {
    int64_t live, calls, fail_at;
} allocator;

static void *counted_alloc(void *user, size_t bytes)
{
    allocator *a = user;
    if (a->calls++ == a->fail_at) return NULL;
    /* Contents are undefined: make them so. */
    void *memory = malloc(bytes ? bytes : 1);
    assert_non_null(memory);
    memset(memory, 0xa5, bytes);
    a->live++;
    return memory;
}

static void counted_free(void *user, void *ptr)
{
    assert_non_null(ptr);
    ((allocator *)user)->live--;
    free(ptr);
}

static const test_sequence seq = {41, 4, 0.5};
enum { CAPACITY = 400 };

/* K and V are of other types each time. */
static macattn_config alloc_config(allocator *a)
{
    static test_rng types = {8};
    macattn_config cfg = test_config(4, 2, 32);
    cfg.k_dtype = test_kv_type(&types, 32);
    cfg.v_dtype = test_kv_type(&types, 32);
    cfg.n_layers = 3;
    cfg.max_slots = 4;
    cfg.ring = 20;
    cfg.band = 5;
    cfg.min_tokens = 8;
    cfg.n_threads = 2;
    cfg.alloc = counted_alloc;
    cfg.free = counted_free;
    cfg.alloc_user = a;
    return cfg;
}

/* With rings alone, and with runs beside them. */
static const macattn_policy policies[] = {MACATTN_POLICY_PAPER, MACATTN_POLICY_BUDGET};

/* The next call's allocation `n` is to fail. */
static void fail_next(allocator *a, int64_t n)
{
    a->calls = 0;
    a->fail_at = n;
}

/* ------------------------------------------------------------------------------------- tests -- */

static void test_create_fails(void **state)
{
    (void)state;
    allocator a = {0, 0, -1};
    const macattn_config cfg = alloc_config(&a);
    macattn *m = NULL;
    int64_t n = 0;
    for (;; n++) {
        char error[200] = "";
        fail_next(&a, n);
        m = (macattn *)(void *)&a;
        const macattn_status status = macattn_create(&cfg, &m, error, sizeof error);
        if (status == MACATTN_OK) break;
        assert_int_equal(status, MACATTN_E_NOMEM);
        assert_null(m);
        assert_true(strlen(error) > 8);
        assert_int_equal(a.live, 0);
    }
    assert_true(n >= 3);
    assert_true(a.live == a.calls);
    macattn_destroy(m);
    assert_int_equal(a.live, 0);
}

static void plan_fails(macattn_policy policy)
{
    int64_t failures = 0;
    bool worked = false;
    for (int64_t n = 0; !worked; n++) {
        allocator a = {0, 0, -1};
        macattn_config cfg = alloc_config(&a);
        cfg.policy = policy;
        macattn *m = test_create(&cfg);
        test_bench b = test_bench_of(m, 4, CAPACITY, 100),
                   twin = test_bench_of(m, 4, CAPACITY, 100);
        macattn *never_failed = test_create(&cfg);
        for (int64_t t = 1; t <= 30; t++) {
            test_bench_step(&b, m, 0, &seq, t, 1);
            test_bench_step(&twin, never_failed, 0, &seq, t, 1);
        }
        assert_ok(m, macattn_slot_fork(m, 0, 2)); /* so that a copy must be reserved */
        /* A former plan, which must stay in force. */
        test_bench_row(&b, 0, 0, 0, &seq, 31, 1);
        test_bench_queries(&b, 1, &seq, 0);
        assert_ok(m, macattn_plan(m, &b.batch));
        test_saved before[3] = {test_save(m, 0), test_save(m, 1), test_save(m, 2)};

        /* A larger one: more rows, more queries, longer. */
        macattn_row rows[3] = {{.slot = 0, .n_queries = 70, .n_tokens = 300},
                               {.slot = 2, .n_queries = 1, .n_tokens = 350, .page = 2},
                               {.slot = 1, .n_queries = 1, .n_tokens = 390, .page = 1}};
        const macattn_batch large = {
            .struct_size = sizeof large, .n_rows = 3, .rows = rows, .n_pages = 4};
        fail_next(&a, n);
        const macattn_status status = macattn_plan(m, &large);
        fail_next(&a, -1);
        if (status == MACATTN_OK) {
            worked = true;
        } else {
            failures++;
            assert_int_equal(status, MACATTN_E_NOMEM);
            assert_true(strlen(macattn_last_error(m)) > 8);
        }
        for (int i = 0; i < 3; i++) {
            test_slot_holds(m, i, &before[i]);
            free(before[i].data);
        }
        if (!worked) {
            /* The former plan works as if nothing had been, without memory. */
            test_bench_row(&twin, 0, 0, 0, &seq, 31, 1);
            for (int32_t l = 0; l < 3; l++) {
                test_bench_queries(&b, 1, &seq, l);
                test_bench_queries(&twin, 1, &seq, l);
                if (l == 0) assert_ok(never_failed, macattn_plan(never_failed, &twin.batch));
                fail_next(&a, 0);
                assert_ok(m, macattn_decode(m, l, &b.io));
                assert_int_equal(a.calls, 0);
                fail_next(&a, -1);
                assert_ok(never_failed, macattn_decode(never_failed, l, &twin.io));
                test_same_bits("the former plan", b.out, twin.out, test_bench_out_bytes(&b));
            }
            assert_ok(m, macattn_plan(m, &large));
        }
        macattn_destroy(m);
        macattn_destroy(never_failed);
        test_bench_destroy(&b);
        test_bench_destroy(&twin);
        assert_int_equal(a.live, 0);
    }
    assert_true(failures >= 5);
}

static void test_plan_fails(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) plan_fails(policies[i]);
}

/* The very first plan. */
static void test_first_plan_fails(void **state)
{
    (void)state;
    allocator a = {0, 0, -1};
    const macattn_config cfg = alloc_config(&a);
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, 10);
    test_bench_row(&b, 0, 0, 0, &seq, 10, 10);
    test_bench_queries(&b, 1, &seq, 0);
    /* What a failed plan took stays with the object: each failure comes a little further. */
    macattn_status status = MACATTN_E_NOMEM;
    int failures = 0;
    for (; status != MACATTN_OK; failures++) {
        assert_true(failures < 1000);
        /* one more allocation than the last time may succeed */
        fail_next(&a, failures % 7);
        status = macattn_plan(m, &b.batch);
        fail_next(&a, -1);
        if (status == MACATTN_OK) break;
        assert_int_equal(status, MACATTN_E_NOMEM);
        assert_int_equal(macattn_prefill(m, 0, &b.io), MACATTN_E_STATE);
    }
    assert_ok(m, macattn_prefill(m, 0, &b.io));
    macattn_destroy(m);
    test_bench_destroy(&b);
    assert_int_equal(a.live, 0);
}

static void load_fails(macattn_policy policy)
{
    allocator a = {0, 0, -1};
    macattn_config cfg = alloc_config(&a);
    cfg.policy = policy;
    macattn *source = test_create(&cfg);
    test_bench b = test_bench_of(source, 4, CAPACITY, 1);
    for (int64_t t = 1; t <= 40; t++) test_bench_step(&b, source, 0, &seq, t, 1);
    test_saved good = test_save(source, 0);
    int64_t failures = 0;
    for (bool worked = false; !worked;) {
        macattn *m = test_create(&cfg);
        for (int64_t t = 1; t <= 20; t++) test_bench_step(&b, m, 1, &seq, t, 1);
        test_saved before = test_save(m, 1);
        fail_next(&a, failures);
        const macattn_status status = macattn_slot_load(m, 1, good.data, good.size);
        fail_next(&a, -1);
        test_slot_holds(m, 1, status == MACATTN_OK ? &good : &before);
        if (status == MACATTN_OK) {
            worked = true;
        } else {
            failures++;
            assert_int_equal(status, MACATTN_E_NOMEM);
            assert_true(strlen(macattn_last_error(m)) > 8);
            assert_ok(m, macattn_slot_load(m, 1, good.data, good.size));
        }
        free(before.data);
        macattn_destroy(m);
    }
    assert_true(failures >= 2);
    free(good.data);
    macattn_destroy(source);
    test_bench_destroy(&b);
    assert_int_equal(a.live, 0);
}

static void test_load_fails(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) load_fails(policies[i]);
}

/* Attention, slot operations and statistics take no memory; nor does a plan no larger than
 * before. */
static void test_no_allocation(void **state)
{
    (void)state;
    for (int policy = MACATTN_POLICY_EXACT; policy <= MACATTN_POLICY_BUDGET; policy++) {
        allocator a = {0, 0, -1};
        macattn_config cfg = alloc_config(&a);
        cfg.policy = (macattn_policy)policy;
        macattn *m = test_create(&cfg);
        test_bench b = test_bench_of(m, 4, CAPACITY, 50);
        const test_sequence both[2] = {seq, seq};
        macattn_stats stats = {.struct_size = sizeof stats};
        size_t size;
        int64_t length;
        for (int64_t n = 50; n < 120; n++) {
            const int32_t n_queries = n == 50 ? 50 : 1;
            for (int32_t r = 0; r < 2; r++) test_bench_row(&b, r, r, r, &seq, n, n_queries);
            for (int32_t l = 0; l < 3; l++) {
                test_bench_queries(&b, 2, both, l);
                if (l == 0) assert_ok(m, macattn_plan(m, &b.batch));
                fail_next(&a, 0);
                assert_ok(m, macattn_attend(m, &b.io));
                test_bench_poison(&b);
                assert_ok(m, n == 50 ? macattn_prefill(m, l, &b.io) : macattn_decode(m, l, &b.io));
                assert_int_equal(a.calls, 0);
                fail_next(&a, -1);
            }
            fail_next(&a, 0);
            if (n % 20 == 0) {
                assert_ok(m, macattn_slot_truncate(m, 0, n - 5));
                assert_ok(m, macattn_slot_fork(m, 0, 1));
                assert_ok(m, macattn_slot_fork(m, 1, 3));
                assert_ok(m, macattn_slot_reset(m, 3));
            }
            assert_ok(m, macattn_slot_save(m, 0, NULL, &size));
            assert_ok(m, macattn_slot_length(m, 0, &length));
            assert_ok(m, macattn_stats_get(m, -1, -1, &stats));
            assert_ok(m, macattn_stats_reset(m));
            assert_int_equal(a.calls, 0);
            fail_next(&a, -1);
        }
        macattn_destroy(m);
        test_bench_destroy(&b);
        assert_int_equal(a.live, 0);
    }
}

/* Opening and closing sequences for ever does not take more and more. */
static void no_growth(macattn_policy policy)
{
    allocator a = {0, 0, -1};
    macattn_config cfg = alloc_config(&a);
    cfg.policy = policy;
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 4, CAPACITY, 40);
    int64_t live = 0;
    for (int round = 0; round < 60; round++) {
        test_bench_step(&b, m, 0, &seq, 40, 40);
        assert_ok(m, macattn_slot_fork(m, 0, 1));
        assert_ok(m, macattn_slot_fork(m, 1, 2));
        test_bench_step(&b, m, 1, &seq, 41, 1);
        test_bench_step(&b, m, 2, &seq, 41, 1);
        test_bench_step(&b, m, 0, &seq, 41, 1);
        test_saved saved = test_save(m, round % 3);
        assert_ok(m, macattn_slot_load(m, 3, saved.data, saved.size));
        free(saved.data);
        for (int32_t s = 0; s < 4; s++) assert_ok(m, macattn_slot_reset(m, s));
        if (round == 4) live = a.live;
        if (round > 4) assert_int_equal(a.live, live);
    }
    macattn_destroy(m);
    test_bench_destroy(&b);
    assert_int_equal(a.live, 0);
}

static void test_no_growth(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) no_growth(policies[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create_fails),     cmocka_unit_test(test_plan_fails),
        cmocka_unit_test(test_first_plan_fails), cmocka_unit_test(test_load_fails),
        cmocka_unit_test(test_no_allocation),    cmocka_unit_test(test_no_growth),
    };
    return cmocka_run_group_tests_name("alloc", tests, NULL, NULL);
}
