/* SPDX-License-Identifier: Apache-2.0 */
#include "tracker.h"

#include <stdlib.h>
#include <string.h>

#include "cells.h"

struct sequence {
    int64_t n, capacity;
    int32_t *cells;    /* [n] in order */
    uint64_t *hash;    /* [n] fingerprints; valid in [hash_from, hash_to) */
    uint64_t *members; /* the cells as a set */
    int64_t ordered;   /* leading cells that follow one another */
    int64_t hash_from, hash_to;
    bool settled;
    uint64_t last_step;
};

bool tracker_init(tracker *t, int n_sequences, int64_t n_cells, tracker_counts *counts)
{
    *t = (tracker){.n_sequences = n_sequences, .n_cells = n_cells, .counts = counts};
    t->sequences = calloc((size_t)n_sequences, sizeof *t->sequences);
    for (int i = 0; t->sequences && i < n_sequences; i++) {
        t->sequences[i].members = calloc((size_t)cells_words(n_cells), sizeof(uint64_t));
        if (!t->sequences[i].members) {
            tracker_free(t);
            return false;
        }
    }
    return t->sequences != NULL;
}

void tracker_free(tracker *t)
{
    for (int i = 0; t->sequences && i < t->n_sequences; i++) {
        free(t->sequences[i].cells);
        free(t->sequences[i].hash);
        free(t->sequences[i].members);
    }
    free(t->sequences);
    t->sequences = NULL;
}

/* --------------------------------------------------------------------------------- sequences -- */

static bool reserve(sequence *s, int64_t n)
{
    if (n <= s->capacity) return true;
    const int64_t capacity = n + n / 2 + 256;
    int32_t *cells = realloc(s->cells, (size_t)capacity * sizeof *cells);
    if (cells) s->cells = cells;
    uint64_t *hash = realloc(s->hash, (size_t)capacity * sizeof *hash);
    if (hash) s->hash = hash;
    if (!cells || !hash) return false;
    s->capacity = capacity;
    return true;
}

static bool append(sequence *s, int64_t cell)
{
    if (!reserve(s, s->n + 1)) return false;
    if (s->ordered == s->n && (s->n == 0 || cell == s->cells[0] + s->n)) s->ordered++;
    s->cells[s->n++] = (int32_t)cell;
    cells_add(s->members, cell);
    return true;
}

static void truncate_to(sequence *s, int64_t n)
{
    for (int64_t i = n; i < s->n; i++) cells_remove(s->members, s->cells[i]);
    s->n = n;
    if (s->ordered > n) s->ordered = n;
    if (s->hash_to > n) s->hash_to = n;
    if (s->hash_from > n) s->hash_from = n;
}

static void clear(sequence *s)
{
    truncate_to(s, 0);
    s->hash_from = s->hash_to = 0;
    s->settled = false;
}

static bool copy_prefix(sequence *to, const sequence *from, int64_t n)
{
    clear(to);
    if (!reserve(to, n)) return false;
    for (int64_t i = 0; i < n; i++) append(to, from->cells[i]);
    memcpy(to->hash, from->hash, (size_t)n * sizeof *to->hash);
    to->hash_from = from->hash_from < n ? from->hash_from : n;
    to->hash_to = from->hash_to < n ? from->hash_to : n;
    to->settled = from->settled;
    return true;
}

/* Whether `seen` is the first n tokens and a further cell `own`. */
static bool sees_prefix(const sequence *s, int64_t n, const uint64_t *seen, int64_t own,
                        int64_t n_words)
{
    if (s->n < n) return false;
    if (s->n == n) return !cells_has(s->members, own) && cells_within(s->members, seen, n_words);
    for (int64_t i = 0; i < n; i++) {
        if (s->cells[i] == own || !cells_has(seen, s->cells[i])) return false;
    }
    return true;
}

/* ------------------------------------------------------------------------------------- steps -- */

void tracker_forget(tracker *t)
{
    for (int i = 0; i < t->n_sequences; i++) clear(&t->sequences[i]);
}

void tracker_begin_step(tracker *t, const int64_t *written, int64_t n_written)
{
    t->clock++;
    for (int i = 0; i < t->n_sequences; i++) {
        sequence *s = &t->sequences[i];
        for (int64_t w = 0; w < n_written; w++) {
            if (!cells_has(s->members, written[w])) continue;
            int64_t at = s->n - 1;
            while (s->cells[at] != written[w]) at--;
            truncate_to(s, at);
            t->counts->rollbacks++;
        }
    }
}

