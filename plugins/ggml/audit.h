/* SPDX-License-Identifier: Apache-2.0 */
/* Checking and counting what reuse did. */
#ifndef MACATTN_PLUGIN_AUDIT_H
#define MACATTN_PLUGIN_AUDIT_H

#include "records.h"

/* A head's counters before a step; all but the first are of the KV head that it reads. */
typedef struct head_before {
    uint64_t hits, selected, kv_bytes, ring_bytes, run_bytes;
} head_before;

/*! audit_read_heads() : the counters of a layer's heads, [n_heads]. */
void audit_read_heads(const group *g, int l, head_before *heads);

/*! audit_reused() : whether a head's result is not the exact one. */
static inline bool audit_reused(const head_before *before, const head_before *after)
{
    return after->hits > before->hits || after->selected > before->selected;
}

/*! audit_step() : compute again, exactly, and compare the heads whose result may differ. */
void audit_step(const attention *a, group *g, int l, const macattn_io *io,
                const head_before *before, const head_before *after);

/*! audit_count_bytes() : what a step of one sequence read; `before` NULL: all of it. */
void audit_count_bytes(const attention *a, group *g, int l, const head_before *before,
                       const head_before *after);

#endif
