/* SPDX-License-Identifier: Apache-2.0 */
/* The budget policy without selection: what is refused is exact to the bit, what is used stays
 * within the budget, which is in units of the layer, prompts teach, a group is judged as one, heads
 * may have budgets of their own, what never pays rests, and none of it depends on threads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/policy/judge.h"
#include "support.h"

enum { HEADS = 8, DIM = 32, CAPACITY = 700 };

static const test_sequence seq = {11, 5, 0.05};

static macattn_config budget_config(float budget)
{
    macattn_config cfg = test_config(HEADS, 2, DIM);
    cfg.policy = MACATTN_POLICY_BUDGET;
    cfg.budget = budget;
    cfg.ring = 48;
    cfg.band = 16;
    cfg.fresh_tokens = 3;
    cfg.min_tokens = 0;
    cfg.select = 0; /* test_select.c */
    return cfg;
}

/* Plan the row [n - n_queries, n) of a slot. */
static void plan_row(macattn *m, test_bench *b, int32_t slot, int64_t n, int32_t n_queries)
{
    test_bench_row(b, 0, slot, 0, &seq, n, n_queries);
    b->batch.n_rows = 1;
    assert_ok(m, macattn_plan(m, &b->batch));
    test_bench_queries(b, 1, &seq, 0);
    /* Without RoPE: how far a query is then says how far its result is. */
    for (int32_t i = 0; i < n_queries * HEADS; i++) {
        float q[DIM], q_match[DIM];
        test_query(&seq, &b->cfg, n - n_queries + i / HEADS, 0, i % HEADS, q, q_match);
        test_bench_set_query(b, i / HEADS, i % HEADS, q_match, q_match);
    }
}

static void plan_step(macattn *m, test_bench *b, int64_t n)
{
    plan_row(m, b, 0, n, 1);
}

/* A budget of nothing, or next to nothing: exact attention, bit for bit, although candidates are
 * tried. */
static void nothing_allowed(float budget)
{
    const macattn_config cfg = budget_config(budget);
    macattn_config exact_cfg = cfg;
    exact_cfg.policy = MACATTN_POLICY_EXACT;
    macattn *m = test_create(&cfg), *exact = test_create(&exact_cfg);
    const float sinks[HEADS] = {0.5f, -1, 2, 0, 1, -3, 0.25f, 4};
    test_bench b = test_bench_of(m, 1, CAPACITY, 1);
    float out[HEADS * DIM];
    for (int64_t n = 1; n < 300; n++) {
        plan_step(m, &b, n);
        b.io.sinks = n % 2 ? sinks : NULL;
        assert_ok(m, macattn_decode(m, 0, &b.io));
        memcpy(out, b.out, sizeof out);
        plan_step(exact, &b, n);
        assert_ok(exact, macattn_attend(exact, &b.io));
        test_same_bits("a step", out, b.out, sizeof out);
        for (int32_t h = 0; h < HEADS; h++) assert_false(test_decision(m, 0, h)->hit);
    }
    for (int32_t h = 0; h < HEADS; h++) {
        assert_in_range(m->records[h].n_samples, budget > 0 ? 32 : 0, budget > 0 ? 64 : 0);
    }
    test_bench_destroy(&b);
    macattn_destroy(m);
    macattn_destroy(exact);
}

static void test_nothing_allowed(void **state)
{
    (void)state;
    nothing_allowed(0);
    nothing_allowed(1e-30f);
}

typedef struct tally {
    int64_t hits, steps, over;
    double sum2;
} tally;

static double error_of(const float *x, const float *y, double unit2)
{
    double error2 = 0;
    for (int i = 0; i < DIM; i++)
        error2 += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sqrt(error2 / unit2);
}

static tally run(float budget)
{
    const macattn_config cfg = budget_config(budget);
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, 1);
    float out[HEADS * DIM];
    tally t = {0};
    for (int64_t n = 1; n < CAPACITY; n++) {
        const double unit2 = (double)mai_layer_unit2(m->records, HEADS);
        plan_step(m, &b, n);
        assert_ok(m, macattn_decode(m, 0, &b.io));
        memcpy(out, b.out, sizeof out);
        bool hit[HEADS];
        for (int32_t h = 0; h < HEADS; h++) {
            hit[h] = test_decision(m, 0, h)->hit;
            /* A group is used or refused as one. */
            for (int32_t i = h / 4 * 4; i < h / 4 * 4 + 4; i++) {
                assert_int_equal(test_decision(m, 0, i)->hit, hit[h]);
            }
        }
        test_bench_poison(&b);
        assert_ok(m, macattn_attend(m, &b.io));
        for (int32_t h = 0; h < HEADS; h++) {
            const double e = hit[h] ? error_of(out + h * DIM, b.out + h * DIM, unit2) : 0;
            t.steps++;
            if (!hit[h]) {
                test_same_bits("a miss", out + h * DIM, b.out + h * DIM, DIM * sizeof(float));
                continue;
            }
            t.hits++;
            t.sum2 += e * e;
            t.over += e > 2 * (double)budget;
        }
    }
    macattn_stats stats = {.struct_size = sizeof stats};
    assert_ok(m, macattn_stats_get(m, -1, -1, &stats));
    assert_int_equal((int64_t)stats.hits, t.hits);
    test_bench_destroy(&b);
    macattn_destroy(m);
    return t;
}

/* The root mean square of the errors of what is used is within the budget, and at most 4 of 100
 * are twice as large: a group is judged by its heads' mean square, so one head of it may be
 * expected to be off by more than the budget, and what happens scatters around what was
 * expected. A larger budget uses more. */
