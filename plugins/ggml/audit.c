/* SPDX-License-Identifier: Apache-2.0 */
#include "audit.h"

#include <math.h>
#include <stdlib.h>

#include "group.h"

/* ||x - y|| / ||y|| */
static double relative_error(const float *x, const float *y, int32_t n)
{
    double error = 0, norm = 0;
    for (int32_t i = 0; i < n; i++) {
        const double e = (double)x[i] - (double)y[i];
        error += e * e;
        norm += (double)y[i] * (double)y[i];
    }
    return norm > 0 ? sqrt(error / norm) : error > 0;
}

void audit_read_heads(const group *g, int l, head_before *heads)
{
    for (int32_t h = 0; h < g->key.n_heads; h++) {
        macattn_stats stats = {.struct_size = sizeof stats};
        macattn_stats_get(g->m, l, h, &stats);
        heads[h] = (head_before){stats.hits, stats.tokens_skipped};
    }
}

static void note_error(const attention *a, group *g, int l, int32_t head, double error)
{
    report_audit *report = &g->layers[l].audit;
    report->n++;
    report->sum += error;
    if (error > report->max) report->max = error;
    if (a->settings.on_audit) {
        a->settings.on_audit(a->settings.audit_user, group_layer_index(a, g, l), head, error);
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
    for (size_t h = 0; h < n_heads; h++) {
        if (after[h].hits == before[h].hits) continue;
        for (int r = 0; r < s->n_rows; r++) {
            const size_t at = ((size_t)r * n_heads + h) * dv;
            note_error(a, g, l, (int32_t)h, relative_error(io->out + at, exact + at, (int32_t)dv));
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
    for (int32_t kv_head = 0; kv_head < g->key.n_kv_heads; kv_head++) {
        uint64_t least = before ? UINT64_MAX : 0;
        for (int32_t h = kv_head * per_kv_head; before && h < (kv_head + 1) * per_kv_head; h++) {
            const uint64_t skipped = after[h].skipped - before[h].skipped;
            if (skipped < least) least = skipped;
        }
        bytes->total += (uint64_t)n * row;
        bytes->far += far > 0 ? (uint64_t)far * row : 0;
        bytes->skipped += least * row;
    }
}
