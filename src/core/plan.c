/* SPDX-License-Identifier: Apache-2.0 */
/* macattn_plan: check the step, cut its rows into chunks. */
#include <string.h>

#include "plan.h"

/* ---------------------------------------------------------------------------------- checking -- */

static macattn_status check_pages(macattn *m, const macattn_batch *batch, int r)
{
    const macattn_row *row = &batch->rows[r];
    if (batch->page_size == 0) {
        if (row->page < 0 || row->page >= batch->n_pages) {
            return mai_fail(m, MACATTN_E_RANGE, "row %d: page %d is not in [0, n_pages = %d)", r,
                            (int)row->page, (int)batch->n_pages);
        }
        return MACATTN_OK;
    }
    const int64_t n = (row->n_tokens + batch->page_size - 1) / batch->page_size;
    if (n > 0 && !row->pages) {
        return mai_fail(m, MACATTN_E_ARG, "row %d: pages is NULL, page_size is %d", r,
                        (int)batch->page_size);
    }
    for (int64_t i = 0; i < n; i++) {
        if (row->pages[i] < 0 || row->pages[i] >= batch->n_pages) {
            return mai_fail(m, MACATTN_E_RANGE,
                            "row %d: pages[%lld] = %d is not in [0, n_pages = %d)", r, (long long)i,
                            (int)row->pages[i], (int)batch->n_pages);
        }
    }
    return MACATTN_OK;
}

static macattn_status check_row(macattn *m, const macattn_batch *batch, int r)
{
    const macattn_row *row = &batch->rows[r];
    if (row->slot < -1 || row->slot >= m->cfg.max_slots) {
        return mai_fail(m, MACATTN_E_RANGE, "row %d: slot %d is not in [-1, max_slots = %d)", r,
                        (int)row->slot, (int)m->cfg.max_slots);
    }
    if (row->n_queries < 1) {
        return mai_fail(m, MACATTN_E_RANGE, "row %d: n_queries is %d; at least 1 is needed", r,
                        (int)row->n_queries);
    }
    if (row->n_tokens < 0 || row->n_tokens > m->cfg.max_tokens) {
        return mai_fail(m, MACATTN_E_RANGE,
                        "row %d: n_tokens %lld is not in [0, max_tokens = %lld]", r,
                        (long long)row->n_tokens, (long long)m->cfg.max_tokens);
    }
    if (row->n_tokens < row->n_queries && !(row->n_tokens == 0 && row->n_queries == 1)) {
        return mai_fail(m, MACATTN_E_RANGE,
                        "row %d: n_tokens %lld is less than n_queries %d, which it includes", r,
                        (long long)row->n_tokens, (int)row->n_queries);
    }
    if (row->slot >= 0 && row->n_tokens - row->n_queries < m->slots[row->slot].length) {
        return mai_fail(
            m, MACATTN_E_STATE,
            "row %d: slot %d holds %lld tokens; %lld with %d new ones do not continue it "
            "(macattn_slot_truncate takes tokens back)",
            r, (int)row->slot, (long long)m->slots[row->slot].length, (long long)row->n_tokens,
            (int)row->n_queries);
    }
    return check_pages(m, batch, r);
}

