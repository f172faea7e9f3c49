/* SPDX-License-Identifier: Apache-2.0 */
/* Decode: match -> decide (and judge, and select) -> range attention over what must be read -> merge
 * and remember.
 *
 * A head that hits takes part from `start` = the summary's end on, a head that misses from F on;
 * the chunks of the plan's grid are computed for the kv heads of which any head takes part. The
 * output is the merge of the summary and all partial results in order; the new summary is the
 * merge of the summary and those before b. A group that selects takes part from the end of its runs
 * on; before that its selection is a few partial results more, of the runs that are read and of
 * those that stand in for their tokens. Nothing is ever subtracted, and a head that misses and does
 * not select gets exactly the partial results, in the order, that it would get without reuse. */
#include "decode.h"
#include "core/summarise.h"

/* Tokens that a group's selection reads: the first, those listed, and those from its runs' end on. */
static int64_t selected_tokens(const mai_row_plan *p, const mai_choice *choice)
{
    const int64_t listed = ((int64_t)choice->n_read << MAI_RUN_SHIFT) -
                           (mai_list_always(p->fresh_end) ? mai_list_skip(p->fresh_end) : 0);
    return p->fresh_end + listed + p->row.n_tokens - ((int64_t)p->n_runs << MAI_RUN_SHIFT);
}

static size_t searched_bytes(const mai_run *run, const mai_row_plan *p, int head)
{
    const mai_ring_dims *dims = &run->m->ring_dims;
    const size_t entry = (size_t)dims->n_chunks * (MAI_CHUNK + sizeof(float)) + 2 * sizeof(float);
    return (size_t)mai_run_ring(run, p)->view.count[head] * entry;
}

static void count_group(const mai_run *run, int r, int kv_head)
{
    const macattn *m = run->m;
    const mai_shape *shape = &m->shape;
    const mai_row_plan *p = &run->plan->rows[r];
    const mai_choice *choice = mai_selects(run) ? mai_choice_of(run, r, kv_head) : NULL;
    mai_group_count count = {.how = MACATTN_REUSED};
    int64_t tokens = 0;
    for (int h = kv_head * shape->group; h < (kv_head + 1) * shape->group; h++) {
        const mai_decision *d = mai_decision_of(run, r, h);
        const int64_t read = p->row.n_tokens - (d->hit ? d->start - p->fresh_end : 0);
        if (!d->hit) count.how = MACATTN_EXACT;
        if (read > tokens) tokens = read;
        if (d->searched) count.ring_bytes += searched_bytes(run, p, h);
    }
    if (choice && choice->selects && !choice->checks) {
        count.how = MACATTN_SELECTED;
        tokens = selected_tokens(p, choice);
    }
    if (choice && choice->k >= 0)
        count.run_bytes =
            (size_t)p->n_scored * m->runs_dims.k_bytes * (m->runs_dims.outliers ? 2 : 1);
    if (choice && choice->selects) {
        const bool keys =
            ((const uint8_t *)run->work->keys.ptr)[r * shape->n_kv_heads + kv_head] > 0;
        count.run_bytes +=
            (size_t)choice->n_rest * (m->runs_dims.v_bytes + (keys ? m->runs_dims.k_bytes : 0));
    }
    count.kv_bytes = (size_t)tokens * (macattn_dtype_row_bytes(shape->k_dtype, shape->d) +
                                       macattn_dtype_row_bytes(shape->v_dtype, shape->dv));
    mai_stats_add_group(run->m, run->layer, kv_head, &count);
}

static void count_row(const mai_run *run, int r)
{
    const macattn_row *row = &run->plan->rows[r].row;
    const int n_heads = run->m->shape.n_heads;
    for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++)
        count_group(run, r, kv_head);
    for (int head = 0; head < n_heads; head++) {
        const mai_decision *d = mai_decision_of(run, r, head);
        const int64_t skipped = d->hit ? d->start - run->plan->rows[r].fresh_end : 0;
        mai_stats_add(run->m, run->layer, head, d->hit, row->n_tokens, skipped, d->distance2);
    }
}

void mai_decode_rows(mai_run *run)
{
    macattn *m = run->m;
    mai_plan *plan = run->plan;
    if (plan->n_single == 0) return;
    for (int r = 0; run->reuse && r < plan->n_rows; r++) {
        mai_slot_ring(m, plan->rows[r].row.slot, run->layer);
    }
    if (mai_selects(run)) mai_summarise_rows(run);
    const int n_tasks = plan->n_rows * mai_head_blocks(run);
    const int64_t start = mai_now_ns();
    mai_threads_run(m->threads, n_tasks, mai_begin_heads_task, run);
    const int64_t matched = mai_now_ns();
    const mai_pass first = {false, NULL};
    mai_mark_keys(run);
    if (mai_judges(run)) mai_judge_rows(run);
    if (mai_selects(run)) mai_select_rows(run);
    mai_item *items = run->work->items.ptr;
    const int n_selected = mai_selects(run) ? mai_select_items(run, items, 0) : 0;
    mai_threads_run(m->threads, mai_make_items(run, &first, items, n_selected), mai_attend_task,
                    run);
    if (mai_judges(run) && mai_any_refused(run)) mai_compute_refused(run);
    const int64_t attended = mai_now_ns();
    mai_threads_run(m->threads, n_tasks, mai_merge_task, run);
    if (mai_judges(run)) mai_learn(run);
    if (run->layer < 0) return;
    const mai_times times = {.match_ns = (uint64_t)(matched - start),
                             .attend_ns = (uint64_t)(attended - matched),
                             .merge_ns = (uint64_t)(mai_now_ns() - attended),
                             .judge_ns = (uint64_t)run->judge_ns,
                             .select_ns = (uint64_t)run->select_ns};
    mai_stats_add_times(m, run->layer, &times);
    for (int r = 0; r < plan->n_rows; r++) count_row(run, r);
}
