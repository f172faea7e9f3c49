/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU against the float64 reference: exact attention over types, shapes, page layouts and
 * lengths; decisions and outputs of match-amend-complete; slot operations, capture, CUDA graphs,
 * statistics. Exits with 77 where there is no GPU. MACATTN_TEST_SMALL=1 makes fewer and shorter
 * cases, for compute-sanitizer. */
#include "support.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "macattn/cuda.h"

#define assert_cuda(expr)                                                \
    do {                                                                 \
        const cudaError_t cuda_status_ = (expr);                         \
        if (cuda_status_ != cudaSuccess)                                 \
            fail_msg("%s: %s", #expr, cudaGetErrorString(cuda_status_)); \
    } while (0)

#define assert_gpu_ok(m, expr)                                                \
    do {                                                                      \
        const macattn_status gpu_status_ = (expr);                            \
        if (gpu_status_ != MACATTN_OK) {                                      \
            fail_msg("%s: %s: %s", #expr, macattn_status_string(gpu_status_), \
                     macattn_cuda_last_error(m));                             \
        }                                                                     \
    } while (0)

static bool small(void)
{
    return test_env("MACATTN_TEST_SMALL", 0) != 0;
}

/* ----------------------------------------------------------------------------- device memory -- */

static void *device(size_t bytes)
{
    void *p = NULL;
    assert_cuda(cudaMalloc(&p, bytes ? bytes : 1));
    assert_cuda(cudaMemset(p, 0xff, bytes ? bytes : 1)); /* NaN in every type */
    return p;
}

static void *upload(const void *from, size_t bytes)
{
    void *p = device(bytes);
    assert_cuda(cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice));
    return p;
}

static void *download(const void *from, size_t bytes)
{
    void *p = malloc(bytes);
    assert_non_null(p);
    assert_cuda(cudaDeviceSynchronize());
    assert_cuda(cudaMemcpy(p, from, bytes, cudaMemcpyDeviceToHost));
    return p;
}

static macattn_cuda *gpu_create(const macattn_config *cfg, int32_t max_rows,
                                macattn_dtype out_dtype)
{
    macattn_cuda *m = NULL;
    macattn_cuda_config c;
    char error[256] = "";
    assert_int_equal(macattn_cuda_config_init(&c), MACATTN_OK);
    c.max_rows = max_rows;
    c.out_dtype = out_dtype;
    if (macattn_cuda_create(cfg, &c, &m, error, sizeof error) != MACATTN_OK) fail_msg("%s", error);
    return m;
}

/* --------------------------------------------------------------------------- exact attention -- */

#define MAX_ROWS 8

