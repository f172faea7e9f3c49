/* SPDX-License-Identifier: Apache-2.0 */
/* Running tasks: on the own pool, on the caller's parallel-for, or just here.
 *
 * A job, the tasks of one call of mai_threads_run, is announced by bumping `job_number`; workers
 * that still spin see it at once, sleeping ones are woken. Tasks are drawn from one counter. The
 * caller draws too, then waits until all workers that took part have left, because the job's
 * description may not change while any of them reads it. */
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE /* sched_getaffinity */
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "base.h"

typedef struct worker {
    mai_threads *threads;
    pthread_t thread;
    int id;
} worker;

struct mai_threads {
    int n_threads; /* the calling thread included */
    int64_t spin_ns;
    macattn_parallel_for parallel_for;
    void *parallel_user;

    /* The current job. Written by the caller while no worker reads. */
    mai_task task;
    void *arg;
    int n_tasks;
    atomic_int next_task;

    atomic_uint job_number;
    atomic_int running;  /* workers that have not left the current job */
    atomic_int sleepers; /* workers, and perhaps the caller, that wait on a condition */
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int n_started;
    worker workers[]; /* [n_threads - 1] */
};

int64_t mai_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void draw_tasks(mai_threads *p, int worker_id)
{
    for (;;) {
        const int i = atomic_fetch_add_explicit(&p->next_task, 1, memory_order_relaxed);
        if (i >= p->n_tasks) return;
        p->task(p->arg, i, worker_id);
    }
}

/* Whether the condition came true within the spin budget. The clock is read now and then only. */
static bool spin_for_job(mai_threads *p, unsigned seen)
{
    const int64_t until = p->spin_ns > 0 ? mai_now_ns() + p->spin_ns : 0;
    for (int i = 1; p->spin_ns > 0; i++) {
        if (atomic_load_explicit(&p->job_number, memory_order_acquire) != seen) return true;
        relax();
        if (i % 64 == 0 && mai_now_ns() > until) break;
    }
    return false;
}

static void sleep_for_job(mai_threads *p, unsigned seen)
{
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->job_number) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    mai_threads *p = w->threads;
    for (unsigned seen = 0;; seen++) { /* the caller waits for each job: none is ever missed */
        if (!spin_for_job(p, seen)) sleep_for_job(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        draw_tasks(p, w->id);
        if (atomic_fetch_sub(&p->running, 1) == 1 && atomic_load(&p->sleepers) > 0) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void announce(mai_threads *p)
{
    atomic_store(&p->running, p->n_started);
    atomic_fetch_add(&p->job_number, 1);
    if (atomic_load(&p->sleepers) > 0) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->wake);
        pthread_mutex_unlock(&p->lock);
    }
}

static void wait_for_workers(mai_threads *p)
{
    const int64_t until = p->spin_ns > 0 ? mai_now_ns() + p->spin_ns : 0;
    for (int i = 1; p->spin_ns > 0; i++) {
        if (atomic_load_explicit(&p->running, memory_order_acquire) == 0) return;
        relax();
        if (i % 64 == 0 && mai_now_ns() > until) break;
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(&p->running) > 0) pthread_cond_wait(&p->done, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void draw_as(void *arg, int i)
{
    draw_tasks(arg, i);
}

void mai_threads_run(mai_threads *p, int n_tasks, mai_task task, void *arg)
{
    if (n_tasks <= 0) return;
    p->task = task;
    p->arg = arg;
    p->n_tasks = n_tasks;
    atomic_store(&p->next_task, 0);
    if (p->n_threads == 1 || n_tasks == 1) {
        draw_tasks(p, 0);
    } else if (p->parallel_for) {
        p->parallel_for(p->parallel_user, n_tasks < p->n_threads ? n_tasks : p->n_threads, draw_as,
                        p);
    } else {
        announce(p);
        draw_tasks(p, 0);
        wait_for_workers(p);
    }
}

int mai_threads_default(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
    const int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n;
}

static void join_workers(mai_threads *p)
{
    atomic_store(&p->stop, true);
    announce(p);
    for (int i = 0; i < p->n_started; i++) pthread_join(p->workers[i].thread, NULL);
}

macattn_status mai_threads_create(const macattn_config *cfg, mai_threads **out, char *error,
                                  size_t error_size)
{
    const int n_workers = cfg->parallel_for ? 0 : cfg->n_threads - 1;
    mai_threads *p = mai_alloc_zero(cfg, sizeof *p + sizeof(worker) * (size_t)n_workers);
    if (!p) {
        snprintf(error, error_size, "no memory for the threads");
        return MACATTN_E_NOMEM;
    }
    p->n_threads = cfg->n_threads;
    p->spin_ns = (int64_t)cfg->spin_us * 1000;
    p->parallel_for = cfg->parallel_for;
    p->parallel_user = cfg->parallel_user;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    sigset_t all, before; /* signals are the caller's threads' business */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool failed = false;
    for (int i = 0; i < n_workers && !failed; i++) {
        p->workers[i] = (worker){.threads = p, .id = i + 1};
        failed = pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]) != 0;
        if (!failed) p->n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        snprintf(error, error_size, "the system gave %d of %d threads", p->n_started + 1,
                 cfg->n_threads);
        mai_threads_destroy(cfg, p);
        return MACATTN_E_SYSTEM;
    }
    *out = p;
    return MACATTN_OK;
}

void mai_threads_destroy(const macattn_config *cfg, mai_threads *p)
{
    if (!p) return;
    join_workers(p);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
    pthread_cond_destroy(&p->done);
    mai_free(cfg, p);
}
