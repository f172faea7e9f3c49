/* SPDX-License-Identifier: Apache-2.0 */
/* Match, amend, complete: every decision is the reference's, a miss is bit for bit exact
 * attention, a hit is the reference's hit, and nothing depends on how the work is spread. */
#include "support.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const test_sequence sequences[4] = {{11, 6, 0.7}, {12, 3, 0.7}, {13, 40, 0.5}, {14, 1, 0.1}};

static macattn_config reuse_config(int32_t n_heads, int32_t n_kv_heads, int32_t head_dim)
{
    macattn_config cfg = test_config(n_heads, n_kv_heads, head_dim);
    cfg.ring = 16;
    cfg.band = 12;
    cfg.min_tokens = 20;
    cfg.max_slots = 4;
    return cfg;
}

/* ----------------------------------------------------------------------- the library's twins -- */

/* The same steps in the library, in one under the policy exact, and in the reference. */
typedef struct trio {
    macattn *m, *exact;
    ref_mac *ref;
    test_bench b;
    float *exact_out, *exact_lse;
    ref_decision *decisions;
    int64_t hits, misses, skipped, total;
} trio;

static void trio_create(trio *x, const macattn_config *cfg, int32_t max_rows, int64_t capacity,
                        int32_t max_queries)
{
    *x = (trio){.m = test_create(cfg)};
    macattn_config exact = *cfg;
    exact.policy = MACATTN_POLICY_EXACT;
    x->exact = test_create(&exact);
    const macattn_config resolved = test_resolved(x->m);
    x->ref = ref_mac_create(&resolved);
    assert_non_null(x->ref);
    test_bench_create(&x->b, &resolved, max_rows, capacity, max_queries);
    const size_t heads = (size_t)max_rows * (size_t)max_queries * (size_t)cfg->n_heads;
    x->exact_out = malloc(heads * sizeof(float) * (size_t)resolved.v_head_dim);
    x->exact_lse = malloc(heads * sizeof(float));
    x->decisions = malloc((size_t)max_rows * (size_t)cfg->n_heads * sizeof *x->decisions);
    assert_true(x->exact_out && x->exact_lse && x->decisions);
}

static void trio_destroy(trio *x)
{
    macattn_destroy(x->m);
    macattn_destroy(x->exact);
    ref_mac_destroy(x->ref);
    test_bench_destroy(&x->b);
    free(x->exact_out);
    free(x->exact_lse);
    free(x->decisions);
}

static double out_tolerance(const trio *x)
{
    /* A summary is merged anew at each hit: a chain of them adds some rounding. */
    return 4 * test_tolerance(sqrt((double)x->b.cfg.head_dim) * 1.5, x->b.capacity, 4);
}

/* Entry `end` names an entry of a ring: no two of a head have the same. */
static void check_decision(trio *x, int32_t r, int32_t head)
{
    const mai_decision *got = test_decision(x->m, r, head);
    const ref_decision *want = &x->decisions[r * x->b.cfg.n_heads + head];
    if (got->hit != want->hit) {
        fail_msg("row %d head %d, %lld tokens: %s, the reference %s (distance %.17g, radius %.17g)",
                 r, head, (long long)x->b.rows[r].n_tokens, got->hit ? "hit" : "miss",
                 want->hit ? "hits" : "misses", sqrt(want->distance2), want->radius);
    }
    x->total += x->b.rows[r].n_tokens;
    if (!got->hit) {
        x->misses++;
        return;
    }
    x->hits++;
    x->skipped += want->end - x->b.cfg.fresh_tokens;
    assert_int_equal(got->start, want->end);
    if (got->distance2 != want->distance2) {
        fail_msg("distance %.17g, the reference %.17g", got->distance2, want->distance2);
    }
}