typedef struct spec {
    const char *name;
    macattn_dtype kv_dtype, q_dtype, out_dtype;
    int32_t n_heads, n_kv_heads, head_dim, page_size, n_rows;
    int32_t n_tokens[MAX_ROWS];
    float softcap, amplitude; /* of q; 0 stands for 1 */
    int64_t window;
    bool sinks, indptr, head_major;
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
    for (int32_t h = 0; h < s->n_heads; h++) x->sinks[h] = (float)test_normal(&rng);
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

/* Relative error allowed: probabilities are rounded to V's type (fp8: f16), outputs to
 * out_dtype. */
static double relative_tolerance(macattn_dtype kv, macattn_dtype out)
{
    const double p = kv == MACATTN_DTYPE_BF16 ? 4e-3 : 6e-4;
    const double o = out == MACATTN_DTYPE_BF16 ? 3e-3 : out == MACATTN_DTYPE_F16 ? 4e-4 : 0;
    return p + o;
}

/* || got - want || <= tolerance ||want|| for one head; NaN where the reference has NaN, and only
 * there. */
static void check_head(const char *what, int32_t row, int32_t head, const char *got,
                       macattn_dtype dtype, const double *want, int32_t d, double tolerance)
{
    double error = 0, norm = 0;
    for (int32_t i = 0; i < d; i++) {
        const double x = ref_value(dtype, got, i);
        if (isnan(want[i]) != isnan(x))
            fail_msg("%s: row %d head %d dim %d is %g, not %g", what, row, head, i, x, want[i]);
        if (isnan(x)) continue;
        error += (x - want[i]) * (x - want[i]);
        norm += want[i] * want[i];
    }
    if (!(sqrt(error) <= tolerance * sqrt(norm) + 1e-6))
        fail_msg("%s: row %d head %d: relative error %g > %g", what, row, head, sqrt(error / norm),
                 tolerance);
}

static void check_lse(const char *what, int32_t row, int32_t head, float got, double want)
{
    if (isnan(want) && isnan(got)) return;
    if ((double)got == want) return; /* infinities */
    if (!(fabs((double)got - want) <= 2e-3 + 2e-4 * fabs(want)))
        fail_msg("%s: row %d head %d: lse %.9g, not %.9g", what, row, head, (double)got, want);
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

#define F16 MACATTN_DTYPE_F16
#define BF16 MACATTN_DTYPE_BF16
#define F8 MACATTN_DTYPE_F8_E4M3
#define F32 MACATTN_DTYPE_F32

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
        s.n_rows = 1 + (int32_t)test_below(&rng, MAX_ROWS);
        s.indptr = s.page_size > 0 && test_below(&rng, 2);
        s.head_major = test_below(&rng, 2);
        s.sinks = test_below(&rng, 4) == 0;
        for (int32_t r = 0; r < s.n_rows; r++)
            s.n_tokens[r] = (int32_t)test_below(&rng, test_below(&rng, 2) ? 40 : 1200);
        if (s.kv_dtype == F8 && s.q_dtype == BF16) s.q_dtype = F16;
        check_exact(&s, 1000 + (uint64_t)i);
    }
}

/* -------------------------------------------------------------------- match, amend, complete -- */

/* A sequence of steps on the GPU and in the reference. */
typedef struct duo {
    macattn_config cfg;
    macattn_cuda *m;
    ref_mac *ref;
    test_bench b;
    macattn_cuda_batch batch;
    macattn_cuda_io io;
    int32_t *n_tokens, *slots, *pages; /* device */
    char *q, *q_match, *k, *v;
    ref_decision *decisions;
    int64_t hits, misses, ties;
} duo;

static const test_sequence sequences[4] = {{11, 6, 0.7}, {12, 3, 0.7}, {13, 40, 0.5}, {14, 1, 0.1}};

static macattn_config reuse_config(macattn_dtype kv, int32_t heads, int32_t kv_heads, int32_t d)
{
    macattn_config cfg = test_config(heads, kv_heads, d);
    cfg.q_dtype = kv == F8 ? F16 : kv;
    cfg.k_dtype = cfg.v_dtype = kv;
    cfg.ring = 16, cfg.band = 12, cfg.min_tokens = 20, cfg.max_slots = 4, cfg.n_layers = 2;
    cfg.policy = MACATTN_POLICY_PAPER;
    return cfg;
}

static void duo_create(duo *x, const macattn_config *cfg, int32_t max_rows, int64_t capacity,
                       int32_t max_queries)
{
    *x = (duo){.cfg = *cfg};
    x->cfg.v_head_dim = cfg->head_dim;
    x->cfg.scale = 1.0f / sqrtf((float)cfg->head_dim);
    x->m = gpu_create(&x->cfg, max_rows, F32);
    macattn_config plain = x->cfg; /* the reference does not judge */
    plain.policy = MACATTN_POLICY_PAPER;
    x->ref = ref_mac_create(&plain);
    assert_non_null(x->ref);
    test_bench_create(&x->b, &x->cfg, max_rows, capacity, max_queries);
    const size_t queries = (size_t)max_rows * (size_t)max_queries * (size_t)cfg->n_heads;
    const size_t d = (size_t)cfg->head_dim;
    x->n_tokens = device(sizeof(int32_t) * (size_t)max_rows);
    x->slots = device(sizeof(int32_t) * (size_t)max_rows);
    x->pages = device(sizeof(int32_t) * (size_t)max_rows);
    x->q = device(queries * d * 4), x->q_match = device(queries * d * 4);
    x->k = device(x->b.kv.k.bytes), x->v = device(x->b.kv.v.bytes);
    x->batch = (macattn_cuda_batch){.struct_size = sizeof x->batch,
                                    .n_tokens = x->n_tokens,
                                    .slots = x->slots,
                                    .pages = x->pages};
    x->io = (macattn_cuda_io){.struct_size = sizeof x->io,
                              .q = x->q,
                              .q_match = x->q_match,
                              .kv = x->b.kv.view,
                              .out = device(queries * d * 4),
                              .lse = device(queries * 4)};
    x->io.kv.k = x->k, x->io.kv.v = x->v;
    x->decisions = calloc(queries, sizeof *x->decisions);
    assert_non_null(x->decisions);
}

