/* SPDX-License-Identifier: Apache-2.0 */
/* What the phases of a decode step share: match -> decide (and judge, and select) -> attend -> merge
 * and remember. */
#ifndef MAI_DECODE_H
#define MAI_DECODE_H

#include "core/pick.h"
#include "core/run.h"

/* Rows with one query. */
void mai_decode_rows(mai_run *run);

static inline mai_decision *mai_decision_of(const mai_run *run, int r, int head)
{
    return (mai_decision *)run->work->decisions.ptr + (size_t)r * (size_t)run->m->shape.n_heads +
           (size_t)head;
}

/* The query as the kernels get it, [d]. */
static inline const float *mai_query_of(const mai_run *run, int r, int head)
{
    const size_t at = (size_t)r * (size_t)run->m->shape.n_heads + (size_t)head;
    return (const float *)run->work->q.ptr + at * (size_t)run->m->shape.d;
}

/* Where mai_selects(run). */
static inline mai_choice *mai_choice_of(const mai_run *run, int r, int kv_head)
{
    return (mai_choice *)run->work->choices.ptr +
           (size_t)r * (size_t)run->m->shape.n_kv_heads + (size_t)kv_head;
}

/* Index of an entry in a ring's arrays by head. */
static inline size_t mai_entry_at(const mai_run *run, int head, int entry)
{
    return (size_t)head * (size_t)run->m->ring_dims.capacity + (size_t)entry;
}

static inline mai_ring *mai_run_ring(const mai_run *run, const mai_row_plan *p)
{
    return run->m->slots[p->row.slot].rings[run->layer];
}

/* A row's heads come in blocks of at most MAI_MATCH_HEADS, as many for each thread. */
static inline int mai_head_blocks(const mai_run *run)
{
    const int n_heads = run->m->shape.n_heads, threads = run->m->cfg.n_threads;
    const int least = (n_heads + MAI_MATCH_HEADS - 1) / MAI_MATCH_HEADS;
    const int even = (least + threads - 1) / threads * threads;
    return even < n_heads ? even : n_heads;
}

/* The first head of a block; of the one past the last: n_heads. */
static inline int mai_head_block(const mai_run *run, int block)
{
    return (int)((int64_t)block * run->m->shape.n_heads / mai_head_blocks(run));
}

/* ------------------------------------------------------------------------------------- match -- */

/* match.c. Task i: what some heads of a row begin with, whether or not anything is matched:
 * their queries as the kernels want them, and what is decided for each. */
void mai_begin_heads_task(void *arg, int i, int worker);

/* ------------------------------------------------------------------------------------- items -- */

/* The chunks that a pass over the row reads: all, or those before `below` but for the first
 * tokens. */
typedef struct mai_pass {
    bool again;           /* after candidates were refused */
    const int64_t *below; /* again: [row] */
} mai_pass;

/* items.c. Which groups need key sums: those that remember, if summaries have a mean of keys. */
void mai_mark_keys(const mai_run *run);
/* Fills `items` from the n-th on; returns how many there are then. Task i computes the i-th. */
int mai_make_items(const mai_run *run, const mai_pass *which, mai_item *items, int n);
void mai_attend_task(void *arg, int i, int worker);

/* ------------------------------------------------------------------------------------- parts -- */

/* The first `n` parts of a worker's scratch: those of one head's result, in order. */
typedef struct mai_parts {
    mai_scratch in;
    int n;
} mai_parts;

static inline void mai_add_part(mai_parts *parts, const float *o, float lse)
{
    parts->in.o[parts->n] = o;
    parts->in.lse[parts->n++] = lse;
}

/* parts.c. */
/* Add the partial results of the row's chunks from `c` on that end by `end`, and that the head
 * took part in. Returns the chunk after them. */
int mai_add_chunks(const mai_run *run, int r, int head, int c, int64_t end, int64_t start,
                   mai_parts *parts);
/* Add an entry's summary, with the lse that it has for the head's query. */
void mai_add_summary(const mai_run *run, int r, int head, int entry, mai_parts *parts);
/* Task i: some heads of a row, their outputs and what is remembered. */
void mai_merge_task(void *arg, int i, int worker);

/* ----------------------------------------------------------------------- policies that judge -- */

/* refuse.c. Judge all candidates, before anything is read. */
void mai_judge_rows(mai_run *run);
/* Whether any group's candidates are refused, to be compared. */
bool mai_any_refused(const mai_run *run);
/* Where candidates are refused: what they would have given was computed first, as if they were
 * used, since a summary ends within a chunk; the chunks before that end are computed now, in
 * full. */
void mai_compute_refused(mai_run *run);
/* Learn from what was refused, and what the outputs' usual size is. All rows have one query. */
void mai_learn(mai_run *run);

/* select.c, where mai_selects(run). For groups that may not reuse: whether they select, and what. A
 * group that does has nothing refused; it starts where its runs end. */
void mai_select_rows(mai_run *run);
/* Append the parts of all selections to `items`, which holds n; returns how many it holds then. */
int mai_select_items(const mai_run *run, mai_item *items, int n);
void mai_select_part(const mai_run *run, const mai_item *item, void *scratch);
/* Add a head's selection, as far as it is not among the row's chunks. */
void mai_add_selection(const mai_run *run, int r, int head, mai_parts *parts);
/* Of a head that is checked: note how far off the selection would have been. Uses `parts`, but for
 * the summary in its scratch. */
void mai_note_check(const mai_run *run, int r, int head, const mai_exact *exact, mai_parts *parts);
/* Learn from checks. */
void mai_learn_selection(const mai_run *run, int kv_head, float unit2);

#endif /* MAI_DECODE_H */
