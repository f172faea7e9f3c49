/* SPDX-License-Identifier: Apache-2.0 */
/* Match-amend-complete on the GPU beside the reference: decisions and outputs of decoding, slots,
 * capture, CUDA graphs, statistics. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "duo.h"

static void check_steps(const macattn_config *cfg, int steps)
{
    duo x;
    duo_create(&x, cfg, 4, 400, 1);
    const int32_t lengths[4] = {1, 30, 12, 18};
    for (int32_t slot = 1; slot < 4; slot++) {
        for (int32_t t = 1; t < lengths[slot]; t++) duo_row(&x, slot, slot, t, 1);
    }
    for (int i = 0; i < steps; i++) {
        for (int32_t r = 0; r < 4; r++) duo_row(&x, r, r, lengths[r] + i, 1);
        x.b.batch.n_rows = 4;
        duo_decode(&x, duo_sequences);
    }
    assert_true(x.hits > 0 && x.misses > 0);
    assert_true(x.ties * 100 < x.hits);
    for (int32_t slot = 0; slot < 4; slot++) assert_true(duo_check_rings(&x, slot) > 0);
    duo_destroy(&x);
}

static void test_decode(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(BF16, 8, 2, 128);
    const int steps = small() ? 40 : 120;
    check_steps(&cfg, steps);
    cfg = reuse_config(F16, 4, 4, 64);
    cfg.fresh_tokens = 5;
    check_steps(&cfg, steps);
    cfg = reuse_config(F8, 8, 1, 128);
    check_steps(&cfg, steps);
    cfg = reuse_config(F16, 12, 1, 256);
    cfg.ring = 100, cfg.band = 30;
    check_steps(&cfg, steps);
    cfg = reuse_config(BF16, 8, 2, 128);
    cfg.softcap = 8, cfg.ring = 300;
    check_steps(&cfg, steps);
    cfg.lse_order = 0;
    check_steps(&cfg, steps);
}

/* Every output is finite, every lse a number. */
static void check_written(const duo *x, size_t heads)
{
    const size_t d = (size_t)x->cfg.head_dim;
    float *out = download(x->io.out, heads * d * sizeof *out);
    float *lse = download(x->io.lse, heads * sizeof *lse);
    for (size_t i = 0; i < heads * d; i++) assert_true(isfinite(out[i]));
    for (size_t i = 0; i < heads; i++) assert_false(isnan(lse[i]));
    free(out), free(lse);
}

/* Rows of length 0 and rows without a slot among others, under any order, with sinks: no output
 * stays as it was, decisions of the others are not touched. */
static void check_padded(macattn_policy policy, bool with_sinks)
{
    macattn_config cfg = reuse_config(F16, 12, 1, 64);
    cfg.policy = policy, cfg.budget = 1, cfg.n_layers = 1, cfg.fresh_tokens = 3;
    duo x;
    duo_create(&x, &cfg, 8, 400, 1);
    test_rng rng = {5};
    float sinks[12];
    for (int h = 0; h < 12; h++) sinks[h] = h % 3 ? 0.5f * (float)h : -INFINITY;
    float *gpu_sinks = upload(sinks, sizeof sinks);
    if (with_sinks) x.b.io.sinks = sinks, x.io.sinks = gpu_sinks;
    for (int i = 1; i < (small() ? 80 : 200); i++) {
        const int32_t rows = 2 + (int32_t)test_below(&rng, 7);
        const int32_t real = (int32_t)test_below(&rng, rows),
                      loose = (int32_t)test_below(&rng, rows);
        duo_row(&x, 0, 3, i, 1); /* the tokens of sequence 3, in this step or a later one */
        for (int32_t r = 0; r < rows; r++) {
            x.b.rows[r] = (macattn_row){.slot = 3, .n_queries = 1};
            if (r == real || r == loose) duo_row(&x, r, r == real ? 0 : 3, i, 1);
        }
        x.b.batch.n_rows = rows;
        test_sequence s[8];
        for (int32_t r = 0; r < rows; r++) s[r] = duo_sequences[x.b.rows[r].slot];
        test_bench_queries(&x.b, rows, s, 0);
        duo_upload(&x);
        int32_t slots[8];
        for (int32_t r = 0; r < rows; r++) slots[r] = r == real ? 0 : -1;
        assert_cuda(
            cudaMemcpy(x.slots, slots, sizeof(int32_t) * (size_t)rows, cudaMemcpyHostToDevice));
        assert_gpu_ok(x.m, macattn_cuda_decode(x.m, 0, &x.batch, &x.io, NULL));
        ref_mac_reset(x.ref, 3); /* what has no slot has no memory */
        ref_mac_decode(x.ref, &x.b.batch, 0, &x.b.io, x.b.want, x.b.want_lse, x.decisions);
        const size_t heads = (size_t)rows * 12;
        macattn_cuda_decision *got = download(macattn_cuda_decisions(x.m), heads * sizeof *got);
        for (int32_t r = 0; r < rows; r++) {
            for (int32_t h = 0; h < 12; h++) {
                if (r != real) assert_int_equal(got[r * 12 + h].entry, -1);
                if (r == real && got[r * 12 + h].entry >= 0) x.hits++;
            }
        }
        free(got);
        /* What the judge lets pass may be off by what it lets pass. */
        if (policy == MACATTN_POLICY_PAPER) {
            duo_check(&x, "padded", 2 * relative_tolerance(F16, F32));
        } else {
            check_written(&x, heads);
        }
    }
    if (policy == MACATTN_POLICY_PAPER) assert_true(x.hits > 0);
    assert_cuda(cudaFree(gpu_sinks));
    duo_destroy(&x);
}

