/* SPDX-License-Identifier: Apache-2.0 */
/* A long random program of operations on several sequences, in the library and in the reference.
 * After every decode and prefill the outputs are compared, and every decision. MACATTN_TEST_OPS
 * sets the number of operations, MACATTN_TEST_SEED where it starts. */
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS = 4, SAVES = 2, CAPACITY = 48, MOST_QUERIES = 12 };

/* A saved slot; the reference keeps its twin in slot SLOTS + i. */
typedef struct saved_slot {
    uint8_t *data;
    size_t size;
    int64_t length;
    char *k, *v; /* the tokens */
} saved_slot;

typedef struct model {
    test_rng rng;
    macattn *m;
    ref_mac *ref;
    test_bench b;
    int64_t length[SLOTS];
    saved_slot saves[SAVES];
    ref_decision decisions[SLOTS * 8];
    int64_t n_ops, n_calls, hits, misses, refused;
} model;

static int64_t below(model *x, int64_t n)
{
    return test_below(&x->rng, n);
}

/* --------------------------------------------------------------------------------- the world -- */

static macattn_config random_config(model *x)
{
    static const int32_t heads[][2] = {{1, 1}, {2, 1}, {2, 2}, {4, 2}, {6, 2}, {5, 1}};
    static const int32_t dims[] = {8, 16, 24, 32, 32};
    const int32_t *h = heads[below(x, 6)];
    macattn_config cfg = test_config(h[0], h[1], dims[below(x, 5)]);
    cfg.n_layers = 1 + (int32_t)below(x, 2);
    cfg.v_head_dim = dims[below(x, 5)];
    cfg.q_dtype = (macattn_dtype)below(x, 3);
    cfg.k_dtype = test_kv_type(&x->rng, cfg.head_dim);
    cfg.v_dtype = test_kv_type(&x->rng, cfg.v_head_dim);
    cfg.softcap = below(x, 5) ? 0.0f : 6.0f;
    cfg.window = below(x, 12) ? 0 : 1 + below(x, 20);
    cfg.max_slots = SLOTS;
    cfg.max_tokens = CAPACITY;
    cfg.policy = below(x, 12) ? MACATTN_POLICY_PAPER : MACATTN_POLICY_EXACT;
    cfg.ring = 1 + (int32_t)below(x, 24);
    cfg.band = 1 + (int32_t)below(x, 9);
    cfg.fresh_tokens = below(x, 2) || cfg.window ? 0 : (int32_t)below(x, 6);
    cfg.min_tokens = below(x, 12);
    cfg.lse_order = below(x, 4) > 0;
    cfg.tau = (float)(0.3 + 0.5 * test_uniform(&x->rng));
    cfg.n_threads = 1 + (int32_t)(below(x, 4) == 0);
    return cfg;
}

static void open_world(model *x)
{
    macattn_config cfg = random_config(x);
    x->m = test_create(&cfg);
    cfg = test_resolved(x->m);
    test_bench_create(&x->b, &cfg, SLOTS, CAPACITY, MOST_QUERIES);
    cfg.max_slots = SLOTS + SAVES;
    x->ref = ref_mac_create(&cfg);
    assert_non_null(x->ref);
    memset(x->length, 0, sizeof x->length);
}

static void close_world(model *x)
{
    for (int i = 0; i < SAVES; i++) {
        free(x->saves[i].data);
        free(x->saves[i].k);
        free(x->saves[i].v);
        x->saves[i] = (saved_slot){0};
    }
    macattn_destroy(x->m);
    ref_mac_destroy(x->ref);
    test_bench_destroy(&x->b);
}

/* Bytes of a slot's K and V; the last one's end with its last row. */
static size_t k_bytes(const model *x)
{
    const int64_t page = x->b.kv.view.k_page_stride;
    return x->b.kv.k.bytes - (size_t)((SLOTS - 1) * page);
}

static size_t v_bytes(const model *x)
{
    const int64_t page = x->b.kv.view.v_page_stride;
    return x->b.kv.v.bytes - (size_t)((SLOTS - 1) * page);
}

