/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac --device cuda --select-share`. */
#ifndef MACATTN_TOOLS_BENCH_CUDA_SELECT_H
#define MACATTN_TOOLS_BENCH_CUDA_SELECT_H

#include "bench.h"

void bench_cuda_select(bench_session *session, const bench_shape *shape);
const report_column *bench_cuda_select_columns(void);

#endif /* MACATTN_TOOLS_BENCH_CUDA_SELECT_H */
