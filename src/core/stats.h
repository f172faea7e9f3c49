/* SPDX-License-Identifier: Apache-2.0 */
/* What macattn_stats_get is made of. */
#ifndef MAI_STATS_H
#define MAI_STATS_H

#include "base.h"

/* Counters of one (layer, head). */
typedef struct mai_counters {
    uint64_t steps, hits, misses, tokens_total, tokens_skipped;
    uint64_t distance[MACATTN_DISTANCE_BINS];
    uint64_t samples;
    double error2_layer, error2_head;
} mai_counters;
/* Wall time of a layer's decode calls, by phase. */
typedef struct mai_times {
    uint64_t match_ns, attend_ns, merge_ns, judge_ns;
} mai_times;
macattn_status mai_stats_create(macattn *m);
void mai_stats_destroy(macattn *m);
/* One decoded (row, head). `distance2` is the squared distance of a hit, else unused. */
void mai_stats_add(macattn *m, int32_t layer, int32_t head, bool hit, int64_t n_tokens,
                   int64_t n_skipped, double distance2);

/* One refused candidate that was compared; squared errors. */
void mai_stats_add_sample(macattn *m, int32_t layer, int32_t head, double error2_layer,
                          double error2_head);
void mai_stats_add_times(macattn *m, int32_t layer, int64_t match_ns, int64_t attend_ns,
                         int64_t merge_ns, int64_t judge_ns);

#endif /* MAI_STATS_H */
