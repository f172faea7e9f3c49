/* SPDX-License-Identifier: Apache-2.0 */
/* Groups that may not reuse: whether they read a selection of the far tokens (policy/select.h), which,
 * computing that, and learning from what is checked. */
#include <math.h>

#include "decode.h"

static int32_t first_scored(const mai_row_plan *p)
{
    return p->n_runs - p->n_scored;
}

static float *scores_of(const mai_run *run, const mai_row_plan *p, int kv_head)
{
    const mai_shape *shape = &run->m->shape;
    const size_t before = (size_t)p->first_run * (size_t)shape->n_heads;
    return (float *)run->work->scores.ptr + before +
           (size_t)kv_head * (size_t)shape->group * (size_t)p->n_runs;
}

static int32_t *list_of(const mai_run *run, const mai_row_plan *p, int kv_head)
{
    const size_t before = (size_t)p->first_run * (size_t)run->m->shape.n_kv_heads;
    return (int32_t *)run->work->list.ptr + before + (size_t)kv_head * (size_t)p->n_runs;
}

static float *totals_of(const mai_run *run, const mai_row_plan *p, int kv_head)
{
    const mai_shape *shape = &run->m->shape;
    return (float *)run->work->totals.ptr + (size_t)p->select_row * (size_t)shape->n_heads +
           (size_t)kv_head * (size_t)shape->group;
}

/* ------------------------------------------------------------------------------------ choosing -- */

/* A group whose candidates may be used, or have to be compared, does not select; nor does one that
 * knows no threshold that will do. */
static mai_choice choose(const mai_run *run, int r, int kv_head)
{
    const int group = run->m->shape.group, n_rows = run->plan->n_rows;
    const mai_record *records = mai_record_of(run, kv_head * group);
    const mai_selector *selector = mai_selector_of(run, kv_head);
    const mai_decision *first = mai_decision_of(run, r, kv_head * group);
    mai_choice choice = {.k = -1};
    if (run->plan->rows[r].n_scored == 0 || selector->rest > 0) return choice;
    if (first->hit && !first->refused) return choice;
    if (first->refused && mai_is_check(mai_habit_of(run, kv_head), r, n_rows)) return choice;
    if (!mai_group_remembers(records, group)) return choice;
    choice.k = mai_select_threshold(selector, records, group);
    choice.selects = choice.k >= 0;
    choice.checks = choice.selects && mai_select_is_check(selector, r, n_rows);
    return choice;
}

static void piece_of(const mai_row_plan *p, int piece, int32_t *from, int32_t *to)
{
    *from = piece * MAI_PIECE_RUNS;
    *to = *from + MAI_PIECE_RUNS;
    if (*from < first_scored(p)) *from = first_scored(p);
    if (*to > p->n_runs) *to = p->n_runs;
}

static float *piece_lse(const mai_run *run, const mai_row_plan *p, int piece, int kv_head)
{
    const mai_shape *shape = &run->m->shape;
    const size_t at = (size_t)(p->first_piece + piece) * (size_t)shape->n_heads;
    return (float *)run->work->piece_lse.ptr + at + (size_t)kv_head * (size_t)shape->group;
}

/* Item i: one piece of a row's runs, for one kv head. */
static void score_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const mai_item *item = (const mai_item *)run->work->items.ptr + i;
    const mai_row_plan *p = &run->plan->rows[item->row];
    mai_score_args args = {.shape = &run->m->shape,
                           .dims = &run->m->runs_dims,
                           .segments = mai_run_segments_of(run, p),
                           .kv_head = item->kv0,
                           .q = mai_query_of(run, item->row, item->kv0 * run->m->shape.group),
                           .scores = scores_of(run, p, item->kv0),
                           .stride = p->n_runs,
                           .lse = piece_lse(run, p, item->part, item->kv0),
                           .scratch = mai_work_scratch(run->work, worker).kernel};
    piece_of(p, item->part, &args.run0, &args.run1);
    run->m->backend->score(&args);
}

static int score_items(const mai_run *run)
{
    mai_item *items = run->work->items.ptr;
    int n = 0;
    for (int r = 0; r < run->plan->n_rows; r++) {
        const mai_row_plan *p = &run->plan->rows[r];
        for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++) {
            if (!mai_choice_of(run, r, kv_head)->selects) continue;
            for (int piece = 0; piece < mai_n_pieces(p->n_runs); piece++) {
                int32_t from, to;
                piece_of(p, piece, &from, &to);
                if (from < to) items[n++] = (mai_item){r, 0, kv_head, kv_head + 1, piece};
            }
        }
    }
    return n;
}

