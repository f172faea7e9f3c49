/* SPDX-License-Identifier: Apache-2.0 */
/* Making the means of runs: in decode those of one run in sixteen steps, in prefill those of the
 * prompt, and of what was added behind the library's back whatever is missing. */
#include "summarise.h"

/* Runs that one task makes, a divisor of MAI_SEGMENT. */
#define BLOCK 64

static int32_t made(const mai_run *run, int r)
{
    return ((const int32_t *)run->work->made.ptr)[r];
}

static int32_t row_blocks(const mai_run *run, int r)
{
    const int32_t n = run->plan->rows[r].n_runs, from = made(run, r);
    return n > from ? (n + BLOCK - 1) / BLOCK - from / BLOCK : 0;
}

static void summarise(const mai_run *run, const mai_row_plan *p, int kv_head, int32_t run0,
                      int32_t run1)
{
    const mai_runs_view *segments = mai_run_segments_of(run, p);
    const mai_summarise_args args = {.shape = &run->m->shape,
                                     .dims = &run->m->runs_dims,
                                     .tokens = mai_run_tokens(run, p),
                                     .kv_head = kv_head,
                                     .run0 = run0,
                                     .run1 = run1,
                                     .common = segments[0].common,
                                     .to = &segments[run0 >> MAI_SEGMENT_SHIFT]};
    run->m->backend->summarise(&args);
}

/* Item i: run 0 of (row, kv head), whose mean key all others are relative to. */
static void first_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const int r = i / run->m->shape.n_kv_heads;
    const mai_row_plan *p = &run->plan->rows[r];
    (void)worker;
    if (p->n_runs > 0 && made(run, r) == 0) summarise(run, p, i % run->m->shape.n_kv_heads, 0, 1);
}

/* Item i: rows in order, in each the blocks, in each the kv heads. */
static void block_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const int n_kv_heads = run->m->shape.n_kv_heads;
    int r = 0;
    (void)worker;
    while (i >= row_blocks(run, r) * n_kv_heads) i -= row_blocks(run, r++) * n_kv_heads;
    const mai_row_plan *p = &run->plan->rows[r];
    const int32_t block = made(run, r) / BLOCK + i / n_kv_heads;
    const int32_t have = made(run, r) > 0 ? made(run, r) : 1;
    const int32_t from = block * BLOCK > have ? block * BLOCK : have;
    const int32_t to = (block + 1) * BLOCK < p->n_runs ? (block + 1) * BLOCK : p->n_runs;
    if (from < to) summarise(run, p, i % n_kv_heads, from, to);
}

/* Room for a row's runs. Returns whether it has none yet, and is to get some. */
static bool extend(const mai_run *run, int r)
{
    const mai_row_plan *p = &run->plan->rows[r];
    const mai_slot *s = &run->m->slots[p->row.slot];
    const int32_t have = s->n_runs[run->layer];
    ((int32_t *)run->work->made.ptr)[r] = have;
    if (have < p->n_runs) mai_runs_extend(run->m, p->row.slot, run->layer, p->n_runs);
    mai_runs_segments(s, run->layer, mai_n_segments(p->n_runs),
                      (mai_runs_view *)run->work->segments.ptr + p->first_segment);
    return have == 0 && p->n_runs > 0;
}

void mai_summarise_rows(mai_run *run)
{
    const int n_rows = run->plan->n_rows, n_kv_heads = run->m->shape.n_kv_heads;
    const int64_t start = mai_now_ns();
    bool first = false;
    int n = 0;
    for (int r = 0; r < n_rows; r++) {
        first |= extend(run, r);
        n += row_blocks(run, r) * n_kv_heads;
    }
    if (first) mai_threads_run(run->m->threads, n_rows * n_kv_heads, first_task, run);
    if (n > 0) mai_threads_run(run->m->threads, n, block_task, run);
    for (int r = 0; r < n_rows; r++) {
        const mai_row_plan *p = &run->plan->rows[r];
        int32_t *n_runs = &run->m->slots[p->row.slot].n_runs[run->layer];
        if (*n_runs < p->n_runs) *n_runs = p->n_runs;
    }
    run->select_ns += mai_now_ns() - start;
}
