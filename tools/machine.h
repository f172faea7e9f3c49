/* SPDX-License-Identifier: Apache-2.0 */
/* The machine: what it is called, its caches, and how fast it reads and multiplies. */
#ifndef MACATTN_TOOLS_MACHINE_H
#define MACATTN_TOOLS_MACHINE_H

#include <stddef.h>
#include <stdint.h>

typedef struct machine_info {
    char cpu[128];
    char os[192];
    int n_cpus;          /* this process may use */
    size_t l1d, l2, llc; /* bytes; of one core, of one core, of the last level */
    uint64_t memory;     /* bytes */
    char huge_pages[16]; /* the system's setting for transparent huge pages */
} machine_info;

void machine_describe(machine_info *info);

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

/* f32 fused multiply-adds in registers, in 1e9 operations (2 for each multiply-add) a second. */
double machine_fma_gflops(machine_team *team);

#endif /* MACATTN_TOOLS_MACHINE_H */