/* The share of the newest summary of a head in the result it was made for. */
static float newest_share(const mai_run *run, const mai_row_plan *p, int head)
{
    const mai_ring_view *ring = &mai_run_ring(run, p)->view;
    const int K = run->m->ring_dims.capacity;
    if (ring->count[head] == 0) return 1.0f;
    return ring->share[mai_entry_at(run, head, (ring->head[head] + K - 1) % K)];
}

static float all_pieces(const mai_run *run, const mai_row_plan *p, int kv_head, int h)
{
    float lse = -INFINITY;
    for (int piece = 0; piece < mai_n_pieces(p->n_runs); piece++) {
        int32_t from, to;
        piece_of(p, piece, &from, &to);
        if (from < to) lse = mai_lse_add(lse, piece_lse(run, p, piece, kv_head)[h]);
    }
    return lse;
}

/* What is read does not stand in. */
static void leave_out(const mai_run *run, const mai_row_plan *p, int kv_head, const int32_t *list,
                      int32_t n)
{
    float *scores = scores_of(run, p, kv_head);
    for (int h = 0; h < run->m->shape.group; h++, scores += p->n_runs) {
        for (int32_t i = 0; i < n; i++) scores[list[i]] = -INFINITY;
    }
}

/* Item i: the list of (row, kv head). */
static void pick_task(void *arg, int i, int worker)
{
    const mai_run *run = arg;
    const mai_shape *shape = &run->m->shape;
    const int r = i / shape->n_kv_heads, kv_head = i % shape->n_kv_heads;
    const mai_row_plan *p = &run->plan->rows[r];
    mai_choice *choice = mai_choice_of(run, r, kv_head);
    float *totals, least[MAI_MAX_HEADS];
    bool finite = true;
    (void)worker;
    if (!choice->selects) return;
    totals = totals_of(run, p, kv_head);
    for (int h = 0; h < shape->group; h++) {
        totals[h] = mai_select_total(all_pieces(run, p, kv_head, h),
                                     newest_share(run, p, kv_head * shape->group + h));
        least[h] = mai_select_least(totals[h], choice->k);
        finite = finite && isfinite(totals[h]);
    }
    const bool always = mai_list_always(p->fresh_end);
    int32_t *list = list_of(run, p, kv_head);
    choice->n_read = mai_pick(scores_of(run, p, kv_head), p->n_runs, shape->group, first_scored(p),
                              p->n_runs, least, always, list);
    choice->n_rest = p->n_scored - (choice->n_read - always);
    choice->too_much = !finite || mai_select_too_much(p->n_scored - choice->n_rest, p->n_scored);
    choice->selects = !choice->too_much;
    if (choice->selects) leave_out(run, p, kv_head, list, choice->n_read);
}

/* The group takes part in what is computed of the row from the end of its runs on; what is before
 * that, but for the first tokens, its selection stands for. */
static void begin_selection(const mai_run *run, int r, int kv_head)
{
    const mai_shape *shape = &run->m->shape;
    const int64_t end = (int64_t)run->plan->rows[r].n_runs << MAI_RUN_SHIFT;
    int64_t *start = (int64_t *)run->work->start.ptr + (size_t)r * (size_t)shape->n_heads;
    mai_choice *choice = mai_choice_of(run, r, kv_head);
    for (int h = kv_head * shape->group; h < (kv_head + 1) * shape->group; h++) {
        mai_decision *decision = mai_decision_of(run, r, h);
        choice->passed_by = decision->refused;
        decision->hit = decision->refused = false;
        decision->start = start[h] = end;
    }
}

void mai_select_rows(mai_run *run)
{
    const int n_rows = run->plan->n_rows, n_kv_heads = run->m->shape.n_kv_heads;
    const int64_t begin = mai_now_ns();
    for (int i = 0; i < n_rows * n_kv_heads; i++)
        *mai_choice_of(run, i / n_kv_heads, i % n_kv_heads) =
            choose(run, i / n_kv_heads, i % n_kv_heads);
    const int n = score_items(run);
    if (n > 0) {
        mai_threads_run(run->m->threads, n, score_task, run);
        mai_threads_run(run->m->threads, n_rows * n_kv_heads, pick_task, run);
    }
    for (int i = 0; i < n_rows * n_kv_heads; i++) {
        const mai_choice *choice = mai_choice_of(run, i / n_kv_heads, i % n_kv_heads);
        if (choice->selects && !choice->checks)
            begin_selection(run, i / n_kv_heads, i % n_kv_heads);
    }
    run->select_ns += mai_now_ns() - begin;
}

