/* SPDX-License-Identifier: Apache-2.0 */
/* Match-Amend-Complete as macattn.h describes it at macattn_decode, without any shortcut. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

typedef struct entry {
    int64_t pos, end;
    double lse, lse0;
    double *q, *out, *kbar; /* [head_dim], [v_head_dim], [head_dim], in one allocation */
} entry;

typedef struct ring {
    int count;
    entry *entries; /* [capacity], oldest first */
} ring;

struct ref_mac {
    macattn_config cfg;
    int d, dv;
    ring *rings; /* [slot][layer][head] */
    double *q, *q_match, *zero;
    double *far, *part, *far_keys, *part_keys; /* sums of values, and of keys */
};

ref_mac *ref_mac_create(const macattn_config *cfg)
{
    ref_mac *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->cfg = *cfg;
    r->d = cfg->head_dim;
    r->dv = cfg->v_head_dim ? cfg->v_head_dim : cfg->head_dim;
    const size_t n = (size_t)cfg->max_slots * (size_t)cfg->n_layers * (size_t)cfg->n_heads;
    r->rings = calloc(n, sizeof *r->rings);
    for (size_t i = 0; i < n; i++) r->rings[i].entries = calloc((size_t)cfg->ring, sizeof(entry));
    r->q = calloc((size_t)r->d, sizeof(double));
    r->q_match = calloc((size_t)r->d, sizeof(double));
    r->far = calloc((size_t)r->dv, sizeof(double));
    r->part = calloc((size_t)r->dv, sizeof(double));
    r->zero = calloc((size_t)r->dv, sizeof(double));
    r->far_keys = calloc((size_t)r->d, sizeof(double));
    r->part_keys = calloc((size_t)r->d, sizeof(double));
    return r;
}

static ring *ring_of(const ref_mac *r, int slot, int layer, int head)
{
    return &r->rings[((size_t)slot * (size_t)r->cfg.n_layers + (size_t)layer) *
                         (size_t)r->cfg.n_heads +
                     (size_t)head];
}

static void drop_newest(ring *x)
{
    free(x->entries[--x->count].q);
}

void ref_mac_destroy(ref_mac *r)
{
    if (!r) return;
    for (int s = 0; s < r->cfg.max_slots; s++) {
        ref_mac_reset(r, s);
        for (int i = 0; i < r->cfg.n_layers * r->cfg.n_heads; i++)
            free(ring_of(r, s, i / r->cfg.n_heads, i % r->cfg.n_heads)->entries);
    }
    free(r->rings);
    free(r->q);
    free(r->q_match);
    free(r->far);
    free(r->part);
    free(r->zero);
    free(r->far_keys);
    free(r->part_keys);
    free(r);
}

void ref_mac_truncate(ref_mac *r, int slot, int64_t n_tokens)
{
    for (int i = 0; i < r->cfg.n_layers * r->cfg.n_heads; i++) {
        ring *x = ring_of(r, slot, i / r->cfg.n_heads, i % r->cfg.n_heads);
        while (x->count > 0 && x->entries[x->count - 1].pos >= n_tokens) drop_newest(x);
    }
}

void ref_mac_reset(ref_mac *r, int slot)
{
    ref_mac_truncate(r, slot, 0);
}

int ref_mac_count(const ref_mac *r, int slot, int layer, int head)
{
    return ring_of(r, slot, layer, head)->count;
}

ref_entry ref_mac_entry(const ref_mac *r, int slot, int layer, int head, int i)
{
    const entry *e = &ring_of(r, slot, layer, head)->entries[i];
    return (ref_entry){.pos = e->pos,
                       .end = e->end,
                       .lse = e->lse,
                       .lse0 = e->lse0,
                       .q = e->q,
                       .out = e->out,
                       .kbar = e->kbar};
}