static void check_ring(trio *x, int32_t slot, int32_t layer, int32_t head)
{
    const mai_ring_view *ring = &x->m->slots[slot].rings[layer]->view;
    const size_t K = (size_t)x->b.cfg.ring, dv = (size_t)x->b.cfg.v_head_dim;
    const size_t d = (size_t)x->b.cfg.head_dim, width = (size_t)x->m->ring_dims.width;
    const int32_t count = ring->count[head];
    assert_int_equal(count, ref_mac_count(x->ref, slot, layer, head));
    for (int32_t i = 0; i < count; i++) {
        const ref_entry want = ref_mac_entry(x->ref, slot, layer, head, i);
        const size_t at = (size_t)head * K + ((size_t)(ring->head[head] - count + i) + 2 * K) % K;
        assert_int_equal(ring->pos[at], want.pos);
        assert_int_equal(ring->end[at], want.end);
        /* A difference of two that may be large. */
        test_close("a summary's lse", &ring->lse0[at], &want.lse0, 1,
                   2 * out_tolerance(x) + 0x1p-22 * (fabs(want.lse) + fabs(want.lse0)));
        test_close("a summary", ring->out + at * width, want.out, (int64_t)dv, out_tolerance(x));
        assert_int_equal(width, x->b.cfg.lse_order ? dv + d : dv);
        if (x->b.cfg.lse_order)
            test_close("its keys", ring->out + at * width + dv, want.kbar, (int64_t)d,
                       out_tolerance(x));
        double q[MAI_MAX_DIM];
        const size_t bytes = macattn_dtype_row_bytes(x->b.cfg.q_dtype, x->b.cfg.head_dim);
        for (int32_t j = 0; j < x->b.cfg.head_dim; j++) {
            q[j] = ref_value(x->b.cfg.q_dtype, ring->q + at * bytes, j);
        }
        assert_memory_equal(q, want.q, sizeof *q * (size_t)x->b.cfg.head_dim);
    }
}

/* One layer of a planned step in all three. */
static void trio_decode(trio *x, int32_t layer)
{
    test_bench *b = &x->b;
    const size_t bytes = test_bench_out_bytes(b),
                 heads = (size_t)b->batch.n_rows * (size_t)b->cfg.n_heads;
    const size_t dv = (size_t)b->cfg.v_head_dim;
    assert_ok(x->m, macattn_decode(x->m, layer, &b->io));
    macattn_io io = b->io;
    io.out = x->exact_out;
    io.lse = x->exact_lse;
    test_poison(io.out, bytes);
    test_poison(io.lse, heads * sizeof *io.lse);
    assert_ok(x->exact, macattn_decode(x->exact, layer, &io));
    ref_mac_decode(x->ref, &b->batch, layer, &b->io, b->want, b->want_lse, x->decisions);
    for (int32_t r = 0; r < b->batch.n_rows; r++) {
        for (int32_t h = 0; h < b->cfg.n_heads; h++) {
            check_decision(x, r, h);
            if (test_decision(x->m, r, h)->hit) continue;
            const size_t at = (size_t)r * (size_t)b->cfg.n_heads + (size_t)h;
            test_same_bits("a miss and exact", b->out + at * dv, x->exact_out + at * dv, 4 * dv);
            test_same_bits("a miss and exact, lse", b->lse + at, x->exact_lse + at, 4);
        }
    }
    test_close("decode", b->out, b->want, (int64_t)(bytes / sizeof(float)), out_tolerance(x));
    test_close_lse("decode lse", b->lse, b->want_lse, (int64_t)heads, out_tolerance(x));
}

static void trio_plan(trio *x)
{
    assert_ok(x->m, macattn_plan(x->m, &x->b.batch));
    assert_ok(x->exact, macattn_plan(x->exact, &x->b.batch));
}

/* Decode tokens [from, to) of `n_rows` sequences in slots 0.. and compare everything. */
static void trio_run(trio *x, int32_t n_rows, int64_t from, int64_t to)
{
    for (int64_t n = from + 1; n <= to; n++) {
        for (int32_t r = 0; r < n_rows; r++) test_bench_row(&x->b, r, r, r, &sequences[r], n, 1);
        for (int32_t l = 0; l < x->b.cfg.n_layers; l++) {
            test_bench_queries(&x->b, n_rows, sequences, l);
            if (l == 0) trio_plan(x);
            trio_decode(x, l);
        }
    }
}