/* --------------------------------------------------------------------------------------- parts -- */

/* Items to a part where n are divided into at most `parts` of at least `least`. */
static int32_t part_size(int32_t n, int32_t parts, int32_t least)
{
    const int32_t size = (n + parts - 1) / parts;
    return size > least ? size : least;
}

enum { LEAST_LISTED = 8, LEAST_RESTING = 64 }; /* runs to a part: what is worth handing out */

static int32_t list_part(const mai_choice *choice)
{
    return part_size(choice->n_read, MAI_LIST_PARTS, LEAST_LISTED);
}

static int32_t rest_part(const mai_row_plan *p)
{
    return part_size(p->n_scored, MAI_REST_PARTS, LEAST_RESTING);
}

/* Whether a selection has a part. */
static bool has_part(const mai_row_plan *p, const mai_choice *choice, int part)
{
    if (part == MAI_GAP_PART)
        return choice->checks && (int64_t)p->n_runs << MAI_RUN_SHIFT < p->far_end;
    if (part >= MAI_LIST_PARTS)
        return choice->n_rest > 0 && (part - MAI_LIST_PARTS) * rest_part(p) < p->n_scored;
    return part * list_part(choice) < choice->n_read;
}

/* The i-th part to hand out. What is listed waits for memory, what stands in is computed from the
 * caches: in turns, so that threads do both at a time. */
static int part_in_turn(int i)
{
    _Static_assert(MAI_LIST_PARTS == 2 * MAI_REST_PARTS, "two of the list to one of the rest");
    if (i >= MAI_LIST_PARTS + MAI_REST_PARTS) return i;
    return i % 3 == 2 ? MAI_LIST_PARTS + i / 3 : i / 3 * 2 + i % 3;
}

int mai_select_items(const mai_run *run, mai_item *items, int n)
{
    for (int r = 0; r < run->plan->n_rows; r++) {
        for (int kv_head = 0; kv_head < run->m->shape.n_kv_heads; kv_head++) {
            const mai_choice *choice = mai_choice_of(run, r, kv_head);
            for (int i = 0; choice->selects && i < MAI_SELECT_PARTS; i++) {
                const int part = part_in_turn(i);
                if (has_part(&run->plan->rows[r], choice, part))
                    items[n++] = (mai_item){r, 0, kv_head, kv_head + 1, part};
            }
        }
    }
    return n;
}

/* Where the results of a part lie, in units of heads. */
static size_t part_at(const mai_run *run, const mai_row_plan *p, int part)
{
    return ((size_t)p->select_row * MAI_SELECT_PARTS + (size_t)part) *
           (size_t)run->m->shape.n_heads;
}

static void read_part(const mai_run *run, const mai_item *item, void *scratch)
{
    const macattn *m = run->m;
    const mai_row_plan *p = &run->plan->rows[item->row];
    const mai_choice *choice = mai_choice_of(run, item->row, item->kv0);
    const size_t at = part_at(run, p, item->part), width = (size_t)m->ring_dims.width;
    mai_attend_args args = {
        .shape = &m->shape,
        .tokens = mai_run_tokens(run, p),
        .t0 = (int64_t)p->n_runs << MAI_RUN_SHIFT,
        .t1 = p->far_end,
        .kv0 = item->kv0,
        .kv1 = item->kv1,
        .q = mai_query_of(run, item->row, 0),
        .out = (float *)run->work->select_out.ptr + at * width,
        .out_stride = (int64_t)width,
        .keys = (const uint8_t *)run->work->keys.ptr + item->row * m->shape.n_kv_heads,
        .lse = (float *)run->work->select_lse.ptr + at,
        .scratch = scratch,
    };
    if (item->part != MAI_GAP_PART) {
        const int32_t size = list_part(choice), from = item->part * size;
        const int32_t to = from + size < choice->n_read ? from + size : choice->n_read;
        args.tokens.runs = list_of(run, p, item->kv0);
        args.t0 = (int64_t)from << MAI_RUN_SHIFT;
        args.t1 = (int64_t)to << MAI_RUN_SHIFT;
        if (from == 0) args.t0 += mai_list_skip(p->fresh_end);
    }
    m->backend->attend(&args);
}

