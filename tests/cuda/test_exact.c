/* SPDX-License-Identifier: Apache-2.0 */
/* Exact attention on the GPU against the float64 reference: types, shapes, page layouts, lengths,
 * soft caps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu.h"

#define MAX_ROWS 64

typedef struct spec {
    const char *name;
    macattn_dtype kv_dtype, q_dtype, out_dtype;
    int32_t n_heads, n_kv_heads, head_dim, page_size, n_rows;
    int32_t n_tokens[MAX_ROWS];
    float softcap, amplitude; /* of q; 0 stands for 1 */
    int64_t window;
    bool sinks, indptr, head_major;
    bool packed;         /* the GPU is given strides of 0 */
    bool sinks_off;      /* every other sink is -infinity: none */
    int32_t spoiled_row; /* 1 + a row one token of which is not finite; 0: none */
} spec;

/* What both sides compute: host arrays for the reference, device arrays for the GPU. */
typedef struct scene {
    macattn_config cfg;
    macattn_row rows[MAX_ROWS];
    macattn_batch batch;
    macattn_io io;
    macattn_cuda_batch gpu_batch;
    macattn_cuda_io gpu_io;
    int32_t *pages, *table, *indptr;
    char *k, *v, *q;
    float *sinks;
    void *device[16];
    int n_device;
} scene;

static void *keep(scene *x, void *p)
{
    x->device[x->n_device++] = p;
    return p;
}

static int32_t row_pages(const spec *s, int32_t r)
{
    return s->page_size ? (s->n_tokens[r] + s->page_size - 1) / s->page_size : 1;
}

static void fill_normal(test_rng *rng, macattn_dtype dtype, int32_t d, float amplitude, char *to)
{
    float x[256];
    for (int32_t i = 0; i < d; i++) x[i] = amplitude * (float)test_normal(rng);
    test_encode(dtype, x, d, to);
}

static void fill_kv(scene *x, const spec *s, int32_t n_pages, int32_t page_tokens, test_rng *rng)
{
    const size_t row = macattn_dtype_row_bytes(s->kv_dtype, s->head_dim);
    const size_t bytes = (size_t)n_pages * (size_t)page_tokens * (size_t)s->n_kv_heads * row;
    macattn_kv *kv = &x->io.kv;
    x->k = malloc(bytes), x->v = malloc(bytes);
    assert_true(x->k && x->v);
    memset(x->k, 0xff, bytes), memset(x->v, 0xff, bytes);
    kv->k = x->k, kv->v = x->v;
    kv->k_head_stride = (int64_t)row * (s->head_major ? page_tokens : 1);
    kv->k_token_stride = (int64_t)row * (s->head_major ? 1 : s->n_kv_heads);
    kv->k_page_stride = (int64_t)row * s->n_kv_heads * page_tokens;
    kv->v_head_stride = kv->k_head_stride, kv->v_token_stride = kv->k_token_stride;
    kv->v_page_stride = kv->k_page_stride;
    for (int32_t r = 0; r < s->n_rows; r++) {
        for (int32_t t = 0; t < s->n_tokens[r]; t++) {
            const int64_t page =
                s->page_size ? x->rows[r].pages[t / s->page_size] : x->rows[r].page;
            const int64_t within = s->page_size ? t % s->page_size : t;
            for (int32_t h = 0; h < s->n_kv_heads; h++) {
                const int64_t at =
                    page * kv->k_page_stride + within * kv->k_token_stride + h * kv->k_head_stride;
                fill_normal(rng, s->kv_dtype, s->head_dim, 1, x->k + at);
                fill_normal(rng, s->kv_dtype, s->head_dim, 1, x->v + at);
            }
            if (s->spoiled_row == r + 1 && t == s->n_tokens[r] / 2) {
                const int64_t at = page * kv->v_page_stride + within * kv->v_token_stride;
                memset(x->v + at, 0xff, row); /* NaN, in KV head 0 */
            }
        }
    }
    x->gpu_io.kv = *kv;
    if (s->packed) {
        x->gpu_io.kv = (macattn_kv){.k_page_stride = s->page_size ? 0 : kv->k_page_stride,
                                    .v_page_stride = s->page_size ? 0 : kv->v_page_stride};
    }
    x->gpu_io.kv.k = keep(x, upload(x->k, bytes));
    x->gpu_io.kv.v = keep(x, upload(x->v, bytes));
}

