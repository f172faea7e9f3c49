/* SPDX-License-Identifier: Apache-2.0 */
/* What happens to a sequence: reset, truncate, fork, save and load. A slot after any of them is,
 * to the bit, a slot that has seen just the tokens it is said to hold. */
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CAPACITY = 130, LAYERS = 2 };

static const test_sequence seq = {21, 5, 0.6}, other_seq = {22, 4, 0.6};

/* K and V are of other types in each test, and in each case of those that have several. */
static test_rng types = {4};
static macattn_dtype k_type, v_type;

static int other_types(void **state)
{
    (void)state;
    k_type = test_kv_type(&types, 32);
    v_type = test_kv_type(&types, 32);
    return 0;
}

/* Nothing falls out of the ring within CAPACITY tokens, so truncation gives back exactly what
 * was. */
static macattn_config slots_config(void)
{
    macattn_config cfg = test_config(4, 2, 32);
    cfg.k_dtype = k_type;
    cfg.v_dtype = v_type;
    cfg.n_layers = LAYERS;
    cfg.max_slots = 4;
    cfg.ring = 200;
    cfg.band = 9;
    cfg.min_tokens = 15;
    return cfg;
}

typedef struct world {
    macattn *m;
    test_bench b;
} world;

static world world_of(const macattn_config *cfg)
{
    world w = {.m = test_create(cfg)};
    w.b = test_bench_of(w.m, 4, CAPACITY, CAPACITY);
    return w;
}

static world world_create(void)
{
    const macattn_config cfg = slots_config();
    return world_of(&cfg);
}

static void world_destroy(world *w)
{
    macattn_destroy(w->m);
    test_bench_destroy(&w->b);
}

/* Tokens [from, to) of a sequence into a slot, one at a time, or at once. */
static void decode(world *w, int32_t slot, const test_sequence *s, int64_t from, int64_t to)
{
    for (int64_t n = from + 1; n <= to; n++) test_bench_step(&w->b, w->m, slot, s, n, 1);
}

static void prefill(world *w, int32_t slot, const test_sequence *s, int64_t from, int64_t to)
{
    test_bench_step(&w->b, w->m, slot, s, to, (int32_t)(to - from));
}

/* The tokens of one KV sequence become another's (a fork's, say). */
static void copy_tokens(world *w, int32_t from, int32_t to)
{
    test_kv *kv = &w->b.kv;
    const int64_t k = kv->view.k_page_stride, v = kv->view.v_page_stride;
    const size_t k_rest = kv->k.bytes - (size_t)(3 * k), v_rest = kv->v.bytes - (size_t)(3 * v);
    memcpy(kv->k.data + to * k, kv->k.data + from * k, k_rest);
    memcpy(kv->v.data + to * v, kv->v.data + from * v, v_rest);
}

/* The whole state of a slot is what it saves. */
static void assert_same_state(macattn *a, int32_t slot_a, macattn *b, int32_t slot_b)
{
    test_saved saved = test_save(a, slot_a);
    test_slot_holds(b, slot_b, &saved);
    free(saved.data);
}

static int64_t length(macattn *m, int32_t slot)
{
    int64_t n = -1;
    assert_ok(m, macattn_slot_length(m, slot, &n));
    return n;
}

/* The last outputs of both are the same, to the bit. */
static void assert_same_output(const world *a, const world *b)
{
    test_same_bits("outputs", a->b.out, b->b.out, test_bench_out_bytes(&a->b));
}

/* The same tokens into a slot of either: the last outputs, and the states, are the same. */
static void decode_alike(world *a, int32_t slot_a, world *b, int32_t slot_b, const test_sequence *s,
                         int64_t from, int64_t to)
{
    decode(a, slot_a, s, from, to);
    decode(b, slot_b, s, from, to);
    assert_same_output(a, b);
    assert_same_state(a->m, slot_a, b->m, slot_b);
}

/* Plan the next token of slot 0, of which the cache holds n. */
static void plan_next(world *w, int64_t n)
{
    test_bench_row(&w->b, 0, 0, 0, &seq, n + 1, 1);
    test_bench_queries(&w->b, 1, &seq, 0);
    assert_ok(w->m, macattn_plan(w->m, &w->b.batch));
}

