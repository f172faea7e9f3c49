/* SPDX-License-Identifier: Apache-2.0 */
#include "themes.h"

#include <math.h>

#include "common/memory.h"
#include "tensors.h"

/* How much of a theme, and of noise, is in its queries. */
#define QUERY_SHARE 0.4f
#define QUERY_NOISE 0.1f

static size_t at(const macattn_config *cfg, size_t which, size_t kv_head)
{
    return (which * (size_t)cfg->n_kv_heads + kv_head) * (size_t)cfg->head_dim;
}

const float *themes_at(const float *themes, const macattn_config *cfg, size_t which, size_t kv_head)
{
    return themes + at(cfg, which, kv_head);
}

/* x less its part along y. */
static void turn_away(float *x, const float *y, size_t d)
{
    double xy = 0, yy = 0;
    for (size_t i = 0; i < d; i++) {
        xy += (double)x[i] * (double)y[i];
        yy += (double)y[i] * (double)y[i];
    }
    for (size_t i = 0; i < d; i++) x[i] -= (float)(xy / yy) * y[i];
}

float *themes_make(const macattn_config *cfg, random_state *rng)
{
    const size_t d = (size_t)cfg->head_dim;
    float *themes = memory_alloc(at(cfg, THEMES, 0) * sizeof *themes);
    for (size_t a = 0; a < THEMES; a++) {
        for (size_t h = 0; h < (size_t)cfg->n_kv_heads; h++) {
            float *x = themes + at(cfg, a, h);
            tensors_fill_normal(x, d, rng);
            for (size_t b = 0; b < a; b++) turn_away(x, themes + at(cfg, b, h), d);
        }
    }
    return themes;
}

bool themes_chosen(double share, random_state *rng)
{
    return (double)random_below(rng, 1 << 20) * 0x1p-20 < share;
}

void themes_queries(const float *themes, const macattn_config *cfg, float *q, random_state *rng)
{
    const size_t d = (size_t)cfg->head_dim, values = (size_t)cfg->n_heads * d;
    const size_t group = (size_t)(cfg->n_heads / cfg->n_kv_heads);
    tensors_fill_normal(q, THEME_QUERIES * values, rng);
    for (size_t i = 0; i < THEME_QUERIES * values; i++) {
        const size_t head = i / d % (size_t)cfg->n_heads, query = i / values;
        const float *theme = themes_at(themes, cfg, query % THEMES, head / group);
        q[i] = QUERY_NOISE * q[i] + QUERY_SHARE * theme[i % d];
    }
}

double themes_error(const float *out, const float *exact, size_t n)
{
    double off2 = 0, all2 = 0;
    for (size_t i = 0; i < n; i++) {
        const double off = (double)out[i] - (double)exact[i];
        off2 += off * off;
        all2 += (double)exact[i] * (double)exact[i];
    }
    return sqrt(off2 / all2);
}

void themes_add_setting(cJSON *row, const macattn_config *cfg, double share)
{
    report_add_text(row, "policy", "budget");
    report_add_real(row, "budget", (double)cfg->budget);
    report_add_int(row, "band", cfg->band);
    report_add_int(row, "select", cfg->select);
    report_add_real(row, "select_share", share);
}

void themes_add_result(cJSON *row, const macattn_stats *stats, double group_bytes,
                       const sample_list *us, const sample_list *exact)
{
    double groups = 0, read = 0, runs = 0;
    for (int i = 0; i < MACATTN_WAYS; i++) {
        groups += (double)stats->groups[i];
        read += (double)stats->kv_bytes[i];
        runs += (double)stats->run_bytes[i];
    }
    report_add_int(row, "reps", (int64_t)us->n);
    bench_add_times(row, "", us);
    bench_add_times(row, "exact_", exact);
    report_add_real(row, "speedup_vs_exact", sample_list_median(exact) / sample_list_median(us));
    report_add_real(row, "selected_share", (double)stats->groups[MACATTN_SELECTED] / groups);
    report_add_real(row, "reused_share", (double)stats->groups[MACATTN_REUSED] / groups);
    report_add_real(row, "read_share", (read + runs) / (group_bytes * groups));
    report_add_real(row, "run_share", runs / (group_bytes * groups));
}
