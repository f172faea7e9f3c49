/* SPDX-License-Identifier: Apache-2.0 */
/* The budget policy: what is refused is exact to the bit, what is used stays within the budget,
 * a group is judged as one, heads may have budgets of their own, what never pays rests, and none
 * of it depends on threads. */
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
    return cfg;
}

static void plan_step(macattn *m, test_bench *b, int64_t n)
{
    test_bench_row(b, 0, 0, 0, &seq, n, 1);
    b->batch.n_rows = 1;
    assert_ok(m, macattn_plan(m, &b->batch));
    test_bench_queries(b, 1, &seq, 0);
    /* Without RoPE: how far a query is then says how far its result is. */
    for (int32_t h = 0; h < HEADS; h++) {
        float q[DIM], q_match[DIM];
        test_query(&seq, &b->cfg, n - 1, 0, h, q, q_match);
        test_bench_set_query(b, 0, h, q_match, q_match);
    }
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

/* Fails unless what is kept of the newest `n_queries` positions up to n tokens is as the
 * reference has it, for heads without a hit; those with one built on an older summary, which is
 * why they are off. */
static int64_t check_shares(macattn *m, test_bench *b, int64_t n, int64_t n_queries, bool decoded)
{
    const mai_ring_view *ring = &m->slots[0].rings[0]->view;
    const int64_t kept = n_queries < m->cfg.ring ? n_queries : m->cfg.ring;
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

/* Where nothing is ever accepted, few steps search, but all remember; a larger budget finds what
 * they left. One head without a budget keeps its group from reuse, and no other. */
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
    assert_int_equal(remembered(m, 1), 4 * cfg.ring);
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
        cmocka_unit_test(test_bad_budgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