/* ------------------------------------------------------------------------------------- tests -- */

static void test_reset(void **state)
{
    (void)state;
    world w = world_create(), fresh = world_create();
    decode(&w, 1, &other_seq, 0, 60);
    assert_int_equal(length(w.m, 1), 60);
    assert_ok(w.m, macattn_slot_reset(w.m, 1));
    assert_int_equal(length(w.m, 1), 0);
    assert_same_state(w.m, 1, fresh.m, 1);
    decode_alike(&w, 1, &fresh, 1, &seq, 0, 70);
    world_destroy(&w);
    world_destroy(&fresh);
}

/* Truncate and replay, by decode and by prefill: never having seen the tokens. */
static void test_truncate(void **state)
{
    (void)state;
    static const int64_t keeps[] = {0, 1, 8, 9, 10, 14, 20, 40, 69, 70};
    for (size_t i = 0; i < sizeof keeps / sizeof keeps[0]; i++) {
        for (int by_prefill = 0; by_prefill < 2; by_prefill++) {
            const int64_t keep = keeps[i];
            other_types(state);
            world w = world_create(), fresh = world_create();
            decode(&w, 0, &seq, 0, keep);
            decode(&fresh, 0, &seq, 0, keep);
            if (by_prefill) {
                prefill(&w, 0, &other_seq, keep, 90);
            } else {
                decode(&w, 0, &other_seq, keep, 90);
            }
            assert_ok(w.m, macattn_slot_truncate(w.m, 0, keep));
            assert_int_equal(length(w.m, 0), keep);
            assert_same_state(w.m, 0, fresh.m, 0);
            decode_alike(&w, 0, &fresh, 0, &seq, keep, 100);
            world_destroy(&w);
            world_destroy(&fresh);
        }
    }
}

/* As in speculative decoding: a few tokens ahead, most of them taken back, again and again. */
static void test_truncate_often(void **state)
{
    (void)state;
    world w = world_create(), fresh = world_create();
    test_rng rng = {3};
    for (int64_t n = 0; n < 100;) {
        const int64_t kept = 1 + test_below(&rng, 3);
        decode(&w, 0, &seq, n, n + kept);
        decode(&fresh, 0, &seq, n, n + kept);
        n += kept;
        if (test_below(&rng, 2)) {
            prefill(&w, 0, &other_seq, n, n + 5);
        } else {
            decode(&w, 0, &other_seq, n, n + 4);
        }
        /* In two steps: the first one leaves void entries behind. */
        assert_ok(w.m, macattn_slot_truncate(w.m, 0, n + 2));
        assert_ok(w.m, macattn_slot_truncate(w.m, 0, n));
        assert_same_state(w.m, 0, fresh.m, 0);
    }
    world_destroy(&w);
    world_destroy(&fresh);
}

/* Truncation to the length, and of slots that hold nothing yet. */
static void test_truncate_nothing(void **state)
{
    (void)state;
    world w = world_create();
    assert_ok(w.m, macattn_slot_truncate(w.m, 2, 0));
    decode(&w, 2, &seq, 0, 40);
    test_saved before = test_save(w.m, 2);
    assert_ok(w.m, macattn_slot_truncate(w.m, 2, 40));
    test_slot_holds(w.m, 2, &before);
    free(before.data);
    assert_int_equal(macattn_slot_truncate(w.m, 2, 41), MACATTN_E_RANGE);
    assert_int_equal(macattn_slot_truncate(w.m, 2, -1), MACATTN_E_RANGE);
    assert_int_equal(length(w.m, 2), 40);
    world_destroy(&w);
}