static void deal_pages(scene *x, const spec *s, test_rng *rng, int32_t *n_pages)
{
    int32_t total = 0, longest = 1, widest = 1;
    for (int32_t r = 0; r < s->n_rows; r++) {
        total += row_pages(s, r);
        if (s->n_tokens[r] > longest) longest = s->n_tokens[r];
        if (row_pages(s, r) > widest) widest = row_pages(s, r);
    }
    x->pages = calloc((size_t)total + 1, sizeof *x->pages);
    x->indptr = calloc(MAX_ROWS + 1, sizeof *x->indptr);
    x->table = calloc((uint32_t)widest * MAX_ROWS, sizeof *x->table);
    assert_true(x->pages && x->indptr && x->table);
    for (int32_t i = 0; i < total; i++) x->pages[i] = i;
    for (int32_t i = total - 1; i > 0; i--) {
        const int32_t j = (int32_t)test_below(rng, i + 1), kept = x->pages[i];
        x->pages[i] = x->pages[j], x->pages[j] = kept;
    }
    for (int32_t r = 0; r < s->n_rows; r++) {
        x->indptr[r + 1] = x->indptr[r] + row_pages(s, r);
        x->rows[r] = (macattn_row){.slot = -1,
                                   .n_queries = 1,
                                   .n_tokens = s->n_tokens[r],
                                   .page = x->pages[x->indptr[r]],
                                   .pages = x->pages + x->indptr[r]};
        for (int32_t i = 0; i < row_pages(s, r); i++) {
            x->table[r * widest + i] = x->rows[r].pages[i];
        }
    }
    *n_pages = total;
    macattn_cuda_batch *b = &x->gpu_batch;
    b->page_size = s->page_size;
    if (s->indptr) {
        b->pages = keep(x, upload(x->pages, sizeof(int32_t) * (size_t)total));
        b->page_indptr = keep(x, upload(x->indptr, sizeof(int32_t) * (MAX_ROWS + 1)));
    } else {
        b->pages = keep(x, upload(x->table, sizeof(int32_t) * (size_t)(widest * s->n_rows)));
        b->page_table_stride = widest;
    }
    fill_kv(x, s, total, s->page_size ? s->page_size : longest, rng);
}

static void scene_create(scene *x, const spec *s, uint64_t seed)
{
    test_rng rng = {seed};
    int32_t n_pages, lengths[MAX_ROWS];
    *x = (scene){0};
    x->cfg = test_config(s->n_heads, s->n_kv_heads, s->head_dim);
    x->cfg.v_head_dim = s->head_dim;
    x->cfg.scale = 1.0f / sqrtf((float)s->head_dim);
    x->cfg.q_dtype = s->q_dtype, x->cfg.k_dtype = x->cfg.v_dtype = s->kv_dtype;
    x->cfg.softcap = s->softcap, x->cfg.window = s->window;
    x->cfg.policy = MACATTN_POLICY_EXACT;
    x->gpu_batch = (macattn_cuda_batch){.struct_size = sizeof x->gpu_batch, .n_rows = s->n_rows};
    x->gpu_io.struct_size = sizeof x->gpu_io;
    x->io.struct_size = sizeof x->io;
    deal_pages(x, s, &rng, &n_pages);
    x->batch = (macattn_batch){.struct_size = sizeof x->batch,
                               .n_rows = s->n_rows,
                               .rows = x->rows,
                               .page_size = s->page_size,
                               .n_pages = n_pages};
    for (int32_t r = 0; r < s->n_rows; r++) lengths[r] = s->n_tokens[r];
    x->gpu_batch.n_tokens = keep(x, upload(lengths, sizeof lengths));
    const size_t row = macattn_dtype_row_bytes(s->q_dtype, s->head_dim);
    const size_t heads = (size_t)(s->n_rows * s->n_heads);
    x->q = malloc(heads * row);
    x->sinks = malloc(sizeof(float) * (size_t)s->n_heads);
    assert_true(x->q && x->sinks);
    const float amplitude = s->amplitude > 0 ? s->amplitude : 1;
    for (size_t i = 0; i < heads; i++)
        fill_normal(&rng, s->q_dtype, s->head_dim, amplitude, x->q + i * row);
    for (int32_t h = 0; h < s->n_heads; h++) {
        x->sinks[h] = s->sinks_off && h % 2 ? -INFINITY : (float)test_normal(&rng);
    }
    x->io.q = x->q, x->io.q_row_stride = (int64_t)(row * (size_t)s->n_heads);
    x->io.q_head_stride = (int64_t)row;
    x->gpu_io.q = keep(x, upload(x->q, heads * row));
    if (s->sinks) {
        x->io.sinks = x->sinks;
        x->gpu_io.sinks = keep(x, upload(x->sinks, sizeof(float) * (size_t)s->n_heads));
    }
    x->gpu_io.out = keep(x, device(heads * 4 * (size_t)s->head_dim));
    x->gpu_io.lse = keep(x, device(heads * sizeof(float)));
}