static void check_rings(trio *x, int32_t n_slots)
{
    for (int32_t i = 0; i < n_slots * x->b.cfg.n_layers * x->b.cfg.n_heads; i++) {
        const int32_t head = i % x->b.cfg.n_heads, rest = i / x->b.cfg.n_heads;
        check_ring(x, rest / x->b.cfg.n_layers, rest % x->b.cfg.n_layers, head);
    }
}

static void check_stats(trio *x)
{
    macattn_stats stats = {.struct_size = sizeof stats};
    assert_ok(x->m, macattn_stats_get(x->m, -1, -1, &stats));
    uint64_t binned = 0;
    for (int i = 0; i < MACATTN_DISTANCE_BINS; i++) binned += stats.distance[i];
    assert_int_equal(stats.hits, x->hits);
    assert_int_equal(stats.misses, x->misses);
    assert_int_equal(stats.steps, x->hits + x->misses);
    assert_int_equal(stats.tokens_total, x->total);
    assert_int_equal(stats.tokens_skipped, x->skipped);
    assert_int_equal(binned, x->hits);
}

static void whole_stream(const macattn_config *cfg, int32_t n_rows, int64_t n_tokens)
{
    trio x;
    trio_create(&x, cfg, n_rows, n_tokens, 1);
    trio_run(&x, n_rows, 0, n_tokens);
    check_rings(&x, n_rows);
    check_stats(&x);
    trio_destroy(&x);
}

/* ------------------------------------------------------------------------------------- tests -- */

static void test_stream(void **state)
{
    (void)state;
    for (int i = 0; macattn_isa_name(i); i++) {
        if (!macattn_isa_supported(macattn_isa_name(i))) continue;
        macattn_config cfg = reuse_config(6, 2, 64);
        cfg.n_layers = 2;
        cfg.isa = macattn_isa_name(i);
        trio x;
        trio_create(&x, &cfg, 3, 150, 1);
        trio_run(&x, 3, 0, 150);
        check_rings(&x, 3);
        check_stats(&x);
        /* The test tests what it is meant to. */
        assert_true(x.hits > 500 && x.misses > 500);
        trio_destroy(&x);
    }
}

static void test_types(void **state)
{
    (void)state;
    static const int32_t dims[][2] = {{64, 64}, {96, 32}, {128, 128}, {32, 256}};
    for (int i = 0; i < 12; i++) {
        macattn_config cfg = reuse_config(4, 2, dims[i % 4][0]);
        cfg.v_head_dim = dims[i % 4][1];
        cfg.q_dtype = (macattn_dtype)(i % 3);
        cfg.k_dtype = (macattn_dtype)(i % 4);
        cfg.v_dtype = (macattn_dtype)(i / 3);
        whole_stream(&cfg, 2, 90);
    }
}

/* Heads fill blocks of four differently; the cap's derivative weights keys apart from values. */
static void test_groups(void **state)
{
    (void)state;
    for (int32_t i = 0; i < 14; i++) {
        macattn_config cfg = reuse_config(2 * (1 + i % 7), 2, i % 3 ? 64 : 96);
        cfg.k_dtype = (macattn_dtype)(i % 4);
        cfg.softcap = i % 2 ? 6.0f : 0.0f;
        cfg.fresh_tokens = i % 5;
        whole_stream(&cfg, 2, 90);
    }
}

/* With order 0 the rule is the published one: the reference's without a mean of keys, and whatever
 * the order, the same decisions. */