static char *k_of(const model *x, int64_t slot)
{
    return x->b.kv.k.data + slot * x->b.kv.view.k_page_stride;
}

static char *v_of(const model *x, int64_t slot)
{
    return x->b.kv.v.data + slot * x->b.kv.view.v_page_stride;
}

/* ---------------------------------------------------------------------------------- checking -- */

static void check_lengths(model *x)
{
    for (int32_t s = 0; s < SLOTS; s++) {
        int64_t n = -1;
        assert_ok(x->m, macattn_slot_length(x->m, s, &n));
        assert_int_equal(n, x->length[s]);
    }
}

/* What the slot would save: as many entries as the reference holds. */
static void check_state(model *x, int32_t slot)
{
    const macattn_config *c = &x->b.cfg;
    size_t size = 0;
    assert_ok(x->m, macattn_slot_save(x->m, slot, NULL, &size));
    const size_t entry = 20 + macattn_dtype_row_bytes(c->q_dtype, c->head_dim) +
                         sizeof(float) * (size_t)x->m->ring_dims.width;
    size_t held = 0, want = 0;
    for (int32_t l = 0; l < c->n_layers; l++) {
        for (int32_t h = 0; h < c->n_heads; h++) {
            want += (size_t)ref_mac_count(x->ref, slot, l, h);
        }
    }
    const size_t heads = (size_t)(c->n_layers * c->n_heads);
    size_t empty = 0; /* what a slot without entries takes: the same in every configuration */
    assert_ok(x->m, macattn_slot_reset(x->m, slot == 0));
    ref_mac_reset(x->ref, slot == 0);
    x->length[slot == 0] = 0;
    assert_ok(x->m, macattn_slot_save(x->m, slot == 0, NULL, &empty));
    held = (size - empty) / entry;
    if (held != want) {
        fail_msg("slot %d holds %zu entries, the reference %zu (%zu heads)", slot, held, want,
                 heads);
    }
}

static double tolerance(const model *x)
{
    return 4 * test_tolerance(sqrt((double)x->b.cfg.head_dim) * 2, CAPACITY, 4);
}

static void check_outputs(model *x)
{
    const size_t bytes = test_bench_out_bytes(&x->b);
    test_close("out", x->b.out, x->b.want, (int64_t)(bytes / sizeof(float)), tolerance(x));
    test_close_lse("lse", x->b.lse, x->b.want_lse, x->b.n_queries * x->b.cfg.n_heads, tolerance(x));
}

static void check_decisions(model *x)
{
    for (int32_t r = 0; r < x->b.batch.n_rows; r++) {
        for (int32_t h = 0; h < x->b.cfg.n_heads; h++) {
            const mai_decision *got = test_decision(x->m, r, h);
            const ref_decision *want = &x->decisions[r * x->b.cfg.n_heads + h];
            assert_int_equal(got->hit, want->hit);
            if (got->hit) {
                assert_int_equal(got->start, want->end);
                assert_true(got->distance2 == want->distance2);
            }
            x->hits += got->hit;
            x->misses += !got->hit;
        }
    }
}

/* -------------------------------------------------------------------------------- operations -- */

/* A batch over some slots, in any order. Tokens may be added behind the library's back. Returns
 * whether there is room for it. */
static bool random_batch(model *x, bool single, test_sequence *queries)
{
    int32_t slots[SLOTS], n_rows = 0;
    for (int32_t s = 0; s < SLOTS; s++) slots[s] = s;
    for (int32_t s = SLOTS - 1; s > 0; s--) {
        const int64_t j = below(x, s + 1);
        const int32_t slot = slots[s];
        slots[s] = slots[j];
        slots[j] = slot;
    }
    const int64_t want = 1 + below(x, SLOTS);
    for (int32_t i = 0; i < want; i++) {
        const int32_t s = slots[i];
        const int32_t n_queries = single ? 1 : 1 + (int32_t)below(x, MOST_QUERIES);
        const int64_t unseen = below(x, 6) ? 0 : below(x, 4);
        const int64_t n = x->length[s] + unseen + n_queries;
        if (n > CAPACITY) continue;
        /* New numbers each time: a replayed position is another token. */
        const test_sequence tokens = {test_random(&x->rng), 1, 0};
        test_bench_row(&x->b, n_rows, s, s, &tokens, n, n_queries + (int32_t)unseen);
        x->b.rows[n_rows].n_queries = n_queries;
        queries[n_rows++] = (test_sequence){7 + (uint64_t)below(x, 2), 3, 0.9};
    }
    x->b.batch.n_rows = n_rows;
    return n_rows > 0;
}

