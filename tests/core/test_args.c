/* SPDX-License-Identifier: Apache-2.0 */
/* Bad input: every call refuses it with the status that macattn.h names and a sentence, and changes
 * neither the object nor the caller's outputs. */
#include "support.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 4, KV_HEADS = 2, DIM = 32, CAPACITY = 64 };

/* ------------------------------------------------------------------------------------ config -- */

static macattn_config good_config(void)
{
    macattn_config cfg = test_config(HEADS, KV_HEADS, DIM);
    cfg.n_layers = 2;
    cfg.max_slots = 3;
    cfg.max_tokens = CAPACITY;
    cfg.ring = 8;
    cfg.band = 4;
    cfg.min_tokens = 6;
    return cfg;
}

/* `word` must be in the sentence: the name of the field, or of what is supported. */
static void refuse(const macattn_config *cfg, macattn_status status, const char *word)
{
    char error[256] = "untouched";
    macattn *m = (macattn *)(void *)error;
    const macattn_status got = macattn_create(cfg, &m, error, sizeof error);
    if (got != status) {
        fail_msg("%s: %s (%s), not %s", word, macattn_status_string(got), error,
                 macattn_status_string(status));
    }
    assert_null(m);
    if (!strstr(error, word)) fail_msg("\"%s\" does not say \"%s\"", error, word);
    assert_true(strlen(error) > 10);
    /* The others say the same; a small buffer, or none, is no reason to fail otherwise. */
    size_t bytes = 12345;
    assert_int_equal(macattn_config_state_bytes(cfg, &bytes), status);
    assert_int_equal(bytes, 12345);
    char small[6] = {1, 1, 1, 1, 1, 77};
    assert_int_equal(macattn_create(cfg, &m, small, 5), status);
    assert_true(memchr(small, 0, 5) != NULL && small[5] == 77);
    assert_int_equal(macattn_create(cfg, &m, NULL, 0), status);
}

static void *some_alloc(void *user, size_t bytes)
{
    (void)user;
    return malloc(bytes);
}

static void some_free(void *user, void *ptr)
{
    (void)user;
    free(ptr);
}