static void test_within_budget(void **state)
{
    (void)state;
    const float budgets[] = {0.02f, 0.05f, 0.2f};
    int64_t before = 0;
    for (size_t i = 0; i < 3; i++) {
        const tally t = run(budgets[i]);
        const double rms = t.hits > 0 ? sqrt(t.sum2 / (double)t.hits) : 0.0;
        print_message("budget %g: %lld of %lld hit, errors %.4f, %lld beyond twice the budget\n",
                      (double)budgets[i], (long long)t.hits, (long long)t.steps, rms,
                      (long long)t.over);
        assert_true(t.hits >= before);
        assert_true(rms <= (double)budgets[i]);
        assert_true(25 * t.over <= t.hits);
        before = t.hits;
    }
    assert_true(before > 4000);
}

static void test_threads(void **state)
{
    (void)state;
    macattn_config cfg = budget_config(0.1f);
    macattn *one = test_create(&cfg);
    cfg.n_threads = 3;
    macattn *three = test_create(&cfg);
    test_bench b = test_bench_of(one, 1, CAPACITY, 1);
    float out[HEADS * DIM];
    for (int64_t n = 1; n < 400; n++) {
        plan_step(one, &b, n);
        assert_ok(one, macattn_decode(one, 0, &b.io));
        memcpy(out, b.out, sizeof out);
        plan_step(three, &b, n);
        assert_ok(three, macattn_decode(three, 0, &b.io));
        test_same_bits("a step", out, b.out, sizeof out);
    }
    test_same_bits("what was learnt", one->records, three->records, HEADS * sizeof *one->records);
    test_bench_destroy(&b);
    macattn_destroy(one);
    macattn_destroy(three);
}

/* The share of the mass that the summary of head h made at position `pos` has in the whole
 * result, in the reference; `query` is the query's number in the plan. */
static double reference_share(const test_bench *b, int64_t query, int32_t h, int64_t pos)
{
    double q[DIM], out[DIM];
    const size_t row_bytes = macattn_dtype_row_bytes(b->cfg.q_dtype, DIM);
    const char *row = b->q + (size_t)(query * HEADS + h) * row_bytes;
    for (int64_t i = 0; i < DIM; i++) q[i] = ref_value(b->cfg.q_dtype, row, i);
    const double far = ref_range(&b->cfg, &b->batch, b->rows, &b->kv.view, h, q,
                                 b->cfg.fresh_tokens, pos + 1 - b->cfg.band, out);
    return exp(far - b->want_lse[query * HEADS + h]);
}

/* scale q.kbar of a query of the bench and an entry of the ring. */
static double key_logit(const macattn *m, const test_bench *b, int64_t query, int32_t h, size_t at)
{
    const float *kbar = m->slots[0].rings[0]->view.out + at * (size_t)m->ring_dims.width + DIM;
    const size_t row_bytes = macattn_dtype_row_bytes(b->cfg.q_dtype, DIM);
    const char *row = b->q + (size_t)(query * HEADS + h) * row_bytes;
    double s = 0;
    for (int64_t i = 0; i < DIM; i++) s += ref_value(b->cfg.q_dtype, row, i) * (double)kbar[i];
    return s * (double)b->cfg.scale;
}

/* How many queries of a call are remembered, all of which have something to remember. */
static int64_t kept_of(const macattn *m, int64_t n_queries)
{
    return mai_prompt_remembers(true, (int)n_queries, m->cfg.ring);
}

/* Fails unless what is kept of the newest `n_queries` positions up to n tokens is as the
 * reference has it, for heads without a hit; those with one built on an older summary, which is
 * why they are off. */
static int64_t check_shares(macattn *m, test_bench *b, int64_t n, int64_t n_queries, bool decoded)
{
    const mai_ring_view *ring = &m->slots[0].rings[0]->view;
    const int64_t kept = kept_of(m, n_queries);
    int64_t n_hits = 0;
    ref_attend(&b->cfg, &b->batch, &b->io, b->want, b->want_lse);
    for (int32_t h = 0; h < HEADS; h++) {
        for (int64_t back = 0; back < kept; back++) {
            const int64_t query = n_queries - 1 - back, pos = n - 1 - back;
            const size_t at = (size_t)h * (size_t)m->cfg.ring +
                              (size_t)((ring->head[h] - 1 - back + 2 * m->cfg.ring) % m->cfg.ring);
            assert_int_equal(ring->pos[at], pos);
            const double lse = (double)b->lse[query * HEADS + h];
            const double kept_share = (double)ring->share[at];
            const double far = (double)ring->lse0[at] + key_logit(m, b, query, h, at);
            assert_true(fabs(kept_share - exp(far - lse)) < 1e-5);
            if (decoded && test_decision(m, 0, h)->hit) {
                n_hits++;
            } else {
                assert_true(fabs(kept_share - reference_share(b, query, h, pos)) < 1e-5);
            }
        }
    }
    return n_hits;
}

/* With every summary its share of the result it was made for is kept: by prefill and by decode,
 * with a sink and without, and it stays with it when the slot is forked, saved and loaded. */
