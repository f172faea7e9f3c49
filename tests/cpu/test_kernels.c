/* SPDX-License-Identifier: Apache-2.0 */
/* Each function of each backend's table (core/backend.h), on its own, against plain float64
 * code. What a kernel may write ends at a page that may not be touched; what it must leave alone
 * is checked. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const macattn_dtype kv_types[] = {
    MACATTN_DTYPE_F32,  MACATTN_DTYPE_F16,  MACATTN_DTYPE_BF16,
    MACATTN_DTYPE_Q8_0, MACATTN_DTYPE_Q4_0, MACATTN_DTYPE_Q4_1,
    MACATTN_DTYPE_Q5_0, MACATTN_DTYPE_Q5_1, MACATTN_DTYPE_IQ4_NL};
enum { N_KV_TYPES = sizeof kv_types / sizeof kv_types[0] };

/* Calls `f` for every backend that this machine can run. */
static void each_backend(void (*f)(const mai_backend *))
{
    int n = 0;
    for (int i = 0; mai_backend_at(i); i++) {
        if (!mai_backend_at(i)->supported()) continue;
        f(mai_backend_at(i));
        n++;
    }
    assert_true(n > 0);
}

static macattn_config kernel_config(int32_t n_heads, int32_t n_kv_heads, int32_t d, int32_t dv)
{
    macattn_config cfg = test_config(n_heads, n_kv_heads, d);
    cfg.v_head_dim = dv;
    cfg.scale = (float)(1 / sqrt(d));
    cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F16;
    return cfg;
}

static test_memory scratch_for(const mai_backend *backend, const mai_shape *shape)
{
    mai_ring_dims dims;
    mai_ring_dims_init(&dims, shape, 40, true);
    return test_guarded((backend->scratch_bytes(shape, &dims) + 63) / 64 * 64, 0);
}

/* ------------------------------------------------------------------------------------ load_q -- */

static void load_q(const mai_backend *backend)
{
    test_rng rng = {1};
    for (int32_t d = 8; d <= 1024; d += d < 160 ? 8 : 96) {
        for (int type = 0; type < 3; type++) {
            macattn_config cfg = kernel_config(1, 1, d, d);
            cfg.q_dtype = (macattn_dtype)type;
            const mai_shape shape = mai_shape_of(&cfg);
            const size_t bytes = macattn_dtype_row_bytes(cfg.q_dtype, d);
            test_memory q = test_guarded(bytes, (size_t)(d / 8 % 2));
            test_memory out = test_guarded((size_t)d * 4, 0);
            float x[MAI_MAX_DIM];
            for (int32_t i = 0; i < d; i++) x[i] = (float)test_normal(&rng);
            x[1] = -0.0f;
            x[2] = 1e-39f;
            x[3] = NAN;
            x[4] = -INFINITY;
            test_encode(cfg.q_dtype, x, d, q.data);
            backend->load_q(&shape, q.data, 0.125f, (float *)(void *)out.data);
            for (int32_t i = 0; i < d; i++) {
                const double want = 0.125 * ref_value(cfg.q_dtype, q.data, i);
                test_close("load_q", (float *)(void *)out.data + i, &want, 1, 0);
            }
            test_release(&q);
            test_release(&out);
        }
    }
}

static void test_load_q(void **state)
{
    (void)state;
    each_backend(load_q);
}

/* ------------------------------------------------------------------------------------ attend -- */

/* K and V of one row of n tokens, contiguous or in pages. */
typedef struct tokens_case {
    macattn_config cfg;
    mai_shape shape;
    test_kv kv;
    int32_t pages[64];
    macattn_row row;
    macattn_batch batch;
    mai_tokens tokens;
} tokens_case;

static void tokens_create(tokens_case *c, const macattn_config *cfg, int64_t n, int32_t page_size,
                          test_rng *rng)
{
    *c = (tokens_case){.cfg = *cfg, .shape = mai_shape_of(cfg)};
    const int32_t n_pages = page_size ? (int32_t)((n + page_size - 1) / page_size) : 1;
    assert_true(n_pages <= 64);
    const test_kv_layout layout = {.n_pages = n_pages,
                                   .page_tokens = page_size ? page_size : n,
                                   .head_major = n % 2,
                                   .pad = n % 3,
                                   .shift = (size_t)(n % 4)};
    test_kv_create(&c->kv, cfg, &layout);
    for (int32_t i = 0; i < n_pages; i++) c->pages[i] = (i + 1) % n_pages;
    c->row = (macattn_row){.n_queries = 1, .n_tokens = n, .pages = page_size ? c->pages : NULL};
    c->batch = (macattn_batch){.n_rows = 1, .rows = &c->row, .page_size = page_size};
    c->tokens = (mai_tokens){.kv = &c->kv.view, .pages = c->row.pages};
    while (page_size && 1 << c->tokens.page_shift < page_size) c->tokens.page_shift++;
    float k[MAI_MAX_DIM], v[MAI_MAX_DIM];
    for (int64_t t = 0; t < n; t++) {
        const int64_t page = page_size ? c->pages[t / page_size] : 0;
        for (int32_t h = 0; h < cfg->n_kv_heads; h++) {
            for (int32_t i = 0; i < cfg->head_dim; i++) k[i] = (float)test_normal(rng);
            for (int32_t i = 0; i < cfg->v_head_dim; i++) v[i] = (float)test_normal(rng);
            test_kv_put(&c->kv, cfg, page, page_size ? t % page_size : t, h, k, v);
        }
    }
}

/* `kbar` NULL: not looked at. */
static void expect_range(const tokens_case *c, int32_t head, const char *q, int64_t t0, int64_t t1,
                         const float *out, const float *kbar, float lse, const char *what)
{
    double x[MAI_MAX_DIM], want[MAI_MAX_DIM], want_kbar[MAI_MAX_DIM];
    for (int32_t i = 0; i < c->cfg.head_dim; i++) x[i] = ref_value(c->cfg.q_dtype, q, i);
    const double want_lse =
        ref_range_keys(&c->cfg, &c->batch, &c->row, &c->kv.view, head, x, t0, t1, want, want_kbar);
    const double tolerance = test_tolerance(sqrt(c->cfg.head_dim), t1 - t0, 4);
    test_close(what, out, want, c->cfg.v_head_dim, tolerance);
    if (kbar) test_close(what, kbar, want_kbar, c->cfg.head_dim, 2 * tolerance);
    test_close_lse(what, &lse, &want_lse, 1, tolerance);
}

