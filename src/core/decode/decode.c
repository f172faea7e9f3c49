/* SPDX-License-Identifier: Apache-2.0 */
/* Decode: match -> decide (and judge) -> range attention over what must be read -> merge and
 * remember.
 *
 * A head that hits takes part from `start` = the summary's end on, a head that misses from F on;
 * the chunks of the plan's grid are computed for the kv heads of which any head takes part. The
 * output is the merge of the summary and all partial results in order; the new summary is the
 * merge of the summary and those before b. Nothing is ever subtracted, and a head that misses
 * gets exactly the partial results, in the order, that it would get without reuse. */
#include "decode.h"

static void count_row(const mai_run *run, int r)
{
    const macattn_row *row = &run->plan->rows[r].row;
    const int n_heads = run->m->shape.n_heads;
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
    const int n_tasks = plan->n_rows * mai_head_blocks(run);
    const int64_t start = mai_now_ns();
    mai_threads_run(m->threads, n_tasks, mai_begin_heads_task, run);
    const int64_t matched = mai_now_ns();
    const mai_pass first = {false, NULL};
    mai_mark_keys(run);
    const bool refused = mai_judges(run) && mai_judge_rows(run);
    mai_threads_run(m->threads, mai_make_items(run, &first, run->work->items.ptr), mai_attend_task,
                    run);
    if (refused) mai_compute_refused(run);
    const int64_t attended = mai_now_ns();
    mai_threads_run(m->threads, n_tasks, mai_merge_task, run);
    if (mai_judges(run)) mai_learn(run);
    if (run->layer < 0) return;
    mai_stats_add_times(m, run->layer, matched - start, attended - matched, mai_now_ns() - attended,
                        run->judge_ns);
    for (int r = 0; r < plan->n_rows; r++) count_row(run, r);
}