static void test_share_kept(void **state)
{
    (void)state;
    enum { PROMPT = 150 };
    macattn_config cfg = budget_config(0.1f);
    cfg.max_slots = 3;
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, PROMPT);
    const float sinks[HEADS] = {0.5f, -1, 2, 0, 1, -3, 0.25f, 4};
    int64_t n_hits = 0;
    b.io.sinks = sinks;
    test_bench_step(&b, m, 0, &seq, PROMPT, PROMPT);
    check_shares(m, &b, PROMPT, PROMPT, false);
    for (int64_t n = PROMPT + 1; n < 400; n++) {
        plan_step(m, &b, n);
        b.io.sinks = n % 2 ? sinks : NULL;
        assert_ok(m, macattn_decode(m, 0, &b.io));
        n_hits += check_shares(m, &b, n, 1, true);
    }
    assert_true(n_hits > 100);
    const mai_ring_view *ring = &m->slots[0].rings[0]->view;
    assert_ok(m, macattn_slot_fork(m, 0, 1));
    test_saved saved = test_save(m, 0);
    assert_ok(m, macattn_slot_load(m, 2, saved.data, saved.size));
    assert_ok(m, mai_slot_prepare(m, 1));
    mai_slot_ring(m, 1, 0); /* a fork shares the ring until then */
    const mai_ring_view *fork = &m->slots[1].rings[0]->view, *loaded = &m->slots[2].rings[0]->view;
    assert_ptr_not_equal(fork->share, ring->share);
    for (int32_t h = 0; h < HEADS; h++) {
        assert_int_equal(ring->count[h], cfg.ring);
        for (int32_t i = 0; i < cfg.ring; i++) { /* loading begins a ring with the oldest */
            const int32_t at = h * cfg.ring + (ring->head[h] + i) % cfg.ring;
            assert_true(ring->share[at] > 0 && fork->share[at] == ring->share[at]);
            assert_true(loaded->share[h * cfg.ring + i] == ring->share[at]);
        }
    }
    free(saved.data);
    test_bench_destroy(&b);
    macattn_destroy(m);
}

/* c^2 is the mean square of the errors by that of what they should be proportional to; the
 * distances of earlier reuse add up as squares. */
static void test_learning(void **state)
{
    (void)state;
    mai_record record = {.budget = 0.1f};
    mai_judgement j;
    for (int i = 0; i < 400; i++) {
        j = mai_expect(&record, 4, 0.5f, 0);
        assert_true(i >= 16 || !mai_group_accepts(&record, 1, 0));
        mai_record_sample(&record, &j, 4, (i % 2 ? 0.01f : 0.07f) * j.predicted);
    }
    assert_int_equal(record.n_samples, 64);
    /* The same at every step, so weight and distance are the usual ones. */
    assert_true(fabsf(record.weight - 0.5f) < 1e-5f && fabsf(record.distance - 2.0f) < 1e-5f);
    const float moved = 2.0f * sqrtf(1.0f + 0.05f * 0.05f), predicted = 1.25f * 0.5f * moved;
    j = mai_expect(&record, 4, 0.5f, 0);
    assert_true(fabsf(j.moved - moved) < 1e-5f && fabsf(j.predicted - predicted) < 1e-5f);
    assert_true(fabsf(j.error * record.budget - 0.05f * predicted) < 1e-3f * predicted);
    j = mai_expect(&record, 4, 0.5f, 3.0f);
    assert_true(fabsf(j.moved - sqrtf(moved * moved + 9.0f)) < 1e-5f);
    const mai_record before = record;
    mai_record_sample(&record, &j, 4, NAN); /* teaches nothing */
    test_same_bits("the record", &before, &record, sizeof before);
    mai_record_sample(&record, &j, 4, 1e30f); /* no glitch shuts a head for ever */
    assert_true(record.error2 < 0.1f);
}

/* A group is judged as one: by the mean square over its heads, each in its own units. */
static void test_group(void **state)
{
    (void)state;
    mai_habit habit = {0};
    mai_record records[4];
    for (int h = 0; h < 4; h++) records[h] = (mai_record){.budget = 0.1f, .n_samples = 16};
    assert_true(mai_group_accepts(records, 4, 4.0f));
    assert_false(mai_group_accepts(records, 4, 4.001f));
    assert_false(mai_group_accepts(records, 4, NAN));
    records[2].n_samples = 15;
    assert_false(mai_group_accepts(records, 4, 0));
    records[2].n_samples = 16;
    for (int i = 0; i < 64; i++) {
        assert_false(mai_is_check(&habit, 0, 1));
        mai_habit_note(&habit, 1, 0);
    }
    assert_true(mai_is_check(&habit, 0, 1)); /* time to look */
    /* Of a batch it is one row, another each time. */
    for (int turn = 0; turn < 6; turn++) {
        int checks = 0;
        for (int row = 0; row < 3; row++) checks += mai_is_check(&habit, row, 3);
        assert_int_equal(checks, 1);
        assert_true(mai_is_check(&habit, turn % 3, 3));
        mai_habit_note(&habit, 0, 0);
    }
    mai_habit_note(&habit, 0, 1);
    assert_false(mai_is_check(&habit, 0, 1));
    assert_int_equal(habit.refusals, 0); /* a check is no failure */
    assert_true(mai_group_searches(records, 4, &habit));
    records[3].budget = 0;
    assert_false(mai_group_searches(records, 4, &habit));
}

/* Refused time after time, a group rests, twice as long each time up to 64 steps; one use ends
 * it. */
