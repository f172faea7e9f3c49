/* SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host.h"

enum { MAX_THREADS = 1024, SPIN_NS = 50000 };

typedef void gomp_parallel_function(void (*body)(void *), void *data, unsigned n_threads,
                                    unsigned flags);

/* A loop at work. Threads draw its tasks from one counter. */
typedef struct loop {
    void (*task)(void *arg, int i);
    void *arg;
    int n_tasks;
    atomic_int next;
} loop;

typedef struct worker {
    struct pool *pool;
    pthread_t thread;
    atomic_uint calls; /* how often it was called for; it answers every call */
    atomic_bool asleep;
    pthread_cond_t wake;
} worker;

struct pool {
    int n_threads;
    gomp_parallel_function *gomp; /* NULL: the workers */
    int n_workers;                /* started */
    int most_wanted;              /* asked for; fewer are there if the system gave no more */
    worker *workers[MAX_THREADS];
    loop *loop;
    atomic_int at_work;  /* workers that have not left the loop */
    atomic_bool waiting; /* the caller, on a condition */
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t done;
};

static cpu_set_t cpus; /* at load */
static int n_cpus = 1;

void pool_init(void)
{
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) n_cpus = CPU_COUNT(&cpus);
    if (n_cpus < 1) n_cpus = 1;
}

/* ------------------------------------------------------------------------------------ OpenMP -- */

/* The object that holds ggml's CPU backend. */
static void *cpu_library(void)
{
    ggml_backend_dev_t dev = host.ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!dev) return NULL;
    Dl_info info = {0};
    const void *function = host.ggml_backend_reg_get_proc_address(
        host.ggml_backend_dev_backend_reg(dev), "ggml_backend_set_n_threads");
    void *library = NULL;
    if (function && dladdr(function, &info) && info.dli_fname) {
        library = dlopen(info.dli_fname, RTLD_NOLOAD | RTLD_LAZY);
    }
    return library ? library : dlopen(NULL, RTLD_LAZY);
}

/* Looked up in that object and what it was linked with. The object stays open: its runtime is
 * used. */
static gomp_parallel_function *find_gomp(void)
{
    gomp_parallel_function *gomp = NULL;
    void *library = cpu_library();
    if (library) *(void **)(void *)&gomp = dlsym(library, "GOMP_parallel");
    return gomp;
}

const char *pool_kind(void)
{
    return find_gomp() ? "OpenMP's" : "own";
}

/* ----------------------------------------------------------------------------------- workers -- */

static void draw(void *data)
{
    loop *l = data;
    for (int i = atomic_fetch_add(&l->next, 1); i < l->n_tasks; i = atomic_fetch_add(&l->next, 1)) {
        l->task(l->arg, i);
    }
}

static int64_t now_ns(void)
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

/* Whether a call came while it was worth spinning. */
static bool spin_for_call(worker *w, unsigned answered)
{
    const int64_t until = now_ns() + SPIN_NS;
    for (int i = 1;; i++) {
        if (atomic_load_explicit(&w->calls, memory_order_acquire) != answered) return true;
        relax();
        if (i % 64 == 0 && now_ns() > until) return false;
    }
}

static void sleep_for_call(worker *w, unsigned answered)
{
    pool *p = w->pool;
    pthread_mutex_lock(&p->lock);
    atomic_store(&w->asleep, true);
    while (atomic_load(&w->calls) == answered) pthread_cond_wait(&w->wake, &p->lock);
    atomic_store(&w->asleep, false);
    pthread_mutex_unlock(&p->lock);
}