static void insert(const ref_mac *r, ring *x, const entry *from)
{
    if (x->count == r->cfg.ring) {
        free(x->entries[0].q);
        memmove(x->entries, x->entries + 1, sizeof(entry) * (size_t)--x->count);
    }
    entry *e = &x->entries[x->count++];
    *e = *from;
    e->q = malloc(sizeof(double) * (size_t)(2 * r->d + r->dv));
    e->out = e->q + r->d;
    e->kbar = e->out + r->dv;
    memcpy(e->q, from->q, sizeof(double) * (size_t)r->d);
    memcpy(e->out, from->out, sizeof(double) * (size_t)r->dv);
    memcpy(e->kbar, from->kbar, sizeof(double) * (size_t)r->d);
}

void ref_mac_fork(ref_mac *r, int from, int to)
{
    ref_mac_reset(r, to);
    for (int i = 0; i < r->cfg.n_layers * r->cfg.n_heads; i++) {
        const ring *x = ring_of(r, from, i / r->cfg.n_heads, i % r->cfg.n_heads);
        for (int k = 0; k < x->count; k++) {
            insert(r, ring_of(r, to, i / r->cfg.n_heads, i % r->cfg.n_heads), &x->entries[k]);
        }
    }
}

static bool all_finite(const double *x, int n)
{
    for (int i = 0; i < n; i++) {
        if (!isfinite(x[i])) return false;
    }
    return true;
}

/* 1. Match: the nearest query whose summary ends early enough; of equally near ones the newest. */
static const entry *nearest(const ref_mac *r, const ring *x, const double *q, int64_t max_end,
                            double *distance2)
{
    const entry *best = NULL;
    *distance2 = INFINITY;
    for (int k = 0; k < x->count; k++) {
        double d2 = 0;
        for (int i = 0; i < r->d; i++)
            d2 += (q[i] - x->entries[k].q[i]) * (q[i] - x->entries[k].q[i]);
        if (x->entries[k].end <= max_end && d2 <= *distance2) {
            *distance2 = d2;
            best = &x->entries[k];
        }
    }
    return best;
}

static double radius(const ref_mac *r, int64_t n)
{
    if (r->cfg.policy != MACATTN_POLICY_PAPER || r->cfg.window > 0 || n < r->cfg.min_tokens)
        return -1;
    return sqrt(2.0 * r->d) * (1 - (double)r->cfg.tau);
}

static void load(const ref_mac *r, const void *base, int64_t row_stride, int64_t head_stride,
                 int64_t at, int head, double *q)
{
    const int64_t bytes = (int64_t)macattn_dtype_row_bytes(r->cfg.q_dtype, r->d);
    if (!head_stride) head_stride = bytes;
    if (!row_stride) row_stride = bytes * r->cfg.n_heads;
    for (int i = 0; i < r->d; i++)
        q[i] =
            ref_value(r->cfg.q_dtype, (const char *)base + at * row_stride + head * head_stride, i);
}

/* scale q.kbar: by how much a summary's lse for r->q is more than its lse0. */
static double key_logit(const ref_mac *r, const double *kbar)
{
    double s = 0;
    for (int i = 0; r->cfg.lse_order > 0 && i < r->d; i++) s += r->q[i] * kbar[i];
    return s * (r->cfg.scale != 0 ? (double)r->cfg.scale : 1 / sqrt(r->d));
}

/* 2-4. The far summary of [F, b): the match's, with the lse it has for this query, and the gap; or
 * all of it. Its lse. */
static double far_summary(ref_mac *r, const macattn_batch *batch, const macattn_row *row, int head,
                          const macattn_kv *kv, const entry *match, int64_t from, int64_t b)
{
    double lse = -INFINITY;
    memset(r->far, 0, sizeof(double) * (size_t)r->dv);
    memset(r->far_keys, 0, sizeof(double) * (size_t)r->d);
    if (match) {
        memcpy(r->far, match->out, sizeof(double) * (size_t)r->dv);
        memcpy(r->far_keys, match->kbar, sizeof(double) * (size_t)r->d);
        lse = match->lse0 + key_logit(r, match->kbar);
    }
    const double l =
        ref_range_keys(&r->cfg, batch, row, kv, head, r->q, from, b, r->part, r->part_keys);
    double keys_lse = lse;
    ref_merge(r->dv, r->far, &lse, r->part, l);
    ref_merge(r->d, r->far_keys, &keys_lse, r->part_keys, l);
    if (r->cfg.lse_order == 0) memset(r->far_keys, 0, sizeof(double) * (size_t)r->d);
    return lse;
}