/* Forks go their own ways; each is what it would be alone. */
static void test_fork(void **state)
{
    (void)state;
    world w = world_create(), alone[3] = {world_create(), world_create(), world_create()};
    decode(&w, 0, &seq, 0, 50);
    decode(&w, 2, &other_seq, 0, 77); /* is replaced */
    assert_ok(w.m, macattn_slot_fork(w.m, 0, 1));
    assert_ok(w.m, macattn_slot_fork(w.m, 1, 2));
    for (int i = 0; i < 3; i++) {
        if (i) copy_tokens(&w, 0, i);
        assert_int_equal(length(w.m, i), 50);
        assert_same_state(w.m, 0, w.m, i);
        decode(&alone[i], i, &seq, 0, 50);
    }
    /* Slot 1 goes on as before, slot 2 takes ten tokens back first, slot 0 goes last. */
    decode_alike(&w, 1, &alone[1], 1, &seq, 50, 90);
    assert_ok(w.m, macattn_slot_truncate(w.m, 2, 40));
    assert_ok(alone[2].m, macattn_slot_truncate(alone[2].m, 2, 40));
    assert_same_state(w.m, 0, alone[0].m, 0);
    decode_alike(&w, 2, &alone[2], 2, &other_seq, 40, 80);
    assert_same_state(w.m, 0, alone[0].m, 0);
    prefill(&w, 0, &other_seq, 50, 100);
    prefill(&alone[0], 0, &other_seq, 50, 100);
    assert_same_output(&w, &alone[0]);
    for (int i = 0; i < 3; i++) {
        assert_same_state(w.m, i, alone[i].m, i);
        world_destroy(&alone[i]);
    }
    world_destroy(&w);
}

/* The source of a fork goes, or both step together in one batch. */
static void test_fork_in_one_batch(void **state)
{
    (void)state;
    world w = world_create(), alone = world_create();
    decode(&w, 0, &seq, 0, 60);
    decode(&alone, 0, &seq, 0, 60);
    assert_ok(w.m, macattn_slot_fork(w.m, 0, 1));
    assert_ok(w.m, macattn_slot_fork(w.m, 0, 3));
    copy_tokens(&w, 0, 1);
    assert_ok(w.m, macattn_slot_reset(w.m, 3));
    const test_sequence both[2] = {seq, seq};
    for (int64_t n = 61; n <= 80; n++) {
        for (int32_t r = 0; r < 2; r++) test_bench_row(&w.b, r, r, r, &seq, n, 1);
        test_bench_run(&w.b, w.m, 2, both);
        const size_t half = test_bench_out_bytes(&w.b) / 2;
        test_same_bits("both forks", w.b.out, (char *)w.b.out + half, half);
    }
    decode(&alone, 0, &seq, 60, 80);
    assert_same_state(w.m, 0, alone.m, 0);
    assert_same_state(w.m, 1, alone.m, 0);
    assert_ok(w.m, macattn_slot_reset(w.m, 0));
    assert_same_state(w.m, 1, alone.m, 0);
    world_destroy(&w);
    world_destroy(&alone);
}

static void test_fork_of_nothing(void **state)
{
    (void)state;
    world w = world_create();
    decode(&w, 1, &seq, 0, 30);
    assert_ok(w.m, macattn_slot_fork(w.m, 0, 1));
    assert_int_equal(length(w.m, 1), 0);
    assert_same_state(w.m, 0, w.m, 1);
    decode(&w, 1, &seq, 0, 30);
    assert_int_equal(length(w.m, 0), 0);
    assert_int_equal(macattn_slot_fork(w.m, 0, 0), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_fork(w.m, 0, 4), MACATTN_E_RANGE);
    assert_int_equal(macattn_slot_fork(w.m, -1, 1), MACATTN_E_RANGE);
    assert_int_equal(length(w.m, 1), 30);
    world_destroy(&w);
}

/* -------------------------------------------------------------------------------- save, load -- */

