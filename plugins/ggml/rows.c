/* SPDX-License-Identifier: Apache-2.0 */
#include "rows.h"

#include <stdlib.h>
#include <string.h>

#include "cells.h"
#include "node.h"
#include "writes.h"

/* Beyond NODE_MANY_QUERIES, rows of fewer than so many queries each are no task for macattn. */
#define FEW_QUERIES_A_ROW 8

static const uint16_t *mask_row(const struct ggml_tensor *mask, int64_t stream, int64_t query)
{
    const size_t plane = mask->ne[3] > 1 ? (size_t)stream * mask->nb[3] : 0;
    return (const uint16_t *)(const void *)((const char *)mask->data + plane +
                                            (size_t)query * mask->nb[1]);
}

static step_row *add_row(step *s, int64_t stream, int64_t query)
{
    if (!array_room_int(&s->rows, &s->rows_capacity, s->n_rows + 1, sizeof *s->rows)) return NULL;
    step_row *row = &s->rows[s->n_rows++];
    *row = (step_row){.stream = (int32_t)stream,
                      .first_query = (int32_t)(stream * s->n_queries + query),
                      .n_queries = 1};
    return row;
}

static bool room_for_cells(step *s, int64_t n)
{
    return array_room(&s->cells, &s->cells_capacity, s->n_cells + (size_t)n, sizeof *s->cells);
}

/* A row for queries of which nothing is known but what they see. Cells that follow one another
 * are not listed: where every query sees all, that would be a list for each. */
static bool begin_untracked(step *s, step_row *row, const uint64_t *seen, int64_t n_words)
{
    row->n_tokens = cells_count(seen, n_words);
    row->first_cell = row->n_tokens > 0 ? cells_first(seen, n_words) : 0;
    row->contiguous =
        row->n_tokens == 0 || cells_last(seen, n_words) == row->first_cell + row->n_tokens - 1;
    row->cells_at = s->n_cells;
    if (row->contiguous) return true;
    if (!room_for_cells(s, row->n_tokens)) return false;
    s->n_cells += (size_t)cells_list(seen, n_words, s->cells + s->n_cells);
    return true;
}

static bool extend_untracked(step *s, step_row *row, int64_t cell)
{
    if (!row->contiguous || cell != row->first_cell + row->n_tokens) {
        if (!room_for_cells(s, row->contiguous ? row->n_tokens + 1 : 1)) return false;
        for (int64_t i = 0; i < row->n_tokens && row->contiguous; i++) {
            s->cells[s->n_cells++] = (int32_t)(row->first_cell + i);
        }
        row->contiguous = false;
        s->cells[s->n_cells++] = (int32_t)cell;
    }
    row->n_tokens++;
    row->n_queries++;
    return true;
}

/* A stream's fingerprints come from the deepest layer's keys, which depend on all tokens before,
 * and if those are not turned by RoPE, also from the deepest that are: they depend on the
 * position. */
typedef struct probe_source {
    const group *g;
    int64_t stream;
} probe_source;

static uint64_t hash_layer(const probe_source *p, const layer *l, int64_t cell, uint64_t h)
{
    const size_t bytes = macattn_dtype_row_bytes(p->g->key.k_dtype, p->g->key.head_dim);
    const char *row = l->k + (size_t)p->stream * l->stream_stride + (size_t)cell * l->cell_stride;
    for (int32_t head = 0; head < p->g->key.n_kv_heads; head++, row += l->head_stride) {
        for (size_t i = 0; i < bytes; i += 8) {
            uint64_t word = 0;
            memcpy(&word, row + i, bytes - i < 8 ? bytes - i : 8);
            h = (h ^ word) * 0xff51afd7ed558ccdu;
            h ^= h >> 32;
        }
    }
    return h;
}

static uint64_t hash_key(void *user, int64_t cell)
{
    const probe_source *p = user;
    const layer *deepest = &p->g->layers[p->g->n_layers - 1];
    const layer *roped = &p->g->layers[p->g->rope_layer];
    uint64_t h = hash_layer(p, deepest, cell, 0x9e3779b97f4a7c15u);
    return roped == deepest ? h : hash_layer(p, roped, cell, h);
}

/* Everything a step's analysis needs of its first node. */
typedef struct analysis {
    attention *a;
    group *g;
    const struct ggml_tensor *mask;
    const int64_t *written; /* NULL: nothing is tracked */
    int64_t n_words;
} analysis;

static int64_t own_cell(const analysis *an, int64_t stream, int64_t query)
{
    const step *s = &an->g->step;
    const int64_t at = an->written[stream * s->n_queries + query];
    return at - (s->first_stream + stream) * an->g->key.n_cells;
}

static bool begin_row(const analysis *an, step_row *row, int64_t stream, int64_t query,
                      const uint64_t *seen)
{
    step *s = &an->g->step;
    if (an->written) {
        const int64_t own = own_cell(an, stream, query);
        probe_source source = {an->g, s->first_stream + stream};
        const tracker_probe probe = {hash_key, &source};
        tracker *t = &an->g->trackers[s->first_stream + stream];
        if (own >= 0 && own < s->n_kv && cells_has(seen, own) &&
            tracker_continue(t, seen, own, &probe, &row->tracked)) {
            return true;
        }
        row->tracked.sequence = NULL;
    }
    return begin_untracked(s, row, seen, an->n_words);
}

