/* SPDX-License-Identifier: Apache-2.0 */
/* What the GPU's calls ask of their arguments: no GPU is needed to refuse them. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "cuda/host/arguments.h"
#include "cuda/host/configuration.h"
#include "support.h"

enum { HEADS = 8, KV_HEADS = 2, DIM = 64, ROW = 2 * DIM };

/* An object as macattn_cuda_create leaves it, as far as arguments are concerned; and good ones. */
typedef struct call {
    macattn_cuda m;
    macattn_cuda_batch batch;
    macattn_cuda_io io, checked;
} call;

static macattn_config gpu_config(void)
{
    macattn_config cfg = test_config(HEADS, KV_HEADS, DIM);
    cfg.q_dtype = cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F16;
    cfg.max_slots = 4, cfg.n_layers = 2, cfg.ring = 16;
    cfg.policy = MACATTN_POLICY_PAPER;
    return cfg;
}

static call good_call(void)
{
    static float memory[64] __attribute__((aligned(64)));
    static int32_t numbers[4];
    call x = {0};
    const macattn_config cfg = gpu_config();
    macattn_cuda_config cuda;
    macattn_cuda_config_init(&cuda);
    cuda.max_rows = 4;
    assert_int_equal(mai_cu_resolve(&x.m, &cfg), MACATTN_OK);
    assert_int_equal(mai_cu_resolve_cuda(&x.m, &cuda), MACATTN_OK);
    x.batch = (macattn_cuda_batch){.struct_size = sizeof x.batch,
                                   .n_rows = 2,
                                   .n_tokens = numbers,
                                   .page_size = 16,
                                   .pages = numbers,
                                   .page_indptr = numbers};
    x.io = (macattn_cuda_io){.struct_size = sizeof x.io,
                             .q = memory,
                             .q_match = memory,
                             .kv = {.k = memory, .v = memory},
                             .out = memory,
                             .lse = memory};
    return x;
}

static macattn_status check(call *x)
{
    MAI_TRY(mai_cu_check_batch(&x->m, &x->batch));
    return mai_cu_check_io(&x->m, &x->batch, &x->io, &x->checked);
}

/* The call is refused, and the sentence says why. */
static void refused(call *x, macattn_status status, const char *why)
{
    x->m.error[0] = 0;
    assert_int_equal(check(x), status);
    if (!strstr(x->m.error, why)) fail_msg("\"%s\" does not say \"%s\"", x->m.error, why);
}

static void test_batch(void **state)
{
    (void)state;
    call x = good_call();
    assert_int_equal(check(&x), MACATTN_OK);
    x.batch.n_rows = 5;
    refused(&x, MACATTN_E_RANGE, "n_rows is 5");
    x = good_call(), x.batch.page_size = 3;
    refused(&x, MACATTN_E_RANGE, "page_size is 3");
    x = good_call(), x.batch.pages = NULL;
    refused(&x, MACATTN_E_ARG, "pages is NULL");
    x = good_call(), x.batch.page_indptr = NULL;
    refused(&x, MACATTN_E_ARG, "page_table_stride");
    x = good_call(), x.batch.struct_size = 8;
    refused(&x, MACATTN_E_ARG, "struct_size");
}

static void test_pointers(void **state)
{
    (void)state;
    call x = good_call();
    x.io.kv.k = (const char *)x.io.kv.k + 8;
    refused(&x, MACATTN_E_ARG, "io.kv.k is not aligned to 16 bytes");
    x = good_call(), x.io.kv.v = NULL;
    refused(&x, MACATTN_E_ARG, "io.kv.v is NULL");
    x = good_call(), x.io.q_match = NULL, x.io.lse = NULL;
    assert_int_equal(check(&x), MACATTN_OK);
    x = good_call(), x.io.lse = (float *)(void *)((char *)x.io.lse + 2);
    refused(&x, MACATTN_E_ARG, "io.lse is not aligned to 4 bytes");
    x = good_call(), x.io.k_scale = NAN;
    refused(&x, MACATTN_E_RANGE, "k_scale");
}

