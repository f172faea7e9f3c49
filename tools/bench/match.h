/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench match`. */
#ifndef MACATTN_TOOLS_BENCH_MATCH_H
#define MACATTN_TOOLS_BENCH_MATCH_H

#include "bench.h"

int bench_match(bench_session *session);

#endif /* MACATTN_TOOLS_BENCH_MATCH_H */