/* What an attend call wrote of one head, with key sums and without. */
static void check_head(const tokens_case *c, const mai_attend_args *args,
                       const mai_attend_args *plain, int32_t h, const char *q)
{
    const mai_shape *shape = args->shape;
    const int32_t dv = shape->dv, kv_head = h / shape->group;
    const float *o = args->out + h * args->out_stride, *kbar = o + dv;
    const int64_t start = args->start ? args->start[h] : args->t0;
    if (kv_head < args->kv0 || kv_head >= args->kv1 || start >= args->t1) {
        assert_true(isnan(args->lse[h]) && isnan(o[0]) && isnan(o[dv - 1])); /* untouched */
        assert_true(isnan(kbar[0]) && isnan(kbar[shape->d - 1]));
        return;
    }
    if (!args->keys[kv_head]) assert_true(isnan(kbar[0]) && isnan(kbar[shape->d - 1]));
    assert_true(isnan(kbar[shape->d])); /* between the results */
    test_same_bits("with key sums", o, plain->out + h * dv, 4 * (size_t)dv);
    test_same_bits("with key sums, lse", &args->lse[h], &plain->lse[h], 4);
    expect_range(c, h, q, start > args->t0 ? start : args->t0, args->t1, o,
                 args->keys[kv_head] ? kbar : NULL, args->lse[h], "attend");
}

/* Heads of kv heads [kv0, kv1) over [t0, t1), head h from start[h] on (NULL: t0); with sums of keys
 * for some kv heads. */
static void attend_one(const mai_backend *backend, const tokens_case *c, int64_t t0, int64_t t1,
                       int32_t kv0, int32_t kv1, const int64_t *start, test_rng *rng)
{
    const mai_shape *shape = &c->shape;
    const size_t d = (size_t)shape->d, dv = (size_t)shape->dv, heads = (size_t)shape->n_heads;
    const size_t q_bytes = macattn_dtype_row_bytes(shape->q_dtype, shape->d), wide = dv + d + 3;
    char *q = malloc(heads * q_bytes);
    assert_non_null(q);
    test_memory loaded = test_guarded(heads * d * 4, 0), out = test_guarded(heads * dv * 4, 0);
    test_memory lse = test_guarded(heads * 4, 0), scratch = scratch_for(backend, shape);
    test_memory keys_out = test_guarded(heads * wide * 4, 0), keys_lse = test_guarded(heads * 4, 0);
    const float factor = (float)backend->q_factor(shape);
    float x[MAI_MAX_DIM];
    for (size_t h = 0; h < heads; h++) {
        for (size_t i = 0; i < d; i++) x[i] = (float)test_normal(rng);
        test_encode(shape->q_dtype, x, shape->d, q + h * q_bytes);
        backend->load_q(shape, q + h * q_bytes, factor, (float *)(void *)loaded.data + h * d);
    }
    const mai_attend_args plain = {.shape = shape,
                                   .tokens = c->tokens,
                                   .t0 = t0,
                                   .t1 = t1,
                                   .kv0 = kv0,
                                   .kv1 = kv1,
                                   .q = (float *)(void *)loaded.data,
                                   .start = start,
                                   .out = (float *)(void *)out.data,
                                   .out_stride = (int64_t)dv,
                                   .lse = (float *)(void *)lse.data,
                                   .scratch = scratch.data};
    uint8_t keys[MAI_MAX_HEADS];
    for (int32_t i = 0; i < shape->n_kv_heads; i++) keys[i] = test_below(rng, 3) > 0;
    mai_attend_args args = plain;
    args.keys = keys;
    args.out = (float *)(void *)keys_out.data;
    args.out_stride = (int64_t)wide;
    args.lse = (float *)(void *)keys_lse.data;
    backend->attend(&plain);
    backend->attend(&args);
    for (int32_t h = 0; h < shape->n_heads; h++)
        check_head(c, &args, &plain, h, q + (size_t)h * q_bytes);
    free(q);
    test_release(&loaded);
    test_release(&out);
    test_release(&lse);
    test_release(&keys_out);
    test_release(&keys_lse);
    test_release(&scratch);
}

static void attend(const mai_backend *backend)
{
    static const int32_t dims[][2] = {{64, 64},   {128, 128}, {80, 80},   {96, 96},
                                      {112, 112}, {192, 128}, {256, 256}, {8, 16},
                                      {40, 72},   {576, 512}, {32, 32},   {160, 96}};
    static const int64_t lengths[] = {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 49, 100};
    test_rng rng = {2};
    for (int i = 0; i < (TEST_LIGHT ? 60 : 250); i++) {
        const int32_t *dim = dims[i % 12];
        macattn_config cfg = kernel_config(3 * (1 + i % 7), 3, dim[0], dim[1]);
        cfg.q_dtype = (macattn_dtype)(i % 3);
        cfg.k_dtype = dim[0] % 32 ? kv_types[i % 3] : kv_types[i / 2 % N_KV_TYPES];
        cfg.v_dtype = dim[1] % 32 ? kv_types[i / 4 % 3] : kv_types[(i + i / 9) % N_KV_TYPES];
        cfg.softcap = i % 4 == 0 ? 3 : 0;
        const int64_t n = lengths[i % 14];
        tokens_case c;
        tokens_create(&c, &cfg, n, i % 5 == 0 ? 16 : i % 7 == 0 ? 2 : 0, &rng);
        const int64_t t0 = i % 3 ? 0 : test_below(&rng, n),
                      t1 = i % 2 ? n : t0 + test_below(&rng, n - t0) + 1;
        int64_t start[MAI_MAX_HEADS];
        for (int32_t h = 0; h < cfg.n_heads; h++) start[h] = test_below(&rng, n + 20) - 10;
        attend_one(backend, &c, t0, t1, 0, 3, NULL, &rng);
        attend_one(backend, &c, t0, t1, 0, 3, start, &rng);
        attend_one(backend, &c, t0, t1, i % 3, i % 3 + 1, i % 2 ? start : NULL, &rng);
        test_kv_destroy(&c.kv);
    }
}

static void test_attend(void **state)
{
    (void)state;
    each_backend(attend);
}

/* A head's result does not depend on which others take part, to the bit. */
static void alone(const mai_backend *backend)
{
    enum { N = 45, HEADS = 7, D = 72 };
    test_rng rng = {3};
    for (int type = 0; type < 3 + N_KV_TYPES; type++) {
        const bool blocks = macattn_dtype_row_bytes(kv_types[type % N_KV_TYPES], D) == 0;
        macattn_config cfg = kernel_config(HEADS, 1, blocks ? 64 : D, D);
        cfg.k_dtype = kv_types[type % N_KV_TYPES];
        cfg.v_dtype = kv_types[type % 3];
        if (blocks) {
            cfg.v_head_dim = 64;
            cfg.v_dtype = cfg.k_dtype;
        }
        cfg.softcap = type < N_KV_TYPES ? 0 : 5;
        tokens_case c;
        tokens_create(&c, &cfg, N, 0, &rng);
        float q[HEADS * D], out[2][HEADS * 2 * D], lse[2][HEADS];
        const uint8_t keys = 1;
        memset(out, 0xff, sizeof out); /* what is between the results stays */
        for (int i = 0; i < HEADS * D; i++) q[i] = 0.1f * (float)test_normal(&rng);
        test_memory scratch = scratch_for(backend, &c.shape);
        int64_t start[HEADS];
        for (int mask = 0; mask < 1 << HEADS; mask++) {
            for (int h = 0; h < HEADS; h++) start[h] = mask >> h & 1 ? 0 : N;
            const mai_attend_args args = {.shape = &c.shape,
                                          .tokens = c.tokens,
                                          .t1 = N,
                                          .kv1 = 1,
                                          .q = q,
                                          .start = mask ? start : NULL,
                                          .out = out[mask > 0],
                                          .out_stride = 2 * D,
                                          .keys = &keys,
                                          .lse = lse[mask > 0],
                                          .scratch = scratch.data};
            for (int h = 0; mask && h < HEADS; h++) lse[1][h] = 77;
            backend->attend(&args);
            for (int h = 0; mask && h < HEADS; h++) {
                if (mask >> h & 1) {
                    test_same_bits("with some heads", out[1] + h * 2 * D, out[0] + h * 2 * D,
                                   2 * D * 4);
                    test_same_bits("with some heads, lse", &lse[1][h], &lse[0][h], 4);
                } else {
                    assert_true(lse[1][h] == 77); /* left alone */
                }
            }
        }
        test_release(&scratch);
        test_kv_destroy(&c.kv);
    }
}

