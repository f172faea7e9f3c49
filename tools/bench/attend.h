/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench attend`. */
#ifndef MACATTN_TOOLS_BENCH_ATTEND_H
#define MACATTN_TOOLS_BENCH_ATTEND_H

#include "bench.h"

int bench_attend(bench_session *session);

#endif /* MACATTN_TOOLS_BENCH_ATTEND_H */
