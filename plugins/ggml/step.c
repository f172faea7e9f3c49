/* SPDX-License-Identifier: Apache-2.0 */
#include "step.h"

#include <stdlib.h>
#include <string.h>

#include "rows.h"

static int32_t slot_of(const group *g, const step_row *row)
{
    return (int32_t)(g->step.first_stream + row->stream) * g->n_sequences + row->tracked.index;
}

/* Reuse in a step needs every row to be a sequence that was seen to go on, none of them twice. */
static bool may_reuse(const step *s)
{
    for (int r = 0; r < s->n_rows; r++) {
        const tracked_row *t = &s->rows[r].tracked;
        if (!t->sequence || !t->settled) return false;
        for (int i = 0; i < r; i++) {
            if (s->rows[i].tracked.sequence == t->sequence) return false;
        }
    }
    return s->n_rows > 0;
}

/* Bring the object's slots to where the sequences are. */
static bool move_slots(group *g)
{
    for (int r = 0; r < g->step.n_rows; r++) {
        const step_row *row = &g->step.rows[r];
        if (!row->tracked.sequence) continue;
        const int32_t slot = slot_of(g, row);
        int64_t length = 0;
        if (row->tracked.keep == 0) {
            if (macattn_slot_reset(g->m, slot) != MACATTN_OK) return false;
            continue;
        }
        if (row->tracked.fork_of >= 0) {
            const int32_t from = slot - row->tracked.index + row->tracked.fork_of;
            if (macattn_slot_fork(g->m, from, slot) != MACATTN_OK) return false;
        }
        macattn_slot_length(g->m, slot, &length);
        if (length > row->tracked.keep &&
            macattn_slot_truncate(g->m, slot, row->tracked.keep) != MACATTN_OK) {
            return false;
        }
    }
    return true;
}

/* Page tables for rows whose cells do not follow one another: pages of one cell. */
static bool fill_pages(group *g, int64_t stream_cells)
{
    step *s = &g->step;
    size_t n = 0, at = 0;
    for (int r = 0; r < s->n_rows; r++) n += (size_t)s->rows[r].n_tokens;
    if (!array_room(&s->pages, &s->pages_capacity, n, sizeof *s->pages)) return false;
    for (int r = 0; r < s->n_rows; r++) {
        const step_row *row = &s->rows[r];
        const int32_t base = (int32_t)(row->stream * stream_cells);
        const int32_t *cells = row->tracked.cells;
        if (!row->tracked.sequence && !row->contiguous) cells = s->cells + row->cells_at;
        s->plan_rows[r].pages = s->pages + at;
        for (int64_t i = 0; i < row->n_tokens; i++) {
            const int64_t cell = row->contiguous ? row->first_cell + i : cells[i];
            s->pages[at++] = base + (int32_t)cell;
        }
    }
    return true;
}

static bool plan(group *g, const struct ggml_tensor *k)
{
    step *s = &g->step;
    macattn_row *rows = realloc(s->plan_rows, (size_t)s->rows_capacity * sizeof *rows);
    if (!rows) return false;
    s->plan_rows = rows;
    const int64_t stream_cells = (int64_t)(k->nb[3] / k->nb[1]);
    for (int r = 0; r < s->n_rows; r++) {
        const step_row *row = &s->rows[r];
        rows[r] = (macattn_row){.slot = s->mode == STEP_REUSE ? slot_of(g, row) : -1,
                                .n_queries = row->n_queries,
                                .n_tokens = row->n_tokens,
                                .page = (int32_t)(row->stream * stream_cells + row->first_cell)};
    }
    if (s->paged && !fill_pages(g, stream_cells)) return false;
    const macattn_batch batch = {.struct_size = sizeof batch,
                                 .n_rows = s->n_rows,
                                 .rows = rows,
                                 .page_size = s->paged ? 1 : 0,
                                 .n_pages = (int32_t)(s->n_streams * stream_cells)};
    return macattn_plan(g->m, &batch) == MACATTN_OK;
}

void step_begin(attention *a, group *g, const struct ggml_tensor *node, const trace *t)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1];
    step *s = &g->step;
    s->mask = node->src[3] ? node->src[3]->data : NULL;
    s->n_queries = q->ne[1];
    s->n_streams = q->ne[3];
    s->n_kv = k->ne[1];
    s->first_stream = t ? (int64_t)(k->view_offs / k->nb[3]) : 0;
    s->n_rows = 0;
    s->n_cells = 0;
    s->mode = STEP_GGML;
    memset(s->done, 0, (size_t)g->m_layers);
    const bool expressible = rows_analyse(a, g, node, t);
    rows_finish(s);
    if (g->trackers && !move_slots(g)) return;
    if (!expressible || s->n_rows == 0) return;
    const bool reuses = g->trackers && a->settings.config.policy != MACATTN_POLICY_EXACT;
    s->mode = reuses && may_reuse(s) ? STEP_REUSE : STEP_EXACT;
    if (!plan(g, k)) s->mode = STEP_GGML;
}

bool step_continues(const group *g, const struct ggml_tensor *node, const trace *t)
{
    const struct ggml_tensor *q = node->src[0];
    const step *s = &g->step;
    return t && node->src[3] && s->mask == node->src[3]->data && s->n_queries == q->ne[1] &&
           s->n_streams == q->ne[3] && s->n_kv == node->src[1]->ne[1] && !s->done[t->layer];
}
