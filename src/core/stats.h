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
/* Of one (layer, kv head). */
typedef struct mai_group_counters {
    uint64_t groups[MACATTN_WAYS], kv_bytes[MACATTN_WAYS], run_bytes[MACATTN_WAYS],
        ring_bytes[MACATTN_WAYS];
    uint64_t checks;
    double error2_selected;
} mai_group_counters;
/* One decoded (row, kv head). */
typedef struct mai_group_count {
    macattn_way how;
    size_t kv_bytes, run_bytes, ring_bytes;
} mai_group_count;
/* Wall time of a layer's decode calls, by phase. */
typedef struct mai_times {
    uint64_t match_ns, attend_ns, merge_ns, judge_ns, select_ns;
} mai_times;
macattn_status mai_stats_create(macattn *m);
void mai_stats_destroy(macattn *m);
/* One decoded (row, head). `distance2` is the squared distance of a hit, else unused. */
void mai_stats_add(macattn *m, int32_t layer, int32_t head, bool hit, int64_t n_tokens,
                   int64_t n_skipped, double distance2);

/* One refused candidate that was compared; squared errors. */
void mai_stats_add_sample(macattn *m, int32_t layer, int32_t head, double error2_layer,
                          double error2_head);
void mai_stats_add_group(macattn *m, int32_t layer, int32_t kv_head, const mai_group_count *count);
/* One selection that was checked; mean of the heads' squared errors, in units of the layer. */
void mai_stats_add_check(macattn *m, int32_t layer, int32_t kv_head, double error2);
void mai_stats_add_times(macattn *m, int32_t layer, const mai_times *times);

#endif /* MAI_STATS_H */