static void test_order_zero(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(6, 2, 64);
    cfg.lse_order = 0;
    whole_stream(&cfg, 3, 150);
    macattn *zero = test_create(&cfg);
    cfg.lse_order = 1;
    macattn *one = test_create(&cfg);
    test_bench b = test_bench_of(zero, 1, 150, 1);
    int64_t hits = 0, differ = 0;
    for (int64_t n = 1; n <= 150; n++) {
        test_bench_step(&b, zero, 0, &sequences[0], n, 1);
        float out[6 * 64];
        memcpy(out, b.out, sizeof out);
        test_bench_step(&b, one, 0, &sequences[0], n, 1);
        differ += memcmp(out, b.out, sizeof out) != 0;
        for (int32_t h = 0; h < 6; h++) {
            const mai_decision *x = test_decision(zero, 0, h), *y = test_decision(one, 0, h);
            assert_true(x->hit == y->hit && x->start == y->start && x->entry == y->entry);
            hits += x->hit;
        }
    }
    assert_true(hits > 200 && differ > 50);
    test_bench_destroy(&b);
    macattn_destroy(zero);
    macattn_destroy(one);
}

static void test_odd_dims(void **state)
{
    (void)state;
    static const int32_t dims[] = {8, 40, 72, 80, 112, 136, 200};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        const macattn_config cfg = reuse_config(i % 2 ? 5 : 2, 1, dims[i]);
        whole_stream(&cfg, 2, 80);
    }
}

static void test_settings(void **state)
{
    (void)state;
    static const struct {
        int32_t ring, band, fresh;
        int64_t min_tokens;
        float tau;
    } cases[] = {
        {1, 12, 0, 20, 0.45f},  {2, 1, 0, 0, 0.45f},      {4096, 3, 0, 0, 0.45f},
        {16, 1, 0, 0, 0.45f},   {16, 1000, 0, 0, 0.45f},  {16, 12, 5, 0, 0.45f},
        {16, 12, 50, 0, 0.45f}, {16, 12, 1000, 0, 0.45f}, {16, 12, 0, 1000, 0.45f},
        {16, 12, 0, 60, 0.45f}, {16, 12, 0, 0, 0},        {16, 12, 0, 0, 1},
        {17, 5, 3, 7, 0.3f},    {15, 40, 1, 0, 0.6f},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        macattn_config cfg = reuse_config(4, 2, 64);
        cfg.ring = cases[i].ring;
        cfg.band = cases[i].band;
        cfg.fresh_tokens = cases[i].fresh;
        cfg.min_tokens = cases[i].min_tokens;
        cfg.tau = cases[i].tau;
        whole_stream(&cfg, 2, 100);
    }
}

static void test_softcap_scale_sinks(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(4, 2, 64);
    cfg.softcap = 8;
    cfg.scale = 0.3f;
    const float sinks[] = {0.5f, -2, 3, -INFINITY};
    trio x;
    trio_create(&x, &cfg, 2, 100, 1);
    x.b.io.sinks = sinks;
    trio_run(&x, 2, 0, 100);
    check_rings(&x, 2);
    trio_destroy(&x);
}

/* No reuse, and no rings, with a window. */
static void test_window(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(4, 2, 64);
    cfg.window = 30;
    trio x;
    trio_create(&x, &cfg, 2, 80, 1);
    trio_run(&x, 2, 0, 80);
    assert_int_equal(x.hits, 0);
    size_t bytes = 1;
    assert_int_equal(macattn_config_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 0);
    trio_destroy(&x);
}

/* Without q_match nothing is reused and nothing remembered. */
static void test_no_q_match(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(4, 2, 64);
    trio x;
    trio_create(&x, &cfg, 2, 100, 1);
    trio_run(&x, 2, 0, 60);
    const int64_t hits = x.hits;
    x.b.io.q_match = NULL;
    trio_run(&x, 2, 60, 70);
    assert_int_equal(x.hits, hits);
    check_rings(&x, 2);
    x.b.io.q_match = x.b.q_match;
    trio_run(&x, 2, 70, 100);
    assert_true(x.hits > hits);
    check_rings(&x, 2);
    trio_destroy(&x);
}