/* The sequence of which a query sees the first n tokens: rather one that ends there than a
 * longer one. */
static sequence *find(tracker *t, const uint64_t *seen, int64_t own, int64_t n)
{
    sequence *found = NULL;
    for (int i = 0; i < t->n_sequences; i++) {
        sequence *s = &t->sequences[i];
        if (s->last_step == t->clock && s->n != n) continue;
        if (found && s->n != n) continue;
        if (sees_prefix(s, n, seen, own, cells_words(t->n_cells))) found = s;
        if (found && found->n == n) break;
    }
    return found;
}

/* The sequence that has not been seen for longest, for another use; not one of this step. */
static sequence *oldest(tracker *t)
{
    sequence *found = NULL;
    for (int i = 0; i < t->n_sequences; i++) {
        sequence *s = &t->sequences[i];
        if (s->last_step == t->clock) continue;
        if (!found || s->last_step < found->last_step) found = s;
    }
    return found;
}

static bool as_it_was(const sequence *s, int64_t n, const tracker_probe *probe)
{
    if (n - 1 < s->hash_from || n - 1 >= s->hash_to || !probe) return false;
    return probe->hash(probe->user, s->cells[n - 1]) == s->hash[n - 1];
}

/* Go on with `s` after its first n tokens, or with a copy where others may go on with it too. */
static sequence *take_up(tracker *t, sequence *s, int64_t n, tracked_row *row)
{
    row->keep = n;
    if (s->n == n) return s;
    sequence *copy = t->n_sequences > 1 ? oldest(t) : NULL;
    if (!copy || copy == s) {
        truncate_to(s, n);
        t->counts->rollbacks++;
        return s;
    }
    if (!copy_prefix(copy, s, n)) return NULL;
    row->fork_of = (int32_t)(s - t->sequences);
    t->counts->forks++;
    return copy;
}

static sequence *start_anew(tracker *t, sequence *s, const uint64_t *seen, int64_t own, int64_t n)
{
    clear(s);
    if (!reserve(s, n + 1)) return NULL;
    for (int64_t w = 0; w < cells_words(t->n_cells) && n > 0; w++) {
        for (uint64_t rest = seen[w]; rest; rest &= rest - 1) {
            const int64_t cell = w * 64 + __builtin_ctzll(rest);
            if (cell != own) append(s, cell);
        }
    }
    s->hash_from = s->hash_to = n;
    s->settled = n == 0;
    return s;
}

bool tracker_continue(tracker *t, const uint64_t *seen, int64_t own, const tracker_probe *probe,
                      tracked_row *row)
{
    const int64_t n = cells_count(seen, cells_words(t->n_cells)) - 1;
    row->fork_of = -1;
    row->keep = 0;
    sequence *s = n > 0 ? find(t, seen, own, n) : NULL;
    if (s && !as_it_was(s, n, probe)) {
        t->counts->mismatches++;
        if (s->last_step == t->clock) return false;
        s = start_anew(t, s, seen, own, n);
    } else if (s) {
        s = take_up(t, s, n, row);
        if (s) s->settled = true;
    } else {
        s = oldest(t);
        if (s) s = start_anew(t, s, seen, own, n);
        *(n == 0 ? &t->counts->prompts : &t->counts->changes) += 1;
    }
    if (!s) return false;
    s->last_step = t->clock;
    row->sequence = s;
    row->index = (int32_t)(s - t->sequences);
    row->settled = s->settled;
    row->n_queries = 0;
    return tracker_append(row, own);
}

bool tracker_append(tracked_row *row, int64_t own)
{
    sequence *s = row->sequence;
    if (!append(s, own)) return false;
    row->n_queries++;
    row->n_tokens = s->n;
    row->cells = s->cells;
    row->contiguous = s->ordered == s->n;
    return true;
}

void tracker_fingerprint(tracked_row *row, const tracker_probe *probe)
{
    sequence *s = row->sequence;
    const int64_t first = row->n_tokens - row->n_queries;
    if (s->hash_to < first)
        s->hash_from = first; /* a step was given up: nothing known of its tokens */
    for (int64_t i = first; i < row->n_tokens; i++) {
        s->hash[i] = probe->hash(probe->user, s->cells[i]);
    }
    s->hash_to = row->n_tokens;
}