static void duo_destroy(duo *x)
{
    void *memory[] = {x->n_tokens, x->slots, x->pages,  x->q,     x->q_match,
                      x->k,        x->v,     x->io.out, x->io.lse};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) assert_cuda(cudaFree(memory[i]));
    macattn_cuda_destroy(x->m);
    ref_mac_destroy(x->ref);
    test_bench_destroy(&x->b);
    free(x->decisions);
}

/* Bring the bench's rows, queries, keys and values to the device. */
static void duo_upload(duo *x)
{
    int32_t n[MAX_ROWS], slots[MAX_ROWS], pages[MAX_ROWS];
    const test_bench *b = &x->b;
    for (int32_t r = 0; r < b->batch.n_rows; r++) {
        n[r] = (int32_t)b->rows[r].n_tokens, slots[r] = b->rows[r].slot, pages[r] = b->rows[r].page;
    }
    const size_t rows = sizeof(int32_t) * (size_t)b->batch.n_rows;
    const size_t q = (size_t)b->n_queries * (size_t)x->cfg.n_heads *
                     macattn_dtype_row_bytes(x->cfg.q_dtype, x->cfg.head_dim);
    assert_cuda(cudaMemcpy(x->n_tokens, n, rows, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->slots, slots, rows, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->pages, pages, rows, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->q, b->q, q, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->q_match, b->q_match, q, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->k, b->kv.k.data, b->kv.k.bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->v, b->kv.v.data, b->kv.v.bytes, cudaMemcpyHostToDevice));
    x->batch.n_rows = b->batch.n_rows;
}

/* Decisions are the reference's, but for distances that double precision itself hardly tells
 * apart. */
static void check_decision(duo *x, int32_t r, int32_t head, const macattn_cuda_decision *got)
{
    const ref_decision *want = &x->decisions[r * x->cfg.n_heads + head];
    const bool hit = got->entry >= 0;
    if (fabs(sqrt(want->distance2) - want->radius) < 1e-5) {
        x->ties++;
        return;
    }
    if (hit != want->hit)
        fail_msg("row %d head %d, %lld tokens: %s, the reference %s (distance %.9g, radius %.9g)",
                 r, head, (long long)x->b.rows[r].n_tokens, hit ? "hit" : "miss",
                 want->hit ? "hits" : "misses", sqrt(want->distance2), want->radius);
    if (hit && got->start != want->end)
        fail_msg("row %d head %d: reuses [F, %d), the reference [F, %lld)", r, head, got->start,
                 (long long)want->end);
    if (hit)
        x->hits++;
    else
        x->misses++;
}

static void check_outputs(duo *x, const char *what, double tolerance)
{
    const size_t heads = (size_t)x->b.n_queries * (size_t)x->cfg.n_heads,
                 d = (size_t)x->cfg.head_dim;
    float *out = download(x->io.out, heads * d * sizeof *out);
    float *lse = download(x->io.lse, heads * sizeof *lse);
    for (size_t i = 0; i < heads; i++) {
        check_head(what, (int32_t)(i / (size_t)x->cfg.n_heads),
                   (int32_t)(i % (size_t)x->cfg.n_heads), (const char *)(out + i * d), F32,
                   x->b.want + i * d, x->cfg.head_dim, tolerance);
        check_lse(what, (int32_t)(i / (size_t)x->cfg.n_heads),
                  (int32_t)(i % (size_t)x->cfg.n_heads), lse[i], x->b.want_lse[i]);
    }
    free(out), free(lse);
}