/* Long contexts with a wide ring: hits far behind. The prompt comes by prefill. */
static void test_long(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(2, 1, 64);
    const int64_t n = TEST_LIGHT ? 1200 : 2300;
    cfg.ring = 512;
    cfg.band = 256;
    cfg.min_tokens = 1000;
    trio x;
    trio_create(&x, &cfg, 1, n + 20, 700);
    for (int64_t at = 0; at < n;) {
        const int32_t chunk = n - at < 700 ? (int32_t)(n - at) : 700;
        test_bench_row(&x.b, 0, 0, 0, &sequences[0], at + chunk, chunk);
        test_bench_queries(&x.b, 1, sequences, 0);
        trio_plan(&x);
        assert_ok(x.m, macattn_prefill(x.m, 0, &x.b.io));
        ref_mac_prefill(x.ref, &x.b.batch, 0, &x.b.io, x.b.want, x.b.want_lse);
        at += chunk;
    }
    check_rings(&x, 1);
    trio_run(&x, 1, n, n + 20);
    assert_true(x.hits > 10);
    check_rings(&x, 1);
    trio_destroy(&x);
}

/* Chunks of any length fill the ring as decoding would; rows of a batch may mix lengths. */
static void test_prefill(void **state)
{
    (void)state;
    static const int32_t chunks[] = {1, 2, 5, 13, 31, 64, 90};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        for (int fresh = 0; fresh <= 7; fresh += 7) {
            macattn_config cfg = reuse_config(4, 2, 64);
            cfg.fresh_tokens = fresh;
            cfg.n_layers = 2;
            trio x;
            trio_create(&x, &cfg, 2, 140, 90);
            for (int64_t at = 0; at < 90; at += chunks[i]) {
                const int32_t n = at + chunks[i] < 90 ? chunks[i] : (int32_t)(90 - at);
                test_bench_row(&x.b, 0, 0, 0, &sequences[0], at + n, n);
                test_bench_row(&x.b, 1, 1, 1, &sequences[1], at / 2 + 1, at < 2 ? 1 : 1);
                for (int32_t l = 0; l < 2; l++) {
                    /* Row 1 grows by jumps: tokens added behind the library's back. */
                    for (int64_t t = 0; t < at / 2; t++)
                        test_bench_row(&x.b, 1, 1, 1, &sequences[1], t + 1, 1);
                    test_bench_row(&x.b, 1, 1, 1, &sequences[1], at / 2 + 1, 1);
                    const bool continues = at == 0 || at / 2 >= (at - chunks[i]) / 2 + 1;
                    test_bench_queries(&x.b, continues ? 2 : 1, sequences, l);
                    if (l == 0) trio_plan(&x);
                    assert_ok(x.m, macattn_prefill(x.m, l, &x.b.io));
                    ref_mac_prefill(x.ref, &x.b.batch, l, &x.b.io, x.b.want, x.b.want_lse);
                    test_close("prefill", x.b.out, x.b.want,
                               (int64_t)(test_bench_out_bytes(&x.b) / 4), out_tolerance(&x));
                }
            }
            check_rings(&x, 2);
            /* The exact twin has seen nothing: bring it to the same length. */
            assert_ok(x.exact, macattn_slot_reset(x.exact, 0));
            trio_run(&x, 1, 90, 140);
            assert_true(x.hits > 0);
            check_rings(&x, 2);
            trio_destroy(&x);
        }
    }
}

