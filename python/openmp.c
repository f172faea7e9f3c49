/* SPDX-License-Identifier: Apache-2.0 */
/* Running macattn's tasks on the threads of the OpenMP runtime that the process has already.
 *
 * PyTorch leaves its threads spinning between two operations. A second set of threads would have
 * to fight them for the cores, so the same ones are used: GOMP_parallel, the entry point that both
 * GNU's and LLVM's runtime offer. Python loads this beside the library; it links no runtime. */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>

#include "macattn/macattn.h"

typedef void gomp_parallel_function(void (*body)(void *), void *data, unsigned n_threads,
                                    unsigned flags);

macattn_parallel_for macattn_openmp(void);

static gomp_parallel_function *gomp_parallel;

typedef struct loop {
    void (*task)(void *arg, int i);
    void *arg;
    int n_tasks;
    atomic_int next;
} loop;

static void draw(void *data)
{
    loop *l = data;
    for (int i = atomic_fetch_add(&l->next, 1); i < l->n_tasks; i = atomic_fetch_add(&l->next, 1)) {
        l->task(l->arg, i);
    }
}

/* `user` points at the number of threads to use at most. */
static void parallel_for(void *user, int n_tasks, void (*task)(void *arg, int i), void *arg)
{
    const int n_threads = *(const int *)user;
    loop l = {.task = task, .arg = arg, .n_tasks = n_tasks};
    const int n = n_threads < n_tasks ? n_threads : n_tasks;
    if (n > 1) {
        gomp_parallel(draw, &l, (unsigned)n, 0);
    } else {
        draw(&l);
    }
}

/* NULL if the process has no OpenMP runtime. */
macattn_parallel_for macattn_openmp(void)
{
    static const char *const runtimes[] = {"libgomp.so.1", "libomp.so", "libomp.so.5",
                                           "libiomp5.so"};
    for (size_t i = 0; !gomp_parallel && i < sizeof runtimes / sizeof runtimes[0]; i++) {
        void *library = dlopen(runtimes[i], RTLD_NOLOAD | RTLD_LAZY);
        if (library) *(void **)(void *)&gomp_parallel = dlsym(library, "GOMP_parallel");
    }
    if (!gomp_parallel) *(void **)(void *)&gomp_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    return gomp_parallel ? parallel_for : NULL;
}