static void test_rests(void **state)
{
    (void)state;
    const mai_record record = {.budget = 0.1f, .n_samples = 16};
    mai_habit habit = {0};
    for (int i = 0; i < 31; i++) mai_habit_note(&habit, 0, 1);
    assert_true(mai_group_searches(&record, 1, &habit));
    for (int rest = 8; rest <= 256; rest *= 2) {
        mai_habit_note(&habit, 0, 1);
        assert_int_equal(habit.rest, rest < 64 ? rest : 64);
        assert_false(mai_group_searches(&record, 1, &habit));
        for (int i = habit.rest; i > 0; i--) {
            assert_false(mai_group_searches(&record, 1, &habit));
            mai_habit_note(&habit, 0, 0);
        }
        assert_true(mai_group_searches(&record, 1, &habit));
    }
    mai_habit_note(&habit, 0, 0);
    assert_int_equal(habit.rest, 0);
    mai_habit_note(&habit, 1, 0);
    for (int i = 0; i < 31; i++) mai_habit_note(&habit, 0, 1);
    assert_int_equal(habit.rest, 0);
    /* A batch's rows are one step: a large batch waits no less, and is of use while any of its
     * rows is. */
    habit = (mai_habit){0};
    for (int i = 0; i < 31; i++) mai_habit_note(&habit, 0, 64);
    assert_int_equal(habit.rest, 0);
    mai_habit_note(&habit, 1, 63);
    assert_int_equal(habit.refusals, 0);
    for (int i = 0; i < 32; i++) mai_habit_note(&habit, 0, 64);
    assert_int_equal(habit.rest, 8);
}

static int64_t count_refused(const macattn *m)
{
    int64_t n = 0;
    for (int32_t h = 0; h < HEADS; h++) n += test_decision(m, 0, h)->refused;
    return n;
}

/* Hits by group in the steps [from, to). */
static void count_hits(macattn *m, test_bench *b, int64_t from, int64_t to, int64_t hits[2],
                       int64_t *refused)
{
    hits[0] = hits[1] = *refused = 0;
    for (int64_t n = from; n < to; n++) {
        plan_step(m, b, n);
        assert_ok(m, macattn_decode(m, 0, &b->io));
        for (int32_t h = 0; h < HEADS; h++) hits[h / 4] += test_decision(m, 0, h)->hit;
        *refused += count_refused(m);
    }
}

/* Where nothing is ever accepted, few steps search; a larger budget finds what they left. One head
 * without a budget keeps its group from reuse, and no other. */
static void test_head_budgets(void **state)
{
    (void)state;
    const macattn_config cfg = budget_config(1e-30f);
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, 1);
    int64_t hits[2], refused;
    count_hits(m, &b, 1, 300, hits, &refused);
    assert_true(hits[0] == 0 && hits[1] == 0);
    assert_true(refused >= 32 * HEADS && refused <= 48 * HEADS);
    assert_ok(m, macattn_set_head_budget(m, -1, -1, 0.3f));
    assert_ok(m, macattn_set_head_budget(m, 0, 2, 0));
    count_hits(m, &b, 300, 500, hits, &refused);
    assert_int_equal(hits[0], 0);
    assert_true(hits[1] > 300);
    assert_ok(m, macattn_set_head_budget(m, 0, 2, 0.3f));
    count_hits(m, &b, 500, CAPACITY, hits, &refused);
    assert_true(hits[0] > 300 && hits[1] > 300);
    test_bench_destroy(&b);
    macattn_destroy(m);
}

static int64_t remembered(const macattn *m, int32_t kv_head)
{
    int64_t n = 0;
    for (int32_t h = kv_head * 4; h < kv_head * 4 + 4; h++)
        n += m->slots[0].rings[0]->view.count[h];
    return n;
}

/* A group that may use nothing spends nothing on remembering either, in prompts as in decoding, and
 * is exact to the bit; what it has remembered stays, and it goes on when it may. */
static void test_no_budget_remembers_nothing(void **state)
{
    (void)state;
    enum { PROMPT = 100 };
    macattn_config cfg = budget_config(0.3f);
    macattn *m = test_create(&cfg);
    cfg.policy = MACATTN_POLICY_EXACT;
    macattn *exact = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, PROMPT),
               twin = test_bench_of(exact, 1, CAPACITY, PROMPT);
    assert_ok(m, macattn_set_head_budget(m, 0, 2, 0));
    test_bench_step(&b, m, 0, &seq, PROMPT, PROMPT);
    test_bench_step(&twin, exact, 0, &seq, PROMPT, PROMPT);
    assert_int_equal(remembered(m, 0), 0);
    assert_int_equal(remembered(m, 1), 4 * kept_of(m, PROMPT));
    for (int32_t i = 0; i < PROMPT; i++) {
        const size_t at = (size_t)i * HEADS;
        test_same_bits("prompt, group without a budget", b.out + at * DIM, twin.out + at * DIM,
                       4 * DIM * sizeof(float));
        test_same_bits("prompt's lse", b.lse + at, twin.lse + at, 4 * sizeof(float));
    }
    for (int64_t n = PROMPT + 1; n < PROMPT + 40; n++) {
        plan_step(m, &b, n);
        assert_ok(m, macattn_decode(m, 0, &b.io));
    }
    assert_int_equal(remembered(m, 0), 0);
    assert_ok(m, macattn_set_head_budget(m, 0, 2, 0.3f));
    int64_t hits[2], refused;
    count_hits(m, &b, PROMPT + 40, PROMPT + 50, hits, &refused);
    assert_int_equal(remembered(m, 0), 4 * 10);
    count_hits(m, &b, PROMPT + 50, 400, hits, &refused);
    assert_true(hits[0] > 100);
    const int64_t kept = remembered(m, 0);
    assert_ok(m, macattn_set_head_budget(m, 0, 1, 0));
    test_bench_step(&b, m, 0, &seq, 450, 50);
    count_hits(m, &b, 451, 460, hits, &refused);
    assert_int_equal(remembered(m, 0), kept);
    assert_int_equal(hits[0], 0);
    test_bench_destroy(&b);
    test_bench_destroy(&twin);
    macattn_destroy(m);
    macattn_destroy(exact);
}