/* One query becomes NaN or infinite: here of the first row. */
static void spoil_query(model *x)
{
    float q[32] = {0}, q_match[32] = {0};
    q_match[below(x, x->b.cfg.head_dim)] = below(x, 2) ? NAN : INFINITY;
    test_bench_set_query(&x->b, 0, (int32_t)below(x, x->b.cfg.n_heads), q, q_match);
}

static void run_layers(model *x, bool single, const test_sequence *queries)
{
    const int32_t layers = below(x, 8) ? x->b.cfg.n_layers : 1; /* or some layers only */
    for (int32_t l = 0; l < layers; l++) {
        test_bench_queries(&x->b, x->b.batch.n_rows, queries, l);
        if (below(x, 10) == 0) spoil_query(x);
        x->b.io.q_match = below(x, 25) ? x->b.q_match : NULL;
        if (single && below(x, 12)) {
            assert_ok(x->m, macattn_decode(x->m, l, &x->b.io));
            ref_mac_decode(x->ref, &x->b.batch, l, &x->b.io, x->b.want, x->b.want_lse,
                           x->decisions);
            if (x->b.io.q_match) check_decisions(x);
        } else {
            assert_ok(x->m, macattn_prefill(x->m, l, &x->b.io));
            ref_mac_prefill(x->ref, &x->b.batch, l, &x->b.io, x->b.want, x->b.want_lse);
        }
        check_outputs(x);
        x->n_calls++;
    }
    for (int32_t r = 0; r < x->b.batch.n_rows; r++) {
        x->length[x->b.rows[r].slot] = x->b.rows[r].n_tokens;
    }
}

static void step(model *x)
{
    test_sequence queries[SLOTS];
    const bool single = below(x, 4) > 0;
    if (!random_batch(x, single, queries)) return;
    assert_ok(x->m, macattn_plan(x->m, &x->b.batch));
    if (below(x, 30) == 0) { /* the plan goes stale */
        const int32_t slot = x->b.rows[0].slot;
        test_bench_queries(&x->b, x->b.batch.n_rows, queries, 0);
        assert_ok(x->m, macattn_slot_reset(x->m, slot));
        ref_mac_reset(x->ref, slot);
        x->length[slot] = 0;
        assert_int_equal(macattn_prefill(x->m, 0, &x->b.io), MACATTN_E_STATE);
        x->refused++;
        return;
    }
    run_layers(x, single, queries);
}

static void truncate_slot(model *x, int32_t slot)
{
    const int64_t keep = below(x, 3) ? x->length[slot] - below(x, 6) : below(x, CAPACITY);
    const macattn_status status = macattn_slot_truncate(x->m, slot, keep);
    if (keep < 0 || keep > x->length[slot]) {
        assert_int_equal(status, MACATTN_E_RANGE);
        x->refused++;
        return;
    }
    assert_int_equal(status, MACATTN_OK);
    ref_mac_truncate(x->ref, slot, keep);
    x->length[slot] = keep;
}

static void fork_slot(model *x, int32_t from, int32_t to)
{
    const macattn_status status = macattn_slot_fork(x->m, from, to);
    if (from == to) {
        assert_int_equal(status, MACATTN_E_ARG);
        x->refused++;
        return;
    }
    assert_int_equal(status, MACATTN_OK);
    ref_mac_fork(x->ref, from, to);
    memcpy(k_of(x, to), k_of(x, from), k_bytes(x));
    memcpy(v_of(x, to), v_of(x, from), v_bytes(x));
    x->length[to] = x->length[from];
}

