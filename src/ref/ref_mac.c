/* SPDX-License-Identifier: Apache-2.0 */
/* Match, amend, complete, as macattn_decode and macattn_prefill in macattn.h say it. A ring is a list
 * from the oldest to the newest entry; a full one loses its oldest. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

typedef struct ring {
    ref_entry *entries; /* [cfg.ring] */
    int32_t count;
} ring;

struct ref_mac {
    macattn_config cfg;
    ring *rings;             /* [slot][layer][head] */
    int64_t *length;         /* [slot] */
    ref_decision *decisions; /* [row][head] of the newest decode */
    double *out, *near, *q;  /* one head's work */
};

/* --------------------------------------------------------------------------------------- rings -- */

static ring *ring_at(const ref_mac *mac, int32_t slot, int32_t layer, int32_t head)
{
    const size_t layers = (size_t)mac->cfg.n_layers, heads = (size_t)mac->cfg.n_heads;
    return &mac->rings[((size_t)slot * layers + (size_t)layer) * heads + (size_t)head];
}

static void entry_free(ref_entry *e)
{
    free(e->q);
    free(e->out);
}

static double *copy_of(const double *values, int32_t n)
{
    double *copy = malloc(sizeof *copy * (size_t)n);
    if (copy) memcpy(copy, values, sizeof *copy * (size_t)n);
    return copy;
}

static void insert(const ref_mac *mac, ring *to, const ref_entry *e)
{
    if (to->count == mac->cfg.ring) {
        entry_free(&to->entries[0]);
        memmove(to->entries, to->entries + 1, sizeof *to->entries * (size_t)--to->count);
    }
    ref_entry *entry = &to->entries[to->count++];
    *entry = *e;
    entry->q = copy_of(e->q, mac->cfg.head_dim);
    entry->out = copy_of(e->out, mac->cfg.v_head_dim);
}

/* Drop the entries made at `n_tokens` or later. */
static void keep_below(ring *r, int64_t n_tokens)
{
    while (r->count > 0 && r->entries[r->count - 1].pos >= n_tokens) {
        entry_free(&r->entries[--r->count]);
    }
}

/* ----------------------------------------------------------------------------------- one head -- */

static bool all_finite(const double *x, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return false;
    }
    return true;
}

static bool keeps_rings(const ref_mac *mac, const macattn_io *io)
{
    return mac->cfg.policy != MACATTN_POLICY_EXACT && mac->cfg.window == 0 && io->q_match;
}

static void load_q_match(const ref_mac *mac, const macattn_io *io, int64_t query, int32_t head)
{
    const macattn_config *c = &mac->cfg;
    const int64_t bytes = (int64_t)macattn_dtype_row_bytes(c->q_dtype, c->head_dim);
    const int64_t head_stride = io->q_match_head_stride ? io->q_match_head_stride : bytes;
    const int64_t row_stride = io->q_match_row_stride ? io->q_match_row_stride : c->n_heads * bytes;
    ref_load(c->q_dtype, (const char *)io->q_match + query * row_stride + head * head_stride,
             c->head_dim, mac->q);
}

/* The nearest entry that ends at or before b; of equally near ones the newest. NULL: none. */
static const ref_entry *nearest(const ref_mac *mac, const ring *r, int64_t b, double *distance2)
{
    const ref_entry *best = NULL;
    *distance2 = INFINITY;
    for (int32_t i = r->count - 1; i >= 0; i--) {
        const ref_entry *e = &r->entries[i];
        double sum = 0;
        for (int32_t j = 0; j < mac->cfg.head_dim; j++) {
            sum += (mac->q[j] - e->q[j]) * (mac->q[j] - e->q[j]);
        }
        if (e->end <= b && sum < *distance2) {
            *distance2 = sum;
            best = e;
        }
    }
    return best;
}