/* Into another slot, and into another object, and on from there. */
static void test_save_load(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
        const int kind = i % 6;
        other_types(state);
        macattn_config cfg = slots_config();
        cfg.q_dtype = (macattn_dtype)(kind % 3);
        cfg.fresh_tokens = kind == 3 ? 4 : 0;
        cfg.ring = kind == 4 ? 7 : 200; /* full */
        world w = world_of(&cfg), v = world_of(&cfg);
        decode(&w, 0, &seq, 0, 80);
        if (kind == 5) assert_ok(w.m, macattn_slot_truncate(w.m, 0, 66));
        const int64_t n = length(w.m, 0);
        test_saved saved = test_save(w.m, 0);
        decode(&v, 3, &other_seq, 0, 33); /* is replaced */
        assert_ok(v.m, macattn_slot_load(v.m, 3, saved.data, saved.size));
        assert_int_equal(length(v.m, 3), n);
        assert_same_state(v.m, 3, w.m, 0);
        /* the tokens are the caller's to restore */
        for (int64_t t = 1; t <= n; t++) test_bench_row(&v.b, 0, 3, 3, &seq, t, 1);
        decode_alike(&w, 0, &v, 3, &seq, n, 110);
        free(saved.data);
        world_destroy(&w);
        world_destroy(&v);
    }
}

static void test_save_arguments(void **state)
{
    (void)state;
    world w = world_create();
    decode(&w, 0, &seq, 0, 40);
    size_t size = 0;
    assert_ok(w.m, macattn_slot_save(w.m, 0, NULL, &size));
    test_memory buffer = test_guarded(size, 0);
    size_t room = size - 1;
    assert_int_equal(macattn_slot_save(w.m, 0, buffer.data, &room), MACATTN_E_SPACE);
    assert_int_equal(room, size);
    for (size_t i = 0; i < size; i++) assert_int_equal((uint8_t)buffer.data[i], 0xff);
    room = size + 100;
    assert_ok(w.m, macattn_slot_save(w.m, 0, buffer.data, &room));
    assert_int_equal(room, size);
    assert_int_equal(macattn_slot_save(w.m, 0, buffer.data, NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_save(w.m, 4, buffer.data, &room), MACATTN_E_RANGE);
    assert_int_equal(macattn_slot_load(w.m, 0, NULL, size), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_load(w.m, 4, buffer.data, size), MACATTN_E_RANGE);
    assert_ok(w.m, macattn_slot_load(w.m, 1, buffer.data, size));
    /* Nothing to save is fine as well. */
    test_saved empty = test_save(w.m, 2);
    assert_ok(w.m, macattn_slot_load(w.m, 1, empty.data, empty.size));
    assert_int_equal(length(w.m, 1), 0);
    free(empty.data);
    test_release(&buffer);
    world_destroy(&w);
}

static void expect_refused(macattn *m, const void *data, size_t size, const test_saved *before)
{
    const macattn_status status = macattn_slot_load(m, 0, data, size);
    assert_int_equal(status, MACATTN_E_FORMAT);
    assert_true(strlen(macattn_last_error(m)) > 10);
    test_slot_holds(m, 0, before);
}

/* Few bytes, so that each can be spoiled. */
static macattn_config tiny_config(void)
{
    macattn_config cfg = slots_config();
    cfg.n_heads = cfg.n_kv_heads = 1;
    cfg.n_layers = 1;
    cfg.head_dim = 8;
    cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F16;
    cfg.ring = 5;
    cfg.band = 2;
    return cfg;
}

/* Every byte changed, every length cut: refused, and the slot is as before. */
static void test_load_corrupt(void **state)
{
    (void)state;
    macattn_config cfg = tiny_config();
    cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F32;
    world w = world_of(&cfg);
    decode(&w, 0, &seq, 0, 20);
    test_saved before = test_save(w.m, 0);
    decode(&w, 1, &other_seq, 0, 30);
    test_saved good = test_save(w.m, 1);
    assert_true(good.size < 1000);
    for (size_t i = 0; i < good.size; i++) {
        for (int bit = 0; bit < 8; bit++) {
            good.data[i] ^= (uint8_t)(1 << bit);
            expect_refused(w.m, good.data, good.size, &before);
            good.data[i] ^= (uint8_t)(1 << bit);
        }
    }
    for (size_t size = 0; size < good.size; size++) {
        test_memory cut = test_guarded(size, 0);
        memcpy(cut.data, good.data, size);
        expect_refused(w.m, cut.data, size, &before);
        test_release(&cut);
    }
    uint8_t *longer = malloc(good.size + 8);
    assert_non_null(longer);
    memcpy(longer, good.data, good.size);
    memset(longer + good.size, 0, 8);
    expect_refused(w.m, longer, good.size + 8, &before);
    assert_ok(w.m, macattn_slot_load(w.m, 0, good.data, good.size));
    free(longer);
    free(before.data);
    free(good.data);
    world_destroy(&w);
}

/* CRC-32C, bit by bit: to make damaged data whose checksum agrees. */
static void fix_checksum(uint8_t *data, size_t size)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < size - 4; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    }
    crc = ~crc;
    memcpy(data + size - 4, &crc, 4);
}