/* 0 stands for packed, as the header says. */
static void test_packed_strides(void **state)
{
    (void)state;
    call x = good_call();
    assert_int_equal(check(&x), MACATTN_OK);
    assert_int_equal(x.checked.q_head_stride, ROW);
    assert_int_equal(x.checked.q_row_stride, HEADS * ROW);
    assert_int_equal(x.checked.q_match_head_stride, ROW);
    assert_int_equal(x.checked.q_match_row_stride, HEADS * ROW);
    assert_int_equal(x.checked.out_head_stride, DIM * 4);
    assert_int_equal(x.checked.out_row_stride, HEADS * DIM * 4);
    const macattn_kv *kv = &x.checked.kv;
    assert_int_equal(kv->k_head_stride, ROW);
    assert_int_equal(kv->k_token_stride, KV_HEADS * ROW);
    assert_int_equal(kv->k_page_stride, 16 * KV_HEADS * ROW);
    assert_int_equal(kv->v_head_stride, ROW);
    assert_int_equal(kv->v_token_stride, KV_HEADS * ROW);
    assert_int_equal(kv->v_page_stride, 16 * KV_HEADS * ROW);
    /* A page stride of 0 follows from what is given of the others. */
    x.io.kv.k_token_stride = 1024;
    assert_int_equal(check(&x), MACATTN_OK);
    assert_int_equal(kv->k_page_stride, 16 * 1024);
    /* How long runs are is not known, but where there is one. */
    x = good_call(), x.batch.page_size = 0;
    refused(&x, MACATTN_E_ARG, "io.kv.k_page_stride is 0");
    x.io.kv.k_page_stride = 1 << 20;
    refused(&x, MACATTN_E_ARG, "io.kv.v_page_stride is 0");
    x.io.kv.v_page_stride = 1 << 20;
    assert_int_equal(check(&x), MACATTN_OK);
    x = good_call(), x.batch.page_size = 0, x.batch.n_rows = 1;
    refused(&x, MACATTN_E_ARG, "io.kv.k_page_stride is 0");
    x.batch.pages = NULL;
    assert_int_equal(check(&x), MACATTN_OK);
}

/* Rows that overlap are refused, as on the CPU. */
static void test_short_strides(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t at;
    } strides[] = {
        {"io.q_row_stride", offsetof(macattn_cuda_io, q_row_stride)},
        {"io.q_head_stride", offsetof(macattn_cuda_io, q_head_stride)},
        {"io.q_match_row_stride", offsetof(macattn_cuda_io, q_match_row_stride)},
        {"io.q_match_head_stride", offsetof(macattn_cuda_io, q_match_head_stride)},
        {"io.out_row_stride", offsetof(macattn_cuda_io, out_row_stride)},
        {"io.out_head_stride", offsetof(macattn_cuda_io, out_head_stride)},
        {"io.kv.k_page_stride", offsetof(macattn_cuda_io, kv.k_page_stride)},
        {"io.kv.k_token_stride", offsetof(macattn_cuda_io, kv.k_token_stride)},
        {"io.kv.k_head_stride", offsetof(macattn_cuda_io, kv.k_head_stride)},
        {"io.kv.v_page_stride", offsetof(macattn_cuda_io, kv.v_page_stride)},
        {"io.kv.v_token_stride", offsetof(macattn_cuda_io, kv.v_token_stride)},
        {"io.kv.v_head_stride", offsetof(macattn_cuda_io, kv.v_head_stride)},
    };
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++) {
        static const int64_t bad[] = {-ROW, 16, ROW - 16, 4 * ROW + 8};
        for (int k = 0; k < 4; k++) {
            call x = good_call();
            *(int64_t *)(void *)((char *)&x.io + strides[i].at) = bad[k];
            refused(&x, MACATTN_E_ARG, strides[i].name);
        }
    }
    /* Of a single KV head the stride leads nowhere. */
    call x = good_call();
    x.m.cfg.n_kv_heads = 1;
    x.io.kv.k_head_stride = x.io.kv.v_head_stride = 16;
    assert_int_equal(check(&x), MACATTN_OK);
    x.io.kv.k_head_stride = -16;
    refused(&x, MACATTN_E_ARG, "io.kv.k_head_stride");
}