/* More rows than a group is patient: what they teach in one step is enough to use candidates in
 * the next, and checks are of one row at a time. */
static void test_batch(void **state)
{
    (void)state;
    enum { ROWS = 40 };
    macattn_config cfg = budget_config(0.5f);
    cfg.max_slots = ROWS;
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, ROWS, 120, 1);
    b.batch.n_rows = ROWS;
    int64_t hits = 0, refused = 0;
    for (int64_t n = 1; n <= 100; n++) {
        for (int32_t r = 0; r < ROWS; r++) test_bench_row(&b, r, r, r, &seq, n, 1);
        assert_ok(m, macattn_plan(m, &b.batch));
        for (int32_t r = 0; r < ROWS; r++) {
            float q[DIM], q_match[DIM];
            for (int32_t h = 0; h < HEADS; h++) {
                test_query(&seq, &b.cfg, n - 1, 0, h, q, q_match);
                test_bench_set_query(&b, r, h, q_match, q_match);
            }
        }
        assert_ok(m, macattn_decode(m, 0, &b.io));
        for (int32_t r = 0; r < ROWS && n > 60; r++) {
            hits += test_decision(m, r, 0)->hit;
            refused += test_decision(m, r, 0)->refused;
        }
    }
    assert_true(hits > 30 * ROWS && refused > 0 && refused < 100);
    test_bench_destroy(&b);
    macattn_destroy(m);
}

/* ----------------------------------------------------------------------------------- prompts -- */

enum { PROMPT = 400, PROMPT_RING = 128 };

static macattn_config prompt_config(float budget)
{
    macattn_config cfg = budget_config(budget);
    cfg.ring = PROMPT_RING;
    return cfg;
}

static void prefill_row(macattn *m, test_bench *b, int64_t n, int32_t n_queries)
{
    plan_row(m, b, 0, n, n_queries);
    assert_ok(m, macattn_prefill(m, 0, &b->io));
}

/* What decoding the query at `pos` shows of every head, if only the prompt's queries from `first`
 * on are remembered, and the layer's unit is as in `like`: a record of one sample. */
static void decode_one(const macattn_config *cfg, const float *sinks, int64_t first, int64_t pos,
                       const mai_record *like, mai_record *shown, double *distance2, float *before)
{
    macattn *m = test_create(cfg);
    test_bench b = test_bench_of(m, 1, PROMPT, PROMPT);
    b.io.sinks = sinks;
    b.io.q_match = NULL;
    prefill_row(m, &b, first, (int32_t)first);
    b.io.q_match = b.q_match;
    for (int64_t n = first; n < pos;) { /* in calls of which all is remembered */
        const int64_t left = pos - n, size = left < MAI_PROMPT_LEAST ? left : MAI_PROMPT_LEAST;
        prefill_row(m, &b, n += size, (int32_t)size);
    }
    for (int32_t h = 0; h < HEADS; h++) {
        m->records[h] = (mai_record){
            .budget = like[h].budget, .output2 = like[h].output2, .n_outputs = like[h].n_outputs};
    }
    plan_step(m, &b, pos + 1);
    assert_ok(m, macattn_decode(m, 0, &b.io));
    for (int32_t h = 0; h < HEADS; h++) {
        const mai_decision *d = test_decision(m, 0, h);
        assert_true(d->refused);
        assert_int_equal(m->records[h].n_samples, 1);
        shown[h] = m->records[h];
        distance2[h] = d->distance2;
        before[h] = m->slots[0].rings[0]->view.moved[h * cfg->ring + d->entry];
    }
    test_bench_destroy(&b);
    macattn_destroy(m);
}

static void close_to(const char *what, float got, double want)
{
    if (!(fabs((double)got - want) <= 2e-3 * fabs(want) + 1e-9))
        fail_msg("%s: %.9g, not %.9g", what, (double)got, want);
}

/* After a prompt a head's record is what decoding the same queries, all of them refused, would have
 * made of it. */
static void test_prompt_as_decode(void **state)
{
    (void)state;
    static const float sinks[HEADS] = {0.5f, -1, 2, 0, 1, -3, 0.25f, 4};
    for (int variant = 0; variant < 3; variant++) {
        macattn_config cfg = prompt_config(0.1f);
        cfg.lse_order = variant < 2;
        cfg.softcap = variant == 1 ? 4.0f : 0.0f;
        macattn *m = test_create(&cfg);
        test_bench b = test_bench_of(m, 1, PROMPT, PROMPT);
        b.io.sinks = variant == 2 ? NULL : sinks;
        prefill_row(m, &b, PROMPT, PROMPT);
        const int kept = (int)kept_of(m, PROMPT), n_samples = mai_prompt_samples(kept);
        assert_int_equal(kept, PROMPT / MAI_PROMPT_SHARE);
        assert_int_equal(n_samples, kept / MAI_PROMPT_APART);
        mai_record want[HEADS];
        for (int32_t h = 0; h < HEADS; h++) want[h] = (mai_record){.budget = 0.1f};
        for (int i = 0; i < n_samples; i++) {
            const int64_t pos = PROMPT - kept + mai_prompt_sample_at(i, n_samples, kept);
            mai_record shown[HEADS];
            double distance2[HEADS];
            float before[HEADS];
            decode_one(&cfg, b.io.sinks, PROMPT - kept, pos, m->records, shown, distance2, before);
            for (int32_t h = 0; h < HEADS; h++) {
                const mai_judgement j =
                    mai_expect(&want[h], distance2[h], shown[h].weight, before[h]);
                mai_record_sample(&want[h], &j, distance2[h], sqrtf(shown[h].error2));
                double norm2 = 0;
                for (int32_t k = 0; k < DIM; k++) {
                    const double x = (double)b.out[(pos * HEADS + h) * DIM + k];
                    norm2 += x * x;
                }
                mai_note_output(&want[h], (float)norm2);
            }
        }
        for (int32_t h = 0; h < HEADS; h++) {
            const mai_record *got = &m->records[h];
            assert_int_equal(got->n_samples, n_samples);
            assert_int_equal(got->n_outputs, n_samples);
            assert_true(want[h].error2 > 1e-9f);
            close_to("error2", got->error2, (double)want[h].error2);
            close_to("predicted2", got->predicted2, (double)want[h].predicted2);
            close_to("weight", got->weight, (double)want[h].weight);
            close_to("distance", got->distance, (double)want[h].distance);
            close_to("output2", got->output2, (double)want[h].output2);
        }
        test_bench_destroy(&b);
        macattn_destroy(m);
    }
}

