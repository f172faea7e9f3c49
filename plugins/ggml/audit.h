/* SPDX-License-Identifier: Apache-2.0 */
/* Checking and counting what reuse did. */
#ifndef MACATTN_PLUGIN_AUDIT_H
#define MACATTN_PLUGIN_AUDIT_H

#include "records.h"

/* A head's counters before a step. */
typedef struct head_before {
    uint64_t hits, skipped;
} head_before;

/*! audit_read_heads() : the counters of a layer's heads, [n_heads]. */
void audit_read_heads(const group *g, int l, head_before *heads);

/*! audit_step() : compute again, exactly, and compare the heads that hit. */
void audit_step(const attention *a, group *g, int l, const macattn_io *io,
                const head_before *before, const head_before *after);

/*! audit_count_bytes() : what a step of one sequence read; `before` NULL: all of it. A KV head's
 *  rows are left out as far as all its query heads leave them out. */
void audit_count_bytes(const attention *a, group *g, int l, const head_before *before,
                       const head_before *after);

#endif
