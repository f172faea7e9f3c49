/* SPDX-License-Identifier: Apache-2.0 */
/* The machine: what it is called, and its caches. */
#ifndef MACATTN_TOOLS_COMMON_MACHINE_H
#define MACATTN_TOOLS_COMMON_MACHINE_H

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

/* The instruction set that the library takes here if it is told none. */
const char *machine_isa(void);

#endif /* MACATTN_TOOLS_COMMON_MACHINE_H */
