/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda.h"

int bench_cuda(bench_run *run, const char *what)
{
    (void)run;
    tool_die(TOOL_FAILED,
             "bench %s --device cuda: this build has no GPU side (it is made with "
             "-DMACATTN_CUDA=ON)",
             what);
}
