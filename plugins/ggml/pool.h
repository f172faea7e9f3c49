/* SPDX-License-Identifier: Apache-2.0 */
/* Running macattn's tasks on the threads ggml computes with.
 *
 * ggml built with OpenMP leaves its threads spinning between two graphs. A second set of threads would
 * have to fight them for the cores, so the same ones are used: GOMP_parallel, the entry point that both
 * GNU's and LLVM's OpenMP runtime offer, from whichever of them is in the process already. */
#ifndef MACATTN_PLUGIN_POOL_H
#define MACATTN_PLUGIN_POOL_H

#include "macattn/macattn.h"

/*! pool_parallel_for() : a macattn_parallel_for on OpenMP's threads; NULL if the process has no OpenMP
 *  runtime. Its `user` is an int pointer: the number of threads to use at most. */
macattn_parallel_for pool_parallel_for(void);

#endif