/* One decode step of the bench's rows for all layers. */
static void duo_decode(duo *x, const test_sequence *s)
{
    const int32_t rows = x->b.batch.n_rows;
    for (int32_t layer = 0; layer < x->cfg.n_layers; layer++) {
        test_bench_queries(&x->b, rows, s, layer);
        duo_upload(x);
        assert_gpu_ok(x->m, macattn_cuda_decode(x->m, layer, &x->batch, &x->io, NULL));
        ref_mac_decode(x->ref, &x->b.batch, layer, &x->b.io, x->b.want, x->b.want_lse,
                       x->decisions);
        const size_t n = (size_t)(rows * x->cfg.n_heads);
        macattn_cuda_decision *got = download(macattn_cuda_decisions(x->m), n * sizeof *got);
        for (int32_t r = 0; r < rows; r++) {
            for (int32_t h = 0; h < x->cfg.n_heads; h++)
                check_decision(x, r, h, &got[r * x->cfg.n_heads + h]);
        }
        free(got);
        check_outputs(x, "decode", 2 * relative_tolerance(x->cfg.k_dtype, F32));
    }
}

static void set_row(duo *x, int32_t r, int32_t slot, int64_t n_tokens, int32_t n_queries)
{
    test_bench_row(&x->b, r, slot, slot, &sequences[slot], n_tokens, n_queries);
}

static void check_steps(const macattn_config *cfg, int steps)
{
    duo x;
    duo_create(&x, cfg, 4, 400, 1);
    const int32_t lengths[4] = {1, 30, 12, 18};
    for (int32_t slot = 1; slot < 4; slot++) {
        for (int32_t t = 1; t < lengths[slot]; t++) set_row(&x, slot, slot, t, 1);
    }
    for (int i = 0; i < steps; i++) {
        for (int32_t r = 0; r < 4; r++) set_row(&x, r, r, lengths[r] + i, 1);
        x.b.batch.n_rows = 4;
        duo_decode(&x, sequences);
    }
    assert_true(x.hits > 0 && x.misses > 0);
    assert_true(x.ties * 100 < x.hits);
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
}

static void test_slot_operations(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(F16, 4, 2, 64);
    duo x;
    duo_create(&x, &cfg, 1, 400, 1);
    test_rng rng = {3};
    int64_t length = 1;
    test_sequence s = sequences[0];
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
        set_row(&x, 0, 0, length, 1);
        x.b.batch.n_rows = 1;
        duo_decode(&x, &s);
        length++;
    }
    assert_true(x.hits > 0 && x.misses > 0);
    duo_destroy(&x);
}

/* An engine computes a prompt, capture fills the ring; decoding goes on as the reference's does
 * after its own prefill. */
static void test_capture(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(F16, 8, 2, 128);
    cfg.ring = 40;
    duo x;
    duo_create(&x, &cfg, 4, 400, 150);
    set_row(&x, 0, 2, 150, 150);
    for (int32_t layer = 0; layer < cfg.n_layers; layer++) {
        test_bench_queries(&x.b, 1, &sequences[2], layer);
        duo_upload(&x);
        ref_mac_prefill(x.ref, &x.b.batch, layer, &x.b.io, x.b.want, x.b.want_lse);
        const size_t heads = 150 * (size_t)cfg.n_heads, d = (size_t)cfg.head_dim;
        float *out = malloc(heads * d * sizeof *out), *lse = malloc(heads * sizeof *lse);
        assert_true(out && lse);
        for (size_t i = 0; i < heads * d; i++) out[i] = (float)x.b.want[i];
        for (size_t i = 0; i < heads; i++) lse[i] = (float)x.b.want_lse[i];
        assert_cuda(cudaMemcpy(x.io.out, out, heads * d * sizeof *out, cudaMemcpyHostToDevice));
        assert_cuda(cudaMemcpy(x.io.lse, lse, heads * sizeof *lse, cudaMemcpyHostToDevice));
        assert_gpu_ok(x.m, macattn_cuda_capture(x.m, layer, &x.batch, 0, 150, &x.io, NULL));
        assert_cuda(cudaDeviceSynchronize());
        free(out), free(lse);
    }
    for (int i = 1; i <= 30; i++) {
        set_row(&x, 0, 2, 150 + i, 1);
        x.b.batch.n_rows = 1;
        duo_decode(&x, &sequences[2]);
    }
    assert_true(x.hits > 0);
    duo_destroy(&x);
}