static void test_heads_alone(void **state)
{
    (void)state;
    each_backend(alone);
}

/* Rows of blocks as no quantiser makes them: every byte, scales and least values of any size, 0, NaN and
 * infinite; queries with one value far above the others, tiny ones, and such that are not finite, which
 * must not change the other heads. */
enum { ODD_TOKENS = 45, ODD_HEADS = 5, ODD_D = 96 };

static char *odd_row(const tokens_case *c, bool keys, int64_t t)
{
    const macattn_kv *kv = &c->kv.view;
    return keys ? c->kv.k.data + t * kv->k_token_stride : c->kv.v.data + t * kv->v_token_stride;
}

static void odd_scale(const tokens_case *c, bool keys, int64_t t, int32_t block, uint16_t bits)
{
    const macattn_dtype type = keys ? c->cfg.k_dtype : c->cfg.v_dtype;
    memcpy(odd_row(c, keys, t) + (size_t)block * mai_dtype_block_bytes(type), &bits, 2);
}

static void odd_fill(const tokens_case *c, bool keys, test_rng *rng)
{
    const macattn_dtype type = keys ? c->cfg.k_dtype : c->cfg.v_dtype;
    const size_t bytes = mai_dtype_block_bytes(type);
    const bool least = type == MACATTN_DTYPE_Q4_1 || type == MACATTN_DTYPE_Q5_1;
    /* so that values are of the size of 1 */
    const float size = type == MACATTN_DTYPE_Q8_0 || type == MACATTN_DTYPE_IQ4_NL ? 0.02f : 0.2f;
    for (int64_t t = 0; t < ODD_TOKENS; t++) {
        for (int32_t b = 0; b < ODD_D / 32; b++) {
            char *block = odd_row(c, keys, t) + (size_t)b * bytes;
            const float x[2] = {(float)(test_uniform(rng) - 0.5) * size,
                                (float)(test_uniform(rng) - 0.5)};
            for (size_t i = 0; i < bytes; i++) block[i] = (char)test_below(rng, 256);
            block[bytes - 1] = (char)-128;
            test_encode(MACATTN_DTYPE_F16, x, least ? 2 : 1, block);
        }
    }
}

static void odd_queries(int kind, float *q, test_rng *rng)
{
    for (int i = 0; i < ODD_HEADS * ODD_D; i++) q[i] = (float)test_normal(rng);
    if (kind == 4) {
        for (int h = 0; h < ODD_HEADS; h++) q[h * ODD_D + 17 * h] *= 20;
    }
    if (kind == 5) {
        for (int i = 0; i < ODD_HEADS * ODD_D; i++) q[i] *= i < 2 * ODD_D ? 1e-33f : 1e-20f;
    }
    if (kind == 6) q[ODD_D + 40] = NAN;
    if (kind == 7) q[ODD_D + 40] = INFINITY;
    if (kind == 7) memset(q + 2 * (size_t)ODD_D, 0, sizeof(float) * ODD_D);
}

static void odd_attend(const mai_backend *backend, const tokens_case *c, const float *q,
                       const int64_t *start, float *out, float *lse)
{
    float loaded[ODD_HEADS * ODD_D];
    test_memory scratch = scratch_for(backend, &c->shape);
    for (size_t h = 0; h < ODD_HEADS; h++)
        backend->load_q(&c->shape, q + h * ODD_D, (float)backend->q_factor(&c->shape),
                        loaded + h * ODD_D);
    const mai_attend_args args = {.shape = &c->shape,
                                  .tokens = c->tokens,
                                  .t1 = ODD_TOKENS,
                                  .kv1 = 1,
                                  .q = loaded,
                                  .start = start,
                                  .out = out,
                                  .out_stride = ODD_D,
                                  .lse = lse,
                                  .scratch = scratch.data};
    memset(out, 0xff, sizeof(float) * ODD_HEADS * ODD_D);
    backend->attend(&args);
    test_release(&scratch);
}

static void odd_blocks(const mai_backend *backend)
{
    test_rng rng = {12};
    for (int i = 0; i < 8 * (N_KV_TYPES - 3); i++) {
        const int kind = i % 8;
        macattn_config cfg = kernel_config(ODD_HEADS, 1, ODD_D, ODD_D);
        cfg.q_dtype = MACATTN_DTYPE_F32;
        cfg.k_dtype = cfg.v_dtype = kv_types[3 + i / 8];
        tokens_case c;
        tokens_create(&c, &cfg, ODD_TOKENS, 0, &rng);
        odd_fill(&c, true, &rng);
        odd_fill(&c, false, &rng);
        for (int64_t t = 0; kind == 1 && t < ODD_TOKENS; t += 3) {
            odd_scale(&c, true, t, 1, 0x0000);
            odd_scale(&c, false, t + 1, 2, 0x8000);
            odd_scale(&c, true, t + 2, 0, 0x0001); /* the least above 0 */
        }
        if (kind == 2) odd_scale(&c, true, 20, 2, 0x7e00);
        if (kind == 3) odd_scale(&c, true, 33, 0, 0xfc00);
        float q[ODD_HEADS * ODD_D], out[2][ODD_HEADS * ODD_D], lse[2][ODD_HEADS];
        odd_queries(kind, q, &rng);
        odd_attend(backend, &c, q, NULL, out[0], lse[0]);
        for (int32_t h = 0; h < ODD_HEADS; h++) {
            expect_range(&c, h, (const char *)(q + (size_t)h * ODD_D), 0, ODD_TOKENS,
                         out[0] + h * ODD_D, NULL, lse[0][h], backend->name);
        }
        if (kind >= 6) {
            q[ODD_D + 40] = 1;
            odd_attend(backend, &c, q, NULL, out[1], lse[1]);
            for (int32_t h = 0; h < ODD_HEADS; h += h ? 1 : 2) {
                test_same_bits("beside a query that is not finite", out[0] + h * ODD_D,
                               out[1] + h * ODD_D, ODD_D * 4);
                test_same_bits("its lse", &lse[0][h], &lse[1][h], 4);
            }
        }
        test_kv_destroy(&c.kv);
    }
}

