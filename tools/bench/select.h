/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac --select-share`. */
#ifndef MACATTN_TOOLS_BENCH_SELECT_H
#define MACATTN_TOOLS_BENCH_SELECT_H

#include "bench.h"

int bench_select(bench_session *session);

#endif /* MACATTN_TOOLS_BENCH_SELECT_H */