/* Equal queries: the newest of the entries that end early enough is taken. */
static void test_ties(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(3, 1, 64);
    cfg.ring = 9;
    trio x;
    trio_create(&x, &cfg, 1, 80, 1);
    float q[64];
    for (int64_t n = 1; n <= 80; n++) {
        test_bench_row(&x.b, 0, 0, 0, &sequences[0], n, 1);
        test_bench_queries(&x.b, 1, sequences, 0);
        for (int32_t h = 0; h < 3; h++) {
            /* head 0: all the same; 1: two alternating; 2: zeros of both signs */
            for (int i = 0; i < 64; i++) {
                q[i] = h == 0 ? 1.25f : h == 1 ? (float)((n % 2) + i) : n % 2 ? 0.0f : -0.0f;
            }
            test_bench_set_query(&x.b, 0, h, q, q);
        }
        trio_plan(&x);
        trio_decode(&x, 0);
        if (n > 40) {
            assert_int_equal(test_decision(x.m, 0, 0)->start, n - 1 - cfg.band);
            assert_int_equal(test_decision(x.m, 0, 1)->start, n - 2 - cfg.band);
            assert_int_equal(test_decision(x.m, 0, 2)->start, n - 1 - cfg.band);
        }
    }
    check_rings(&x, 1);
    trio_destroy(&x);
}

/* Queries whose distances differ in the last bits only: the int8 scan must not decide. */
static void test_near_ties(void **state)
{
    (void)state;
    for (int type = 0; type < 3; type++) {
        macattn_config cfg = reuse_config(2, 1, 64);
        cfg.ring = 64;
        cfg.band = 1;
        cfg.min_tokens = 0;
        cfg.q_dtype = (macattn_dtype)type;
        trio x;
        trio_create(&x, &cfg, 1, 200, 1);
        test_rng rng = {(uint64_t)type + 5};
        float q[64];
        for (int64_t n = 1; n <= 200; n++) {
            test_bench_row(&x.b, 0, 0, 0, &sequences[0], n, 1);
            test_bench_queries(&x.b, 1, sequences, 0);
            for (int32_t h = 0; h < 2; h++) {
                for (int i = 0; i < 64; i++) q[i] = (float)(i % 7 - 3) * (h ? 1e4f : 1e-3f);
                const double step = type == 0 ? 1e-6 : 2e-3;
                q[test_below(&rng, 64)] *= (float)(1 + step * (double)test_below(&rng, 5));
                test_bench_set_query(&x.b, 0, h, q, q);
            }
            trio_plan(&x);
            trio_decode(&x, 0);
        }
        check_rings(&x, 1);
        trio_destroy(&x);
    }
}

/* Distances on both sides of the radius, by a hair. */
static void test_at_the_radius(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(1, 1, 64);
    cfg.ring = 1;
    cfg.band = 1;
    cfg.min_tokens = 0;
    trio x;
    trio_create(&x, &cfg, 1, 400, 1);
    const double radius = sqrt(128.0) * (1 - (double)cfg.tau);
    float zero[64] = {0}, q[64] = {0};
    for (int64_t n = 1; n <= 400; n++) {
        test_bench_row(&x.b, 0, 0, 0, &sequences[0], n, 1);
        test_bench_queries(&x.b, 1, sequences, 0);
        q[n % 64] = (float)(radius * (1 + 1e-7 * (double)(n / 2 - 100)));
        test_bench_set_query(&x.b, 0, 0, n % 2 ? zero : q, n % 2 ? zero : q);
        q[n % 64] = 0;
        trio_plan(&x);
        trio_decode(&x, 0);
    }
    assert_true(x.hits > 50 && x.misses > 50);
    trio_destroy(&x);
}

/* Enormous and tiny queries: squares overflow or vanish in float32. */
static void test_query_sizes(void **state)
{
    (void)state;
    static const float sizes[] = {1e-42f, 1e-30f, 1e-20f, 1e-3f, 1e3f, 1e19f, 1e25f};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        macattn_config cfg = reuse_config(2, 1, 64);
        cfg.min_tokens = 0;
        trio x;
        trio_create(&x, &cfg, 1, 80, 1);
        float q[64], q_match[64];
        for (int64_t n = 1; n <= 80; n++) {
            test_bench_row(&x.b, 0, 0, 0, &sequences[0], n, 1);
            test_bench_queries(&x.b, 1, sequences, 0);
            for (int32_t h = 0; h < 2; h++) {
                test_query(&sequences[0], &x.b.cfg, n, 0, h, q, q_match);
                for (int j = 0; j < 64; j++) q_match[j] *= n % 4 || h ? sizes[i] : 1;
                test_bench_set_query(&x.b, 0, h, q, q_match);
            }
            trio_plan(&x);
            trio_decode(&x, 0);
        }
        check_rings(&x, 1);
        trio_destroy(&x);
    }
}