/* With a checksum that agrees, nothing that makes no sense may get in: what is loaded saves as
 * it came, what is refused changes nothing. */
static void test_load_forged(void **state)
{
    (void)state;
    const macattn_config cfg = tiny_config();
    world w = world_of(&cfg);
    decode(&w, 0, &seq, 0, 20);
    test_saved before = test_save(w.m, 0);
    decode(&w, 1, &other_seq, 0, 30);
    test_saved good = test_save(w.m, 1);
    uint8_t *forged = malloc(good.size);
    assert_non_null(forged);
    test_rng rng = {5};
    int refused = 0, loaded = 0;
    for (size_t i = 0; i < 8 * good.size; i++) {
        memcpy(forged, good.data, good.size);
        forged[i / 8] = (uint8_t)(i % 8 == 0 ? 0xff : i % 8 == 1 ? 0x7f : test_random(&rng));
        fix_checksum(forged, good.size);
        if (macattn_slot_load(w.m, 0, forged, good.size) == MACATTN_OK) {
            test_slot_holds(w.m, 0, &(test_saved){forged, good.size});
            assert_true(length(w.m, 0) >= 0 && length(w.m, 0) <= cfg.max_tokens);
            assert_ok(w.m, macattn_slot_load(w.m, 0, before.data, before.size));
            loaded++;
        } else {
            expect_refused(w.m, forged, good.size, &before);
            refused++;
        }
    }
    assert_true(refused > 100 && loaded > 100);
    free(forged);
    free(before.data);
    free(good.data);
    world_destroy(&w);
}

/* The share of the mass that goes with a summary is one; anything else is refused. */
static void test_load_bad_share(void **state)
{
    (void)state;
    static const float bad[] = {-0.01f, 1.001f, 1e30f, INFINITY, -INFINITY, NAN};
    const macattn_config cfg = tiny_config();
    world w = world_of(&cfg);
    decode(&w, 0, &seq, 0, 20);
    test_saved before = test_save(w.m, 0);
    decode(&w, 1, &other_seq, 0, 30);
    test_saved good = test_save(w.m, 1);
    /* The fifth number of the newest entry, the last one before the number of runs and the
     * checksum. */
    const size_t entry =
        5 * sizeof(float) + w.m->ring_dims.q_bytes + (size_t)w.m->ring_dims.width * sizeof(float);
    uint8_t *share = good.data + good.size - 2 * sizeof(uint32_t) - entry + 4 * sizeof(float);
    const mai_ring_view *ring = &w.m->slots[1].rings[0]->view;
    assert_memory_equal(share, &ring->share[(ring->head[0] + 4) % 5], sizeof(float));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memcpy(share, &bad[i], sizeof bad[i]);
        fix_checksum(good.data, good.size);
        expect_refused(w.m, good.data, good.size, &before);
    }
    for (int i = 0; i < 2; i++) {
        const float fine = (float)i;
        memcpy(share, &fine, sizeof fine);
        fix_checksum(good.data, good.size);
        assert_ok(w.m, macattn_slot_load(w.m, 0, good.data, good.size));
        test_slot_holds(w.m, 0, &good);
    }
    free(before.data);
    free(good.data);
    world_destroy(&w);
}