static void test_odd_blocks(void **state)
{
    (void)state;
    each_backend(odd_blocks);
}

/* ------------------------------------------------------------------------- values not finite -- */

static void odd_value(const tokens_case *c, bool keys, int64_t t, int32_t i, float x)
{
    const macattn_dtype type = keys ? c->cfg.k_dtype : c->cfg.v_dtype;
    test_encode(type, &x, 1, odd_row(c, keys, t) + macattn_dtype_row_bytes(type, i));
}

/* Single values of K, V or a query that are not finite, and values that no head sees. */
static void odd_values(const mai_backend *backend)
{
    test_rng rng = {13};
    for (int i = 0; i < 9 * 3; i++) {
        const int kind = i % 9;
        macattn_config cfg = kernel_config(ODD_HEADS, 1, ODD_D, ODD_D);
        cfg.q_dtype = MACATTN_DTYPE_F32;
        cfg.k_dtype = cfg.v_dtype = kv_types[i / 9];
        tokens_case c;
        tokens_create(&c, &cfg, ODD_TOKENS, 0, &rng);
        float q[ODD_HEADS * ODD_D], out[ODD_HEADS * ODD_D], lse[ODD_HEADS];
        int64_t start[ODD_HEADS] = {0};
        odd_queries(0, q, &rng);
        const float two =
            2 / (float)backend->q_factor(&c.shape); /* where the kernel sees few bits */
        for (int32_t h = 0; h < ODD_HEADS; h++) q[h * ODD_D + 70] = h % 2 ? two : -two;
        if (kind < 3)
            odd_value(&c, true, 20, 70, kind == 0 ? INFINITY : kind == 1 ? -INFINITY : NAN);
        if (kind == 3) odd_value(&c, false, 44, 33, INFINITY);
        if (kind == 4) odd_value(&c, false, 17, 95, NAN);
        if (kind == 5) q[ODD_D + 40] = INFINITY;
        if (kind == 6) q[2 * ODD_D] = NAN;
        for (int32_t h = 0; kind >= 7 && h < ODD_HEADS; h++) start[h] = kind == 7 ? 3 + h : 19 + h;
        for (int64_t t = 0; t < start[0]; t++) {
            odd_value(&c, true, t, (int32_t)t, NAN);
            odd_value(&c, false, t, (int32_t)t + 8, t % 2 ? NAN : INFINITY);
        }
        odd_attend(backend, &c, q, start, out, lse);
        for (int32_t h = 0; h < ODD_HEADS; h++) {
            expect_range(&c, h, (const char *)(q + (size_t)h * ODD_D), start[h], ODD_TOKENS,
                         out + h * ODD_D, NULL, lse[h], backend->name);
        }
        test_kv_destroy(&c.kv);
    }
}

static void test_odd_values(void **state)
{
    (void)state;
    each_backend(odd_values);
}

/* Under a soft cap a logit is right to a few units of its own last place, whatever the cap and
 * however small or large the logit: the lse of a single token, which is its logit, shows it. The
 * token stands in every place of a tile in turn. */
static void softcap_logit(const mai_backend *backend, float cap, float logit, int32_t lane)
{
    enum { D = 8, N = 16 };
    macattn_config cfg = kernel_config(1, 1, D, D);
    cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F32;
    cfg.scale = 1;
    cfg.softcap = cap;
    const mai_shape shape = mai_shape_of(&cfg);
    float q[D] = {1}, k[N * D] = {0}, v[N * D] = {0}, out[D], lse = 77;
    k[lane * D] = logit;
    const macattn_kv kv = {.k = k, .v = v, .k_token_stride = sizeof q, .v_token_stride = sizeof q};
    test_memory scratch = scratch_for(backend, &shape);
    for (int i = 0; i < D; i++) q[i] *= (float)backend->q_factor(&shape);
    const int64_t start = lane;
    const mai_attend_args args = {.shape = &shape,
                                  .tokens = {.kv = &kv},
                                  .t1 = lane + 1,
                                  .kv1 = 1,
                                  .q = q,
                                  .start = &start,
                                  .out = out,
                                  .lse = &lse,
                                  .scratch = scratch.data};
    backend->attend(&args);
    const double want = (double)cap * tanh((double)logit / (double)cap), got = (double)lse;
    const double error = fabs(got - want), tolerance = 0x1p-24 * 10 * fabs(want);
    if (isnan(want) ? !isnan(got) : !(error <= tolerance)) {
        fail_msg("%s, cap %g: a logit of %.9g gives %.9g, not %.9g", backend->name, (double)cap,
                 (double)logit, got, want);
    }
    test_release(&scratch);
}

static void softcap_logits(const mai_backend *backend)
{
    static const float caps[] = {1e-30f, 1e-3f, 0.1f, 1,    7,     15,    30,
                                 50,     1000,  1e4f, 1e6f, 1e10f, 1e20f, 1e30f};
    test_rng rng = {9};
    int32_t lane = 0;
    for (size_t i = 0; i < sizeof caps / sizeof caps[0]; i++) {
        const float cap = caps[i];
        const float apart[] = {0,       -0.0f, 1e-3f * cap, cap / 3,  -cap,      2 * cap,
                               9 * cap, 1e-6f, -1e-2f,      1,        33,        -900,
                               1e5f,    1e38f, -1e38f,      INFINITY, -INFINITY, NAN};
        for (size_t j = 0; j < sizeof apart / sizeof apart[0]; j++) {
            softcap_logit(backend, cap, apart[j], lane++ % 16);
        }
        for (int j = 0; j < (TEST_LIGHT ? 100 : 2000);
             j++) { /* of the cap's size; of common size */
            const double size = exp((9 * test_uniform(&rng) - 6) * log(10));
            const float logit = (float)((j & 1 ? size : -size) * (j & 2 ? (double)cap : 1));
            softcap_logit(backend, cap, logit, lane++ % 16);
        }
    }
}

static void test_softcap_logits(void **state)
{
    (void)state;
    each_backend(softcap_logits);
}

/* Whole ranges under caps of all sizes: weights and outputs. */
static void softcap_ranges(const mai_backend *backend)
{
    static const float caps[] = {1e-3f, 0.5f, 20, 1e3f, 1e4f, 1e6f, 1e12f, 1e30f};
    test_rng rng = {10};
    for (int i = 0; i < 16; i++) {
        macattn_config cfg = kernel_config(4, 2, 64, 64);
        cfg.softcap = caps[i % 8];
        cfg.scale = i < 8 ? 0.125f : 1e-4f;
        tokens_case c;
        tokens_create(&c, &cfg, 45, 0, &rng);
        attend_one(backend, &c, 0, 45, 0, 2, NULL, &rng);
        test_kv_destroy(&c.kv);
    }
}