/* NaN and infinite queries are computed exactly, and never remembered. */
static void test_nan_queries(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int type = 0; type < 3; type++) {
        macattn_config cfg = reuse_config(3, 1, 64);
        cfg.q_dtype = (macattn_dtype)type;
        trio x;
        trio_create(&x, &cfg, 1, 120, 40);
        float q[64], q_match[64];
        for (int64_t n = 1; n <= 120; n++) {
            test_bench_row(&x.b, 0, 0, 0, &sequences[0], n, 1);
            test_bench_queries(&x.b, 1, sequences, 0);
            for (int32_t h = 0; h < 3; h++) {
                if ((n + h) % 3) continue;
                test_query(&sequences[0], &x.b.cfg, n - 1, 0, h, q, q_match);
                q_match[(n * 7) % 64] = bad[n / 3 % 3];
                /* Often the query after RoPE is then bad, too. */
                if (n % 2) memcpy(q, q_match, sizeof q);
                test_bench_set_query(&x.b, 0, h, q, q_match);
            }
            trio_plan(&x);
            trio_decode(&x, 0);
        }
        assert_true(x.hits > 30);
        check_rings(&x, 1);
        for (int32_t h = 0; h < 3; h++) {
            for (int32_t i = 0; i < ref_mac_count(x.ref, 0, 0, h); i++) {
                assert_true((ref_mac_entry(x.ref, 0, 0, h, i).pos + 1 + h) % 3 != 0);
            }
        }
        trio_destroy(&x);
    }
}

/* The same in a prompt. */
static void test_nan_queries_in_prefill(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(3, 1, 64);
    trio x;
    trio_create(&x, &cfg, 1, 80, 40);
    float q[64], q_match[64];
    for (int64_t at = 0; at < 80; at += 40) {
        test_bench_row(&x.b, 0, 0, 0, &sequences[0], at + 40, 40);
        test_bench_queries(&x.b, 1, sequences, 0);
        for (int64_t i = 0; i < 40; i += 3) {
            test_query(&sequences[0], &x.b.cfg, at + i, 0, 1, q, q_match);
            q_match[i] = NAN;
            test_bench_set_query(&x.b, i, 1, q, q_match);
        }
        trio_plan(&x);
        assert_ok(x.m, macattn_prefill(x.m, 0, &x.b.io));
        ref_mac_prefill(x.ref, &x.b.batch, 0, &x.b.io, x.b.want, x.b.want_lse);
        test_close("prefill", x.b.out, x.b.want, (int64_t)(test_bench_out_bytes(&x.b) / 4),
                   out_tolerance(&x));
    }
    check_rings(&x, 1);
    trio_destroy(&x);
}

/* A NaN in V: what covers it is not remembered, what does not is. */
static void test_nan_in_v(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(2, 1, 64);
    cfg.v_dtype = MACATTN_DTYPE_F32;
    trio x;
    trio_create(&x, &cfg, 1, 90, 1);
    trio_run(&x, 1, 0, 50);
    test_bench_row(&x.b, 0, 0, 0, &sequences[0], 51, 1);
    const float nan = NAN;
    memcpy(x.b.kv.v.data + 50 * x.b.kv.view.v_token_stride, &nan, 4);
    for (int64_t n = 51; n <= 90; n++) {
        if (n > 51) test_bench_row(&x.b, 0, 0, 0, &sequences[0], n, 1);
        test_bench_queries(&x.b, 1, sequences, 0);
        trio_plan(&x);
        trio_decode(&x, 0);
        assert_true(isnan(x.b.out[0]));
    }
    check_rings(&x, 1);
    for (int32_t i = 0; i < ref_mac_count(x.ref, 0, 0, 0); i++) {
        assert_true(ref_mac_entry(x.ref, 0, 0, 0, i).end <= 50);
    }
    trio_destroy(&x);
}