/* One graph, captured once, replayed while lengths grow: the same bits as calls one by one. */
static void test_graph(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(BF16, 8, 2, 128);
    duo x, y;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    assert_cuda(cudaStreamCreate(&stream));
    duo_create(&x, &cfg, 2, 300, 1);
    duo_create(&y, &cfg, 2, 300, 1);
    x.batch.n_rows = 2;
    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    assert_gpu_ok(x.m, macattn_cuda_decode(x.m, 0, &x.batch, &x.io, stream));
    assert_cuda(cudaStreamEndCapture(stream, &graph));
    assert_cuda(cudaGraphInstantiate(&exec, graph, 0));
    const size_t bytes = 2 * 8 * 128 * sizeof(float);
    for (int i = 0; i < 100; i++) {
        duo *both[2] = {&x, &y};
        for (int k = 0; k < 2; k++) {
            set_row(both[k], 0, 0, 60 + i, 1);
            set_row(both[k], 1, 1, 1 + 2 * i, 1);
            both[k]->b.batch.n_rows = 2;
            test_bench_queries(&both[k]->b, 2, sequences, 0);
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
    assert_true(stats.hits > 0 && stats.tokens_skipped > 0);
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

/* ------------------------------------------------------------------------------------ budget -- */

enum { BUDGET_HEADS = 8, BUDGET_DIM = 64, BUDGET_ROWS = 2, BUDGET_TOKENS = 500 };

/* The GPU beside the CPU backend. */
typedef struct budget_run {
    duo x;
    macattn *cpu;
    int64_t groups, hits,
        differ;    /* groups judged, used by the GPU, and decided otherwise by the CPU */
    double error2; /* sum over the heads used, against exact attention */
} budget_run;

static void budget_create(budget_run *t, float budget)
{
    macattn_config cfg = reuse_config(F16, BUDGET_HEADS, 2, BUDGET_DIM);
    cfg.policy = MACATTN_POLICY_BUDGET;
    cfg.budget = budget;
    cfg.ring = 48, cfg.band = 16, cfg.fresh_tokens = 3, cfg.min_tokens = 0, cfg.n_layers = 1;
    *t = (budget_run){0};
    duo_create(&t->x, &cfg, BUDGET_ROWS, BUDGET_TOKENS, 1);
    t->cpu = test_create(&t->x.cfg);
}

static void budget_destroy(budget_run *t)
{
    macattn_destroy(t->cpu);
    duo_destroy(&t->x);
}

static double head_error(const float *got, const float *want)
{
    double error = 0, norm = 0;
    for (int i = 0; i < BUDGET_DIM; i++) {
        error += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(error / norm);
}

static void check_budget_group(budget_run *t, int32_t r, int32_t h0, const float *out,
                               const macattn_cuda_decision *got, bool cpu_hit)
{
    const int32_t group = BUDGET_HEADS / 2;
    const bool hit = got[r * BUDGET_HEADS + h0].entry >= 0;
    t->groups++;
    t->hits += hit;
    t->differ += hit != cpu_hit;
    for (int32_t h = h0; h < h0 + group; h++) {
        const size_t at = (size_t)(r * BUDGET_HEADS + h);
        const double e = head_error(out + at * BUDGET_DIM, t->x.b.out + at * BUDGET_DIM);
        assert_int_equal(got[at].entry >= 0, hit); /* as one */
        if (hit)
            t->error2 += e * e;
        else
            assert_true(e <= relative_tolerance(F16, F32));
    }
}

/* Steps n = from .. to - 1 of two sequences, without RoPE. */
static void budget_steps(budget_run *t, int from, int to)
{
    duo *x = &t->x;
    for (int n = from; n < to; n++) {
        for (int32_t r = 0; r < BUDGET_ROWS; r++) set_row(x, r, r, n, 1);
        x->b.batch.n_rows = BUDGET_ROWS;
        assert_ok(t->cpu, macattn_plan(t->cpu, &x->b.batch));
        test_bench_queries(&x->b, BUDGET_ROWS, sequences, 0);
        for (int32_t r = 0; r < BUDGET_ROWS; r++) {
            for (int32_t h = 0; h < BUDGET_HEADS; h++) {
                static const test_sequence slow = {11, 5, 0.05};
                float q[BUDGET_DIM], q_match[BUDGET_DIM];
                test_query(&slow, &x->cfg, n - 1 + 7 * r, 0, h, q, q_match);
                test_bench_set_query(&x->b, r, h, q_match, q_match);
            }
        }
        duo_upload(x);
        assert_gpu_ok(x->m, macattn_cuda_decode(x->m, 0, &x->batch, &x->io, NULL));
        assert_ok(t->cpu, macattn_decode(t->cpu, 0, &x->b.io));
        bool hits[BUDGET_ROWS][2];
        for (int32_t i = 0; i < 2 * BUDGET_ROWS; i++)
            hits[i / 2][i % 2] = test_decision(t->cpu, i / 2, i % 2 * BUDGET_HEADS / 2)->hit;
        assert_ok(t->cpu, macattn_attend(t->cpu, &x->b.io));
        const size_t heads = BUDGET_ROWS * BUDGET_HEADS;
        float *out = download(x->io.out, heads * BUDGET_DIM * sizeof *out);
        macattn_cuda_decision *got = download(macattn_cuda_decisions(x->m), heads * sizeof *got);
        for (int32_t i = 0; i < 2 * BUDGET_ROWS; i++)
            check_budget_group(t, i / 2, i % 2 * BUDGET_HEADS / 2, out, got, hits[i / 2][i % 2]);
        free(out), free(got);
    }
}

/* The GPU judges as the CPU does: what differs are candidates near the bound, since what is learnt
 * contains each side's rounding. What is used stays within the budget; what is not is exact;
 * nothing is used without one. */
static void test_budget(void **state)
{
    (void)state;
    const float budgets[] = {0.05f, 0.2f};
    const int steps = small() ? 150 : BUDGET_TOKENS;
    for (int i = 0; i < 2; i++) {
        budget_run t;
        budget_create(&t, budgets[i]);
        budget_steps(&t, 1, steps);
        const double rms = sqrt(t.error2 / (double)(t.hits * BUDGET_HEADS / 2));
        print_message("budget %g: %lld of %lld groups hit, errors %.4f, %lld differ from the CPU\n",
                      (double)budgets[i], (long long)t.hits, (long long)t.groups, rms,
                      (long long)t.differ);
        assert_true(4 * t.hits > t.groups);
        assert_true(rms <= (double)budgets[i]);
        assert_true(20 * t.differ <= t.groups);
        budget_destroy(&t);
    }
    budget_run t;
    budget_create(&t, 1e-30f);
    budget_steps(&t, 1, 100);
    assert_int_equal(t.hits, 0);
    /* What rests or was refused is found again with a larger budget, but for a group one head of
     * which has none. */
    assert_gpu_ok(t.x.m, macattn_cuda_set_head_budget(t.x.m, 0, -1, 0.5f, NULL));
    assert_gpu_ok(t.x.m, macattn_cuda_set_head_budget(t.x.m, 0, 2, 0, NULL));
    assert_ok(t.cpu, macattn_set_head_budget(t.cpu, 0, -1, 0.5f));
    assert_ok(t.cpu, macattn_set_head_budget(t.cpu, 0, 2, 0));
    budget_steps(&t, 100, 200);
    assert_in_range(t.hits, 30, 100 * BUDGET_ROWS);
    assert_int_equal(macattn_cuda_set_head_budget(t.x.m, 1, 0, 0.1f, NULL), MACATTN_E_RANGE);
    assert_int_equal(macattn_cuda_set_head_budget(t.x.m, 0, 0, NAN, NULL), MACATTN_E_RANGE);
    budget_destroy(&t);
}

/* A query that is not finite is computed, not remembered, and spoils nothing after it. */
static void test_not_finite(void **state)
{
    (void)state;
    const macattn_config cfg = reuse_config(F16, 4, 2, 64);
    duo x;
    duo_create(&x, &cfg, 1, 200, 1);
    for (int i = 1; i < 120; i++) {
        set_row(&x, 0, 0, i, 1);
        x.b.batch.n_rows = 1;
        test_bench_queries(&x.b, 1, sequences, 0);
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
        check_outputs(&x, "not finite", 2 * relative_tolerance(F16, F32));
    }
    duo_destroy(&x);
}

static void test_arguments(void **state)
{
    (void)state;
    macattn_config cfg = reuse_config(F16, 4, 2, 64);
    macattn_cuda *m = NULL;
    char error[256];
    cfg.head_dim = 96;
    assert_int_equal(macattn_cuda_create(&cfg, NULL, &m, error, sizeof error),
                     MACATTN_E_UNSUPPORTED);
    assert_non_null(strstr(error, "head_dim 96"));
    assert_null(m);
    cfg = reuse_config(F16, 4, 2, 64);
    duo x;
    duo_create(&x, &cfg, 2, 50, 1);
    x.batch.n_rows = 3;
    assert_int_equal(macattn_cuda_decode(x.m, 0, &x.batch, &x.io, NULL), MACATTN_E_RANGE);
    assert_non_null(strstr(macattn_cuda_last_error(x.m), "n_rows is 3"));
    x.batch.n_rows = 1;
    assert_int_equal(macattn_cuda_decode(x.m, 2, &x.batch, &x.io, NULL), MACATTN_E_RANGE);
    x.batch.page_size = 3;
    assert_int_equal(macattn_cuda_decode(x.m, 0, &x.batch, &x.io, NULL), MACATTN_E_RANGE);
    x.batch.page_size = 0;
    macattn_cuda_io io = x.io;
    io.kv.k = (const char *)io.kv.k + 8;
    assert_int_equal(macattn_cuda_decode(x.m, 0, &x.batch, &io, NULL), MACATTN_E_ARG);
    assert_non_null(strstr(macattn_cuda_last_error(x.m), "k is not aligned"));
    assert_int_equal(macattn_cuda_slot_fork(x.m, 0, 4, NULL), MACATTN_E_RANGE);
    size_t bytes = 0;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &bytes), MACATTN_OK);
    /* 2 layers x 4 heads x 16 entries of 64 codes, 24 bytes, 64 f16, 64 f32; head and count. */
    assert_int_equal(bytes, 2 * 4 * (16 * (64 + 24 + 128 + 256) + 8));
    assert_int_equal(macattn_cuda_set_head_budget(x.m, 0, 0, 0.1f, NULL), MACATTN_E_STATE);
    cfg.policy = MACATTN_POLICY_BUDGET;
    assert_int_equal(macattn_cuda_state_bytes(&cfg, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 2 * 4 * (16 * (64 + 24 + 8 + 128 + 256) + 8));
    duo_destroy(&x);
}

int main(void)
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("no GPU\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_cases), cmocka_unit_test(test_exact_random),
        cmocka_unit_test(test_decode),      cmocka_unit_test(test_slot_operations),
        cmocka_unit_test(test_capture),     cmocka_unit_test(test_graph),
        cmocka_unit_test(test_budget),      cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
