/* SPDX-License-Identifier: Apache-2.0 */
/* What `bench mac --select-share` makes and reports, the same on the CPU and on the GPU.
 *
 * Of four themes each is that of a share of the runs of 16 tokens, whose keys all queries of the theme
 * ask for, and which carry nearly all of their mass; share 1 is flat attention, which no selection
 * approximates. Queries take the themes in turns. */
#ifndef MACATTN_TOOLS_BENCH_THEMES_H
#define MACATTN_TOOLS_BENCH_THEMES_H

#include "bench.h"
#include "common/random.h"
#include "common/samples.h"

enum {
    THEMES = 4,
    THEME_RUN = 16,     /* tokens */
    THEME_LESSONS = 16, /* short prompts that teach the threshold */
    THEME_QUERIES = 16  /* different ones, in turns */
};
/* How much of a theme is in the keys that have it, beside noise of size 1. */
#define THEME_KEY_SHARE 1.2f

/* What both report. */
#define THEME_COLUMNS                                                                           \
    {"select_share", "runs", 6, 3}, BENCH_TIME_COLUMNS, {"exact_us_median", "exact us", 10, 1}, \
        {"speedup_vs_exact", "speedup", 7, 2}, {"selected_share", "selected", 8, 3},            \
        {"read_share", "read", 6, 3},                                                           \
    {                                                                                           \
        "error", "error", 9, 5                                                                  \
    }

/* [THEMES][n_kv_heads][head_dim], orthogonal, each value of size 1 or so: to be freed. */
float *themes_make(const macattn_config *cfg, random_state *rng);
const float *themes_at(const float *themes, const macattn_config *cfg, size_t which,
                       size_t kv_head);
/* Whether a run is the theme's. */
bool themes_chosen(double share, random_state *rng);
/* q: [THEME_QUERIES][n_heads][head_dim]. */
void themes_queries(const float *themes, const macattn_config *cfg, float *q, random_state *rng);

/* Of n values, relative to their size: over all heads' outputs, the unit that the budget counts in. */
double themes_error(const float *out, const float *exact, size_t n);

void themes_add_setting(cJSON *row, const macattn_config *cfg, double share);
/* `group_bytes`: K and V of one KV head. */
void themes_add_result(cJSON *row, const macattn_stats *stats, double group_bytes,
                       const sample_list *us, const sample_list *exact);

#endif /* MACATTN_TOOLS_BENCH_THEMES_H */
