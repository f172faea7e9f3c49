/* SPDX-License-Identifier: Apache-2.0 */
#include "common/say.h"
#include "cuda.h"

int bench_cuda(bench_session *session, const char *what)
{
    (void)session;
    die(EXIT_FAILED,
        "bench %s --device cuda: this build has no GPU side (it is made with "
        "-DMACATTN_CUDA=ON)",
        what);
}
