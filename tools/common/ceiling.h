/* SPDX-License-Identifier: Apache-2.0 */
/* How fast the machine reads and multiplies: what no kernel can exceed. */
#ifndef MACATTN_TOOLS_COMMON_CEILING_H
#define MACATTN_TOOLS_COMMON_CEILING_H

#include <stddef.h>

/* Bytes that no cache holds, of any machine this is likely to run on. */
#define MACHINE_COLD_BYTES ((size_t)1 << 30)

/* A team of threads that reads memory and multiplies: the ceilings of what a kernel can reach. */
typedef struct machine_team machine_team;

/* The buffer it reads is far larger than the last-level cache. Dies on failure. */
machine_team *machine_team_create(int n_threads);
void machine_team_destroy(machine_team *team);

/* One pass over the buffer, in GB/s (1e9 bytes), with the variant (vector width, prefetch distance,
 * number of streams) that was the fastest when the team was made. */
double machine_read_gbps(machine_team *team);
/* What that variant is, in words. */
const char *machine_read_variant(const machine_team *team);

/* f32 fused multiply-adds in registers, in 1e9 operations (2 for each multiply-add) a second, in the
 * vectors of an instruction set of the library's (macattn_isa_name); NULL: the widest there are. */
double machine_fma_gflops(machine_team *team, const char *isa);

#endif /* MACATTN_TOOLS_COMMON_CEILING_H */