static void test_padded_batches(void **state)
{
    (void)state;
    check_padded(MACATTN_POLICY_PAPER, false);
    check_padded(MACATTN_POLICY_PAPER, true);
    check_padded(MACATTN_POLICY_BUDGET, false);
    check_padded(MACATTN_POLICY_BUDGET, true);
}

static void test_slot_operations(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(F16, 4, 2, 64);
    duo x;
    duo_create(&x, &cfg, 1, 400, 1);
    test_rng rng = {3};
    int64_t length = 1;
    test_sequence s = duo_sequences[0];
    for (int i = 0; i < (small() ? 60 : 250); i++) {
        const int64_t what = test_below(&rng, 30);
        if (what == 0) {
            assert_gpu_ok(x.m, macattn_cuda_slot_reset(x.m, 0, NULL));
            ref_mac_reset(x.ref, 0);
            length = 1;
        } else if (what < 3 && length > 40) {
            length -= test_below(&rng, 20);
            assert_gpu_ok(x.m, macattn_cuda_slot_truncate(x.m, 0, length - 1, NULL));
            ref_mac_truncate(x.ref, 0, length - 1);
        } else if (what < 5) {
            assert_gpu_ok(x.m, macattn_cuda_slot_fork(x.m, 0, 3, NULL));
            ref_mac_fork(x.ref, 0, 3);
            assert_gpu_ok(x.m, macattn_cuda_slot_reset(x.m, 0, NULL));
            ref_mac_reset(x.ref, 0);
            assert_gpu_ok(x.m, macattn_cuda_slot_fork(x.m, 3, 0, NULL));
            ref_mac_fork(x.ref, 3, 0);
        }
        if (length >= 400) {
            length = 200;
            assert_gpu_ok(x.m, macattn_cuda_slot_truncate(x.m, 0, length - 1, NULL));
            ref_mac_truncate(x.ref, 0, length - 1);
        }
        duo_row(&x, 0, 0, length, 1);
        x.b.batch.n_rows = 1;
        duo_decode(&x, &s);
        if (what < 5) (void)duo_check_rings(&x, 0);
        length++;
    }
    assert_true(x.hits > 0 && x.misses > 0);
    duo_destroy(&x);
}

/* An engine computes a prompt, whole or in parts; capture fills the ring with what the reference
 * has after its own prefill, and decoding goes on alike. */
static void check_capture(const macattn_config *cfg, int32_t prompt, int32_t part)
{
    duo x;
    duo_create(&x, cfg, 4, prompt + 40, part);
    for (int32_t n = 0; n < prompt; n += part) {
        duo_row(&x, 0, 2, n + part, part);
        x.b.batch.n_rows = 1;
        duo_capture(&x, &duo_sequences[2]);
        const int64_t remembered = duo_check_rings(&x, 2);
        assert_true(n + part < prompt || remembered > 0);
    }
    for (int i = 1; i <= 30; i++) {
        duo_row(&x, 0, 2, prompt + i, 1);
        x.b.batch.n_rows = 1;
        duo_decode(&x, &duo_sequences[2]);
    }
    assert_true(x.hits > 0);
    (void)duo_check_rings(&x, 2);
    duo_destroy(&x);
}

static void test_capture(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(F16, 8, 2, 128);
    cfg.ring = 40;
    check_capture(&cfg, 150, 150);
    check_capture(&cfg, 150, 30);
    cfg.fresh_tokens = 5, cfg.softcap = 6;
    check_capture(&cfg, 96, 48);
    cfg = reuse_config(F8, 12, 1, 64);
    cfg.lse_order = 0;
    check_capture(&cfg, 100, 100);
    cfg = reuse_config(BF16, 3, 1, 256);
    check_capture(&cfg, 100, 100);
    if (small()) return;
    /* More than fits into one go. */
    cfg = reuse_config(BF16, 4, 2, 64);
    cfg.ring = 300;
    check_capture(&cfg, 500, 500);
}