static void test_softcap_ranges(void **state)
{
    (void)state;
    each_backend(softcap_ranges);
}

/* ----------------------------------------------------------------------------------- prefill -- */

typedef struct prefill_case {
    int64_t n_tokens, window, band, fresh;
    int32_t n_queries, q0, q1, kv_head, capture0;
} prefill_case;

/* The same queries in two items give the same bits. */
static void check_split(const mai_backend *backend, const mai_prefill_args *whole, test_rng *rng)
{
    const mai_shape *shape = whole->shape;
    const size_t heads = (size_t)shape->n_heads, dv = (size_t)shape->dv, n = (size_t)whole->q1;
    const size_t width = dv + (size_t)shape->d;
    const size_t far = whole->q1 > whole->capture0 ? n - (size_t)whole->capture0 : 0;
    test_memory out = test_guarded(n * heads * dv * 4, 0), lse = test_guarded(n * heads * 4, 0);
    test_memory far_out = test_guarded(far * heads * width * 4 + 4, 0);
    test_memory far_lse = test_guarded(far * heads * 4 + 4, 0);
    mai_prefill_args part = *whole;
    part.out = (float *)(void *)out.data;
    part.lse = (float *)(void *)lse.data;
    part.far_out = (float *)(void *)far_out.data;
    part.far_lse = (float *)(void *)far_lse.data;
    for (; part.q0 < whole->q1; part.q0 = part.q1) {
        part.q1 = part.q0 + 1 + (int32_t)test_below(rng, whole->q1 - part.q0);
        backend->prefill(&part);
    }
    test_same_bits("prefill in parts", part.out, whole->out, n * heads * dv * 4);
    test_same_bits("prefill in parts, lse", part.lse, whole->lse, n * heads * 4);
    test_same_bits("prefill in parts, far", part.far_out, whole->far_out, far * heads * width * 4);
    test_same_bits("prefill in parts, far lse", part.far_lse, whole->far_lse, far * heads * 4);
    test_release(&out);
    test_release(&lse);
    test_release(&far_out);
    test_release(&far_lse);
}

static void prefill_one(const mai_backend *backend, const tokens_case *c, const prefill_case *p,
                        test_rng *rng)
{
    const mai_shape *shape = &c->shape;
    const size_t dv = (size_t)shape->dv, d = (size_t)shape->d, heads = (size_t)shape->n_heads;
    const size_t n = (size_t)p->n_queries,
                 q_bytes = macattn_dtype_row_bytes(shape->q_dtype, shape->d);
    const size_t far = p->capture0 < p->n_queries ? (size_t)(p->n_queries - p->capture0) : 0;
    test_memory q = test_guarded(n * heads * q_bytes, 0), out = test_guarded(n * heads * dv * 4, 0);
    test_memory lse = test_guarded(n * heads * 4, 0),
                far_lse = test_guarded(far * heads * 4 + 4, 0);
    test_memory far_out = test_guarded(far * heads * dv * 4 + 4, 0);
    test_memory keys_far = test_guarded(far * heads * (dv + d) * 4 + 4, 0);
    test_memory keys_out = test_guarded(n * heads * dv * 4, 0);
    test_memory scratch = scratch_for(backend, shape);
    float x[MAI_MAX_DIM];
    for (size_t i = 0; i < n * heads; i++) {
        for (int32_t j = 0; j < shape->d; j++) x[j] = (float)test_normal(rng);
        test_encode(shape->q_dtype, x, shape->d, q.data + i * q_bytes);
    }
    const mai_prefill_args args = {.shape = shape,
                                   .tokens = c->tokens,
                                   .pos0 = p->n_tokens - p->n_queries,
                                   .window = p->window,
                                   .q0 = p->q0,
                                   .q1 = p->q1,
                                   .kv_head = p->kv_head,
                                   .n_queries = p->n_queries,
                                   .q = q.data,
                                   .q_row_stride = (int64_t)(heads * q_bytes),
                                   .q_head_stride = (int64_t)q_bytes,
                                   .out = (float *)(void *)out.data,
                                   .out_row_stride = (int64_t)(heads * dv * 4),
                                   .out_head_stride = (int64_t)(dv * 4),
                                   .lse = (float *)(void *)lse.data,
                                   .capture0 = p->capture0,
                                   .band = p->band,
                                   .fresh = p->fresh,
                                   .far_out = (float *)(void *)far_out.data,
                                   .far_lse = (float *)(void *)far_lse.data,
                                   .scratch = scratch.data};
    backend->prefill(&args);
    mai_prefill_args with_keys = args;
    with_keys.far_keys = true;
    with_keys.far_out = (float *)(void *)keys_far.data;
    with_keys.out = (float *)(void *)keys_out.data;
    backend->prefill(&with_keys);
    test_same_bits("prefill with key sums", args.out, with_keys.out, n * heads * dv * 4);
    check_split(backend, &with_keys, rng);
    for (int32_t i = 0; i < p->n_queries; i++) {
        const int64_t seen = p->n_tokens - p->n_queries + i + 1;
        for (int32_t h = 0; h < shape->n_heads; h++) {
            const size_t at = (size_t)i * heads + (size_t)h;
            const bool mine = i >= p->q0 && i < p->q1 && h / shape->group == p->kv_head;
            if (!mine) {
                assert_true(isnan(args.lse[at]) && isnan(args.out[at * dv]));
                continue;
            }
            const int64_t first = p->window && seen > p->window ? seen - p->window : 0;
            expect_range(c, h, q.data + at * q_bytes, first, seen, args.out + at * dv, NULL,
                         args.lse[at], backend->name);
            if (i < p->capture0) continue;
            const size_t to = (size_t)(i - p->capture0) * heads + (size_t)h;
            const int64_t fresh = p->fresh < seen ? p->fresh : seen;
            const int64_t end = seen - p->band > fresh ? seen - p->band : fresh;
            const float *summary = with_keys.far_out + to * (dv + d);
            test_same_bits("far summary with keys", args.far_out + to * dv, summary, dv * 4);
            expect_range(c, h, q.data + at * q_bytes, fresh, end, summary, summary + dv,
                         args.far_lse[to], "far summary");
        }
    }
    test_release(&q);
    test_release(&out);
    test_release(&lse);
    test_release(&far_out);
    test_release(&keys_far);
    test_release(&keys_out);
    test_release(&far_lse);
    test_release(&scratch);
}