/* ----------------------------------------------------------------------------------- threads -- */

typedef struct call {
    void (*task)(void *, int);
    void *arg;
    int first, n, step;
} call;

static void *run_call(void *arg)
{
    const call *c = arg;
    for (int i = c->first; i < c->n; i += c->step) c->task(c->arg, i);
    return NULL;
}

/* A caller's parallel-for over three threads of its own, in reverse order of tasks. */
static void parallel_for(void *user, int n_tasks, void (*task)(void *arg, int i), void *arg)
{
    pthread_t threads[3];
    call calls[3];
    ++*(int *)user;
    for (int i = 2; i >= 0; i--) {
        calls[i] = (call){task, arg, i, n_tasks, 3};
        assert_int_equal(pthread_create(&threads[i], NULL, run_call, &calls[i]), 0);
    }
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
}

/* All outputs of a stream, one after the other. */
static float *outputs(const macattn_config *cfg, size_t *bytes)
{
    enum { STEPS = 30, PROMPT = 300 };
    macattn *m = test_create(cfg);
    test_bench b = test_bench_of(m, 2, PROMPT + STEPS, PROMPT);
    *bytes = 0;
    const size_t most =
        2 * (PROMPT + STEPS) * (size_t)cfg->n_heads * (size_t)cfg->head_dim * sizeof(float);
    char *all = malloc(most);
    assert_non_null(all);
    for (int step = 0; step <= STEPS; step++) {
        for (int32_t r = 0; r < 2; r++) {
            test_bench_row(&b, r, r, r, &sequences[r], PROMPT + step, step ? 1 : PROMPT);
        }
        test_bench_run(&b, m, 2, sequences);
        memcpy(all + *bytes, b.out, test_bench_out_bytes(&b));
        *bytes += test_bench_out_bytes(&b);
    }
    macattn_stats stats = {.struct_size = sizeof stats};
    assert_ok(m, macattn_stats_get(m, -1, -1, &stats));
    assert_true(stats.hits > 10 && stats.misses > 10);
    test_bench_destroy(&b);
    macattn_destroy(m);
    return (float *)(void *)all;
}

static void test_threads(void **state)
{
    (void)state;
    static const int32_t heads[][2] = {{8, 8}, {8, 1}, {6, 2}};
    for (int i = 0; i < 3; i++) {
        macattn_config cfg = reuse_config(heads[i][0], heads[i][1], 64);
        cfg.ring = 100;
        cfg.band = 40;
        cfg.tau = 0.7f;
        size_t bytes, more;
        float *one = outputs(&cfg, &bytes);
        static const int32_t n_threads[] = {2, 3, 7, 3};
        for (int t = 0; t < 4; t++) {
            int calls = 0;
            cfg.n_threads = n_threads[t];
            cfg.spin_us = t == 1 ? 0 : 100;
            cfg.parallel_for = t == 3 ? parallel_for : NULL;
            cfg.parallel_user = &calls;
            float *many = outputs(&cfg, &more);
            assert_int_equal(bytes, more);
            test_same_bits("one thread and several", one, many, bytes);
            assert_true(t == 3 ? calls > 0 : calls == 0);
            free(many);
        }
        free(one);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_order_zero),
        cmocka_unit_test(test_odd_dims),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_softcap_scale_sinks),
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_no_q_match),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_prefill),
        cmocka_unit_test(test_ties),
        cmocka_unit_test(test_near_ties),
        cmocka_unit_test(test_at_the_radius),
        cmocka_unit_test(test_query_sizes),
        cmocka_unit_test(test_nan_queries),
        cmocka_unit_test(test_nan_queries_in_prefill),
        cmocka_unit_test(test_nan_in_v),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("mac", tests, NULL, NULL);
}