static void stand_in_part(const mai_run *run, const mai_item *item, void *scratch)
{
    const macattn *m = run->m;
    const mai_row_plan *p = &run->plan->rows[item->row];
    const int32_t size = rest_part(p), from = (item->part - MAI_LIST_PARTS) * size;
    const size_t width = (size_t)m->ring_dims.width;
    const size_t at = part_at(run, p, item->part) + (size_t)item->kv0 * (size_t)m->shape.group;
    const mai_stand_in_args args = {
        .shape = &m->shape,
        .dims = &m->runs_dims,
        .segments = mai_run_segments_of(run, p),
        .kv_head = item->kv0,
        .n = from + size < p->n_scored ? size : p->n_scored - from,
        .run0 = first_scored(p) + from,
        .scores = scores_of(run, p, item->kv0),
        .stride = p->n_runs,
        .top = totals_of(run, p, item->kv0),
        .out = (float *)run->work->select_out.ptr + at * width,
        .out_stride = (int64_t)width,
        .keys = ((const uint8_t *)run->work->keys.ptr)[item->row * m->shape.n_kv_heads + item->kv0],
        .lse = (float *)run->work->select_lse.ptr + at,
        .scratch = scratch,
    };
    m->backend->stand_in(&args);
}

void mai_select_part(const mai_run *run, const mai_item *item, void *scratch)
{
    if (item->part >= MAI_LIST_PARTS && item->part < MAI_GAP_PART)
        stand_in_part(run, item, scratch);
    else
        read_part(run, item, scratch);
}

void mai_add_selection(const mai_run *run, int r, int head, mai_parts *parts)
{
    const mai_row_plan *p = &run->plan->rows[r];
    const mai_choice *choice = mai_choice_of(run, r, head / run->m->shape.group);
    for (int part = 0; part < MAI_SELECT_PARTS; part++) {
        if (!has_part(p, choice, part)) continue;
        const size_t at = part_at(run, p, part) + (size_t)head;
        mai_add_part(
            parts, (const float *)run->work->select_out.ptr + at * (size_t)run->m->ring_dims.width,
            ((const float *)run->work->select_lse.ptr)[at]);
    }
}

/* ------------------------------------------------------------------------------------ learning -- */

static float *off2_of(const mai_run *run, int r, int head)
{
    const size_t row = (size_t)run->plan->rows[r].select_row;
    return (float *)run->work->select_off2.ptr + row * (size_t)run->m->shape.n_heads + (size_t)head;
}

void mai_note_check(const mai_run *run, int r, int head, const mai_exact *exact, mai_parts *parts)
{
    float used[MAI_MAX_DIM], used_lse;
    parts->n = 0;
    mai_add_selection(run, r, head, parts);
    run->m->backend->merge(run->m->shape.dv, parts->n, parts->in.o, parts->in.lse, used, &used_lse);
    *off2_of(run, r, head) = mai_swap_off2(exact, used, used_lse, run->m->shape.dv);
}

static void learn_check(const mai_run *run, int r, int kv_head, float unit2)
{
    const int group = run->m->shape.group;
    float error2 = 0;
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
        error2 += *off2_of(run, r, h) / unit2;
    error2 /= (float)group;
    mai_select_checked(mai_selector_of(run, kv_head), mai_choice_of(run, r, kv_head)->k, error2);
    if (unit2 > 0) mai_stats_add_check(run->m, run->layer, kv_head, (double)error2);
}

void mai_learn_selection(const mai_run *run, int kv_head, float unit2)
{
    int n_selected = 0, n_checked = 0;
    bool too_much = false;
    for (int r = 0; r < run->plan->n_rows; r++) {
        const mai_choice *choice = mai_choice_of(run, r, kv_head);
        const bool checked = choice->selects && choice->checks;
        too_much |= choice->too_much;
        n_checked += checked;
        n_selected += choice->selects && !checked;
        if (checked) learn_check(run, r, kv_head, unit2);
    }
    mai_select_note(mai_selector_of(run, kv_head), n_selected, n_checked, too_much);
}
