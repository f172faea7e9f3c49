/* SPDX-License-Identifier: Apache-2.0 */
/* The plug-in's threads: every task once, as many threads as asked for at the moment, on every
 * CPU though the calling thread be bound to one, two pools at once; OpenMP's where ggml's CPU
 * backend is linked with it. usage: test_pool [GGML_FOLDER] */
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host.h"

enum { N_TASKS = 64, N_LOOPS = 300 };

static atomic_int failures;

static void expect(bool ok, const char *what)
{
    if (ok) return;
    printf("FAILED: %s\n", what);
    atomic_fetch_add(&failures, 1);
}

typedef struct seen {
    int runs[N_TASKS];
    pthread_t threads[N_TASKS];
    int cpus[N_TASKS]; /* that the thread may use */
    atomic_int here;
    int wait_for; /* threads, before any goes on */
} seen;

static void note(void *arg, int i)
{
    seen *s = arg;
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    s->runs[i]++;
    s->threads[i] = pthread_self();
    s->cpus[i] = CPU_COUNT(&set);
    atomic_fetch_add(&s->here, 1);
    while (atomic_load(&s->here) < s->wait_for) sched_yield();
}

static int n_threads(const seen *s, int n_tasks)
{
    int n = 0;
    for (int i = 0; i < n_tasks; i++) {
        bool known = false;
        for (int j = 0; j < i; j++) known = known || pthread_equal(s->threads[i], s->threads[j]);
        n += !known;
    }
    return n;
}

static void loop(pool *p, int n_tasks, int most, bool all)
{
    seen s;
    memset(&s, 0, sizeof s);
    s.wait_for = all ? most : 0;
    pool_parallel_for(p, n_tasks, note, &s);
    for (int i = 0; i < n_tasks; i++) expect(s.runs[i] == 1, "every task runs once");
    const int n = n_threads(&s, n_tasks);
    expect(n <= most && (!all || n == most), "the number of threads");
}

static void *loops(void *arg)
{
    pool *p = pool_create();
    static const int counts[] = {1, 3, 2, 5, 1, 4};
    (void)arg;
    for (int i = 0; i < N_LOOPS; i++) {
        const int n = counts[i % 6];
        pool_set_threads(p, n);
        expect(pool_limit(p) >= n, "the limit");
        loop(p, 1 + i % N_TASKS, n, false);
        loop(p, N_TASKS, n, i % 10 == 0);
    }
    pool_free(p);
    return NULL;
}

static void test_bound(int n_cpus)
{
    cpu_set_t before, one;
    seen s;
    memset(&s, 0, sizeof s);
    sched_getaffinity(0, sizeof before, &before);
    CPU_ZERO(&one);
    for (int i = 0; CPU_COUNT(&one) == 0; i++) {
        if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
    }
    sched_setaffinity(0, sizeof one, &one);
    pool *p = pool_create();
    pool_set_threads(p, 3);
    s.wait_for = 3;
    pool_parallel_for(p, 3, note, &s);
    for (int i = 0; i < 3; i++) {
        const bool caller = pthread_equal(s.threads[i], pthread_self());
        expect(s.cpus[i] == (caller ? 1 : n_cpus), "the CPUs of a worker");
    }
    pool_free(p);
    sched_setaffinity(0, sizeof before, &before);
}

int main(int argc, char **argv)
{
    cpu_set_t set;
    pthread_t other;
    sched_getaffinity(0, sizeof set, &set);
    if (!host_find((const void *)ggml_version)) return 1;
    pool_init();
    if (argc > 1) {
        ggml_backend_load_all_from_path(argv[1]);
        expect(strcmp(pool_kind(), "OpenMP's") == 0, "OpenMP's threads");
        loops(NULL);
    } else {
        expect(strcmp(pool_kind(), "own") == 0, "own threads");
        if (pthread_create(&other, NULL, loops, NULL) != 0) return 1;
        loops(NULL);
        pthread_join(other, NULL);
        test_bound(CPU_COUNT(&set));
    }
    printf("%d failures\n", atomic_load(&failures));
    return atomic_load(&failures) > 0;
}
