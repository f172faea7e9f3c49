/* SPDX-License-Identifier: Apache-2.0 */
/* Policies that judge: which candidates are refused, computing those in full, and learning from
 * them. */
#include <math.h>

#include "core/sums.h"
#include "decode.h"

/* What is expected of one head's candidate, in units of its budget. */
static float expect_head(const mai_run *run, int r, int head)
{
    mai_decision *decision = mai_decision_of(run, r, head);
    const mai_ring_view *ring = &mai_run_ring(run, &run->plan->rows[r])->view;
    const size_t at = mai_entry_at(run, head, decision->entry);
    decision->judgement =
        mai_expect(mai_record_of(run, head), decision->distance2, ring->share[at], ring->moved[at]);
    return decision->judgement.error;
}

/* Judge the candidates of a group as one: its keys and values are read as a whole, so where one
 * head has no candidate, those of the others are of no use. */
static void judge_group(const mai_run *run, int r, int kv_head)
{
    const int group = run->m->shape.group, h0 = kv_head * group;
    int64_t *start = (int64_t *)run->work->start.ptr + (size_t)r * (size_t)run->m->shape.n_heads;
    bool all = true;
    float error2 = 0;
    for (int h = h0; h < h0 + group; h++) all = all && mai_decision_of(run, r, h)->hit;
    for (int h = h0; h < h0 + group; h++) {
        if (all) {
            const float error = expect_head(run, r, h);
            error2 += error * error;
        } else {
            mai_decision_of(run, r, h)->hit = false;
            mai_decision_of(run, r, h)->start = start[h] = run->plan->rows[r].fresh_end;
        }
    }
    if (!all) return;
    if (!mai_is_check(mai_habit_of(run, kv_head), r, run->plan->n_rows) &&
        mai_group_accepts(mai_record_of(run, h0), group, error2))
        return;
    for (int h = h0; h < h0 + group; h++) mai_decision_of(run, r, h)->refused = true;
}

void mai_judge_rows(mai_run *run)
{
    const int64_t begin = mai_now_ns();
    for (int r = 0; r < run->plan->n_rows; r++) {
        if (run->plan->rows[r].row.n_queries != 1) continue;
        for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++) {
            judge_group(run, r, kv_head);
        }
    }
    run->judge_ns += mai_now_ns() - begin;
}

bool mai_any_refused(const mai_run *run)
{
    for (int r = 0; r < run->plan->n_rows; r++) {
        if (run->plan->rows[r].row.n_queries != 1) continue;
        for (int h = 0; h < run->m->shape.n_heads; h += run->m->shape.group) {
            if (mai_decision_of(run, r, h)->refused) return true;
        }
    }
    return false;
}

static float *refused_out(const mai_run *run, int r, int head)
{
    const size_t at = (size_t)r * (size_t)run->m->shape.n_heads + (size_t)head;
    return (float *)run->work->refused_out.ptr + at * (size_t)run->m->shape.dv;
}

/* What a head's output is made of if its candidate is used, the candidate's summary first. */
static void candidate_parts(const mai_run *run, int r, int head, mai_parts *parts)
{
    const mai_row_plan *p = &run->plan->rows[r];
    const mai_decision *decision = mai_decision_of(run, r, head);
    parts->n = 0;
    mai_add_summary(run, r, head, decision->entry, parts);
    const int c = mai_add_chunks(run, r, head, 0, p->fresh_end, 0, parts);
    mai_add_chunks(run, r, head, c, p->row.n_tokens, decision->start, parts);
    if (run->io.sinks) mai_add_part(parts, run->work->zeros, run->io.sinks[head]);
}

/* Note what the refused candidates of a group would have given, to mai_learn from. */
static void note_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const mai_shape *shape = &run->m->shape;
    const int r = i / shape->n_kv_heads, h0 = i % shape->n_kv_heads * shape->group;
    float lse;
    if (run->plan->rows[r].row.n_queries != 1 || !mai_decision_of(run, r, h0)->refused) return;
    mai_parts parts = {.in = mai_work_scratch(run->work, worker)};
    for (int h = h0; h < h0 + shape->group; h++) {
        candidate_parts(run, r, h, &parts);
        run->m->backend->merge(shape->dv, parts.n, parts.in.o, parts.in.lse, refused_out(run, r, h),
                               &lse);
    }
}