/* A configuration under which the summaries would mean something else. */
static void test_load_elsewhere(void **state)
{
    (void)state;
    const macattn_config cfg = slots_config();
    world w = world_of(&cfg);
    decode(&w, 0, &seq, 0, 60);
    test_saved saved = test_save(w.m, 0);
    for (int i = 0; i < 13; i++) {
        macattn_config c = cfg;
        if (i == 0) c.n_layers = 1;
        if (i == 1) c.n_heads = 2;
        if (i == 2) c.n_kv_heads = 4;
        if (i == 3) c.head_dim = 64;
        if (i == 4) c.v_head_dim = 64;
        if (i == 5) c.q_dtype = MACATTN_DTYPE_F16;
        while (i == 6 && c.k_dtype == cfg.k_dtype) c.k_dtype = test_kv_type(&types, 32);
        while (i == 7 && c.v_dtype == cfg.v_dtype) c.v_dtype = test_kv_type(&types, 32);
        if (i == 8) c.scale = 0.5f;
        if (i == 9) c.softcap = 30;
        if (i == 10) c.fresh_tokens = 3;
        if (i == 11) c.max_tokens = 59;
        if (i == 12) c.lse_order = 0;
        macattn *m = test_create(&c);
        test_saved before = test_save(m, 0);
        expect_refused(m, saved.data, saved.size, &before);
        free(before.data);
        macattn_destroy(m);
    }
    free(saved.data);
    world_destroy(&w);
}

/* What may differ: the ring's size, the band, the threshold, threads. */
static void test_load_into_other_settings(void **state)
{
    (void)state;
    world w = world_create();
    decode(&w, 0, &seq, 0, 60);
    test_saved saved = test_save(w.m, 0);
    macattn_config c = slots_config();
    c.ring = 10;
    c.band = 20;
    c.tau = 0.9f;
    c.n_threads = 2;
    world v = world_of(&c);
    assert_ok(v.m, macattn_slot_load(v.m, 0, saved.data, saved.size));
    assert_int_equal(length(v.m, 0), 60);
    const mai_ring_view *ring = &v.m->slots[0].rings[1]->view;
    for (int32_t h = 0; h < 4; h++) assert_int_equal(ring->count[h], 10);
    int newest = ring->head[0] ? ring->head[0] - 1 : 9;
    assert_int_equal(ring->pos[newest], 59);
    for (int64_t t = 1; t <= 60; t++) test_bench_row(&v.b, 0, 0, 0, &seq, t, 1);
    decode(&v, 0, &seq, 60, 90);
    free(saved.data);
    world_destroy(&v);
    world_destroy(&w);
}

/* An object that keeps no rings takes the length, and checks the rest like any other. */
static void test_load_without_rings(void **state)
{
    (void)state;
    world w = world_create();
    decode(&w, 0, &seq, 0, 60);
    test_saved saved = test_save(w.m, 0);
    for (int i = 0; i < 2; i++) {
        macattn_config c = slots_config();
        if (i == 0) c.policy = MACATTN_POLICY_EXACT;
        if (i == 1) c.window = 30;
        world v = world_of(&c);
        assert_ok(v.m, macattn_slot_load(v.m, 0, saved.data, saved.size));
        assert_int_equal(length(v.m, 0), 60);
        assert_int_equal(macattn_slot_load(v.m, 1, saved.data, saved.size - 1), MACATTN_E_FORMAT);
        world_destroy(&v);
    }
    free(saved.data);
    world_destroy(&w);
}

/* --------------------------------------------------------------------------------- stale use -- */

static void expect_state(world *w, macattn_status status)
{
    assert_int_equal(status, MACATTN_E_STATE);
    assert_true(strlen(macattn_last_error(w->m)) > 10);
}