/* One token's value or key is not finite; queries before it must not notice. */
static void spoil_token(tokens_case *c, int32_t kv_head, test_rng *rng)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    float k[MAI_MAX_DIM], v[MAI_MAX_DIM];
    const int64_t t = test_below(rng, c->row.n_tokens);
    const int32_t size = c->batch.page_size;
    for (int32_t i = 0; i < c->cfg.head_dim; i++) k[i] = (float)test_normal(rng);
    for (int32_t i = 0; i < c->cfg.v_head_dim; i++) v[i] = (float)test_normal(rng);
    if (test_below(rng, 3))
        v[test_below(rng, c->cfg.v_head_dim)] = bad[test_below(rng, 3)];
    else
        k[test_below(rng, c->cfg.head_dim)] = NAN;
    test_kv_put(&c->kv, &c->cfg, size ? c->pages[t / size] : 0, size ? t % size : t, kv_head, k, v);
}

static void prefill(const mai_backend *backend)
{
    static const int32_t dims[][2] = {{64, 64}, {128, 128}, {80, 40}, {8, 256}, {256, 64}};
    test_rng rng = {4};
    for (int i = 0; i < (TEST_LIGHT ? 40 : 200); i++) {
        static const int32_t groups[] = {1, 2, 3, 4, 7, 16, 40, 70};
        const int32_t group = groups[test_below(&rng, 8)];
        macattn_config cfg = kernel_config(2 * group, 2, dims[i % 5][0], dims[i % 5][1]);
        cfg.q_dtype = (macattn_dtype)(i % 3);
        cfg.k_dtype = cfg.head_dim % 32 ? kv_types[i % 3] : kv_types[i / 2 % N_KV_TYPES];
        cfg.v_dtype = cfg.v_head_dim % 32 ? kv_types[i / 4 % 3] : kv_types[i / 3 % N_KV_TYPES];
        cfg.softcap = i % 5 == 0 ? 4 : 0;
        prefill_case p = {.n_tokens = 1 + test_below(&rng, i % 7 ? 120 : 300), .kv_head = i % 2};
        tokens_case c;
        tokens_create(&c, &cfg, p.n_tokens, i % 4 == 0 ? 8 : 0, &rng);
        if (i % 11 == 0 && (int)cfg.k_dtype < 3 && (int)cfg.v_dtype < 3)
            spoil_token(&c, p.kv_head, &rng);
        const int32_t most = backend->prefill_queries(&c.shape);
        assert_true(most >= 1);
        p.n_queries = 1 + (int32_t)test_below(&rng, p.n_tokens);
        p.q0 = (int32_t)test_below(&rng, p.n_queries);
        p.q1 = p.q0 + 1 + (int32_t)test_below(&rng, most);
        if (p.q1 > p.n_queries) p.q1 = p.n_queries;
        p.capture0 = p.n_queries;
        if (i % 3 == 0) {
            p.window = 1 + test_below(&rng, 60);
        } else if (i % 3 == 1) {
            p.band = 1 + test_below(&rng, 40);
            p.fresh = i % 2 ? 0 : test_below(&rng, 30);
            const int64_t first = p.fresh + p.band - (p.n_tokens - p.n_queries);
            p.capture0 = (int32_t)(first > 0 ? first : 0) + (int32_t)test_below(&rng, 5);
        }
        prefill_one(backend, &c, &p, &rng);
        test_kv_destroy(&c.kv);
    }
}

static void test_prefill(void **state)
{
    (void)state;
    each_backend(prefill);
}

/* A negative sum that becomes too small to be one is a 0, whose sign does not tell what other queries an item
 * has: their tokens, which this one does not see, add 0. */
static void prefill_zero(const mai_backend *backend)
{
    enum { N = 140, D = 8, Q = 100 };
    macattn_config cfg = kernel_config(1, 1, D, D);
    cfg.q_dtype = cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F32;
    cfg.scale = 1;
    const mai_shape shape = mai_shape_of(&cfg);
    float q[N * D], k[N * D], v[N * D] = {0}, out[2][N * D], lse[2][N];
    for (int t = 0; t < N; t++) {
        for (int i = 0; i < D; i++) q[t * D + i] = k[t * D + i] = i == 0;
        if (t >= 64) k[t * D] = 6;
    }
    v[3] = -1e-45f; /* the least there is */
    const macattn_kv kv = {
        .k = k, .v = v, .k_token_stride = sizeof k / N, .v_token_stride = sizeof v / N};
    test_memory scratch = scratch_for(backend, &shape);
    for (int alone = 0; alone < 2; alone++) {
        const mai_prefill_args args = {.shape = &shape,
                                       .tokens = {.kv = &kv},
                                       .q0 = alone ? Q : 0,
                                       .q1 = alone ? Q + 1 : N,
                                       .n_queries = N,
                                       .q = (const char *)q,
                                       .q_row_stride = sizeof q / N,
                                       .out = out[alone],
                                       .out_row_stride = sizeof out[0] / N,
                                       .lse = lse[alone],
                                       .capture0 = N,
                                       .scratch = scratch.data};
        backend->prefill(&args);
    }
    assert_true(out[1][Q * D + 3] == 0);
    test_same_bits("a query alone", out[1] + Q * D, out[0] + Q * D, sizeof(float) * D);
    test_release(&scratch);
}

static void test_prefill_zero(void **state)
{
    (void)state;
    each_backend(prefill_zero);
}

/* ------------------------------------------------------------------------------------- rings -- */

/* A ring, and the same entries in the order in which they came. */
typedef struct ring_case {
    macattn_config cfg;
    mai_shape shape;
    mai_ring_dims dims;
    mai_ring_view view;
    test_memory memory;
    size_t q_bytes;
    int n_inserted;
    char *q; /* [inserted][n_heads][d] */
} ring_case;

enum { MOST_INSERTED = 900 };

static void ring_create(ring_case *c, const macattn_config *cfg, int32_t capacity)
{
    *c = (ring_case){.cfg = *cfg, .shape = mai_shape_of(cfg)};
    mai_ring_dims_init(&c->dims, &c->shape, capacity, capacity % 2);
    c->memory = test_guarded(c->dims.bytes, 0);
    mai_ring_view_init(&c->view, &c->dims, c->memory.data);
    memset(c->view.head, 0, sizeof(int32_t) * (size_t)cfg->n_heads);
    memset(c->view.count, 0, sizeof(int32_t) * (size_t)cfg->n_heads);
    c->q_bytes = macattn_dtype_row_bytes(cfg->q_dtype, cfg->head_dim);
    c->q = malloc((size_t)MOST_INSERTED * (size_t)cfg->n_heads * c->q_bytes);
    assert_non_null(c->q);
}

static void ring_destroy(ring_case *c)
{
    test_release(&c->memory);
    free(c->q);
}

static char *ring_query(const ring_case *c, int i, int32_t head)
{
    return c->q + ((size_t)i * (size_t)c->cfg.n_heads + (size_t)head) * c->q_bytes;
}

