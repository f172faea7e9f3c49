/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU side of `macattn bench`: bench_cuda.c, or a sentence where the build has none. */
#ifndef MACATTN_TOOLS_BENCH_CUDA_H
#define MACATTN_TOOLS_BENCH_CUDA_H

#include "bench.h"

/* `what`: attend or mac. */
int bench_cuda(bench_session *session, const char *what);

#endif /* MACATTN_TOOLS_BENCH_CUDA_H */