/* After anything happened to a slot of the plan, the plan is of no more use; nothing is written. */
static void test_stale_plan(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        world w = world_create();
        decode(&w, 0, &seq, 0, 40);
        test_saved saved = test_save(w.m, 0);
        plan_next(&w, 40);
        if (i == 0) assert_ok(w.m, macattn_slot_reset(w.m, 0));
        if (i == 1) assert_ok(w.m, macattn_slot_truncate(w.m, 0, 30));
        if (i == 2) assert_ok(w.m, macattn_slot_fork(w.m, 1, 0));
        if (i == 3) assert_ok(w.m, macattn_slot_fork(w.m, 0, 1));
        if (i == 4) assert_ok(w.m, macattn_slot_load(w.m, 0, saved.data, saved.size));
        if (i == 5) { /* between two layers */
            assert_ok(w.m, macattn_decode(w.m, 0, &w.b.io));
            assert_ok(w.m, macattn_slot_truncate(w.m, 0, 40));
        }
        test_saved before = test_save(w.m, 0);
        const size_t bytes = test_bench_out_bytes(&w.b);
        memset(w.b.out, 0x55, bytes);
        expect_state(&w, macattn_decode(w.m, i == 5, &w.b.io));
        expect_state(&w, macattn_prefill(w.m, i == 5, &w.b.io));
        for (size_t j = 0; j < bytes; j++) assert_int_equal(((char *)w.b.out)[j], 0x55);
        test_slot_holds(w.m, 0, &before);
        free(before.data);
        free(saved.data);
        /* A new plan serves again. */
        const int64_t n = length(w.m, 0);
        decode(&w, 0, &seq, n, n + 1);
        world_destroy(&w);
    }
}

/* Other slots' affairs do not matter. */
static void test_plan_of_other_slots(void **state)
{
    (void)state;
    world w = world_create();
    decode(&w, 1, &other_seq, 0, 30);
    decode(&w, 0, &seq, 0, 40);
    plan_next(&w, 40);
    assert_ok(w.m, macattn_slot_truncate(w.m, 1, 3));
    assert_ok(w.m, macattn_slot_fork(w.m, 1, 2));
    assert_ok(w.m, macattn_slot_reset(w.m, 1));
    assert_ok(w.m, macattn_decode(w.m, 0, &w.b.io));
    world_destroy(&w);
}

/* Tokens may be added behind the library's back, but not replaced. */
static void test_continuing(void **state)
{
    (void)state;
    world w = world_create();
    for (int64_t t = 1; t <= 50; t++) test_bench_row(&w.b, 0, 0, 0, &seq, t, 1);
    decode(&w, 0, &seq, 30, 31); /* 30 tokens that it has not seen */
    assert_int_equal(length(w.m, 0), 31);
    decode(&w, 0, &seq, 49, 50);
    test_bench_row(&w.b, 0, 0, 0, &seq, 50, 1);
    expect_state(&w, macattn_plan(w.m, &w.b.batch));
    test_bench_row(&w.b, 0, 0, 0, &seq, 52, 3);
    expect_state(&w, macattn_plan(w.m, &w.b.batch));
    test_bench_row(&w.b, 0, 0, 0, &seq, 52, 2);
    assert_ok(w.m, macattn_plan(w.m, &w.b.batch));
    world_destroy(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_reset, other_types),
        cmocka_unit_test_setup(test_truncate, other_types),
        cmocka_unit_test_setup(test_truncate_often, other_types),
        cmocka_unit_test_setup(test_truncate_nothing, other_types),
        cmocka_unit_test_setup(test_fork, other_types),
        cmocka_unit_test_setup(test_fork_in_one_batch, other_types),
        cmocka_unit_test_setup(test_fork_of_nothing, other_types),
        cmocka_unit_test_setup(test_save_load, other_types),
        cmocka_unit_test_setup(test_save_arguments, other_types),
        cmocka_unit_test_setup(test_load_corrupt, other_types),
        cmocka_unit_test_setup(test_load_forged, other_types),
        cmocka_unit_test_setup(test_load_bad_share, other_types),
        cmocka_unit_test_setup(test_load_elsewhere, other_types),
        cmocka_unit_test_setup(test_load_into_other_settings, other_types),
        cmocka_unit_test_setup(test_load_without_rings, other_types),
        cmocka_unit_test_setup(test_stale_plan, other_types),
        cmocka_unit_test_setup(test_plan_of_other_slots, other_types),
        cmocka_unit_test_setup(test_continuing, other_types),
    };
    return cmocka_run_group_tests_name("slots", tests, NULL, NULL);
}