static macattn_status check_batch(macattn *m, const macattn_batch *batch)
{
    if (!batch) return mai_fail(m, MACATTN_E_ARG, "batch is NULL");
    if (batch->struct_size != sizeof *batch) {
        return mai_fail(m, MACATTN_E_ARG,
                        "batch.struct_size is %zu, not sizeof(macattn_batch) = %zu",
                        batch->struct_size, sizeof *batch);
    }
    if (!batch->rows) return mai_fail(m, MACATTN_E_ARG, "batch.rows is NULL");
    if (batch->n_rows < 1 || batch->n_rows > INT32_MAX / m->cfg.n_heads) {
        return mai_fail(m, MACATTN_E_RANGE, "batch.n_rows is %d; it must be at least 1",
                        (int)batch->n_rows);
    }
    if (batch->page_size < 0 || (batch->page_size & (batch->page_size - 1)) != 0) {
        return mai_fail(m, MACATTN_E_RANGE,
                        "batch.page_size %d is neither a power of two nor 0 (contiguous)",
                        (int)batch->page_size);
    }
    if (batch->n_pages < 1) {
        return mai_fail(m, MACATTN_E_RANGE, "batch.n_pages is %d; at least 1 is needed",
                        (int)batch->n_pages);
    }
    int64_t queries = 0;
    for (int r = 0; r < batch->n_rows; r++) {
        MAI_TRY(check_row(m, batch, r));
        queries += batch->rows[r].n_queries;
    }
    if (queries > INT32_MAX / m->cfg.n_heads) {
        return mai_fail(m, MACATTN_E_RANGE, "the batch has %lld queries; at most %d can be planned",
                        (long long)queries, INT32_MAX / (int)m->cfg.n_heads);
    }
    return MACATTN_OK;
}

/* Slots must differ. Quadratic for a handful of rows, a bitmap for many. */
static macattn_status check_slots_differ(macattn *m, const macattn_batch *batch)
{
    uint8_t *seen = mai_alloc_zero(&m->cfg, (size_t)m->cfg.max_slots);
    if (!seen) return mai_fail(m, MACATTN_E_NOMEM, "no memory to check the slots");
    macattn_status status = MACATTN_OK;
    for (int r = 0; r < batch->n_rows && status == MACATTN_OK; r++) {
        const int slot = batch->rows[r].slot;
        if (slot < 0) continue;
        if (seen[slot]) status = mai_fail(m, MACATTN_E_ARG, "slot %d is in two rows", slot);
        seen[slot] = 1;
    }
    mai_free(&m->cfg, seen);
    return status;
}

/* ------------------------------------------------------------------------------------ chunks -- */

/* Chunks are coarse where whole contexts are read, so that there are few partial results, and
 * fine near the end, where a hit has only a few hundred tokens to share out among the threads.
 * In tokens: */
enum {
    CHUNK_FINE = 128,
    CHUNK_COARSE = 4096,
    FINE_ZONE = 2048, /* this far before the band, chunks are fine */
};
/* A row has at least so many chunks, until they are as coarse as can be: enough to share out
 * among the threads without dividing chunks by KV heads. */
#define LEAST_CHUNKS 32

static int64_t coarse_chunk(int64_t n)
{
    int64_t size = CHUNK_FINE;
    while (size < CHUNK_COARSE && size * LEAST_CHUNKS < n) size *= 2;
    return size;
}

/* Cut [from, to) at the multiples of the chunk size; NULL `out` only counts. */
static int cut(int64_t from, int64_t to, int64_t n, int64_t fine_from, mai_chunk *out)
{
    const int64_t coarse = coarse_chunk(n);
    int count = 0;
    for (int64_t t = from; t < to; count++) {
        const int64_t size = t >= fine_from ? CHUNK_FINE : coarse;
        int64_t end = (t / size + 1) * size;
        if (t < fine_from && end > fine_from) end = fine_from;
        if (end > to) end = to;
        if (out) out[count] = (mai_chunk){t, end};
        t = end;
    }
    return count;
}