/* Which of a call's remembered queries are samples: evenly spread, the last included, and so few
 * that they cost little. */
static void test_prompt_samples(void **state)
{
    (void)state;
    for (int n = 0; n < 3000; n++) {
        const int samples = mai_prompt_samples(n);
        assert_true(samples <= MAI_PROMPT_SAMPLES && samples * MAI_PROMPT_APART <= n);
        for (int i = 0, before = -1; i < samples; i++) {
            const int at = mai_prompt_sample_at(i, samples, n);
            assert_true(at - before >= n / samples && at - before <= n / samples + 1);
            if (i + 1 == samples) assert_int_equal(at, n - 1);
            before = at;
        }
    }
    assert_int_equal(mai_prompt_samples(256), MAI_MIN_SAMPLES);
    assert_int_equal(2 * mai_prompt_samples(mai_prompt_remembers(true, 512, 256)), MAI_MIN_SAMPLES);
}

/* Every entry is what the reference has for the query of its position. */
static void check_entries(macattn *m, test_bench *b)
{
    const mai_ring_view *ring = &m->slots[0].rings[0]->view;
    const size_t width = (size_t)m->ring_dims.width;
    for (int32_t h = 0; h < HEADS; h++) {
        for (int32_t i = 0; i < ring->count[h]; i++) {
            const size_t at = (size_t)(h * m->cfg.ring + i);
            float q[DIM], q_match[DIM];
            double x[DIM], out[DIM], kbar[DIM];
            test_query(&seq, &b->cfg, ring->pos[at], 0, h, q, q_match);
            for (int k = 0; k < DIM; k++) x[k] = (double)q_match[k];
            (void)ref_range_keys(&b->cfg, &b->batch, b->rows, &b->kv.view, h, x,
                                 b->cfg.fresh_tokens, ring->end[at], out, kbar);
            test_close("a summary", ring->out + at * width, out, DIM, 1e-5);
            test_close("its keys", ring->out + at * width + DIM, kbar, DIM, 1e-5);
        }
    }
}

/* Of a call some of the queries are remembered, the last ones: a whole ring of a long call, all of a
 * short one. Of a prompt in pieces the ring holds several pieces' queries, each as the reference has
 * it. */
static void test_prompt_pieces(void **state)
{
    (void)state;
    enum { PIECE = 80, PIECES = 5 };
    assert_int_equal(mai_prompt_remembers(true, 4096, 256), 256);
    assert_int_equal(mai_prompt_remembers(true, 512, 256), 64);
    assert_int_equal(mai_prompt_remembers(true, 256, 256), 32);
    assert_int_equal(mai_prompt_remembers(true, 2, 256), 2);
    assert_int_equal(mai_prompt_remembers(false, 512, 256), 256);
    assert_int_equal(mai_prompt_remembers(false, 200, 256), 200);
    assert_int_equal(mai_prompt_remembers(true, 512, 16), 16);
    const macattn_config cfg = prompt_config(0.1f);
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, PIECE * PIECES + 2, PIECE);
    for (int i = 1; i <= PIECES; i++) prefill_row(m, &b, i * PIECE, PIECE);
    prefill_row(m, &b, PIECE * PIECES + 2, 2);
    const mai_ring_view *ring = &m->slots[0].rings[0]->view;
    for (int32_t h = 0; h < HEADS; h++) {
        assert_int_equal(ring->count[h], cfg.ring);
        for (int32_t back = 0; back < cfg.ring; back++) {
            const int32_t at = (ring->head[h] - 1 - back + cfg.ring) % cfg.ring, k = back - 2;
            const int64_t pos =
                back < 2 ? PIECE * PIECES + 1 - back
                         : (PIECES - k / MAI_PROMPT_LEAST) * PIECE - 1 - k % MAI_PROMPT_LEAST;
            assert_int_equal(ring->pos[h * cfg.ring + at], pos);
        }
    }
    check_entries(m, &b);
    test_bench_destroy(&b);
    macattn_destroy(m);
}

