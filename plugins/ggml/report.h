/* SPDX-License-Identifier: Apache-2.0 */
/* Statistics of all contexts of the process, written when it ends. */
#ifndef MACATTN_PLUGIN_REPORT_H
#define MACATTN_PLUGIN_REPORT_H

#include "settings/settings.h"
#include "tracker.h"

/*! Calls and time of one way of computing a node. */
typedef struct report_calls {
    uint64_t calls;
    uint64_t ns;
} report_calls;

/*! How far results were from exact attention, of the heads that reused or selected: relative to their own exact
 *  outputs, and to the root mean square of those of the layer's heads. */
typedef struct report_audit {
    uint64_t n;
    double own_sum, own_max, unit_sum, unit_max;
} report_audit;

/*! What the sequences of a context take while they reuse: each of them. */
typedef struct report_memory {
    uint64_t rings; /*!< once they are full */
    uint64_t runs;  /*!< once the sequence is as long as its cache */
} report_memory;

/*! Counters of one context. */
typedef struct report_totals {
    report_calls decode;  /*!< one query a sequence */
    report_calls prefill; /*!< several */
    report_calls ggml;    /*!< left to ggml's own operator */
    tracker_counts tracked;
    report_memory memory; /*!< of one sequence */
} report_totals;

/*! report_layer() : add a layer's counters. `group` numbers the groups of like layers of a
 *  context; `kv_bytes` are those of all that the decoded tokens attended to. */
void report_layer(int group, int layer, const macattn_stats *stats, uint64_t kv_bytes,
                  const report_audit *audit);

void report_add(const report_totals *totals);

/*! report_write() : as MACATTN_STATS asks, in JSON. */
void report_write(const plugin_settings *settings);

#endif
