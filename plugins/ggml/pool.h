/* SPDX-License-Identifier: Apache-2.0 */
/* Running macattn's tasks on the threads ggml computes with, and as many of them as ggml uses at
 * the moment.
 *
 * ggml built with OpenMP leaves its threads spinning between two graphs. A second set of threads
 * would have to fight them for the cores, so the same ones are used: GOMP_parallel, the entry
 * point that both GNU's and LLVM's OpenMP runtime offer, from the very runtime that ggml's CPU
 * backend is linked with, under whatever name. Without one, a context has threads of its own. */
#ifndef MACATTN_PLUGIN_POOL_H
#define MACATTN_PLUGIN_POOL_H

#include "macattn/macattn.h"

typedef struct pool pool;

/*! pool_init() : once, by the thread that loads the plug-in: the CPUs it may use are those of
 *  all pools, whatever masks ggml gives its threads later. */
void pool_init(void);

/*! pool_kind() : whose threads they are, for people: "OpenMP's", "own". */
const char *pool_kind(void);

/*! pool_create() : of one thread.  @return : NULL without memory. */
pool *pool_create(void);
void pool_free(pool *p);

/*! pool_set_threads() : threads of the next calls, the calling one included. Where the system
 *  gives fewer, they are used, and one line says so. Not during pool_parallel_for. */
void pool_set_threads(pool *p, int n_threads);

/*! pool_limit() : more threads than pool_set_threads is likely to ask for. */
int pool_limit(const pool *p);

/*! pool_parallel_for() : a macattn_parallel_for; `user` is the pool. */
void pool_parallel_for(void *user, int n_tasks, void (*task)(void *arg, int i), void *arg);

#endif