static void test_configuration(void **state)
{
    (void)state;
    macattn_config cfg = gpu_config();
    macattn_cuda *m = NULL;
    char error[256];
    cfg.head_dim = 96;
    assert_int_equal(macattn_cuda_create(&cfg, NULL, &m, error, sizeof error),
                     MACATTN_E_UNSUPPORTED);
    assert_non_null(strstr(error, "head_dim 96"));
    assert_null(m);
    cfg = gpu_config(), cfg.k_dtype = MACATTN_DTYPE_F8_E4M3;
    assert_int_equal(macattn_cuda_create(&cfg, NULL, &m, error, sizeof error),
                     MACATTN_E_UNSUPPORTED);
    assert_non_null(strstr(error, "k_dtype and v_dtype differ"));
    cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_Q8_0;
    assert_int_equal(macattn_cuda_create(&cfg, NULL, &m, error, sizeof error),
                     MACATTN_E_UNSUPPORTED);
    assert_non_null(strstr(error, "q8_0"));
    cfg = gpu_config(), cfg.n_heads = 0;
    assert_int_equal(macattn_cuda_create(&cfg, NULL, &m, error, sizeof error), MACATTN_E_RANGE);
    assert_non_null(strstr(error, "n_heads"));
}

/* What concerns the CPU is not looked at. */
static void test_what_is_the_cpus(void **state)
{
    (void)state;
    macattn_config cfg = gpu_config();
    size_t bytes = 0;
    cfg.isa = "none that exists", cfg.n_threads = -5, cfg.spin_us = -1;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &bytes), MACATTN_OK);
    /* 2 layers, 8 heads, 16 entries of 64 codes, 24 bytes, 64 f16, 64 f32 of values and of keys;
     * head and count. */
    assert_int_equal(bytes, 2 * HEADS * (16 * (64 + 24 + 128 + 512) + 8));
    cfg.policy = MACATTN_POLICY_BUDGET;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 2 * HEADS * (16 * (64 + 24 + 8 + 128 + 512) + 8));
    cfg.lse_order = 0;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 2 * HEADS * (16 * (64 + 24 + 8 + 128 + 256) + 8));
    cfg.ring = 0; /* as the policy has it */
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 2 * HEADS * (256 * (64 + 24 + 8 + 128 + 256) + 8));
    cfg.policy = MACATTN_POLICY_EXACT;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 0);
}

/* Means of runs are kept of 16-bit K and V, and outliers if asked for; where nothing is selected the
 * band is longer. */