static void save_slot(model *x, int32_t slot, int i)
{
    saved_slot *s = &x->saves[i];
    free(s->data);
    free(s->k);
    free(s->v);
    assert_ok(x->m, macattn_slot_save(x->m, slot, NULL, &s->size));
    s->data = malloc(s->size);
    s->k = malloc(k_bytes(x));
    s->v = malloc(v_bytes(x));
    assert_true(s->data && s->k && s->v);
    assert_ok(x->m, macattn_slot_save(x->m, slot, s->data, &s->size));
    memcpy(s->k, k_of(x, slot), k_bytes(x));
    memcpy(s->v, v_of(x, slot), v_bytes(x));
    s->length = x->length[slot];
    ref_mac_fork(x->ref, slot, SLOTS + i);
}

static void load_slot(model *x, int32_t slot, int i)
{
    saved_slot *s = &x->saves[i];
    if (!s->data) return;
    if (below(x, 4) == 0) {
        const size_t at = (size_t)below(x, (int64_t)s->size);
        s->data[at] ^= 0x10;
        assert_int_equal(macattn_slot_load(x->m, slot, s->data, s->size), MACATTN_E_FORMAT);
        s->data[at] ^= 0x10;
        x->refused++;
    }
    assert_ok(x->m, macattn_slot_load(x->m, slot, s->data, s->size));
    memcpy(k_of(x, slot), s->k, k_bytes(x));
    memcpy(v_of(x, slot), s->v, v_bytes(x));
    x->length[slot] = s->length;
    ref_mac_fork(x->ref, SLOTS + i, slot);
}

static void operation(model *x)
{
    const int32_t slot = (int32_t)below(x, SLOTS);
    const int64_t which = below(x, 100);
    if (which < 70) {
        step(x);
    } else if (which < 82) {
        truncate_slot(x, slot);
    } else if (which < 88) {
        fork_slot(x, slot, (int32_t)below(x, SLOTS));
    } else if (which < 91) {
        assert_ok(x->m, macattn_slot_reset(x->m, slot));
        ref_mac_reset(x->ref, slot);
        x->length[slot] = 0;
    } else if (which < 94) {
        save_slot(x, slot, (int)below(x, SAVES));
    } else if (which < 97) {
        load_slot(x, slot, (int)below(x, SAVES));
    } else if (which < 98) {
        check_state(x, slot);
    } else {
        test_sequence queries[SLOTS];
        if (!random_batch(x, false, queries)) return;
        test_bench_queries(&x->b, x->b.batch.n_rows, queries, 0);
        assert_ok(x->m, macattn_plan(x->m, &x->b.batch));
        assert_ok(x->m, macattn_attend(x->m, &x->b.io));
        ref_attend(&x->b.cfg, &x->b.batch, &x->b.io, x->b.want, x->b.want_lse);
        check_outputs(x);
    }
    check_lengths(x);
}

static void test_random_program(void **state)
{
    (void)state;
    const uint64_t seed = test_env("MACATTN_TEST_SEED", 1);
    const int64_t n = (int64_t)test_env("MACATTN_TEST_OPS", TEST_LIGHT ? 4000 : 20000);
    model x = {.rng = {seed}};
    print_message("%lld operations from seed %llu\n", (long long)n, (unsigned long long)seed);
    while (x.n_ops < n) {
        /* Each world starts from a seed of its own, so that a failure is quickly found again. */
        const uint64_t world = test_hash(seed, (uint64_t)x.n_ops);
        x.rng.state = world;
        open_world(&x);
        for (int i = 0; i < 500 && x.n_ops < n; i++, x.n_ops++) operation(&x);
        close_world(&x);
    }
    print_message("%lld attention calls, %lld hits, %lld misses, %lld refusals\n",
                  (long long)x.n_calls, (long long)x.hits, (long long)x.misses,
                  (long long)x.refused);
    assert_true(x.n_calls > n / 4 && x.hits > n / 10 && x.misses > n / 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_program),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
