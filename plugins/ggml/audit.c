/* SPDX-License-Identifier: Apache-2.0 */
#include "audit.h"

#include <math.h>
#include <stdlib.h>

#include "group.h"

enum { UNIT_STEPS = 64 }; /* audited steps whose outputs make a layer's unit */

static double norm2(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

/* ||x - y||^2 */
static double distance2(const float *x, const float *y, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double e = (double)x[i] - (double)y[i];
        sum += e * e;
    }
    return sum;
}

/* sqrt(error2 / of2); an error in units of nothing is 1. */
static double relative(double error2, double of2)
{
    return of2 > 0 ? sqrt(error2 / of2) : error2 > 0;
}

void audit_read_heads(const group *g, int l, head_before *heads)
{
    for (int32_t h = 0; h < g->key.n_heads; h++) {
        macattn_stats stats = {.struct_size = sizeof stats};
        macattn_stats_get(g->m, l, h, &stats);
        heads[h] = (head_before){.hits = stats.hits, .selected = stats.groups[MACATTN_SELECTED]};
        for (int way = 0; way < MACATTN_WAYS; way++) {
            heads[h].kv_bytes += stats.kv_bytes[way];
            heads[h].ring_bytes += stats.ring_bytes[way];
            heads[h].run_bytes += stats.run_bytes[way];
        }
    }
}

/* The layer's unit, with the outputs of one more step: the mean of their heads' squared norms. */
static void note_outputs(group *g, layer *l, const float *exact)
{
    const size_t n = (size_t)g->step.n_rows * (size_t)g->key.n_heads;
    if (l->n_units < UNIT_STEPS) l->n_units++;
    l->unit2 += (norm2(exact, n * (size_t)g->key.v_head_dim) / (double)n - l->unit2) / l->n_units;
}

static void note_error(const attention *a, group *g, int l, int32_t head, double own, double unit)
{
    report_audit *report = &g->layers[l].audit;
    report->n++;
    report->own_sum += own;
    report->own_max = fmax(report->own_max, own);
    report->unit_sum += unit;
    report->unit_max = fmax(report->unit_max, unit);
    if (a->settings.on_audit) {
        a->settings.on_audit(a->settings.audit_user, group_layer_index(a, g, l), head, own, unit);
    }
}

void audit_step(const attention *a, group *g, int l, const macattn_io *io,
                const head_before *before, const head_before *after)
{
    const step *s = &g->step;
    const size_t dv = (size_t)g->key.v_head_dim, n_heads = (size_t)g->key.n_heads;
    float *exact = malloc((size_t)s->n_rows * n_heads * dv * sizeof *exact);
    macattn_io again = *io;
    again.out = exact;
    again.out_row_stride = again.out_head_stride = 0;
    if (!exact || macattn_attend(g->m, &again) != MACATTN_OK) {
        free(exact);
        return;
    }
    note_outputs(g, &g->layers[l], exact);
    for (size_t h = 0; h < n_heads; h++) {
        if (!audit_reused(&before[h], &after[h])) continue;
        for (int r = 0; r < s->n_rows; r++) {
            const size_t at = ((size_t)r * n_heads + h) * dv;
            const double error2 = distance2(io->out + at, exact + at, dv);
            note_error(a, g, l, (int32_t)h, relative(error2, norm2(exact + at, dv)),
                       relative(error2, g->layers[l].unit2));
        }
    }
    free(exact);
}

void audit_count_bytes(const attention *a, group *g, int l, const head_before *before,
                       const head_before *after)
{
    const int64_t n = g->step.rows[0].n_tokens, far = n - settings_band(&a->settings);
    const int32_t per_kv_head = g->key.n_heads / g->key.n_kv_heads;
    const uint64_t row = macattn_dtype_row_bytes(g->key.k_dtype, g->key.head_dim) +
                         macattn_dtype_row_bytes(g->key.v_dtype, g->key.v_head_dim);
    macattn_ggml_bytes *bytes = &g->layers[l].bytes;
    for (int32_t h = 0; h < g->key.n_heads; h += per_kv_head) {
        bytes->total += (uint64_t)n * row;
        bytes->far += far > 0 ? (uint64_t)far * row : 0;
        if (!before) continue;
        bytes->skipped += (uint64_t)n * row - (after[h].kv_bytes - before[h].kv_bytes);
        bytes->rings += after[h].ring_bytes - before[h].ring_bytes;
        bytes->runs += after[h].run_bytes - before[h].run_bytes;
    }
}
