/* SPDX-License-Identifier: Apache-2.0 */
/* Policy BUDGET on the GPU beside the CPU. */
#include <math.h>
#include <stdlib.h>

#include "cuda/host/object.h"
#include "duo.h"

enum { BUDGET_HEADS = 8, BUDGET_DIM = 64, BUDGET_ROWS = 2, BUDGET_TOKENS = 500 };

static const test_sequence slow = {11, 5, 0.05};

/* The GPU beside the CPU backend. */
typedef struct budget_run {
    duo x;
    macattn *cpu;
    int64_t groups, hits,
        differ;    /* groups judged, used by the GPU, and decided otherwise by the CPU */
    double error2; /* sum over the heads used, against exact attention, in units of the layer */
    bool is_twin;  /* nothing is near the bound: what is remembered has to be the same */
    int64_t remembered, forgotten;
} budget_run;

static macattn_config budget_config(float budget)
{
    macattn_config cfg = reuse_config(F16, BUDGET_HEADS, 2, BUDGET_DIM);
    cfg.policy = MACATTN_POLICY_BUDGET;
    cfg.budget = budget, cfg.select = 0; /* selection: test_select.c */
    cfg.ring = 48, cfg.band = 16, cfg.fresh_tokens = 3, cfg.min_tokens = 0, cfg.n_layers = 1;
    return cfg;
}

static void budget_create(budget_run *t, const macattn_config *cfg, int64_t capacity,
                          int32_t max_queries)
{
    *t = (budget_run){0};
    duo_create(&t->x, cfg, BUDGET_ROWS, capacity, max_queries);
    t->cpu = test_create(&t->x.cfg);
}

static void budget_destroy(budget_run *t)
{
    macattn_destroy(t->cpu);
    duo_destroy(&t->x);
}

static double head_error(const float *got, const float *want, double unit2)
{
    double error = 0;
    for (int i = 0; i < BUDGET_DIM; i++)
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
    return sqrt(error / unit2);
}

