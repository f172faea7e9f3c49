/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac`. */
#ifndef MACATTN_TOOLS_BENCH_MAC_H
#define MACATTN_TOOLS_BENCH_MAC_H

#include "bench.h"

int bench_mac(bench_session *session);

#endif /* MACATTN_TOOLS_BENCH_MAC_H */
