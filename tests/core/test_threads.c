/* SPDX-License-Identifier: Apache-2.0 */
/* Threads: the pool under many short runs, pools that start and end, several objects at a time from
 * several threads. ThreadSanitizer watches. */
#include "support.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const test_sequence seq = {51, 4, 0.6};

/* ------------------------------------------------------------------------------------- pools -- */

typedef struct tally {
    atomic_int runs[257];  /* of each task */
    atomic_int busy[1024]; /* tasks that each worker has in hand */
    int n_threads;
    atomic_int bad;
} tally;

static void count(void *arg, int i, int worker)
{
    tally *t = arg;
    if (worker < 0 || worker >= t->n_threads) {
        atomic_fetch_add(&t->bad, 1);
        return;
    }
    /* No two tasks have the same worker's scratch at a time. */
    if (atomic_fetch_add(&t->busy[worker], 1) != 0) atomic_fetch_add(&t->bad, 1);
    atomic_fetch_add(&t->runs[i], 1);
    for (volatile int spin = 0; spin < i % 7 * 20;) spin++;
    atomic_fetch_sub(&t->busy[worker], 1);
}

static void test_every_task_once(void **state)
{
    (void)state;
    static const int32_t n_threads[] = {1, 2, 3, 8};
    for (int t = 0; t < 4; t++) {
        for (int32_t spin_us = 0; spin_us <= 50; spin_us += 50) {
            macattn_config cfg = test_config(1, 1, 8);
            cfg.n_threads = n_threads[t];
            cfg.spin_us = spin_us;
            mai_threads *threads = NULL;
            char error[100];
            assert_int_equal(mai_threads_create(&cfg, &threads, error, sizeof error), MACATTN_OK);
            for (int run = 0; run < (TEST_LIGHT ? 300 : 2000); run++) {
                static tally x;
                memset(&x, 0, sizeof x);
                x.n_threads = n_threads[t];
                const int n = run % 10 == 0 ? 257 : run % 12;
                mai_threads_run(threads, n, count, &x);
                for (int i = 0; i < 257; i++) assert_int_equal(atomic_load(&x.runs[i]), i < n);
                assert_int_equal(atomic_load(&x.bad), 0);
                if (run % 100 == 50) usleep(300); /* long enough to fall asleep */
            }
            mai_threads_destroy(&cfg, threads);
        }
    }
}

static void test_start_and_end(void **state)
{
    (void)state;
    for (int i = 0; i < (TEST_LIGHT ? 30 : 200); i++) {
        macattn_config cfg = test_config(2, 1, 8);
        cfg.n_threads = 1 + i % 9;
        cfg.spin_us = i % 3 * 100;
        macattn *m = test_create(&cfg);
        assert_int_equal(test_resolved(m).n_threads, cfg.n_threads);
        macattn_destroy(m);
    }
    mai_threads_destroy(NULL, NULL);
}

/* ----------------------------------------------------------------------------------- objects -- */

typedef struct job {
    int32_t n_threads, steps;
    uint64_t seed;
    float *out; /* all outputs, one after the other */
    size_t bytes;
    macattn_status status;
} job;

/* Without assertions: those belong to the main thread. */
static macattn_status work(job *j, macattn *m, test_bench *b)
{
    const test_sequence s = {j->seed, 4, 0.6};
    const test_sequence both[2] = {s, s};
    for (int32_t n = 1; n <= j->steps; n++) {
        for (int32_t r = 0; r < 2; r++) test_bench_row(b, r, r, r, &s, n, 1);
        test_bench_queries(b, 2, both, 0);
        MAI_TRY(macattn_plan(m, &b->batch));
        MAI_TRY(macattn_decode(m, 0, &b->io));
        memcpy((char *)j->out + j->bytes, b->out, test_bench_out_bytes(b));
        j->bytes += test_bench_out_bytes(b);
        if (n % 10 == 9) {
            MAI_TRY(macattn_slot_fork(m, 0, 1));
            memcpy(b->kv.k.data + b->kv.view.k_page_stride, b->kv.k.data,
                   b->kv.k.bytes - (size_t)b->kv.view.k_page_stride);
        }
    }
    return MACATTN_OK;
}

static void *job_main(void *arg)
{
    job *j = arg;
    macattn_config cfg = test_config(4, 2, 32);
    cfg.max_slots = 2;
    cfg.ring = 16;
    cfg.band = 6;
    cfg.min_tokens = 10;
    cfg.n_threads = j->n_threads;
    macattn *m = NULL;
    j->status = macattn_create(&cfg, &m, NULL, 0);
    if (j->status != MACATTN_OK) return NULL;
    macattn_config resolved;
    j->status = macattn_get_config(m, &resolved);
    test_bench b;
    test_bench_create(&b, &resolved, 2, j->steps, 1);
    j->bytes = 0;
    if (j->status == MACATTN_OK) j->status = work(j, m, &b);
    test_bench_destroy(&b);
    macattn_destroy(m);
    return NULL;
}