static void test_selection(void **state)
{
    (void)state;
    const macattn_dtype dtypes[] = {MACATTN_DTYPE_F16, MACATTN_DTYPE_BF16, MACATTN_DTYPE_F8_E4M3};
    for (int i = 0; i < 9; i++) {
        macattn_config cfg = gpu_config();
        macattn_cuda m = {0};
        size_t bytes = 1;
        cfg.policy = MACATTN_POLICY_BUDGET, cfg.band = 0, cfg.select = i / 3;
        cfg.k_dtype = cfg.v_dtype = dtypes[i % 3];
        const int32_t select = i % 3 < 2 ? cfg.select : 0;
        assert_int_equal(mai_cu_resolve(&m, &cfg), MACATTN_OK);
        assert_int_equal(m.cfg.select, select);
        assert_int_equal(m.cfg.band, select > 0 ? 256 : 2048);
        /* Two segments of 64 runs; 2 layers, keys, values, outliers of 64 codes and two scales. */
        assert_int_equal(macattn_cuda_run_bytes(&cfg, 1040, &bytes), MACATTN_OK);
        assert_int_equal(bytes, select == 0 ? 0
                                            : 2 * 64 * 2 * (size_t)cfg.n_kv_heads *
                                                  (size_t)(1 + select) * (64 + 4));
        assert_int_equal(macattn_cuda_run_bytes(&cfg, -1, &bytes), MACATTN_E_RANGE);
        assert_int_equal(macattn_cuda_run_bytes(&cfg, cfg.max_tokens + 1, &bytes), MACATTN_E_RANGE);
        assert_int_equal(macattn_cuda_run_bytes(&cfg, 1, NULL), MACATTN_E_ARG);
    }
    macattn_cuda m = {0};
    macattn_cuda_config cuda;
    macattn_cuda_config_init(&cuda);
    assert_int_equal(cuda.run_tokens, 0);
    cuda.run_tokens = -1;
    assert_int_equal(mai_cu_resolve_cuda(&m, &cuda), MACATTN_E_RANGE);
    /* A caller older than the field. */
    cuda.struct_size = offsetof(macattn_cuda_config, run_tokens);
    assert_int_equal(mai_cu_resolve_cuda(&m, &cuda), MACATTN_OK);
    assert_int_equal(m.cuda.run_tokens, 0);
}

/* A newer caller's structs are longer: accepted, if what is not known here is 0. */
static void test_struct_sizes(void **state)
{
    (void)state;
    struct {
        macattn_config known;
        int64_t unknown;
    } cfg = {.known = gpu_config()};
    struct {
        macattn_cuda_config known;
        int64_t unknown;
    } cuda = {0};
    macattn_cuda m = {0};
    macattn_cuda_config_init(&cuda.known);
    cuda.known.max_rows = 7;
    cfg.known.struct_size = sizeof cfg, cuda.known.struct_size = sizeof cuda;
    assert_int_equal(mai_cu_resolve(&m, &cfg.known), MACATTN_OK);
    assert_int_equal(m.cfg.n_heads, HEADS);
    assert_int_equal(mai_cu_resolve_cuda(&m, &cuda.known), MACATTN_OK);
    assert_int_equal(m.cuda.max_rows, 7);
    assert_int_equal(m.cuda.struct_size, sizeof m.cuda);
    cfg.unknown = cuda.unknown = 1;
    assert_int_equal(mai_cu_resolve(&m, &cfg.known), MACATTN_E_ARG);
    assert_int_equal(mai_cu_resolve_cuda(&m, &cuda.known), MACATTN_E_ARG);
    cfg.known.struct_size = cuda.known.struct_size = 0;
    assert_int_equal(mai_cu_resolve(&m, &cfg.known), MACATTN_E_ARG);
    assert_int_equal(mai_cu_resolve_cuda(&m, &cuda.known), MACATTN_E_ARG);
}

/* An older caller's is shorter: nothing behind its end is looked at. */
static void test_older_struct(void **state)
{
    (void)state;
    macattn_cuda m = {0};
    macattn_config cfg = gpu_config();
    cfg.struct_size = offsetof(macattn_config, max_slots);
    memset((char *)&cfg + cfg.struct_size, 0xee, sizeof cfg - cfg.struct_size);
    assert_int_equal(mai_cu_resolve(&m, &cfg), MACATTN_OK);
    assert_int_equal(m.cfg.policy, MACATTN_POLICY_BUDGET);
    assert_int_equal(m.cfg.band, 256); /* selection is on */
    assert_int_equal(m.cfg.max_slots, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch),          cmocka_unit_test(test_pointers),
        cmocka_unit_test(test_packed_strides), cmocka_unit_test(test_short_strides),
        cmocka_unit_test(test_configuration),  cmocka_unit_test(test_what_is_the_cpus),
        cmocka_unit_test(test_selection),      cmocka_unit_test(test_struct_sizes),
        cmocka_unit_test(test_older_struct),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