static void scene_destroy(scene *x)
{
    for (int i = 0; i < x->n_device; i++) assert_cuda(cudaFree(x->device[i]));
    free(x->pages), free(x->table), free(x->indptr);
    free(x->k), free(x->v), free(x->q), free(x->sinks);
}

static void check_exact(const spec *s, uint64_t seed)
{
    scene x;
    scene_create(&x, s, seed);
    macattn_cuda *m = gpu_create(&x.cfg, MAX_ROWS, s->out_dtype);
    assert_gpu_ok(m, macattn_cuda_attend(m, &x.gpu_batch, &x.gpu_io, NULL));
    const size_t heads = (size_t)(s->n_rows * s->n_heads), d = (size_t)s->head_dim;
    const size_t value = macattn_dtype_row_bytes(s->out_dtype, 1);
    char *out = download(x.gpu_io.out, heads * d * value);
    float *lse = download(x.gpu_io.lse, heads * sizeof *lse);
    double *want = malloc(heads * d * sizeof *want), *want_lse = malloc(heads * sizeof *want_lse);
    assert_true(want && want_lse);
    ref_attend(&x.cfg, &x.batch, &x.io, want, want_lse);
    const double tolerance = relative_tolerance(s->kv_dtype, s->out_dtype);
    for (size_t i = 0; i < heads; i++) {
        const int32_t row = (int32_t)i / s->n_heads, head = (int32_t)i % s->n_heads;
        check_head(s->name, row, head, out + i * d * value, s->out_dtype, want + i * d, s->head_dim,
                   tolerance);
        if (!isnan(want[i * d])) check_lse(s->name, row, head, lse[i], want_lse[i]);
    }
    free(out), free(lse), free(want), free(want_lse);
    macattn_cuda_destroy(m);
    scene_destroy(&x);
}