/* Objects in different threads give what each gives alone. */
static void test_objects_are_independent(void **state)
{
    (void)state;
    enum { JOBS = 5 };
    const int32_t steps = TEST_LIGHT ? 30 : 120;
    job alone[JOBS], together[JOBS];
    pthread_t threads[JOBS];
    for (int i = 0; i < JOBS; i++) {
        alone[i] = (job){.n_threads = 1, .steps = steps, .seed = (uint64_t)(60 + i)};
        alone[i].out = malloc((size_t)steps * 2 * 4 * 32 * sizeof(float));
        together[i] = alone[i];
        together[i].n_threads = 1 + i % 3;
        together[i].out = malloc((size_t)steps * 2 * 4 * 32 * sizeof(float));
        assert_true(alone[i].out && together[i].out);
        job_main(&alone[i]);
        assert_int_equal(alone[i].status, MACATTN_OK);
    }
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, job_main, &together[i]), 0);
    }
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(together[i].status, MACATTN_OK);
        assert_int_equal(together[i].bytes, alone[i].bytes);
        test_same_bits("alone and together", together[i].out, alone[i].out, alone[i].bytes);
        free(alone[i].out);
        free(together[i].out);
    }
}

/* One object handed from thread to thread, used by one at a time. */
typedef struct baton {
    macattn *m;
    test_bench *b;
    int64_t n;
    macattn_status status;
} baton;

static void *one_step(void *arg)
{
    baton *x = arg;
    test_bench_row(x->b, 0, 0, 0, &seq, x->n, 1);
    test_bench_queries(x->b, 1, &seq, 0);
    x->status = macattn_plan(x->m, &x->b->batch);
    if (x->status == MACATTN_OK) x->status = macattn_decode(x->m, 0, &x->b->io);
    return NULL;
}

static void test_handed_over(void **state)
{
    (void)state;
    macattn_config cfg = test_config(4, 2, 32);
    cfg.n_threads = 3;
    cfg.band = 4;
    cfg.ring = 8;
    cfg.min_tokens = 0;
    macattn *m = test_create(&cfg), *one = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, 60, 1), twin = test_bench_of(m, 1, 60, 1);
    for (int64_t n = 1; n <= 60; n++) {
        baton x = {m, &b, n, MACATTN_OK}, y = {one, &twin, n, MACATTN_OK};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, one_step, &x), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        one_step(&y);
        assert_int_equal(x.status, MACATTN_OK);
        assert_int_equal(y.status, MACATTN_OK);
        test_same_bits("from several threads", b.out, twin.out, test_bench_out_bytes(&b));
    }
    test_bench_destroy(&b);
    test_bench_destroy(&twin);
    macattn_destroy(m);
    macattn_destroy(one);
}

/* Long rows, many threads: every thread writes results that another one merges. */
static void test_long_rows(void **state)
{
    (void)state;
    macattn_config cfg = test_config(8, 2, 64);
    cfg.max_slots = 2;
    cfg.ring = 32;
    cfg.band = 64;
    cfg.min_tokens = 100;
    float *first = NULL;
    for (int32_t n_threads = 1; n_threads <= 5; n_threads += 2) {
        cfg.n_threads = n_threads;
        macattn *m = test_create(&cfg);
        const int32_t n = TEST_LIGHT ? 700 : 3000;
        test_bench b = test_bench_of(m, 2, n + 10, n);
        const test_sequence both[2] = {seq, seq};
        for (int32_t step = 0; step <= 10; step++) {
            for (int32_t r = 0; r < 2; r++)
                test_bench_row(&b, r, r, r, &seq, n + step, step ? 1 : n);
            test_bench_run(&b, m, 2, both);
        }
        const size_t bytes = test_bench_out_bytes(&b);
        if (first) {
            test_same_bits("more threads", b.out, first, bytes);
        } else {
            first = malloc(bytes);
            assert_non_null(first);
            memcpy(first, b.out, bytes);
        }
        test_bench_destroy(&b);
        macattn_destroy(m);
    }
    free(first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_once),
        cmocka_unit_test(test_start_and_end),
        cmocka_unit_test(test_objects_are_independent),
        cmocka_unit_test(test_handed_over),
        cmocka_unit_test(test_long_rows),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