/* Entry i: query by `kind`, position 2i, end 2i + 1 - 5, summary from i on. */
static void ring_insert(const mai_backend *backend, ring_case *c, const float *q, int32_t head)
{
    float out[2 * MAI_MAX_DIM];
    const int i = c->n_inserted;
    for (int32_t j = 0; j < c->dims.width; j++) out[j] = (float)(i + j);
    test_encode(c->cfg.q_dtype, q, c->cfg.head_dim, ring_query(c, i, head));
    backend->insert(&c->dims, &c->view, c->cfg.q_dtype, head, ring_query(c, i, head), 2 * i,
                    2 * i - 4, (float)i, out);
}

static double distance2(const ring_case *c, const char *x, const char *y)
{
    double sum = 0;
    for (int32_t i = 0; i < c->cfg.head_dim; i++) {
        const double e = ref_value(c->cfg.q_dtype, x, i) - ref_value(c->cfg.q_dtype, y, i);
        sum += e * e;
    }
    return sum;
}

/* The newest of the nearest entries that end by max_end and lie within the radius; -1: none. */
static int expected_match(const ring_case *c, int32_t head, const char *q, double radius,
                          int64_t max_end, double *best)
{
    int found = -1;
    *best = radius > 0 ? radius * radius : 0;
    const int first = c->n_inserted > c->dims.capacity ? c->n_inserted - c->dims.capacity : 0;
    for (int i = c->n_inserted - 1; i >= first; i--) {
        const double d2 = distance2(c, q, ring_query(c, i, head));
        if (2 * i - 4 > max_end || !(d2 < *best)) continue;
        *best = d2;
        found = i;
    }
    return found;
}

static void check_match(const mai_backend *backend, const ring_case *c, const char *q,
                        double radius, int64_t max_end)
{
    test_memory scratch =
        test_guarded((backend->scratch_bytes(&c->shape, &c->dims) + 63) / 64 * 64, 0);
    for (int32_t h0 = 0; h0 < c->cfg.n_heads; h0 += MAI_MATCH_HEADS) {
        const int32_t n =
            c->cfg.n_heads - h0 < MAI_MATCH_HEADS ? c->cfg.n_heads - h0 : MAI_MATCH_HEADS;
        const mai_match_args args = {.shape = &c->shape,
                                     .dims = &c->dims,
                                     .ring = &c->view,
                                     .head0 = h0,
                                     .n_heads = n,
                                     .q = q + (size_t)h0 * c->q_bytes,
                                     .q_head_stride = (int64_t)c->q_bytes,
                                     .radius = radius,
                                     .max_end = max_end,
                                     .scratch = scratch.data};
        mai_match results[MAI_MATCH_HEADS];
        backend->match(&args, results);
        for (int32_t i = 0; i < n; i++) {
            double best;
            const int want = expected_match(c, h0 + i, q + (size_t)(h0 + i) * c->q_bytes, radius,
                                            max_end, &best);
            assert_true(results[i].finite);
            assert_int_equal(results[i].entry, want < 0 ? -1 : want % c->dims.capacity);
            if (want >= 0 && results[i].distance2 != best) {
                fail_msg("%s: distance^2 %.17g, not %.17g", backend->name, results[i].distance2,
                         best);
            }
        }
    }
    test_release(&scratch);
}

/* Random queries around a few themes; every few inserts, look for near, far and equal ones. */
static void match_stream(const mai_backend *backend, const macattn_config *cfg, int32_t capacity,
                         int n_inserts, test_rng *rng)
{
    ring_case c;
    ring_create(&c, cfg, capacity);
    const size_t row = (size_t)cfg->n_heads * c.q_bytes;
    char *q = malloc(row);
    assert_non_null(q);
    float x[MAI_MAX_DIM];
    for (; c.n_inserted < n_inserts; c.n_inserted++) {
        for (int32_t h = 0; h < cfg->n_heads; h++) {
            test_rng theme = {(uint64_t)test_below(rng, 5)};
            const double noise = 0.3 * test_uniform(rng);
            for (int32_t j = 0; j < cfg->head_dim; j++) {
                x[j] = (float)(test_normal(&theme) + noise * test_normal(rng));
            }
            ring_insert(backend, &c, x, h);
            if (c.n_inserted && test_below(rng, 4) == 0) { /* the same as an older one */
                memcpy(q + (size_t)h * c.q_bytes,
                       ring_query(&c, (int)test_below(rng, c.n_inserted), h), c.q_bytes);
            } else {
                for (int32_t j = 0; j < cfg->head_dim; j++) x[j] += 0.2f * (float)test_normal(rng);
                test_encode(cfg->q_dtype, x, cfg->head_dim, q + (size_t)h * c.q_bytes);
            }
        }
        if (c.n_inserted % (3 + capacity / 16)) continue;
        c.n_inserted++;
        const double unit = sqrt(2.0 * cfg->head_dim);
        const double radii[] = {0.55 * unit, 0.1 * unit, 2 * unit, 1e30, 0, -1};
        for (int i = 0; i < 6; i++) {
            const int64_t newest = 2 * c.n_inserted;
            check_match(backend, &c, q, radii[i],
                        i % 2 ? newest : newest - test_below(rng, 2 * capacity + 5));
        }
        c.n_inserted--;
    }
    free(q);
    ring_destroy(&c);
}

static void match(const mai_backend *backend)
{
    static const int32_t dims[] = {8, 16, 32, 40, 64, 72, 80, 96, 128, 192, 256, 1024};
    static const int32_t capacities[] = {1, 2, 15, 16, 17, 31, 33, 64, 512};
    test_rng rng = {6};
    for (int i = 0; i < (TEST_LIGHT ? 18 : 54); i++) {
        macattn_config cfg = kernel_config(1 + i % 6, 1, dims[i % 12], 8);
        cfg.q_dtype = (macattn_dtype)(i % 3);
        const int32_t capacity = capacities[i % 9];
        match_stream(backend, &cfg, capacity, capacity > 100 ? capacity + 20 : 2 * capacity + 30,
                     &rng);
    }
}

static void test_match(void **state)
{
    (void)state;
    each_backend(match);
}

static void match_not_finite(const mai_backend *backend)
{
    macattn_config cfg = kernel_config(1, 1, 40, 8);
    ring_case c;
    ring_create(&c, &cfg, 20);
    test_memory scratch =
        test_guarded((backend->scratch_bytes(&c.shape, &c.dims) + 63) / 64 * 64, 0);
    float q[40] = {0};
    for (; c.n_inserted < 5; c.n_inserted++) ring_insert(backend, &c, q, 0);
    for (int i = 0; i < 40; i++) {
        for (int kind = 0; kind < 4; kind++) {
            q[i] = kind == 0 ? NAN : kind == 1 ? INFINITY : kind == 2 ? -INFINITY : 3e38f;
            mai_match result;
            const mai_match_args args = {.shape = &c.shape,
                                         .dims = &c.dims,
                                         .ring = &c.view,
                                         .n_heads = 1,
                                         .q = (const char *)q,
                                         .radius = 1e30,
                                         .max_end = 100,
                                         .scratch = scratch.data};
            backend->match(&args, &result);
            assert_int_equal(result.finite, kind == 3);
            assert_int_equal(result.entry, -1);
        }
        q[i] = 0;
    }
    test_release(&scratch);
    ring_destroy(&c);
}