/* One graph, captured once, replayed while lengths grow: the same bits as calls one by one. */
static void check_graph(const macattn_config *cfg)
{
    duo x, y;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_cuda(cudaStreamCreate(&stream));
    duo_create(&x, cfg, 2, 300, 1);
    duo_create(&y, cfg, 2, 300, 1);
    x.batch.n_rows = 2;
    for (int32_t slot = 0; slot < 2; slot++)
        duo_row(&x, slot, slot, 299, 299), duo_row(&y, slot, slot, 299, 299);
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    assert_gpu_ok(x.m, macattn_cuda_decode(x.m, 0, &x.batch, &x.io, stream));
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    const size_t bytes = 2 * 8 * 128 * sizeof(float);
    for (int i = 0; i < 100; i++) {
        duo *both[2] = {&x, &y};
        for (int k = 0; k < 2; k++) {
            duo_row(both[k], 0, 0, 60 + i, 1);
            duo_row(both[k], 1, 1, 1 + 2 * i, 1);
            both[k]->b.batch.n_rows = 2;
            test_bench_queries(&both[k]->b, 2, duo_sequences, 0);
            duo_upload(both[k]);
        }
        assert_cuda(cudaDeviceSynchronize());
        assert_cuda(cudaGraphLaunch(exec, stream));
        assert_gpu_ok(y.m, macattn_cuda_decode(y.m, 0, &y.batch, &y.io, NULL));
        void *a = download(x.io.out, bytes), *b = download(y.io.out, bytes);
        test_same_bits("graph and call", a, b, bytes);
        free(a), free(b);
    }
    macattn_stats stats = {.struct_size = sizeof stats};
    assert_gpu_ok(x.m, macattn_cuda_stats_get(x.m, 0, -1, &stats));
    assert_int_equal(stats.steps, 100 * 2 * 8);
    assert_int_equal(stats.hits + stats.misses, stats.steps);
    if (cfg->policy == MACATTN_POLICY_PAPER)
        assert_true(stats.hits > 0 && stats.tokens_skipped > 0);
    else
        assert_true(stats.samples > 0);
    uint64_t binned = 0;
    for (int i = 0; i < MACATTN_DISTANCE_BINS; i++) binned += stats.distance[i];
    assert_int_equal(binned, stats.hits);
    assert_gpu_ok(x.m, macattn_cuda_stats_reset(x.m, NULL));
    assert_cuda(cudaDeviceSynchronize());
    assert_gpu_ok(x.m, macattn_cuda_stats_get(x.m, -1, -1, &stats));
    assert_int_equal(stats.steps, 0);
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaGraphDestroy(graph));
    assert_cuda(cudaStreamDestroy(stream));
    duo_destroy(&x);
    duo_destroy(&y);
}

static void test_graph(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(BF16, 8, 2, 128);
    check_graph(&cfg);
    cfg.policy = MACATTN_POLICY_BUDGET, cfg.budget = 1;
    check_graph(&cfg);
}

/* A query that is not finite is computed, not remembered, and spoils nothing after it. */
static void test_not_finite(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(F16, 4, 2, 64);
    duo x;
    duo_create(&x, &cfg, 1, 200, 1);
    for (int i = 1; i < 120; i++) {
        duo_row(&x, 0, 0, i, 1);
        x.b.batch.n_rows = 1;
        test_bench_queries(&x.b, 1, duo_sequences, 0);
        if (i % 7 == 0) {
            float q[64], bad[64];
            for (int d = 0; d < 64; d++) q[d] = 0.1f * (float)d, bad[d] = d == 9 ? NAN : 1;
            test_bench_set_query(&x.b, 0, 1, q, bad);
            bad[9] = INFINITY;
            test_bench_set_query(&x.b, 0, 2, q, bad);
        }
        duo_upload(&x);
        assert_gpu_ok(x.m, macattn_cuda_decode(x.m, 0, &x.batch, &x.io, NULL));
        ref_mac_decode(x.ref, &x.b.batch, 0, &x.b.io, x.b.want, x.b.want_lse, x.decisions);
        duo_check(&x, "not finite", 2 * relative_tolerance(F16, F32));
    }
    duo_destroy(&x);
}

/* Calls refuse what arguments.c refuses (test_arguments.c). */
static void test_refused_calls(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(F16, 4, 2, 64);
    duo x;
    duo_create(&x, &cfg, 2, 50, 1);
    x.batch.n_rows = 3;
    assert_int_equal(macattn_cuda_attend(x.m, &x.batch, &x.io, NULL), MACATTN_E_RANGE);
    assert_int_equal(macattn_cuda_decode(x.m, 0, &x.batch, &x.io, NULL), MACATTN_E_RANGE);
    assert_non_null(strstr(macattn_cuda_last_error(x.m), "n_rows is 3"));
    x.batch.n_rows = 1;
    assert_int_equal(macattn_cuda_decode(x.m, 2, &x.batch, &x.io, NULL), MACATTN_E_RANGE);
    macattn_cuda_io io = x.io;
    io.kv.k_token_stride = 16;
    assert_int_equal(macattn_cuda_attend(x.m, &x.batch, &io, NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_cuda_decode(x.m, 0, &x.batch, &io, NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_cuda_capture(x.m, 0, &x.batch, 0, 1, &io, NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_cuda_slot_fork(x.m, 0, 4, NULL), MACATTN_E_RANGE);
    assert_int_equal(macattn_cuda_set_head_budget(x.m, 0, 0, 0.1f, NULL), MACATTN_E_STATE);
    duo_destroy(&x);
}

int main(void)
{
    if (gpu_missing()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),          cmocka_unit_test(test_padded_batches),
        cmocka_unit_test(test_slot_operations), cmocka_unit_test(test_capture),
        cmocka_unit_test(test_graph),           cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_refused_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