/* One query of one head. `reuse` false: exact, but remembered (prefill). */
static void step(ref_mac *r, const macattn_batch *batch, const macattn_row *row, int layer,
                 int head, const macattn_io *io, int64_t n, int64_t at, bool reuse, double *out,
                 double *lse, ref_decision *decision)
{
    const macattn_config *cfg = &r->cfg;
    ring *x = ring_of(r, row->slot, layer, head);
    const int64_t F = cfg->fresh_tokens < n ? cfg->fresh_tokens : n;
    const int64_t b = n - cfg->band > F ? n - cfg->band : F;
    ref_decision made = {
        .end = F, .matched_pos = -1, .distance2 = INFINITY, .radius = radius(r, n)};
    const entry *match = NULL;
    load(r, io->q, io->q_row_stride, io->q_head_stride, at, head, r->q);
    const bool keeps = io->q_match && cfg->policy != MACATTN_POLICY_EXACT && cfg->window == 0;
    if (keeps)
        load(r, io->q_match, io->q_match_row_stride, io->q_match_head_stride, at, head, r->q_match);
    const bool usable = keeps && all_finite(r->q_match, r->d);
    if (usable && reuse) match = nearest(r, x, r->q_match, b, &made.distance2);
    made.hit = match && sqrt(made.distance2) < made.radius;
    double far_lse = -INFINITY;
    if (made.hit) {
        made.end = match->end;
        made.matched_pos = match->pos;
    }
    if (cfg->window > 0) {
        const int64_t first = n > cfg->window ? n - cfg->window : 0;
        *lse = ref_range(cfg, batch, row, &io->kv, head, r->q, first, n, out);
    } else {
        far_lse = far_summary(r, batch, row, head, &io->kv, made.hit ? match : NULL, made.end, b);
        *lse = ref_range(cfg, batch, row, &io->kv, head, r->q, b, n, out);
        ref_merge(r->dv, out, lse, r->far, far_lse);
        const double l = ref_range(cfg, batch, row, &io->kv, head, r->q, 0, F, r->part);
        ref_merge(r->dv, out, lse, r->part, l);
    }
    if (io->sinks) ref_merge(r->dv, out, lse, r->zero, (double)io->sinks[head]);
    /* Of a row's queries the last `ring` are remembered, whether or not some of them cannot be. */
    const bool recent = row->n_tokens - n < cfg->ring;
    if (usable && recent && b > F && isfinite(far_lse) && all_finite(r->far, r->dv) &&
        all_finite(r->far_keys, r->d)) {
        const entry e = {.pos = n - 1,
                         .end = b,
                         .lse = far_lse,
                         .lse0 = far_lse - key_logit(r, r->far_keys),
                         .q = r->q_match,
                         .out = r->far,
                         .kbar = r->far_keys};
        insert(r, x, &e);
    }
    if (decision) *decision = made;
}

static void run(ref_mac *r, const macattn_batch *batch, int layer, const macattn_io *io, bool reuse,
                double *out, double *lse, ref_decision *decisions)
{
    const int hq = r->cfg.n_heads;
    int64_t at = 0;
    for (int row = 0; row < batch->n_rows; row++) {
        const macattn_row *x = &batch->rows[row];
        for (int i = 0; i < x->n_queries; i++, at++) {
            for (int h = 0; h < hq; h++) {
                double l;
                step(r, batch, x, layer, h, io, x->n_tokens - x->n_queries + i + 1, at, reuse,
                     out + (at * hq + h) * r->dv, &l, decisions ? &decisions[row * hq + h] : NULL);
                if (lse) lse[at * hq + h] = l;
            }
        }
    }
}

void ref_mac_decode(ref_mac *r, const macattn_batch *batch, int layer, const macattn_io *io,
                    double *out, double *lse, ref_decision *decisions)
{
    run(r, batch, layer, io, true, out, lse, decisions);
}

void ref_mac_prefill(ref_mac *r, const macattn_batch *batch, int layer, const macattn_io *io,
                     double *out, double *lse)
{
    run(r, batch, layer, io, false, out, lse, NULL);
}