/* Refused groups are computed in full: their summaries are made anew for no further bytes.
 * Returns the end of what has to be read again of the row; 0: nothing. Sets the starts of that
 * pass. */
static int64_t refuse_groups(const mai_run *run, int r)
{
    const mai_shape *shape = &run->m->shape;
    int64_t *start = (int64_t *)run->work->start.ptr + (size_t)r * (size_t)shape->n_heads;
    int64_t below = 0;
    if (run->plan->rows[r].row.n_queries != 1) return 0;
    for (int h = 0; h < shape->n_heads; h++) {
        mai_decision *decision = mai_decision_of(run, r, h);
        start[h] = INT64_MAX;
        if (!decision->refused) continue;
        if (decision->start > below) below = decision->start;
        decision->hit = false;
        decision->start = start[h] = run->plan->rows[r].fresh_end;
    }
    return below;
}

void mai_compute_refused(mai_run *run)
{
    mai_plan *plan = run->plan;
    const int64_t begin = mai_now_ns();
    mai_threads_run(run->m->threads, plan->n_rows * run->m->shape.n_kv_heads, note_task, run);
    int64_t *below = run->work->below.ptr;
    for (int r = 0; r < plan->n_rows; r++) below[r] = refuse_groups(run, r);
    run->judge_ns += mai_now_ns() - begin;
    const mai_pass again = {true, below};
    mai_threads_run(run->m->threads, mai_make_items(run, &again, run->work->items.ptr, 0),
                    mai_attend_task, run);
}

/* The square of an error of `off2`, in some unit, for the statistics. */
static double error2_in(float off2, float unit2)
{
    const float most = MAI_WORST_ERROR * MAI_WORST_ERROR;
    return off2 > 0 ? (double)fminf(off2 / unit2, most) : 0;
}

static void sample_group(const mai_run *run, int r, int kv_head, float unit2)
{
    const int group = run->m->shape.group, h0 = kv_head * group, dv = run->m->shape.dv;
    for (int h = h0; h < h0 + group; h++) {
        const float *out = mai_run_out(run, run->plan->rows[r].first_query, h);
        const mai_decision *decision = mai_decision_of(run, r, h);
        const float off2 = mai_off2(refused_out(run, r, h), out, dv);
        mai_record_sample(mai_record_of(run, h), &decision->judgement, decision->distance2,
                          sqrtf(off2 / unit2));
        if (unit2 > 0) {
            mai_stats_add_sample(run->m, run->layer, h, error2_in(off2, unit2),
                                 error2_in(off2, mai_norm2(out, dv)));
        }
    }
}

/* So that the layer's unit is known. */
static void note_outputs(const mai_run *run, int kv_head)
{
    const int group = run->m->shape.group, dv = run->m->shape.dv;
    const int r = mai_noted_row(mai_habit_of(run, kv_head), run->plan->n_rows);
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++) {
        const float *out = mai_run_out(run, run->plan->rows[r].first_query, h);
        mai_note_output(mai_record_of(run, h), mai_norm2(out, dv));
    }
}

/* One after the other: rows share the records. */
void mai_learn(mai_run *run)
{
    const int64_t start = mai_now_ns();
    const float unit2 = mai_layer_unit2(mai_record_of(run, 0), run->m->shape.n_heads);
    for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++) {
        int n_used = 0, n_refused = 0, n_passed_by = 0;
        for (int r = 0; r < run->plan->n_rows; r++) {
            const mai_decision *first = mai_decision_of(run, r, kv_head * run->m->shape.group);
            n_used += first->hit;
            n_refused += first->refused;
            if (mai_selects(run)) n_passed_by += mai_choice_of(run, r, kv_head)->passed_by;
            if (first->refused) sample_group(run, r, kv_head, unit2);
        }
        if (mai_selects(run)) mai_learn_selection(run, kv_head, unit2);
        note_outputs(run, kv_head);
        mai_habit_note_step(mai_habit_of(run, kv_head), n_used, n_refused + n_passed_by, n_refused);
    }
    run->judge_ns += mai_now_ns() - start;
}