/* Add a query to the row if it sees what the query before it saw, and one cell more. */
static bool extend_row(const analysis *an, step_row *row, int64_t stream, int64_t query,
                       const uint64_t *before, const uint64_t *seen)
{
    step *s = &an->g->step;
    const int64_t more = cells_one_more(before, seen, an->n_words);
    if (more < 0) return false;
    if (!row->tracked.sequence) return extend_untracked(s, row, more);
    if (more != own_cell(an, stream, query) || !tracker_append(&row->tracked, more)) return false;
    row->n_queries++;
    return true;
}

static bool too_many_rows(const step *s)
{
    const int64_t n = s->n_queries * s->n_streams;
    return n > NODE_MANY_QUERIES && s->n_rows * FEW_QUERIES_A_ROW > n;
}

static bool analyse_stream(const analysis *an, int64_t stream)
{
    attention *a = an->a;
    step *s = &an->g->step;
    uint64_t *before = a->sets[0], *seen = a->sets[1];
    step_row *row = NULL;
    if (an->written) {
        int64_t *cells =
            (int64_t *)(void *)attention_scratch(a, (size_t)s->n_queries * sizeof *cells);
        int64_t n = 0;
        if (!cells) return false;
        for (int64_t i = 0; i < s->n_queries; i++) {
            const int64_t own = own_cell(an, stream, i);
            if (own >= 0 && own < an->g->key.n_cells) cells[n++] = own;
        }
        tracker_begin_step(&an->g->trackers[s->first_stream + stream], cells, n);
    }
    for (int64_t i = 0; i < s->n_queries; i++) {
        /* Trackers know sets of all cells, masks speak of the first n_kv. */
        memset(seen, 0, (size_t)a->set_words * sizeof *seen);
        if (!cells_from_mask(mask_row(an->mask, stream, i), s->n_kv, seen)) return false;
        if (!row || !extend_row(an, row, stream, i, before, seen)) {
            if (!an->written && too_many_rows(s)) return false;
            row = add_row(s, stream, i);
            if (!row || !begin_row(an, row, stream, i, seen)) return false;
        }
        uint64_t *swap = before;
        before = seen;
        seen = swap;
    }
    return true;
}

/* Without a mask every query sees everything. */
static bool analyse_unmasked(step *s)
{
    for (int64_t i = 0; i < s->n_queries * s->n_streams; i++) {
        step_row *row = add_row(s, i / s->n_queries, i % s->n_queries);
        if (!row) return false;
        row->contiguous = true;
        row->n_tokens = s->n_kv;
    }
    return true;
}

void rows_finish(step *s)
{
    s->single = true;
    s->paged = false;
    for (int r = 0; r < s->n_rows; r++) {
        step_row *row = &s->rows[r];
        if (row->tracked.sequence) {
            row->n_tokens = row->tracked.n_tokens;
            row->contiguous = row->tracked.contiguous;
            row->first_cell = row->tracked.cells[0];
        }
        s->single = s->single && row->n_queries == 1;
        s->paged = s->paged || !row->contiguous;
    }
}

/* Keys were changed in place, nobody knows which: everything starts anew. */
static void look_for_changes(group *g)
{
    const uint64_t changes = writes_changes();
    for (int i = 0; g->trackers && g->changes != changes && i < g->key.n_streams; i++) {
        tracker_forget(&g->trackers[i]);
    }
    g->changes = changes;
}

bool rows_analyse(attention *a, group *g, const struct ggml_tensor *node, const trace *t)
{
    step *s = &g->step;
    analysis an = {.a = a, .g = g, .mask = node->src[3], .n_words = cells_words(s->n_kv)};
    look_for_changes(g);
    if (!an.mask) return analyse_unmasked(s);
    const int64_t words = cells_words(g->key.n_cells > s->n_kv ? g->key.n_cells : s->n_kv);
    for (int i = 0; i < 2 && words > a->set_words; i++) {
        uint64_t *set = realloc(a->sets[i], (size_t)words * sizeof *set);
        if (!set) return false;
        a->sets[i] = set;
    }
    if (words > a->set_words) a->set_words = words;
    if (t && t->written && g->trackers && t->written->ne[0] == s->n_queries * s->n_streams) {
        an.written = t->written->data;
    }
    for (int64_t stream = 0; stream < s->n_streams; stream++) {
        if (!analyse_stream(&an, stream)) return false;
    }
    return !too_many_rows(s);
}

void rows_fingerprint(group *g)
{
    step *s = &g->step;
    for (int r = 0; r < s->n_rows; r++) {
        probe_source source = {g, s->first_stream + s->rows[r].stream};
        const tracker_probe probe = {hash_key, &source};
        if (s->rows[r].tracked.sequence) tracker_fingerprint(&s->rows[r].tracked, &probe);
    }
}
