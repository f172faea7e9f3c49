/* SPDX-License-Identifier: Apache-2.0 */
/* Finds and loads a peer (peer.h). */
#ifndef MACATTN_TOOLS_BENCH_PEER_LOAD_H
#define MACATTN_TOOLS_BENCH_PEER_LOAD_H

#include "peer.h"

/* Looks in $MACATTN_PEER_DIR, else where fetch/get-llama.sh puts it. Dies, saying which script to
 * run, if there is none. */
const peer_api *peer_load(const char *name);

#endif /* MACATTN_TOOLS_BENCH_PEER_LOAD_H */