static void test_exact_cases(void **state)
{
    (void)state;
    static const spec specs[] = {
        {"one token", BF16, BF16, F32, 8, 2, 128, 0, 2, {1, 2}, .indptr = false},
        {"ragged",
         BF16,
         BF16,
         F32,
         32,
         8,
         128,
         16,
         8,
         {0, 1, 15, 16, 17, 127, 128, 129},
         .indptr = true},
        {"page 1", BF16, BF16, BF16, 32, 4, 128, 1, 4, {5, 300, 64, 1}, .indptr = true},
        {"block table", F16, F16, F16, 32, 8, 128, 64, 4, {63, 64, 65, 700}, .indptr = false},
        {"head major", F16, F16, F32, 8, 8, 64, 16, 3, {100, 1, 257}, .head_major = true},
        {"f32 queries", F16, F32, F32, 4, 4, 128, 32, 2, {40, 1000}, .indptr = false},
        {"mqa 16", BF16, BF16, F32, 16, 1, 128, 16, 3, {3, 200, 1030}, .indptr = true},
        {"mqa 32", F16, F16, F32, 32, 1, 64, 0, 2, {513, 90}, .indptr = false},
        {"group 3", BF16, BF16, F32, 6, 2, 64, 8, 2, {77, 400}, .indptr = false},
        {"group 12", F16, F16, F32, 24, 2, 128, 4, 2, {50, 333}, .indptr = false},
        {"d 256", BF16, BF16, F32, 8, 2, 256, 16, 3, {31, 500, 64}, .indptr = true},
        {"d 256 f16 group 12", F16, F16, F32, 12, 1, 256, 0, 2, {200, 65}, .indptr = false},
        {"fp8", F8, BF16, F32, 32, 8, 128, 16, 4, {1, 100, 15, 777}, .indptr = true},
        {"fp8 d 64", F8, F16, F32, 16, 2, 64, 1, 2, {33, 500}, .indptr = false},
        {"fp8 d 256", F8, F16, F32, 8, 1, 256, 0, 2, {260, 19}, .indptr = false},
        {"fp8 mqa", F8, F16, F32, 16, 1, 128, 16, 2, {700, 20}, .indptr = true},
        {"softcap", BF16, BF16, F32, 8, 2, 128, 16, 2, {100, 400}, .softcap = 5},
        {"sinks", BF16, BF16, F32, 8, 2, 128, 16, 3, {0, 3, 400}, .sinks = true},
        {"packed pages", BF16, BF16, F32, 8, 2, 128, 16, 2, {100, 333}, .packed = true},
        {"packed runs", F8, F16, F32, 8, 4, 64, 0, 3, {100, 1, 333}, .packed = true},
        {"window", F16, F16, F32, 8, 2, 128, 16, 4, {5, 100, 101, 900}, .window = 100},
        {"extreme logits", F16, F16, F32, 8, 2, 128, 16, 2, {40, 900}, .amplitude = 60},
        {"NaN in one row", BF16, BF16, F32, 8, 2, 128, 16, 3, {300, 200, 100}, .spoiled_row = 2},
        {"long beside short",
         BF16,
         BF16,
         F32,
         8,
         2,
         128,
         16,
         8,
         {20000, 1, 3, 0, 100, 17, 16, 5},
         .indptr = true},
        {"128K", BF16, BF16, F32, 2, 1, 128, 256, 1, {131072}, .indptr = false},
    };
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        if (small() && specs[i].n_tokens[0] > 10000) continue;
        check_exact(&specs[i], 100 + i);
    }
}

static void test_exact_random(void **state)
{
    (void)state;
    static const macattn_dtype kv[] = {F16, BF16, F8}, q[] = {F16, BF16, F32};
    static const int32_t groups[] = {1, 2, 4, 5, 7, 8, 9, 16}, dims[] = {64, 128, 256};
    static const int32_t sizes[] = {0, 1, 2, 16, 64, 128};
    test_rng rng = {5};
    for (int i = 0; i < (small() ? 6 : 60); i++) {
        spec s = {.name = "random", .kv_dtype = kv[test_below(&rng, 3)], .out_dtype = F32};
        s.q_dtype = s.kv_dtype == BF16 ? BF16 : q[test_below(&rng, 2)];
        s.n_kv_heads = 1 + (int32_t)test_below(&rng, 4);
        s.n_heads = s.n_kv_heads * groups[test_below(&rng, 8)];
        s.head_dim = dims[test_below(&rng, 3)];
        s.page_size = sizes[test_below(&rng, 6)];
        s.n_rows = 1 + (int32_t)test_below(&rng, 8);
        s.indptr = s.page_size > 0 && test_below(&rng, 2);
        s.head_major = test_below(&rng, 2);
        s.sinks = test_below(&rng, 4) == 0;
        for (int32_t r = 0; r < s.n_rows; r++)
            s.n_tokens[r] = (int32_t)test_below(&rng, test_below(&rng, 2) ? 40 : 1200);
        if (s.kv_dtype == F8 && s.q_dtype == BF16) s.q_dtype = F16;
        check_exact(&s, 1000 + (uint64_t)i);
    }
}