static void test_match_not_finite(void **state)
{
    (void)state;
    each_backend(match_not_finite);
}

/* Entries go round the circle, and hold what came. */
static void insert(const mai_backend *backend)
{
    test_rng rng = {7};
    for (int32_t capacity = 1; capacity < 40; capacity += 5) {
        const macattn_config cfg = kernel_config(2, 1, 24, 16);
        ring_case c;
        ring_create(&c, &cfg, capacity);
        float q[24];
        for (; c.n_inserted < 100; c.n_inserted++) {
            for (int i = 0; i < 24; i++) q[i] = (float)test_normal(&rng);
            const int at = c.n_inserted % capacity;
            assert_int_equal(c.view.head[1], at);
            ring_insert(backend, &c, q, 1);
            assert_int_equal(c.view.count[1],
                             c.n_inserted < capacity ? c.n_inserted + 1 : capacity);
            assert_int_equal(c.view.count[0], 0);
            assert_int_equal(c.view.head[0], 0);
            const size_t slot = (size_t)(capacity + at);
            assert_int_equal(c.view.pos[slot], 2 * c.n_inserted);
            assert_int_equal(c.view.end[slot], 2 * c.n_inserted - 4);
            assert_true(c.view.lse0[slot] == (float)c.n_inserted);
            assert_memory_equal(c.view.q + slot * c.q_bytes, q, c.q_bytes);
            const size_t width = (size_t)c.dims.width;
            assert_int_equal(width, capacity % 2 ? 16 + 24 : 16);
            for (size_t i = 0; i < width; i++) {
                assert_true(c.view.out[slot * width + i] == (float)c.n_inserted + (float)i);
            }
        }
        ring_destroy(&c);
    }
}

static void test_insert(void **state)
{
    (void)state;
    each_backend(insert);
}

/* ------------------------------------------------------------------------------------- merge -- */

static void merge(const mai_backend *backend)
{
    test_rng rng = {8};
    enum { PARTS = 20 };
    for (int32_t dv = 8; dv <= 264; dv += 8) {
        for (int n = 1; n <= PARTS; n += 3) {
            test_memory parts[PARTS], out = test_guarded((size_t)dv * 4, 0);
            const float *o[PARTS];
            float lse[PARTS], got_lse;
            double want[264] = {0}, want_lse = -INFINITY, part[264];
            for (int i = 0; i < n; i++) {
                parts[i] = test_guarded((size_t)dv * 4, 0);
                o[i] = (float *)(void *)parts[i].data;
                lse[i] = test_below(&rng, 4) ? (float)(3 * test_normal(&rng)) : -INFINITY;
                if (lse[i] == -INFINITY) continue; /* what an empty part holds (NaN) is not read */
                for (int32_t j = 0; j < dv; j++) {
                    ((float *)(void *)parts[i].data)[j] = (float)test_normal(&rng);
                    part[j] = (double)o[i][j];
                }
                ref_merge(dv, want, &want_lse, part, (double)lse[i]);
            }
            backend->merge(dv, n, o, lse, (float *)(void *)out.data, &got_lse);
            test_close("merge", (float *)(void *)out.data, want, dv, 3e-6);
            float part_out[264 + 8], part_lse; /* a shorter one has the same bits */
            for (int32_t less = dv - 8; less > 0; less -= 40) {
                memset(part_out, 0xff, sizeof part_out);
                backend->merge(less, n, o, lse, part_out, &part_lse);
                test_same_bits("merge, less of it", part_out, out.data, 4 * (size_t)less);
                test_same_bits("its lse", &part_lse, &got_lse, 4);
                assert_true(isnan(part_out[less]));
            }
            test_close_lse("merge lse", &got_lse, &want_lse, 1, 3e-6);
            for (int i = 0; i < n; i++) test_release(&parts[i]);
            test_release(&out);
        }
    }
}

static void test_merge(void **state)
{
    (void)state;
    each_backend(merge);
}

/* A NaN among the lse is in the result, wherever it stands. */
static void merge_nan(const mai_backend *backend)
{
    const float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, *const o[4] = {x, x, x, x};
    static const float others[] = {-INFINITY, 0, 5, -100};
    for (int at = 0; at < 4; at++) {
        for (int other = 0; other < 4; other++) {
            for (int n = at + 1; n <= 4; n++) {
                float lse[4] = {others[other], others[other], others[other], others[other]};
                float out[8], got;
                lse[at] = NAN;
                backend->merge(8, n, o, lse, out, &got);
                if (!isnan(got) || !isnan(out[0]) || !isnan(out[7])) {
                    fail_msg("%s: NaN at %d of %d among %g is lost: %g, lse %g", backend->name, at,
                             n, (double)others[other], (double)out[0], (double)got);
                }
            }
        }
    }
}

static void test_merge_nan(void **state)
{
    (void)state;
    each_backend(merge_nan);
}

/* ------------------------------------------------------------------------------------- table -- */

static void test_table(void **state)
{
    (void)state;
    int n = 0;
    for (; mai_backend_at(n); n++) {
        const mai_backend *b = mai_backend_at(n);
        assert_string_equal(b->name, macattn_isa_name(n));
        assert_int_equal(macattn_isa_supported(b->name), b->supported() != 0);
        assert_ptr_equal(mai_backend_find(b->name), b->supported() ? b : NULL);
        for (int i = 0; i < n; i++) assert_string_not_equal(b->name, macattn_isa_name(i));
        print_message("%s: %s\n", b->name, b->supported() ? "tested" : "not on this machine");
    }
    assert_true(n > 0);
    assert_null(macattn_isa_name(n));
    assert_null(macattn_isa_name(-1));
    assert_string_equal(mai_backend_at(n - 1)->name, "scalar");
    assert_int_equal(macattn_isa_supported("scalar"), 1);
    assert_int_equal(macattn_isa_supported("abacus"), 0);
    assert_int_equal(macattn_isa_supported(""), 0);
    assert_int_equal(macattn_isa_supported(NULL), 0);
    assert_null(mai_backend_find("abacus"));
    assert_true(mai_backend_find(NULL)->supported());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),          cmocka_unit_test(test_load_q),
        cmocka_unit_test(test_attend),         cmocka_unit_test(test_heads_alone),
        cmocka_unit_test(test_odd_blocks),     cmocka_unit_test(test_odd_values),
        cmocka_unit_test(test_softcap_logits), cmocka_unit_test(test_softcap_ranges),
        cmocka_unit_test(test_prefill),        cmocka_unit_test(test_prefill_zero),
        cmocka_unit_test(test_match),          cmocka_unit_test(test_match_not_finite),
        cmocka_unit_test(test_insert),         cmocka_unit_test(test_merge),
        cmocka_unit_test(test_merge_nan),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