static double radius(const macattn_config *cfg, int64_t n_tokens)
{
    if (cfg->policy != MACATTN_POLICY_PAPER || n_tokens < cfg->min_tokens) return -1;
    return sqrt(2.0 * (double)cfg->head_dim) * (1.0 - (double)cfg->tau);
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Decode one head of a row whose only query is `query`. */
static void decode_head(ref_mac *mac, const macattn_batch *batch, const macattn_io *io, int32_t row,
                        int32_t layer, int32_t head, double *out, double *lse)
{
    const macattn_config *c = &mac->cfg;
    const macattn_row *where = &batch->rows[row];
    const int64_t n = where->n_tokens, fresh = min64(c->fresh_tokens, n);
    const int64_t b = max64(fresh, n - c->band);
    const int32_t dv = c->v_head_dim;
    ring *entries = ring_at(mac, where->slot, layer, head);
    ref_decision *d = &mac->decisions[(size_t)row * (size_t)c->n_heads + (size_t)head];
    *d = (ref_decision){.radius = radius(c, n)};

    load_q_match(mac, io, row, head);
    const bool finite = all_finite(mac->q, c->head_dim);
    const ref_entry *match = finite ? nearest(mac, entries, b, &d->distance2) : NULL;
    d->hit = match && sqrt(d->distance2) < d->radius;
    if (d->hit) {
        d->pos = match->pos;
        d->end = match->end;
    }

    /* The far summary: what was remembered, and the tokens since; or all of them. */
    double far_lse = d->hit ? match->lse : -INFINITY, part_lse;
    memset(mac->out, 0, sizeof *mac->out * (size_t)dv);
    if (d->hit) memcpy(mac->out, match->out, sizeof *mac->out * (size_t)dv);
    ref_range(c, batch, io, row, row, head, d->hit ? match->end : fresh, b, mac->near, &part_lse);
    ref_merge(dv, mac->out, &far_lse, mac->near, part_lse);

    /* The output: first tokens, summary, newest tokens. */
    ref_range(c, batch, io, row, row, head, 0, fresh, out, lse);
    ref_merge(dv, out, lse, mac->out, far_lse);
    ref_range(c, batch, io, row, row, head, b, n, mac->near, &part_lse);
    ref_merge(dv, out, lse, mac->near, part_lse);
    memset(mac->near, 0, sizeof *mac->near * (size_t)dv);
    if (io->sinks) ref_merge(dv, out, lse, mac->near, (double)io->sinks[head]);

    d->remembered = finite && b > fresh && isfinite(far_lse) && all_finite(mac->out, dv);
    if (d->remembered) {
        insert(mac, entries,
               &(ref_entry){.pos = n - 1, .end = b, .lse = far_lse, .q = mac->q, .out = mac->out});
    }
}

/* Remember one head of query i of a row, which is query `query` of the batch. */
static void remember(ref_mac *mac, const macattn_batch *batch, const macattn_io *io, int32_t row,
                     int32_t i, int64_t query, int32_t layer, int32_t head)
{
    const macattn_config *c = &mac->cfg;
    const macattn_row *where = &batch->rows[row];
    const int64_t pos = where->n_tokens - where->n_queries + i, end = pos + 1 - c->band;
    if (end <= c->fresh_tokens || where->n_queries - i > c->ring) return;
    load_q_match(mac, io, query, head);
    double lse;
    ref_range(c, batch, io, row, query, head, c->fresh_tokens, end, mac->out, &lse);
    if (!all_finite(mac->q, c->head_dim) || !all_finite(mac->out, c->v_head_dim) ||
        !isfinite(lse)) {
        return;
    }
    insert(mac, ring_at(mac, where->slot, layer, head),
           &(ref_entry){.pos = pos, .end = end, .lse = lse, .q = mac->q, .out = mac->out});
}

/* -------------------------------------------------------------------------------------- calls -- */

static void set_lengths(ref_mac *mac, const macattn_batch *batch)
{
    for (int32_t r = 0; r < batch->n_rows; r++) {
        mac->length[batch->rows[r].slot] = batch->rows[r].n_tokens;
    }
}

static void forget_decisions(ref_mac *mac, int32_t n_rows)
{
    const size_t n = (size_t)n_rows * (size_t)mac->cfg.n_heads;
    free(mac->decisions);
    mac->decisions = calloc(n, sizeof *mac->decisions);
}

void ref_mac_decode(ref_mac *mac, const macattn_batch *batch, int32_t layer, const macattn_io *io,
                    double *out, double *lse)
{
    forget_decisions(mac, batch->n_rows);
    set_lengths(mac, batch);
    if (!keeps_rings(mac, io)) {
        ref_attend(&mac->cfg, batch, io, out, lse);
        return;
    }
    for (int32_t r = 0; r < batch->n_rows; r++) {
        for (int32_t h = 0; h < mac->cfg.n_heads; h++) {
            const int64_t at = (int64_t)r * mac->cfg.n_heads + h;
            decode_head(mac, batch, io, r, layer, h, out + at * mac->cfg.v_head_dim, &lse[at]);
        }
    }
}

void ref_mac_prefill(ref_mac *mac, const macattn_batch *batch, int32_t layer, const macattn_io *io,
                     double *out, double *lse)
{
    set_lengths(mac, batch);
    ref_attend(&mac->cfg, batch, io, out, lse);
    if (!keeps_rings(mac, io)) return;
    int64_t query = 0;
    for (int32_t r = 0; r < batch->n_rows; r++) {
        for (int32_t i = 0; i < batch->rows[r].n_queries; i++, query++) {
            for (int32_t h = 0; h < mac->cfg.n_heads; h++) {
                remember(mac, batch, io, r, i, query, layer, h);
            }
        }
    }
}

void ref_mac_truncate(ref_mac *mac, int32_t slot, int64_t n_tokens)
{
    for (int32_t l = 0; l < mac->cfg.n_layers; l++) {
        for (int32_t h = 0; h < mac->cfg.n_heads; h++) {
            keep_below(ring_at(mac, slot, l, h), n_tokens);
        }
    }
    mac->length[slot] = n_tokens;
}

void ref_mac_reset(ref_mac *mac, int32_t slot)
{
    ref_mac_truncate(mac, slot, 0);
}

void ref_mac_fork(ref_mac *mac, int32_t from, int32_t to)
{
    ref_mac_reset(mac, to);
    for (int32_t l = 0; l < mac->cfg.n_layers; l++) {
        for (int32_t h = 0; h < mac->cfg.n_heads; h++) {
            const ring *source = ring_at(mac, from, l, h);
            for (int32_t i = 0; i < source->count; i++) {
                insert(mac, ring_at(mac, to, l, h), &source->entries[i]);
            }
        }
    }
    mac->length[to] = mac->length[from];
}

int64_t ref_mac_length(const ref_mac *mac, int32_t slot)
{
    return mac->length[slot];
}

ref_decision ref_mac_decision(const ref_mac *mac, int32_t row, int32_t head)
{
    return mac->decisions[(size_t)row * (size_t)mac->cfg.n_heads + (size_t)head];
}

int32_t ref_mac_count(const ref_mac *mac, int32_t slot, int32_t layer, int32_t head)
{
    return ring_at(mac, slot, layer, head)->count;
}

const ref_entry *ref_mac_entry(const ref_mac *mac, int32_t slot, int32_t layer, int32_t head,
                               int32_t i)
{
    return &ring_at(mac, slot, layer, head)->entries[i];
}

ref_mac *ref_mac_create(const macattn_config *cfg)
{
    const size_t n = (size_t)cfg->max_slots * (size_t)cfg->n_layers * (size_t)cfg->n_heads;
    const size_t d = (size_t)cfg->head_dim, dv = (size_t)cfg->v_head_dim;
    ref_mac *mac = calloc(1, sizeof *mac);
    if (!mac) return NULL;
    mac->cfg = *cfg;
    mac->rings = calloc(n, sizeof *mac->rings);
    mac->length = calloc((size_t)cfg->max_slots, sizeof *mac->length);
    mac->out = calloc(dv, sizeof *mac->out);
    mac->near = calloc(dv, sizeof *mac->near);
    mac->q = calloc(d, sizeof *mac->q);
    bool ok = mac->rings && mac->length && mac->out && mac->near && mac->q;
    for (size_t i = 0; ok && i < n; i++) {
        mac->rings[i].entries = calloc((size_t)cfg->ring, sizeof *mac->rings[i].entries);
        ok = mac->rings[i].entries != NULL;
    }
    if (ok) return mac;
    ref_mac_destroy(mac);
    return NULL;
}

void ref_mac_destroy(ref_mac *mac)
{
    if (!mac) return;
    const size_t n =
        (size_t)mac->cfg.max_slots * (size_t)mac->cfg.n_layers * (size_t)mac->cfg.n_heads;
    for (size_t i = 0; mac->rings && i < n; i++) {
        if (mac->rings[i].entries) keep_below(&mac->rings[i], INT64_MIN);
        free(mac->rings[i].entries);
    }
    free(mac->rings);
    free(mac->length);
    free(mac->decisions);
    free(mac->out);
    free(mac->near);
    free(mac->q);
    free(mac);
}