static double norm2(const float *x)
{
    double sum = 0;
    for (int i = 0; i < BUDGET_DIM; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

/* What the CPU came to of one group. */
typedef struct cpu_group {
    bool hit, remember;
} cpu_group;

static void check_budget_group(budget_run *t, int32_t r, int32_t h0, const float *out,
                               const macattn_cuda_decision *got, cpu_group cpu, double unit2)
{
    const int32_t group = BUDGET_HEADS / 2;
    const bool hit = got[r * BUDGET_HEADS + h0].entry >= 0;
    t->groups++;
    t->hits += hit;
    t->differ += hit != cpu.hit;
    for (int32_t h = h0; h < h0 + group; h++) {
        const size_t at = (size_t)(r * BUDGET_HEADS + h);
        const float *x = out + at * BUDGET_DIM, *want = t->x.b.out + at * BUDGET_DIM;
        const bool remembers = got[at].next >= 0;
        assert_int_equal(got[at].entry >= 0, hit); /* as one */
        if (t->is_twin) assert_int_equal(remembers, cpu.remember);
        t->remembered += remembers, t->forgotten += !remembers;
        if (hit)
            t->error2 += pow(head_error(x, want, unit2), 2);
        else
            assert_true(head_error(x, want, norm2(want)) <= relative_tolerance(F16, F32));
    }
}

/* The queries of the bench's rows, without RoPE: row r's are those of tokens from `first` on. */
static void set_queries(duo *x, const int32_t *sequences, int64_t first)
{
    int64_t at = 0;
    for (int32_t r = 0; r < x->b.batch.n_rows; r++) {
        for (int32_t i = 0; i < x->b.rows[r].n_queries; i++, at++) {
            for (int32_t h = 0; h < BUDGET_HEADS; h++) {
                float q[BUDGET_DIM], q_match[BUDGET_DIM];
                test_query(&slow, &x->cfg, first + i + 7 * sequences[r], 0, h, q, q_match);
                test_bench_set_query(&x->b, at, h, q_match, q_match);
            }
        }
    }
}

/* Steps n = from .. to - 1 of two duo_sequences. */
static void budget_steps(budget_run *t, int from, int to)
{
    static const int32_t sequences[BUDGET_ROWS] = {0, 1};
    duo *x = &t->x;
    for (int n = from; n < to; n++) {
        for (int32_t r = 0; r < BUDGET_ROWS; r++) duo_row(x, r, r, n, 1);
        x->b.batch.n_rows = BUDGET_ROWS;
        assert_ok(t->cpu, macattn_plan(t->cpu, &x->b.batch));
        test_bench_queries(&x->b, BUDGET_ROWS, duo_sequences, 0);
        set_queries(x, sequences, n - 1);
        duo_upload(x);
        const double unit2 = (double)mai_layer_unit2(t->cpu->records, BUDGET_HEADS);
        assert_gpu_ok(x->m, macattn_cuda_decode(x->m, 0, &x->batch, &x->io, NULL));
        assert_ok(t->cpu, macattn_decode(t->cpu, 0, &x->b.io));
        cpu_group cpu[2 * BUDGET_ROWS];
        for (int32_t i = 0; i < 2 * BUDGET_ROWS; i++) {
            const mai_decision *d = test_decision(t->cpu, i / 2, i % 2 * BUDGET_HEADS / 2);
            cpu[i] = (cpu_group){d->hit, d->remember};
        }
        assert_ok(t->cpu, macattn_attend(t->cpu, &x->b.io));
        const size_t heads = BUDGET_ROWS * BUDGET_HEADS;
        float *out = download(x->io.out, heads * BUDGET_DIM * sizeof *out);
        macattn_cuda_decision *got = download(macattn_cuda_decisions(x->m), heads * sizeof *got);
        for (int32_t i = 0; i < 2 * BUDGET_ROWS; i++)
            check_budget_group(t, i / 2, i % 2 * BUDGET_HEADS / 2, out, got, cpu[i], unit2);
        free(out), free(got);
    }
}

static void near_to(const char *what, double got, double want, double relative, double absolute)
{
    if (!(fabs(got - want) <= relative * fabs(want) + absolute))
        fail_msg("%s: %.9g, not %.9g", what, got, want);
}

/* What both have learnt, where all samples were the same: errors differ by each side's rounding. */
static void check_records(budget_run *t)
{
    mai_record *got = download(t->x.m->params.records, BUDGET_HEADS * sizeof *got);
    mai_habit *habits = download(t->x.m->params.habits, 2 * sizeof *habits);
    for (int32_t h = 0; h < BUDGET_HEADS; h++) {
        const mai_record *want = &t->cpu->records[h];
        assert_int_equal(got[h].n_samples, want->n_samples);
        assert_int_equal(got[h].n_outputs, want->n_outputs);
        near_to("output2", (double)got[h].output2, (double)want->output2, 4e-3, 0);
        near_to("weight", (double)got[h].weight, (double)want->weight, 4e-3, 0);
        near_to("distance", (double)got[h].distance, (double)want->distance, 1e-4, 0);
        near_to("predicted", sqrt((double)got[h].predicted2), sqrt((double)want->predicted2), 4e-3,
                0);
        near_to("error", sqrt((double)got[h].error2), sqrt((double)want->error2), 0.02, 2e-3);
    }
    assert_memory_equal(habits, t->cpu->habits, 2 * sizeof *habits);
    free(got), free(habits);
}

/* The GPU judges as the CPU does: what differs are candidates near the bound, since what is learnt
 * contains each side's rounding. What is used stays within the budget; what is not is exact. */
static void test_budget(void **state)
{
    (void)state;
    const float budgets[] = {0.05f, 0.2f};
    const int steps = small() ? 150 : BUDGET_TOKENS;
    for (int i = 0; i < 4; i++) {
        macattn_config cfg = budget_config(budgets[i % 2]);
        cfg.lse_order = i < 2;
        budget_run t;
        budget_create(&t, &cfg, BUDGET_TOKENS, 1);
        budget_steps(&t, 1, steps);
        const double rms = sqrt(t.error2 / (double)(t.hits * BUDGET_HEADS / 2));
        print_message("budget %g, order %d: %lld of %lld groups hit, errors %.4f, %lld differ from "
                      "the CPU\n",
                      (double)cfg.budget, (int)cfg.lse_order, (long long)t.hits,
                      (long long)t.groups, rms, (long long)t.differ);
        assert_true(4 * t.hits > t.groups);
        assert_true(rms <= (double)cfg.budget);
        assert_true(20 * t.differ <= t.groups);
        budget_destroy(&t);
    }
}

/* Nothing is used without a budget. Groups that rest remember nothing until shortly before they
 * wake, as on the CPU, step by step; what rests or was refused is found again with a larger budget,
 * but for a group one head of which has none. */
static void test_rests(void **state)
{
    (void)state;
    const macattn_config cfg = budget_config(1e-30f);
    budget_run t;
    budget_create(&t, &cfg, BUDGET_TOKENS, 1);
    t.is_twin = true;
    budget_steps(&t, 1, 140);
    assert_int_equal(t.hits, 0);
    assert_true(t.forgotten > 60 * BUDGET_ROWS * BUDGET_HEADS && t.remembered > t.forgotten / 4);
    check_records(&t);
    macattn_stats got = {.struct_size = sizeof got}, want = {.struct_size = sizeof want};
    assert_gpu_ok(t.x.m, macattn_cuda_stats_get(t.x.m, -1, -1, &got));
    assert_ok(t.cpu, macattn_stats_get(t.cpu, -1, -1, &want));
    assert_int_equal(got.samples, want.samples);
    assert_true(got.samples > 20 * BUDGET_HEADS);
    near_to("errors, of the layer", got.error2_layer, want.error2_layer, 0.02, 0);
    near_to("errors, of the head", got.error2_head, want.error2_head, 0.02, 0);
    t.is_twin = false;
    assert_gpu_ok(t.x.m, macattn_cuda_set_head_budget(t.x.m, 0, -1, 0.5f, NULL));
    assert_gpu_ok(t.x.m, macattn_cuda_set_head_budget(t.x.m, 0, 2, 0, NULL));
    assert_ok(t.cpu, macattn_set_head_budget(t.cpu, 0, -1, 0.5f));
    assert_ok(t.cpu, macattn_set_head_budget(t.cpu, 0, 2, 0));
    budget_steps(&t, 140, 300);
    assert_in_range(t.hits, 30, 160 * BUDGET_ROWS);
    assert_int_equal(macattn_cuda_set_head_budget(t.x.m, 1, 0, 0.1f, NULL), MACATTN_E_RANGE);
    assert_int_equal(macattn_cuda_set_head_budget(t.x.m, 0, 0, NAN, NULL), MACATTN_E_RANGE);
    budget_destroy(&t);
}

/* A prompt captured while a head has no budget leaves its group nothing to find; the other group
 * finds it. */
static void test_capture_without_budget(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(F16, BUDGET_HEADS, 2, BUDGET_DIM);
    cfg.policy = MACATTN_POLICY_BUDGET, cfg.budget = 1;
    cfg.ring = 40, cfg.min_tokens = 0, cfg.n_layers = 1;
    duo x;
    duo_create(&x, &cfg, 3, 200, 150); /* the KV sequence of slot 2 */
    assert_gpu_ok(x.m, macattn_cuda_set_head_budget(x.m, 0, 2, 0, NULL));
    duo_capture_layer(&x, 0, 2, 150);
    assert_gpu_ok(x.m, macattn_cuda_set_head_budget(x.m, 0, 2, 1, NULL));
    duo_row(&x, 0, 2, 151, 1);
    test_bench_queries(&x.b, 1, &duo_sequences[2], 0);
    duo_upload(&x);
    assert_gpu_ok(x.m, macattn_cuda_decode(x.m, 0, &x.batch, &x.io, NULL));
    macattn_cuda_decision *got = download(macattn_cuda_decisions(x.m), BUDGET_HEADS * sizeof *got);
    for (int h = 0; h < BUDGET_HEADS; h++) {
        assert_int_equal(isfinite(got[h].distance2) != 0, h >= BUDGET_HEADS / 2);
        assert_true(got[h].next >= 0); /* from now on it is remembered */
    }
    free(got);
    duo_destroy(&x);
}

/* A part of row r's prompt, on both sides: the CPU is the engine, too. */
static void prompt_part(budget_run *t, int32_t r, int32_t n, int32_t n_queries)
{
    duo *x = &t->x;
    const size_t heads = (size_t)n_queries * BUDGET_HEADS;
    duo_row(x, 0, r, n, n_queries);
    x->b.batch.n_rows = 1;
    assert_ok(t->cpu, macattn_plan(t->cpu, &x->b.batch));
    test_bench_queries(&x->b, 1, &duo_sequences[r], 0);
    set_queries(x, &r, n - n_queries);
    duo_upload(x);
    assert_ok(t->cpu, macattn_prefill(t->cpu, 0, &x->b.io));
    assert_cuda(cudaMemcpy(x->io.out, x->b.out, heads * BUDGET_DIM * sizeof(float),
                           cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->io.lse, x->b.lse, heads * sizeof(float), cudaMemcpyHostToDevice));
    assert_gpu_ok(x->m, macattn_cuda_capture(x->m, 0, &x->batch, 0, n_queries, &x->io, NULL));
    assert_cuda(cudaDeviceSynchronize());
}

/* A prompt, whole or in parts, teaches the GPU what it teaches the CPU, and reuse begins with the
 * first token; heads without a budget learn nothing, but their outputs count. */
static void check_prompt(const macattn_config *cfg, int32_t part, bool with_sinks)
{
    enum { PROMPT = 1440, AFTER = 40 }; /* an eighth is remembered: 16 samples, or 11 or 7 a part */
    static const float sinks[BUDGET_HEADS] = {0.5f, -1, 2, 0, 1, -3, 0.25f, 4};
    budget_run t;
    budget_create(&t, cfg, PROMPT + AFTER, PROMPT);
    float *gpu_sinks = upload(sinks, sizeof sinks);
    if (with_sinks) t.x.b.io.sinks = sinks, t.x.io.sinks = gpu_sinks;
    if (part < PROMPT) {
        assert_gpu_ok(t.x.m, macattn_cuda_set_head_budget(t.x.m, 0, 5, 0, NULL));
        assert_ok(t.cpu, macattn_set_head_budget(t.cpu, 0, 5, 0));
    }
    for (int32_t n = part; n <= PROMPT; n += part) {
        for (int32_t r = 0; r < BUDGET_ROWS; r++) prompt_part(&t, r, n, part);
    }
    check_records(&t);
    assert_true(t.cpu->records[0].n_samples >= 2 * MAI_MIN_SAMPLES);
    assert_true(part == PROMPT || t.cpu->records[5].n_samples == 0);
    budget_steps(&t, PROMPT + 1, PROMPT + 5);
    assert_true(t.hits > 0);
    budget_steps(&t, PROMPT + 5, PROMPT + AFTER);
    assert_true(20 * t.differ <= t.groups);
    assert_cuda(cudaFree(gpu_sinks));
    budget_destroy(&t);
}

static void test_prompts(void **state)
{
    (void)state;
    macattn_config cfg = budget_config(0.5f);
    cfg.ring = 256;
    check_prompt(&cfg, 1440, false);
    check_prompt(&cfg, 1440, true);
    check_prompt(&cfg, 720, false);
    cfg.softcap = 3;
    check_prompt(&cfg, 480, true);
    cfg.lse_order = 0;
    check_prompt(&cfg, 1440, false);
}

int main(void)
{
    if (gpu_missing()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_capture_without_budget),
        cmocka_unit_test(test_rests),
        cmocka_unit_test(test_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