static int cut_row(const macattn *m, const mai_row_plan *p, mai_chunk *out)
{
    const int64_t n = p->row.n_tokens;
    const int64_t first = m->cfg.window > 0 && n > m->cfg.window ? n - m->cfg.window : 0;
    if (m->cfg.window > 0) return cut(first, n, n, n, out);
    const int64_t band = m->cfg.band < FINE_ZONE ? m->cfg.band : FINE_ZONE;
    int64_t fine_from = n - band - FINE_ZONE;
    fine_from = fine_from < 0 ? 0 : fine_from / CHUNK_FINE * CHUNK_FINE;
    int count = cut(0, p->fresh_end, n, fine_from, out);
    count += cut(p->fresh_end, p->far_end, n, fine_from, out ? out + count : NULL);
    return count + cut(p->far_end, n, n, fine_from, out ? out + count : NULL);
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* What of the row's runs may be of use. */
static void plan_runs(const macattn *m, mai_row_plan *p)
{
    const int32_t first = mai_select_first(m->cfg.fresh_tokens, MAI_RUN_TOKENS);
    if (p->row.slot < 0) return;
    p->n_runs = mai_runs_kept(&m->cfg, p->row.n_tokens);
    if (p->n_runs <= first) return;
    if (p->row.n_queries == 1)
        p->n_scored = p->n_runs - first;
    else
        p->n_shown = mai_select_samples(p->row.n_queries, p->row.n_queries - p->capture0);
}

/* How a row is divided, but for its place among the others. */
static mai_row_plan plan_row(const macattn *m, const macattn_row *row)
{
    mai_row_plan p = {.row = *row,
                      .generation = row->slot >= 0 ? m->slots[row->slot].generation : 0};
    const int64_t n = row->n_tokens, fresh = m->cfg.fresh_tokens, band = m->cfg.band;
    p.fresh_end = min64(fresh, n);
    p.far_end = max64(p.fresh_end, n - band);
    /* The first query that has something to remember, and no more than is to be remembered. */
    const bool judges = mai_policy_get(m->cfg.policy)->judges;
    const int64_t first_pos = fresh + band; /* position + 1 - band > F */
    const int64_t most = mai_prompt_remembers(judges, row->n_queries, m->cfg.ring);
    const int64_t capture = max64(first_pos - (n - row->n_queries), row->n_queries - most);
    p.capture0 = (int32_t)min64(max64(capture, 0), row->n_queries);
    if (!mai_keeps_rings(&m->cfg) || row->slot < 0) p.capture0 = row->n_queries;
    if (judges) p.n_samples = mai_prompt_samples(row->n_queries - p.capture0);
    plan_runs(m, &p);
    return p;
}

/* Count a row's runs, and note where they lie among all. */
static void place_runs(mai_work_sizes *s, mai_row_plan *p)
{
    p->first_segment = s->n_segments;
    p->first_run = s->n_runs;
    p->first_piece = s->n_pieces;
    p->select_row = s->n_select_rows;
    p->first_shown = s->n_shown;
    s->n_segments += mai_n_segments(p->n_runs);
    s->n_shown += p->n_shown;
    if (p->n_shown > 0 && p->n_runs > s->max_shown_runs) s->max_shown_runs = p->n_runs;
    if (p->n_scored == 0) return;
    s->n_select_rows++;
    s->n_runs += p->n_runs;
    s->n_pieces += mai_n_pieces(p->n_runs);
}

/* -------------------------------------------------------------------------------------- room -- */

/* What the step asks for. */
typedef struct sizes {
    mai_work_sizes work;
    int n_single;
} sizes;

static sizes measure(const macattn *m, const macattn_batch *batch)
{
    sizes s = {.work.n_rows = batch->n_rows};
    for (int r = 0; r < batch->n_rows; r++) {
        mai_row_plan p = plan_row(m, &batch->rows[r]);
        s.work.n_queries += p.row.n_queries;
        if (p.row.n_queries == 1) {
            const int n = cut_row(m, &p, NULL);
            s.work.n_chunks += n;
            s.n_single++;
            if (n > s.work.max_row_chunks) s.work.max_row_chunks = n;
        }
        s.work.n_captures += p.row.n_queries - p.capture0;
        s.work.n_samples += p.n_samples;
        place_runs(&s.work, &p);
    }
    return s;
}

static macattn_status plan_create(macattn *m)
{
    if (m->plan) return MACATTN_OK;
    m->plan = mai_alloc_zero(&m->cfg, sizeof *m->plan);
    if (!m->plan) return mai_fail(m, MACATTN_E_NOMEM, "no memory for the plan");
    m->plan->current = -1;
    return MACATTN_OK;
}

void mai_plan_destroy(macattn *m)
{
    if (!m->plan) return;
    for (int i = 0; i < 2; i++) mai_free(&m->cfg, m->plan->meta[i].ptr);
    mai_free(&m->cfg, m->plan);
    m->plan = NULL;
}

/* -------------------------------------------------------------------------------------- plan -- */

static macattn_status prepare_slots(macattn *m, const macattn_batch *batch)
{
    if (!mai_keeps_rings(&m->cfg)) return MACATTN_OK;
    for (int r = 0; r < batch->n_rows; r++) {
        const macattn_row *row = &batch->rows[r];
        if (row->slot < 0) continue;
        MAI_TRY(mai_slot_prepare(m, row->slot));
        MAI_TRY(mai_runs_reserve(m, row->slot, row->n_tokens));
    }
    return MACATTN_OK;
}

static void fill_plan(macattn *m, const macattn_batch *batch, const sizes *s, int which)
{
    mai_plan *plan = m->plan;
    char *at = plan->meta[which].ptr;
    plan->current = which;
    plan->rows = (mai_row_plan *)at;
    at += mai_align_up((size_t)batch->n_rows * sizeof(mai_row_plan));
    plan->chunks = (mai_chunk *)at;
    at += mai_align_up((size_t)s->work.n_chunks * sizeof(mai_chunk));
    plan->layer_done = (uint8_t *)at;
    memset(plan->layer_done, 0, (size_t)m->cfg.n_layers);
    plan->n_rows = batch->n_rows;
    plan->n_queries = plan->n_chunks = plan->n_captures = plan->n_samples = 0;
    plan->n_single = s->n_single;
    mai_work_sizes places = {0};
    plan->paged = batch->page_size > 0;
    plan->page_shift = 0;
    while (plan->paged && (1 << plan->page_shift) < batch->page_size) plan->page_shift++;
    for (int r = 0; r < batch->n_rows; r++) {
        mai_row_plan *p = &plan->rows[r];
        *p = plan_row(m, &batch->rows[r]);
        p->first_query = plan->n_queries;
        p->first_chunk = plan->n_chunks;
        p->first_capture = plan->n_captures;
        p->first_sample = plan->n_samples;
        place_runs(&places, p);
        if (p->row.n_queries == 1) p->n_chunks = cut_row(m, p, plan->chunks + p->first_chunk);
        plan->n_queries += p->row.n_queries;
        plan->n_chunks += p->n_chunks;
        plan->n_captures += p->row.n_queries - p->capture0;
        plan->n_samples += p->n_samples;
    }
    plan->n_segments = places.n_segments;
    plan->n_select_rows = places.n_select_rows;
    plan->n_runs = places.n_runs;
    plan->n_pieces = places.n_pieces;
    plan->n_shown = places.n_shown;
}

macattn_status macattn_plan(macattn *m, const macattn_batch *batch)
{
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_batch(m, batch));
    MAI_TRY(check_slots_differ(m, batch));
    MAI_TRY(plan_create(m));
    const sizes s = measure(m, batch);
    const int which = m->plan->current == 0 ? 1 : 0;
    const size_t meta = mai_align_up((size_t)batch->n_rows * sizeof(mai_row_plan)) +
                        mai_align_up((size_t)s.work.n_chunks * sizeof(mai_chunk)) +
                        (size_t)m->cfg.n_layers;
    MAI_TRY(mai_buffer_reserve(m, &m->plan->meta[which], meta, "the plan"));
    MAI_TRY(mai_work_reserve(m, &s.work));
    MAI_TRY(prepare_slots(m, batch));
    fill_plan(m, batch, &s, which);
    return MACATTN_OK;
}