/* The swap of a summary is what merging the parts anew gives. */
static void test_swap(void **state)
{
    (void)state;
    test_rng rng = {3};
    for (int i = 0; i < 2000; i++) {
        double far = test_normal(&rng), far_lse = 4 * test_normal(&rng);
        double used = test_normal(&rng), used_lse = far_lse + 3 * test_normal(&rng);
        const double near = test_normal(&rng), near_lse = 4 * test_normal(&rng);
        double out = near, lse = near_lse, hit = near, hit_lse = near_lse;
        ref_merge(1, &out, &lse, &far, far_lse);
        ref_merge(1, &hit, &hit_lse, &used, used_lse);
        const mai_swap s = mai_swap_far((float)far_lse, (float)used_lse, (float)lse);
        const double off = (double)s.in * (used - out) - (double)s.out * (far - out);
        /* Where the far part is nearly all, the rest is a small difference. */
        const double rest = exp(near_lse - lse);
        if (!(fabs(off - (hit - out)) < 1e-5 + 1e-5 / (rest + exp(used_lse - lse))))
            fail_msg("%.9g, not %.9g", off, hit - out);
    }
    const mai_swap far_off = mai_swap_far(0, 500, 0.5f);
    assert_true(far_off.in == 1 && far_off.out == 0);
}

/* What prompts teach does not depend on threads, nor on the order in which they finish: rows of a
 * batch in chunks. */
static void test_prompt_threads(void **state)
{
    (void)state;
    enum { ROWS = 3 };
    macattn_config cfg = prompt_config(0.1f);
    cfg.max_slots = ROWS;
    macattn *m[2];
    for (int i = 0; i < 2; i++) {
        const test_sequence s[ROWS] = {{11, 5, 0.05}, {12, 3, 0.1}, {13, 9, 0.2}};
        cfg.n_threads = 1 + 2 * i;
        m[i] = test_create(&cfg);
        test_bench b = test_bench_of(m[i], ROWS, 300, 60);
        for (int64_t n = 60; n <= 300; n += 60) {
            for (int32_t r = 0; r < ROWS; r++) { /* with tokens added behind its back */
                test_bench_row(&b, r, r, r, &s[r], n, 60);
                b.rows[r].n_queries = 60 - 7 * r;
            }
            test_bench_run(&b, m[i], ROWS, s);
        }
        test_bench_destroy(&b);
    }
    assert_int_equal(m[0]->records[0].n_outputs, 5 * ROWS * mai_prompt_samples(MAI_PROMPT_LEAST));
    for (int32_t h = 0; h < HEADS; h++) assert_true(m[0]->records[h].n_samples > 20);
    test_same_bits("records", m[0]->records, m[1]->records, sizeof(mai_record) * HEADS);
    assert_memory_equal(m[0]->habits, m[1]->habits, sizeof(mai_habit) * 2);
    macattn_destroy(m[0]);
    macattn_destroy(m[1]);
}

/* A prompt is enough to begin with; it ends rests if it shows that they are not needed any more. */
static void test_prompt_begins(void **state)
{
    (void)state;
    for (int variant = 0; variant < 3; variant++) {
        macattn_config cfg = prompt_config(variant == 1 ? 1e-30f : 0.3f);
        cfg.ring = 256;
        cfg.min_tokens = variant == 2 ? PROMPT + 1 : 0;
        macattn *m = test_create(&cfg);
        test_bench b = test_bench_of(m, 1, PROMPT + 10, PROMPT);
        for (int i = 0; i < 2; i++)
            m->habits[i] = (mai_habit){.rest = 30, .pause = 32, .refusals = 40};
        for (int64_t n = PROMPT / 4; n <= PROMPT; n += PROMPT / 4)
            prefill_row(m, &b, n, PROMPT / 4);
        assert_int_equal(m->records[0].n_samples, variant == 2 ? 0 : MAI_MIN_SAMPLES);
        assert_int_equal(m->habits[0].rest, variant == 0 ? 0 : 30);
        assert_int_equal(m->habits[1].refusals, variant == 0 ? 0 : 40);
        for (int i = 0; i < 2; i++) m->habits[i] = (mai_habit){0};
        plan_step(m, &b, PROMPT + 1);
        assert_ok(m, macattn_decode(m, 0, &b.io));
        for (int32_t h = 0; h < HEADS; h++)
            assert_int_equal(test_decision(m, 0, h)->hit, variant == 0);
        test_bench_destroy(&b);
        macattn_destroy(m);
    }
}

/* -------------------------------------------------------------------------------------- unit -- */

/* The values of one KV head are a thousandth of the other's: whatever its heads are off by hardly
 * moves the layer, and they are used, however far they are off by their own measure. */