/* Rows of length 0 among others, at the begin, at the end, alone: no output stays as it was. */
static void test_empty_rows(void **state)
{
    (void)state;
    static const int32_t lengths[] = {1, 16, 128, 129, 2000}, sizes[] = {0, 1, 16, 64};
    static const int32_t groups[] = {1, 4, 8, 12};
    test_rng rng = {17};
    for (int i = 0; i < (small() ? 4 : 40); i++) {
        spec s = {.name = "empty rows", .kv_dtype = BF16, .q_dtype = BF16, .out_dtype = F32};
        s.n_kv_heads = 1 + (int32_t)test_below(&rng, 2);
        s.n_heads = s.n_kv_heads * groups[test_below(&rng, 4)];
        s.head_dim = test_below(&rng, 2) ? 128 : 64;
        s.page_size = sizes[test_below(&rng, 4)];
        s.indptr = s.page_size > 0 && test_below(&rng, 2);
        s.window = test_below(&rng, 3) == 0 ? 100 : 0;
        s.sinks = test_below(&rng, 2), s.sinks_off = test_below(&rng, 2);
        s.n_rows = 1 + (int32_t)test_below(&rng, i % 2 ? MAX_ROWS : 4);
        for (int32_t r = 0; r < s.n_rows; r++) {
            s.n_tokens[r] = test_below(&rng, 2) ? 0 : lengths[test_below(&rng, small() ? 4 : 5)];
        }
        check_exact(&s, 2000 + (uint64_t)i);
    }
}

/* ------------------------------------------------------------------------------- soft caps -- */

/* The lse of a row of one token is its logit. It may be off by what rounding the product and the
 * cap's function adds, whatever the cap. `amplitude`: of the queries. */
static void check_softcap(float cap, float amplitude)
{
    scene x;
    spec s = {.name = "soft cap",
              .kv_dtype = BF16,
              .q_dtype = BF16,
              .out_dtype = F32,
              .n_heads = 32,
              .n_kv_heads = 4,
              .head_dim = 128,
              .n_rows = 16,
              .softcap = cap,
              .amplitude = amplitude};
    for (int32_t r = 0; r < s.n_rows; r++) s.n_tokens[r] = 1;
    scene_create(&x, &s, 77);
    macattn_cuda *m = gpu_create(&x.cfg, MAX_ROWS, F32);
    assert_gpu_ok(m, macattn_cuda_attend(m, &x.gpu_batch, &x.gpu_io, NULL));
    const size_t heads = (size_t)(s.n_rows * s.n_heads), d = (size_t)s.head_dim;
    float *lse = download(x.gpu_io.lse, heads * sizeof *lse);
    double *want = malloc(heads * d * sizeof *want), *want_lse = malloc(heads * sizeof *want_lse);
    assert_true(want && want_lse);
    ref_attend(&x.cfg, &x.batch, &x.io, want, want_lse);
    /* Products of 128 terms of this size, summed in f32; then 7 roundings. */
    const double product = 1e-6 * (double)amplitude * sqrt(128.0);
    for (size_t i = 0; i < heads; i++) {
        const double error = fabs((double)lse[i] - want_lse[i]);
        if (!(error <= product + 8e-7 * fabs(want_lse[i]))) {
            fail_msg("cap %g, queries of %g: logit %.9g, not %.9g", (double)cap, (double)amplitude,
                     (double)lse[i], want_lse[i]);
        }
    }
    free(lse), free(want), free(want_lse);
    macattn_cuda_destroy(m);
    scene_destroy(&x);
}

static void test_softcaps(void **state)
{
    (void)state;
    static const float caps[] = {1, 30, 1e3f, 1e4f, 1e6f, 1e30f};
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        /* What no configuration may ask for is for test_softcap.c. */
        if ((double)caps[i] > macattn_setting_find("softcap")->high) continue;
        const float amplitudes[] = {0.01f, 1, 0.1f * caps[i], 0.3f * caps[i], 5 * caps[i]};
        for (int k = 0; k < 5; k++) check_softcap(caps[i], amplitudes[k]);
    }
}

int main(void)
{
    if (gpu_missing()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_cases),
        cmocka_unit_test(test_exact_random),
        cmocka_unit_test(test_empty_rows),
        cmocka_unit_test(test_softcaps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