#define REFUSE(status, word, ...)             \
    do {                                      \
        macattn_config cfg = good_config();   \
        __VA_ARGS__;                          \
        refuse(&cfg, MACATTN_##status, word); \
    } while (0)

static void test_config_model(void **state)
{
    (void)state;
    REFUSE(E_RANGE, "n_layers", cfg.n_layers = 0);
    REFUSE(E_RANGE, "n_layers", cfg.n_layers = -1);
    REFUSE(E_RANGE, "n_heads", cfg.n_heads = 0);
    REFUSE(E_RANGE, "n_heads", cfg.n_heads = -4);
    REFUSE(E_RANGE, "n_heads", cfg.n_heads = 1026);
    REFUSE(E_RANGE, "n_kv_heads", cfg.n_kv_heads = 0);
    REFUSE(E_RANGE, "n_kv_heads", cfg.n_kv_heads = 8);
    REFUSE(E_ARG, "multiple", cfg.n_kv_heads = 3);
    REFUSE(E_RANGE, "head_dim", cfg.head_dim = 0);
    REFUSE(E_RANGE, "head_dim", cfg.head_dim = -8);
    REFUSE(E_RANGE, "head_dim", cfg.head_dim = 1032);
    REFUSE(E_UNSUPPORTED, "multiples of 8", cfg.head_dim = 36);
    REFUSE(E_RANGE, "v_head_dim", cfg.v_head_dim = -8);
    REFUSE(E_RANGE, "v_head_dim", cfg.v_head_dim = 2048);
    REFUSE(E_UNSUPPORTED, "multiples of 8", cfg.v_head_dim = 12);
    REFUSE(E_UNSUPPORTED, "multiples of 32", cfg.head_dim = 40, cfg.k_dtype = MACATTN_DTYPE_Q8_0);
    REFUSE(E_UNSUPPORTED, "multiples of 32", cfg.v_head_dim = 48, cfg.v_dtype = MACATTN_DTYPE_Q8_0);
    REFUSE(E_UNSUPPORTED, "f16", cfg.q_dtype = MACATTN_DTYPE_Q8_0);
    REFUSE(E_UNSUPPORTED, "q_dtype f8_e4m3", cfg.q_dtype = MACATTN_DTYPE_F8_E4M3);
    REFUSE(E_UNSUPPORTED, "k_dtype f8_e4m3", cfg.k_dtype = MACATTN_DTYPE_F8_E4M3);
    REFUSE(E_UNSUPPORTED, "v_dtype f8_e4m3", cfg.v_dtype = MACATTN_DTYPE_F8_E4M3);
    REFUSE(E_RANGE, "q_dtype", cfg.q_dtype = (macattn_dtype)10);
    REFUSE(E_RANGE, "k_dtype", cfg.k_dtype = (macattn_dtype)17);
    REFUSE(E_RANGE, "v_dtype", cfg.v_dtype = (macattn_dtype)-1);
    REFUSE(E_RANGE, "scale", cfg.scale = NAN);
    REFUSE(E_RANGE, "scale", cfg.scale = INFINITY);
    REFUSE(E_RANGE, "softcap", cfg.softcap = -1);
    REFUSE(E_RANGE, "softcap", cfg.softcap = NAN);
    REFUSE(E_RANGE, "softcap", cfg.softcap = INFINITY);
    REFUSE(E_RANGE, "window", cfg.window = -1);
}

static void test_config_state(void **state)
{
    (void)state;
    REFUSE(E_RANGE, "max_slots", cfg.max_slots = 0);
    REFUSE(E_RANGE, "max_slots", cfg.max_slots = -1);
    REFUSE(E_RANGE, "max_tokens", cfg.max_tokens = 0);
    REFUSE(E_RANGE, "max_tokens", cfg.max_tokens = (int64_t)1 << 31);
    REFUSE(E_RANGE, "policy", cfg.policy = (macattn_policy)99);
    REFUSE(E_RANGE, "policy", cfg.policy = (macattn_policy)-1);
    REFUSE(E_RANGE, "ring", cfg.ring = -1);
    REFUSE(E_RANGE, "ring", cfg.ring = 4097);
    REFUSE(E_RANGE, "band", cfg.band = -1);
    REFUSE(E_RANGE, "fresh_tokens", cfg.fresh_tokens = -1);
    REFUSE(E_RANGE, "min_tokens", cfg.min_tokens = -1);
    REFUSE(E_RANGE, "tau", cfg.tau = -0.1f);
    REFUSE(E_RANGE, "tau", cfg.tau = 1.1f);
    REFUSE(E_RANGE, "tau", cfg.tau = NAN);
    REFUSE(E_RANGE, "budget", cfg.budget = -0.1f);
    REFUSE(E_RANGE, "budget", cfg.budget = 1.1f);
    REFUSE(E_RANGE, "budget", cfg.budget = NAN);
    REFUSE(E_RANGE, "lse_order", cfg.lse_order = -1);
    REFUSE(E_RANGE, "lse_order", cfg.lse_order = 2);
}

static void test_config_running(void **state)
{
    (void)state;
    REFUSE(E_RANGE, "n_threads", cfg.n_threads = -1);
    REFUSE(E_RANGE, "n_threads", cfg.n_threads = 1025);
    REFUSE(E_RANGE, "spin_us", cfg.spin_us = -1);
    REFUSE(E_RANGE, "spin_us", cfg.spin_us = 1000001);
    REFUSE(E_ARG, "free", cfg.alloc = some_alloc);
    REFUSE(E_ARG, "free", cfg.free = some_free);
    REFUSE(E_ISA, "abacus", cfg.isa = "abacus");
    for (int i = 0; macattn_isa_name(i); i++) {
        if (!macattn_isa_supported(macattn_isa_name(i))) {
            REFUSE(E_ISA, macattn_isa_name(i), cfg.isa = macattn_isa_name(i));
        }
    }
}

static void test_config_null(void **state)
{
    (void)state;
    macattn_config cfg = good_config();
    macattn *m = NULL;
    char error[100] = "";
    size_t bytes = 0;
    refuse(NULL, MACATTN_E_ARG, "NULL");
    assert_int_equal(macattn_config_init(NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_create(&cfg, NULL, error, sizeof error), MACATTN_E_ARG);
    assert_true(strlen(error) > 5);
    assert_int_equal(macattn_config_state_bytes(&cfg, NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_config_state_bytes(NULL, &bytes), MACATTN_E_ARG);
    macattn_destroy(NULL);
    (void)m;
}

/* A shorter struct is an older caller's; a longer one's unknown fields must be zero. */
static void test_struct_size(void **state)
{
    (void)state;
    REFUSE(E_ARG, "macattn_config_init", cfg.struct_size = 0);
    REFUSE(E_ARG, "macattn_config_init", cfg.struct_size = sizeof(size_t));
    REFUSE(E_ARG, "macattn_config_init", cfg.struct_size = SIZE_MAX);

    struct {
        macattn_config cfg;
        char more[32];
    } newer = {.cfg = good_config()};
    newer.cfg.struct_size = sizeof newer;
    macattn *m = test_create(&newer.cfg);
    assert_int_equal(test_resolved(m).struct_size, sizeof(macattn_config));
    macattn_destroy(m);
    newer.more[20] = 1;
    refuse(&newer.cfg, MACATTN_E_ARG, "does not know");

    /* What an older caller's struct does not reach takes its default. */
    macattn_config older = good_config();
    older.struct_size = offsetof(macattn_config, alloc);
    memset((char *)&older + older.struct_size, 0xee, sizeof older - older.struct_size);
    m = test_create(&older);
    assert_true(test_resolved(m).alloc == NULL);
    macattn_destroy(m);
    older.struct_size = offsetof(macattn_config, max_slots);
    memset((char *)&older + older.struct_size, 0xee, sizeof older - older.struct_size);
    m = test_create(&older);
    assert_int_equal(test_resolved(m).ring, 256);
    assert_int_equal(test_resolved(m).max_slots, 1);
    macattn_destroy(m);
}

static void test_defaults(void **state)
{
    (void)state;
    macattn_config cfg;
    memset(&cfg, 0xee, sizeof cfg);
    assert_int_equal(macattn_config_init(&cfg), MACATTN_OK);
    refuse(&cfg, MACATTN_E_RANGE, "n_layers"); /* the shape must be given */
    cfg.n_layers = 1;
    cfg.n_heads = 8;
    cfg.n_kv_heads = 2;
    cfg.head_dim = 64;
    macattn *m = test_create(&cfg);
    const macattn_config c = test_resolved(m);
    assert_int_equal(c.struct_size, sizeof c);
    assert_int_equal(c.v_head_dim, 64);
    assert_int_equal(c.q_dtype, MACATTN_DTYPE_F32);
    assert_int_equal(c.k_dtype, MACATTN_DTYPE_F16);
    assert_int_equal(c.v_dtype, MACATTN_DTYPE_F16);
    assert_true(c.scale == 0.125f && c.softcap == 0 && c.tau == 0.45f);
    assert_int_equal(c.window, 0);
    assert_int_equal(c.max_slots, 1);
    assert_int_equal(c.max_tokens, 131072);
    assert_int_equal(c.policy, MACATTN_POLICY_BUDGET);
    assert_int_equal(c.ring, 256);
    assert_int_equal(c.band, 256);
    assert_true(c.budget == 0.01f);
    assert_int_equal(c.fresh_tokens, 4);
    assert_int_equal(c.lse_order, 1);
    assert_int_equal(c.min_tokens, 2048);
    assert_int_equal(c.spin_us, 100);
    assert_true(c.n_threads >= 1);
    assert_true(macattn_isa_supported(c.isa));
    macattn_destroy(m);
    cfg.policy = MACATTN_POLICY_PAPER;
    m = test_create(&cfg);
    assert_int_equal(test_resolved(m).ring, 512);
    assert_int_equal(test_resolved(m).band, 256);
    macattn_destroy(m);
}

static void test_state_bytes(void **state)
{
    (void)state;
    macattn_config cfg = good_config();
    size_t one = 0, bytes = 0;
    assert_int_equal(macattn_config_state_bytes(&cfg, &one), MACATTN_OK);
    /* At least queries and summaries. */
    assert_true(one >= (size_t)(2 * HEADS * 8) * (DIM + DIM) * sizeof(float));
    cfg.n_layers = 6;
    assert_int_equal(macattn_config_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 3 * one);
    cfg.policy = MACATTN_POLICY_EXACT;
    assert_int_equal(macattn_config_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 0);
}

/* ------------------------------------------------------------------------------ plan and run -- */

static const test_sequence seq = {31, 4, 0.5};

typedef struct world {
    macattn *m;
    test_bench b;
    test_saved before[3];
    int32_t *pages;
} world;

/* Slot 0 holds 20 tokens, and its next one is planned; slot 1 holds 10. */
static void world_create(world *w)
{
    const macattn_config cfg = good_config();
    *w = (world){.m = test_create(&cfg)};
    w->b = test_bench_of(w->m, 3, CAPACITY, CAPACITY);
    for (int32_t slot = 1; slot >= 0; slot--) {
        for (int64_t n = 1; n <= (slot ? 10 : 20); n++) {
            test_bench_step(&w->b, w->m, slot, &seq, n, 1);
        }
    }
    test_bench_row(&w->b, 0, 0, 0, &seq, 21, 1);
    test_bench_queries(&w->b, 1, &seq, 0);
    assert_ok(w->m, macattn_plan(w->m, &w->b.batch));
    for (int32_t slot = 0; slot < 3; slot++) w->before[slot] = test_save(w->m, slot);
}

static void assert_unchanged(world *w)
{
    for (int32_t slot = 0; slot < 3; slot++) test_slot_holds(w->m, slot, &w->before[slot]);
}

/* The plan made by world_create still works. */
static void world_destroy(world *w)
{
    assert_unchanged(w);
    test_bench_row(&w->b, 0, 0, 0, &seq, 21, 1);
    test_bench_queries(&w->b, 1, &seq, 0);
    macattn_io io = w->b.io;
    assert_ok(w->m, macattn_decode(w->m, 0, &io));
    int64_t n;
    assert_ok(w->m, macattn_slot_length(w->m, 0, &n));
    assert_int_equal(n, 21);
    for (int i = 0; i < 3; i++) free(w->before[i].data);
    test_bench_destroy(&w->b);
    macattn_destroy(w->m);
}

static void expect(world *w, macattn_status got, macattn_status want, const char *word)
{
    const char *error = macattn_last_error(w->m);
    if (got != want) {
        fail_msg("%s: %s (%s), not %s", word, macattn_status_string(got), error,
                 macattn_status_string(want));
    }
    if (strlen(error) < 8 || !strstr(error, word)) {
        fail_msg("\"%s\" does not say \"%s\"", error, word);
    }
    assert_unchanged(w);
}

#define PLAN(status, word, ...)                                                         \
    do {                                                                                \
        macattn_row rows[2] = {{.slot = 0, .n_queries = 1, .n_tokens = 21},             \
                               {.slot = 1, .n_queries = 2, .n_tokens = 12, .page = 1}}; \
        int32_t pages[4] = {3, 2, 1, 0};                                                \
        macattn_batch batch = {                                                         \
            .struct_size = sizeof batch, .n_rows = 2, .rows = rows, .n_pages = 4};      \
        __VA_ARGS__;                                                                    \
        (void)pages;                                                                    \
        expect(&w, macattn_plan(w.m, &batch), MACATTN_##status, word);                  \
    } while (0)

static void paged(macattn_batch *batch, macattn_row *rows, const int32_t *pages)
{
    batch->page_size = 8;
    rows[0].pages = rows[1].pages = pages;
}

static void test_plan(void **state)
{
    (void)state;
    world w;
    world_create(&w);
    assert_int_equal(macattn_plan(NULL, NULL), MACATTN_E_ARG);
    expect(&w, macattn_plan(w.m, NULL), MACATTN_E_ARG, "NULL");
    PLAN(E_ARG, "struct_size", batch.struct_size = 0);
    PLAN(E_ARG, "struct_size", batch.struct_size = sizeof batch + 8);
    PLAN(E_ARG, "rows", batch.rows = NULL);
    PLAN(E_RANGE, "n_rows", batch.n_rows = 0);
    PLAN(E_RANGE, "n_rows", batch.n_rows = -1);
    PLAN(E_RANGE, "n_rows", batch.n_rows = INT_MAX);
    PLAN(E_RANGE, "page_size", batch.page_size = 3);
    PLAN(E_RANGE, "page_size", batch.page_size = -1);
    PLAN(E_RANGE, "page_size", batch.page_size = INT_MIN);
    PLAN(E_RANGE, "n_pages", batch.n_pages = 0);
    PLAN(E_RANGE, "n_pages", batch.n_pages = -1);
    PLAN(E_RANGE, "row 1: page", rows[1].page = 4);
    PLAN(E_RANGE, "row 0: page", rows[0].page = -1);
    PLAN(E_ARG, "row 1: pages", paged(&batch, rows, pages), rows[1].pages = NULL);
    PLAN(E_RANGE, "row 0: pages[1]", paged(&batch, rows, pages), pages[1] = 4);
    PLAN(E_RANGE, "pages[2]", paged(&batch, rows, pages), pages[2] = -1);
    PLAN(E_RANGE, "slot", rows[1].slot = 3);
    PLAN(E_RANGE, "slot", rows[0].slot = -2);
    PLAN(E_ARG, "slot 0", rows[1] = rows[0]);
    PLAN(E_RANGE, "n_queries", rows[1].n_queries = 0);
    PLAN(E_RANGE, "n_queries", rows[1].n_queries = -1);
    PLAN(E_RANGE, "n_tokens", rows[1].n_tokens = CAPACITY + 1);
    PLAN(E_RANGE, "n_tokens", rows[1].n_tokens = INT64_MAX);
    PLAN(E_RANGE, "n_tokens", rows[1].n_tokens = -1);
    PLAN(E_RANGE, "n_tokens", rows[1].n_tokens = 1);
    PLAN(E_RANGE, "n_tokens", rows[1].n_queries = 13);
    PLAN(E_RANGE, "n_tokens", rows[1].n_tokens = 0);
    PLAN(E_STATE, "slot 1", rows[1].n_tokens = 11);
    PLAN(E_STATE, "slot 0", rows[0].n_tokens = 20);
    world_destroy(&w);
}

typedef macattn_status (*attention)(macattn *m, const macattn_io *io);

static macattn_status decode(macattn *m, const macattn_io *io)
{
    return macattn_decode(m, 0, io);
}

static macattn_status prefill(macattn *m, const macattn_io *io)
{
    return macattn_prefill(m, 0, io);
}

#define IO(status, word, ...)                                                            \
    do {                                                                                 \
        macattn_io io = w.b.io;                                                          \
        memset(w.b.out, 0x33, bytes);                                                    \
        __VA_ARGS__;                                                                     \
        expect(&w, call(w.m, &io), MACATTN_##status, word);                              \
        for (size_t i = 0; i < bytes; i++) assert_int_equal(((char *)w.b.out)[i], 0x33); \
    } while (0)

static void test_io(void **state)
{
    (void)state;
    static const attention calls[] = {macattn_attend, decode, prefill};
    static const int64_t row = DIM * 2, q = DIM * 4;
    for (int c = 0; c < 3; c++) {
        const attention call = calls[c];
        world w;
        world_create(&w);
        const size_t bytes = test_bench_out_bytes(&w.b);
        assert_int_equal(call(NULL, &w.b.io), MACATTN_E_ARG);
        expect(&w, call(w.m, NULL), MACATTN_E_ARG, "NULL");
        IO(E_ARG, "struct_size", io.struct_size = 0);
        IO(E_ARG, "struct_size", io.struct_size = sizeof io - 1);
        IO(E_ARG, "io.q", io.q = NULL);
        IO(E_ARG, "out", io.out = NULL);
        IO(E_ARG, "kv.k", io.kv.k = NULL);
        IO(E_ARG, "kv.v", io.kv.v = NULL);
        IO(E_ARG, "aligned", io.out = (float *)(void *)((char *)w.b.out + 2));
        IO(E_ARG, "lse", io.lse = (float *)(void *)((char *)w.b.lse + 1));
        IO(E_ARG, "sinks", io.sinks = (float *)(void *)((char *)w.b.lse + 3));
        IO(E_ARG, "q_head_stride", io.q_head_stride = q - 1);
        IO(E_ARG, "q_row_stride", io.q_row_stride = -1);
        IO(E_ARG, "q_match_head_stride", io.q_match_head_stride = q - 4);
        IO(E_ARG, "q_match_row_stride", io.q_match_row_stride = 4);
        IO(E_ARG, "out_head_stride", io.out_head_stride = q - 4);
        IO(E_ARG, "out_row_stride", io.out_row_stride = -q);
        IO(E_ARG, "out", io.out_head_stride = q + 2);
        IO(E_ARG, "out", io.out_row_stride = HEADS * q + 1);
        IO(E_ARG, "k_token_stride", io.kv.k_token_stride = row - 1);
        IO(E_ARG, "v_token_stride", io.kv.v_token_stride = 0);
        IO(E_ARG, "k_head_stride", io.kv.k_head_stride = row - 1);
        IO(E_ARG, "v_head_stride", io.kv.v_head_stride = -row);
        IO(E_ARG, "k_page_stride", io.kv.k_page_stride = -1);
        IO(E_ARG, "v_page_stride", io.kv.v_page_stride = INT64_MIN);
        world_destroy(&w);
    }
}

static void test_order(void **state)
{
    (void)state;
    world w;
    world_create(&w);
    /* layers */
    expect(&w, macattn_decode(w.m, -1, &w.b.io), MACATTN_E_RANGE, "layer");
    expect(&w, macattn_decode(w.m, 2, &w.b.io), MACATTN_E_RANGE, "layer");
    expect(&w, macattn_prefill(w.m, 2, &w.b.io), MACATTN_E_RANGE, "layer");
    /* several queries, no slot, no tokens */
    macattn_row rows[2] = {{.slot = 0, .n_queries = 3, .n_tokens = 23},
                           {.slot = 1, .n_queries = 1, .n_tokens = 11, .page = 1}};
    macattn_batch batch = {.struct_size = sizeof batch, .n_rows = 2, .rows = rows, .n_pages = 3};
    assert_ok(w.m, macattn_plan(w.m, &batch));
    expect(&w, macattn_decode(w.m, 0, &w.b.io), MACATTN_E_STATE, "queries");
    rows[0] = (macattn_row){.slot = -1, .n_queries = 1, .n_tokens = 5};
    assert_ok(w.m, macattn_plan(w.m, &batch));
    expect(&w, macattn_decode(w.m, 0, &w.b.io), MACATTN_E_STATE, "slot");
    expect(&w, macattn_prefill(w.m, 0, &w.b.io), MACATTN_E_STATE, "slot");
    rows[0] = (macattn_row){.slot = 2, .n_queries = 1, .n_tokens = 0};
    if (macattn_plan(w.m, &batch) == MACATTN_OK) {
        expect(&w, macattn_decode(w.m, 0, &w.b.io), MACATTN_E_STATE, "tokens");
        expect(&w, macattn_prefill(w.m, 0, &w.b.io), MACATTN_E_STATE, "tokens");
    }
    /* a plan serves attend as often as one likes */
    rows[0] = (macattn_row){.slot = 0, .n_queries = 1, .n_tokens = 21};
    batch.n_rows = 1;
    assert_ok(w.m, macattn_plan(w.m, &batch));
    assert_ok(w.m, macattn_attend(w.m, &w.b.io));
    assert_ok(w.m, macattn_attend(w.m, &w.b.io));
    world_destroy(&w);

    /* each layer once a plan */
    const macattn_config cfg = good_config();
    macattn *m = test_create(&cfg);
    test_bench b = test_bench_of(m, 1, CAPACITY, 1);
    assert_int_equal(macattn_attend(m, &b.io), MACATTN_E_STATE);
    assert_int_equal(macattn_decode(m, 0, &b.io), MACATTN_E_STATE);
    assert_int_equal(macattn_prefill(m, 0, &b.io), MACATTN_E_STATE);
    assert_non_null(strstr(macattn_last_error(m), "plan"));
    test_bench_row(&b, 0, 0, 0, &seq, 1, 1);
    test_bench_queries(&b, 1, &seq, 0);
    assert_ok(m, macattn_plan(m, &b.batch));
    assert_ok(m, macattn_decode(m, 1, &b.io));
    assert_int_equal(macattn_decode(m, 1, &b.io), MACATTN_E_STATE);
    assert_int_equal(macattn_prefill(m, 1, &b.io), MACATTN_E_STATE);
    assert_ok(m, macattn_prefill(m, 0, &b.io));
    assert_int_equal(macattn_decode(m, 0, &b.io), MACATTN_E_STATE);
    test_bench_destroy(&b);
    macattn_destroy(m);
}

static void test_other_calls(void **state)
{
    (void)state;
    world w;
    world_create(&w);
    int64_t n = 0;
    size_t size = 0;
    macattn_stats stats = {.struct_size = sizeof stats};
    macattn_config cfg;
    assert_int_equal(macattn_slot_reset(NULL, 0), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_truncate(NULL, 0, 0), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_fork(NULL, 0, 1), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_length(NULL, 0, &n), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_save(NULL, 0, NULL, &size), MACATTN_E_ARG);
    assert_int_equal(macattn_slot_load(NULL, 0, &size, sizeof size), MACATTN_E_ARG);
    assert_int_equal(macattn_stats_get(NULL, 0, 0, &stats), MACATTN_E_ARG);
    assert_int_equal(macattn_stats_reset(NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_get_config(NULL, &cfg), MACATTN_E_ARG);
    assert_string_equal(macattn_last_error(NULL), "");
    static const int32_t bad[] = {-1, 3, INT_MIN, INT_MAX};
    for (int i = 0; i < 4; i++) {
        expect(&w, macattn_slot_reset(w.m, bad[i]), MACATTN_E_RANGE, "slot");
        expect(&w, macattn_slot_truncate(w.m, bad[i], 0), MACATTN_E_RANGE, "slot");
        expect(&w, macattn_slot_fork(w.m, bad[i], 1), MACATTN_E_RANGE, "slot");
        expect(&w, macattn_slot_fork(w.m, 1, bad[i]), MACATTN_E_RANGE, "slot");
        expect(&w, macattn_slot_length(w.m, bad[i], &n), MACATTN_E_RANGE, "slot");
        expect(&w, macattn_slot_save(w.m, bad[i], NULL, &size), MACATTN_E_RANGE, "slot");
        expect(&w, macattn_slot_load(w.m, bad[i], &size, 8), MACATTN_E_RANGE, "slot");
    }
    expect(&w, macattn_slot_truncate(w.m, 0, 21), MACATTN_E_RANGE, "21");
    expect(&w, macattn_slot_truncate(w.m, 0, INT64_MIN), MACATTN_E_RANGE, "tokens");
    expect(&w, macattn_slot_fork(w.m, 1, 1), MACATTN_E_ARG, "slot 1");
    expect(&w, macattn_slot_length(w.m, 0, NULL), MACATTN_E_ARG, "NULL");
    expect(&w, macattn_slot_save(w.m, 0, NULL, NULL), MACATTN_E_ARG, "NULL");
    expect(&w, macattn_slot_load(w.m, 0, NULL, 8), MACATTN_E_ARG, "NULL");
    expect(&w, macattn_get_config(w.m, NULL), MACATTN_E_ARG, "NULL");
    expect(&w, macattn_stats_get(w.m, 0, 0, NULL), MACATTN_E_ARG, "NULL");
    expect(&w, macattn_stats_get(w.m, 2, 0, &stats), MACATTN_E_RANGE, "layer");
    expect(&w, macattn_stats_get(w.m, -2, 0, &stats), MACATTN_E_RANGE, "layer");
    expect(&w, macattn_stats_get(w.m, 0, HEADS, &stats), MACATTN_E_RANGE, "head");
    expect(&w, macattn_stats_get(w.m, 0, -2, &stats), MACATTN_E_RANGE, "head");
    stats.struct_size = 8;
    expect(&w, macattn_stats_get(w.m, 0, 0, &stats), MACATTN_E_ARG, "struct_size");
    world_destroy(&w);
}

static void test_statistics(void **state)
{
    (void)state;
    world w;
    world_create(&w);
    macattn_stats all = {.struct_size = sizeof all}, one = all;
    assert_ok(w.m, macattn_stats_get(w.m, -1, -1, &all));
    assert_int_equal(all.steps, 30 * 2 * HEADS);
    uint64_t steps = 0, hits = 0;
    for (int32_t l = 0; l < 2; l++) {
        for (int32_t h = 0; h < HEADS; h++) {
            assert_ok(w.m, macattn_stats_get(w.m, l, h, &one));
            assert_int_equal(one.steps, 30);
            assert_int_equal(one.hits + one.misses, 30);
            assert_int_equal(one.tokens_total, 20 * 21 / 2 + 10 * 11 / 2);
            steps += one.steps;
            hits += one.hits;
        }
    }
    assert_int_equal(steps, all.steps);
    assert_int_equal(hits, all.hits);
    assert_true(all.hits > 0 && all.misses > 0);
    assert_ok(w.m, macattn_stats_reset(w.m));
    assert_ok(w.m, macattn_stats_get(w.m, -1, -1, &all));
    assert_int_equal(all.steps + all.hits + all.misses + all.tokens_total + all.tokens_skipped, 0);
    world_destroy(&w);
}

/* ------------------------------------------------------------------------------- small calls -- */

static void test_texts(void **state)
{
    (void)state;
    assert_string_equal(macattn_version(), MACATTN_VERSION);
    assert_string_equal(macattn_status_string(MACATTN_OK), "success");
    assert_string_equal(macattn_status_string(MACATTN_E_FORMAT), "malformed or incompatible data");
    assert_string_equal(macattn_status_string((macattn_status)1), "unknown status");
    assert_string_equal(macattn_status_string((macattn_status)-12345), "unknown status");
    const macattn_config cfg = good_config();
    macattn *m = test_create(&cfg);
    assert_string_equal(macattn_last_error(m), "");
    macattn_destroy(m);
}

static void test_row_bytes(void **state)
{
    (void)state;
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_F32, 5), 20);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_F16, 5), 10);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_BF16, 5), 10);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_Q8_0, 64), 68);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_Q8_0, 65), 0);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_Q4_0, 64), 36);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_Q4_1, 64), 40);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_Q5_0, 64), 44);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_Q5_1, 64), 48);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_IQ4_NL, 64), 36);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_IQ4_NL, 40), 0);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_F16, 0), 0);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_F16, -1), 0);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_F32, INT64_MIN), 0);
    assert_int_equal(macattn_dtype_row_bytes(MACATTN_DTYPE_F8_E4M3, 5), 5);
    assert_int_equal(macattn_dtype_row_bytes((macattn_dtype)10, 32), 0);
    assert_int_equal(macattn_dtype_row_bytes((macattn_dtype)-1, 32), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_model),
        cmocka_unit_test(test_config_state),
        cmocka_unit_test(test_config_running),
        cmocka_unit_test(test_config_null),
        cmocka_unit_test(test_struct_size),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_state_bytes),
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_io),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_other_calls),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_row_bytes),
    };
    return cmocka_run_group_tests_name("args", tests, NULL, NULL);
}