static void test_unit(void **state)
{
    (void)state;
    const macattn_config cfg = budget_config(0.004f);
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, 1);
    int64_t hits[2] = {0, 0}, samples = 0, refused = 0;
    for (int64_t n = 1; n < 500; n++) {
        plan_step(m, &b, n);
        float k[DIM], v[DIM];
        test_token(&seq, &b.cfg, n - 1, 1, k, v);
        for (int i = 0; i < DIM; i++) v[i] *= 1e-3f;
        test_kv_put(&b.kv, &b.cfg, 0, n - 1, 1, k, v);
        const bool known = mai_layer_unit2(m->records, HEADS) > 0;
        assert_ok(m, macattn_decode(m, 0, &b.io));
        for (int32_t h = 0; h < HEADS; h++) {
            hits[h / 4] += test_decision(m, 0, h)->hit;
            refused += test_decision(m, 0, h)->refused;
            samples += test_decision(m, 0, h)->refused && known;
        }
    }
    macattn_stats stats[2], all = {.struct_size = sizeof all};
    assert_ok(m, macattn_stats_get(m, -1, -1, &all));
    assert_int_equal((int64_t)all.samples, samples);
    assert_true(refused - samples <= HEADS && samples > 0);
    for (int i = 0; i < 2; i++) {
        stats[i] = (macattn_stats){.struct_size = sizeof *stats};
        assert_ok(m, macattn_stats_get(m, 0, 4 * i, &stats[i]));
        assert_true(stats[i].samples > 10 && stats[i].error2_head > 0);
    }
    const double own = sqrt(stats[1].error2_head / (double)stats[1].samples),
                 layer = sqrt(stats[1].error2_layer / (double)stats[1].samples);
    print_message("hits %lld and %lld of 1996; errors of the small heads %.3g, of the layer %.2g\n",
                  (long long)hits[0], (long long)hits[1], own, layer);
    assert_true(own > 5 * (double)cfg.budget && layer < (double)cfg.budget);
    assert_true(hits[1] > 4 * 400 && hits[0] < hits[1] / 2);
    assert_ok(m, macattn_stats_reset(m));
    assert_ok(m, macattn_stats_get(m, -1, -1, &all));
    assert_true(all.samples == 0 && all.error2_layer == 0 && all.error2_head == 0);
    test_bench_destroy(&b);
    macattn_destroy(m);
}

/* ------------------------------------------------------------------------------------- rests -- */

/* While a group rests it remembers nothing, until shortly before it searches again; and what it
 * then finds was made as always. */
static void test_rest_remembers_nothing(void **state)
{
    (void)state;
    const macattn_config cfg = budget_config(1e-30f);
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, 1);
    int64_t idle = 0, woken = 0;
    for (int64_t n = 1; n < 300; n++) {
        const mai_habit habit = m->habits[1];
        plan_step(m, &b, n);
        const mai_ring_view *ring = &m->slots[0].rings[0]->view;
        const int32_t before = ring->head[4];
        /* What an earlier step has left must not matter. */
        test_poison(m->work.partial_out.ptr, m->work.partial_out.bytes);
        test_poison(m->work.refused_out.ptr, m->work.refused_out.bytes);
        assert_ok(m, macattn_decode(m, 0, &b.io));
        const bool covers = n > cfg.band + cfg.fresh_tokens;
        const bool remembers = covers && habit.rest <= MAI_WAKE;
        assert_int_equal(ring->head[4] != before, remembers);
        idle += covers && !remembers;
        woken += habit.rest > 0 && remembers;
    }
    assert_true(idle > 100 && woken >= 3 * MAI_WAKE);
    check_entries(m, &b);
    /* Wide awake, and allowed to: what is found is used, and right. */
    assert_ok(m, macattn_set_head_budget(m, -1, -1, 0.5f));
    for (int i = 0; i < 2; i++) m->habits[i] = (mai_habit){0};
    int64_t hits = 0;
    for (int64_t n = 300; n < 320; n++) {
        plan_step(m, &b, n);
        test_poison(m->work.partial_out.ptr, m->work.partial_out.bytes);
        assert_ok(m, macattn_decode(m, 0, &b.io));
        ref_attend(&b.cfg, &b.batch, &b.io, b.want, b.want_lse);
        for (int32_t h = 0; h < HEADS; h++) hits += test_decision(m, 0, h)->hit;
        test_close("after a rest", b.out, b.want, HEADS * DIM, 0.1);
    }
    assert_true(hits > 100);
    test_bench_destroy(&b);
    macattn_destroy(m);
}

static void test_bad_budgets(void **state)
{
    (void)state;
    macattn_config cfg = budget_config(0.1f);
    macattn *m = test_create(&cfg);
    assert_int_equal(macattn_set_head_budget(NULL, 0, 0, 0.1f), MACATTN_E_ARG);
    const struct {
        int32_t layer, head;
        float budget;
        const char *word;
    } bad[] = {{1, 0, 0.1f, "layer 1"},  {-2, 0, 0.1f, "layer -2"}, {0, HEADS, 0.1f, "head 8"},
               {0, -2, 0.1f, "head -2"}, {0, 0, -0.1f, "budget"},   {0, 0, 1.5f, "budget"},
               {0, 0, NAN, "budget"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(macattn_set_head_budget(m, bad[i].layer, bad[i].head, bad[i].budget),
                         MACATTN_E_RANGE);
        assert_non_null(strstr(macattn_last_error(m), bad[i].word));
    }
    for (int32_t h = 0; h < HEADS; h++) assert_true(m->records[h].budget == 0.1f);
    macattn_destroy(m);
    cfg.policy = MACATTN_POLICY_PAPER;
    m = test_create(&cfg);
    assert_int_equal(macattn_set_head_budget(m, 0, 0, 0.1f), MACATTN_E_STATE);
    macattn_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_allowed),
        cmocka_unit_test(test_within_budget),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_share_kept),
        cmocka_unit_test(test_learning),
        cmocka_unit_test(test_group),
        cmocka_unit_test(test_rests),
        cmocka_unit_test(test_head_budgets),
        cmocka_unit_test(test_no_budget_remembers_nothing),
        cmocka_unit_test(test_batch),
        cmocka_unit_test(test_prompt_samples),
        cmocka_unit_test(test_prompt_pieces),
        cmocka_unit_test(test_swap),
        cmocka_unit_test(test_prompt_as_decode),
        cmocka_unit_test(test_prompt_threads),
        cmocka_unit_test(test_prompt_begins),
        cmocka_unit_test(test_unit),
        cmocka_unit_test(test_rest_remembers_nothing),
        cmocka_unit_test(test_bad_budgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
