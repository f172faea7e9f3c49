/* SPDX-License-Identifier: Apache-2.0 */
/* Which parts of K and V are read, cut into work items, and reading them. */
#include "decode.h"

#include <string.h>

static bool in_pass(const mai_run *run, const mai_pass *which, int r, const mai_chunk *chunk)
{
    return !which->again ||
           (chunk->t1 > run->plan->rows[r].fresh_end && chunk->t0 < which->below[r]);
}

static bool kv_head_takes_part(const mai_run *run, int r, int kv_head, const mai_chunk *chunk)
{
    const mai_shape *shape = &run->m->shape;
    if (chunk->t1 <= run->plan->rows[r].fresh_end) return true;
    const int64_t *start =
        (const int64_t *)run->work->start.ptr + (size_t)r * (size_t)shape->n_heads;
    for (int h = kv_head * shape->group; h < (kv_head + 1) * shape->group; h++) {
        if (start[h] < chunk->t1) return true;
    }
    return false;
}

/* The kv heads that take part in a chunk, in pieces of at most `most`: each reaches from the
 * first to the last that does; those between are passed over. Rows of a token lie side by side,
 * so what one thread reads of them should be read together. */
static int add_items(const mai_run *run, int r, int c, int most, mai_item *items, int n)
{
    const int n_kv_heads = run->m->shape.n_kv_heads;
    const mai_chunk *chunk = &run->plan->chunks[run->plan->rows[r].first_chunk + c];
    for (int kv = 0; kv < n_kv_heads; kv++) {
        if (!kv_head_takes_part(run, r, kv, chunk)) continue;
        const int first = kv;
        int end = kv + 1;
        for (; kv < n_kv_heads && kv - first < most; kv++) {
            if (kv_head_takes_part(run, r, kv, chunk)) end = kv + 1;
        }
        items[n++] = (mai_item){r, c, first, end, -1};
        kv = end - 1;
    }
    return n;
}

static int list_items(const mai_run *run, const mai_pass *which, int most, mai_item *items, int n)
{
    for (int r = 0; r < run->plan->n_rows; r++) {
        const mai_row_plan *p = &run->plan->rows[r];
        for (int c = 0; c < p->n_chunks; c++) {
            if (!in_pass(run, which, r, &run->plan->chunks[p->first_chunk + c])) continue;
            n = add_items(run, r, c, most, items, n);
        }
    }
    return n;
}

/* Tasks are handed out one by one: some more than threads, so that they end at about the same
 * time. */
#define ITEMS_PER_THREAD 3

/* Whole rows of all kv heads are read fastest, but every thread must have work: with few items,
 * divide them by kv heads. */
int mai_make_items(const mai_run *run, const mai_pass *which, mai_item *items, int before)
{
    const int n_kv_heads = run->m->shape.n_kv_heads,
              enough = ITEMS_PER_THREAD * run->m->cfg.n_threads;
    const int n = list_items(run, which, n_kv_heads, items, before);
    if (n == before || n >= enough || run->m->cfg.n_threads == 1) return n;
    const int own = n - before, pieces = (enough - before + own - 1) / own;
    const int most = (n_kv_heads + pieces - 1) / pieces;
    return most < n_kv_heads ? list_items(run, which, most, items, before) : n;
}

void mai_mark_keys(const mai_run *run)
{
    const mai_shape *shape = &run->m->shape;
    uint8_t *keys = run->work->keys.ptr;
    memset(keys, 0, (size_t)run->plan->n_rows * (size_t)shape->n_kv_heads);
    if (!run->reuse || run->m->ring_dims.width == shape->dv) return;
    for (int r = 0; r < run->plan->n_rows; r++) {
        if (run->plan->rows[r].row.n_queries != 1) continue;
        for (int h = 0; h < shape->n_heads; h++)
            keys[r * shape->n_kv_heads + h / shape->group] |= mai_decision_of(run, r, h)->remember;
    }
}

/* Nothing of [0, F) or [b, n) is in a summary. */
static bool in_summary(const mai_row_plan *p, const mai_chunk *chunk)
{
    return chunk->t0 >= p->fresh_end && chunk->t1 <= p->far_end;
}

void mai_attend_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const macattn *m = run->m;
    const mai_plan *plan = run->plan;
    const mai_item *item = (const mai_item *)run->work->items.ptr + i;
    void *scratch = mai_work_scratch(run->work, worker).kernel;
    if (item->part >= 0) {
        mai_select_part(run, item, scratch);
        return;
    }
    const mai_row_plan *p = &plan->rows[item->row];
    const size_t hq = (size_t)m->shape.n_heads, at = (size_t)(p->first_chunk + item->chunk);
    const size_t width = (size_t)m->ring_dims.width;
    const mai_chunk *chunk = &plan->chunks[at];
    const bool fresh = chunk->t1 <= p->fresh_end;
    const mai_attend_args args = {
        .shape = &m->shape,
        .tokens = mai_run_tokens(run, p),
        .t0 = chunk->t0,
        .t1 = chunk->t1,
        .kv0 = item->kv0,
        .kv1 = item->kv1,
        .q = mai_query_of(run, item->row, 0),
        .start = fresh ? NULL : (const int64_t *)run->work->start.ptr + (size_t)item->row * hq,
        .out = (float *)run->work->partial_out.ptr + at * hq * width,
        .out_stride = (int64_t)width,
        .keys = in_summary(p, chunk)
                    ? (const uint8_t *)run->work->keys.ptr + item->row * m->shape.n_kv_heads
                    : NULL,
        .lse = (float *)run->work->partial_lse.ptr + at * hq,
        .scratch = scratch,
    };
    m->backend->attend(&args);
}