static void *work(void *arg)
{
    worker *w = arg;
    pool *p = w->pool;
    for (unsigned answered = 0;; answered++) {
        if (!spin_for_call(w, answered)) sleep_for_call(w, answered);
        if (atomic_load(&p->stop)) return NULL;
        draw(p->loop);
        if (atomic_fetch_sub(&p->at_work, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void call(pool *p, int n_workers)
{
    for (int i = 0; i < n_workers; i++) {
        worker *w = p->workers[i];
        atomic_fetch_add(&w->calls, 1);
        if (!atomic_load(&w->asleep)) continue;
        pthread_mutex_lock(&p->lock);
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&p->lock);
    }
}

static void wait_for_workers(pool *p)
{
    const int64_t until = now_ns() + SPIN_NS;
    for (int i = 1; i % 64 != 0 || now_ns() < until; i++) {
        if (atomic_load_explicit(&p->at_work, memory_order_acquire) == 0) return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->waiting, true);
    while (atomic_load(&p->at_work) > 0) pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->waiting, false);
    pthread_mutex_unlock(&p->lock);
}

/* On all CPUs the plug-in was loaded with: the calling thread may have been bound to one of
 * them. */
static int start_thread(worker *w)
{
    pthread_attr_t attr;
    int error = EAGAIN;
    if (pthread_attr_init(&attr) == 0) {
        if (CPU_COUNT(&cpus) > 0 && pthread_attr_setaffinity_np(&attr, sizeof cpus, &cpus) == 0) {
            error = pthread_create(&w->thread, &attr, work, w);
        }
        pthread_attr_destroy(&attr);
    }
    return error == 0 ? 0 : pthread_create(&w->thread, NULL, work, w);
}

static void free_worker(worker *w)
{
    pthread_cond_destroy(&w->wake);
    free(w);
}

static bool start_worker(pool *p)
{
    sigset_t all, before; /* signals are the program's threads' business */
    worker *w = calloc(1, sizeof *w);
    if (!w) return false;
    w->pool = p;
    pthread_cond_init(&w->wake, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = start_thread(w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        free_worker(w);
        return false;
    }
    p->workers[p->n_workers++] = w;
    return true;
}

/* -------------------------------------------------------------------------------------- pool -- */

pool *pool_create(void)
{
    pool *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->n_threads = p->most_wanted = 1;
    p->gomp = find_gomp();
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->done, NULL);
    return p;
}

void pool_free(pool *p)
{
    if (!p) return;
    atomic_store(&p->stop, true);
    call(p, p->n_workers);
    for (int i = 0; i < p->n_workers; i++) {
        pthread_join(p->workers[i]->thread, NULL);
        free_worker(p->workers[i]);
    }
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->done);
    free(p);
}

void pool_set_threads(pool *p, int n_threads)
{
    if (n_threads < 1) n_threads = 1;
    if (n_threads > MAX_THREADS) n_threads = MAX_THREADS;
    if (!p->gomp && n_threads > p->most_wanted) {
        p->most_wanted = n_threads;
        while (p->n_workers < n_threads - 1 && start_worker(p)) {
        }
        if (p->n_workers < n_threads - 1) {
            host_say("the system gave %d of %d threads", p->n_workers + 1, n_threads);
        }
    }
    p->n_threads = n_threads;
}

int pool_limit(const pool *p)
{
    const int n = p->n_threads > n_cpus ? p->n_threads : n_cpus;
    return n < MAX_THREADS ? n : MAX_THREADS;
}

void pool_parallel_for(void *user, int n_tasks, void (*task)(void *arg, int i), void *arg)
{
    pool *p = user;
    loop l = {.task = task, .arg = arg, .n_tasks = n_tasks};
    const int n = p->n_threads < n_tasks ? p->n_threads : n_tasks;
    const int n_workers = n - 1 < p->n_workers ? n - 1 : p->n_workers;
    if (p->gomp && n > 1) {
        p->gomp(draw, &l, (unsigned)n, 0);
        return;
    }
    if (n_workers > 0) {
        p->loop = &l;
        atomic_store(&p->at_work, n_workers);
        call(p, n_workers);
    }
    draw(&l);
    if (n_workers > 0) wait_for_workers(p);
}
