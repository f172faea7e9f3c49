/* SPDX-License-Identifier: Apache-2.0 */
/* Exact attention against the float64 reference: macattn_attend, macattn_prefill, and
 * macattn_decode under the policy exact, on every instruction set of this machine, over types,
 * head sizes, groups, lengths, page sizes, strides and alignments. All memory that a query may
 * not see holds NaN, and K and V end at a page that may not be touched. */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS 8

typedef struct spec {
    macattn_config cfg;
    int32_t n_rows;
    int64_t n_tokens[MAX_ROWS];
    int32_t n_queries[MAX_ROWS]; /* 0 stands for 1 */
    int32_t page_size;
    bool head_major, strided, sinks, no_lse;
    int64_t pad;
    size_t shift;    /* misalignment of K, V and q in bytes */
    float amplitude; /* of q; 0 stands for 1 */
    double v_max;    /* 0 stands for 4 */
    uint64_t seed;
    void (*spoil)(float *k, float *v, int32_t d, int32_t dv, int64_t t); /* NULL: nothing */
} spec;

typedef struct scene {
    const spec *s;
    macattn_config cfg; /* with v_head_dim and scale resolved */
    macattn_row rows[MAX_ROWS];
    macattn_batch batch;
    int32_t *pages;
    test_kv kv;
    test_memory q, out;
    float *sinks, *lse;
    macattn_io io;
    int64_t n_queries;
    size_t heads; /* (query, head) pairs */
    double *want, *want_lse;
    float *packed; /* the output without its strides */
    bool poisoned;
} scene;

static int32_t spec_queries(const spec *s, int32_t r)
{
    return s->n_queries[r] ? s->n_queries[r] : 1;
}

static int64_t max_tokens(const spec *s)
{
    int64_t most = 1;
    for (int32_t r = 0; r < s->n_rows; r++) most = s->n_tokens[r] > most ? s->n_tokens[r] : most;
    return most;
}

/* ---------------------------------------------------------------------------------- building -- */

/* Rows with pages dealt out from a shuffled pack, or, contiguous, each row in one sequence; the
 * longest row is in the last one, so that its end is the end of the memory. */
static void make_rows(scene *c, test_rng *rng)
{
    const spec *s = c->s;
    const int32_t size = s->page_size;
    int32_t n_pages = 0, next = 0, longest = 0;
    for (int32_t r = 0; r < s->n_rows; r++) {
        n_pages += size ? (int32_t)((s->n_tokens[r] + size - 1) / size) : 1;
        if (s->n_tokens[r] >= s->n_tokens[longest]) longest = r;
    }
    n_pages = n_pages ? n_pages : 1;
    c->pages = malloc(sizeof *c->pages * (size_t)n_pages);
    assert_non_null(c->pages);
    for (int32_t i = 0; i < n_pages; i++) c->pages[i] = i;
    for (int32_t i = n_pages - 1; size && i > 0; i--) {
        const int32_t j = (int32_t)test_below(rng, i + 1), page = c->pages[i];
        c->pages[i] = c->pages[j];
        c->pages[j] = page;
    }
    for (int32_t r = 0; r < s->n_rows; r++) {
        const int32_t page = r == longest ? s->n_rows - 1 : r == s->n_rows - 1 ? longest : r;
        c->rows[r] = (macattn_row){.slot = s->n_tokens[r] > 0 ? r : -1,
                                   .n_queries = spec_queries(s, r),
                                   .n_tokens = s->n_tokens[r],
                                   .page = size ? 0 : page,
                                   .pages = size ? c->pages + next : NULL};
        next += size ? (int32_t)((s->n_tokens[r] + size - 1) / size) : 0;
        c->n_queries += spec_queries(s, r);
    }
    c->batch = (macattn_batch){.struct_size = sizeof c->batch,
                               .n_rows = s->n_rows,
                               .rows = c->rows,
                               .page_size = size,
                               .n_pages = n_pages};
}

/* A token that no query sees stays NaN. */
static void fill_row(scene *c, const macattn_row *row, test_rng *rng)
{
    const macattn_config *cfg = &c->cfg;
    const int64_t window = cfg->window;
    int64_t first = window ? row->n_tokens - row->n_queries + 1 - window : 0;
    if (first < 0) first = 0;
    float k[MAI_MAX_DIM], v[MAI_MAX_DIM];
    for (int64_t t = first; t < row->n_tokens; t++) {
        const int32_t size = c->batch.page_size;
        const int64_t page = size ? row->pages[t / size] : row->page, within = size ? t % size : t;
        for (int32_t h = 0; h < cfg->n_kv_heads; h++) {
            for (int32_t i = 0; i < cfg->head_dim; i++) k[i] = (float)test_normal(rng);
            for (int32_t i = 0; i < cfg->v_head_dim; i++) v[i] = (float)test_normal(rng);
            if (c->s->spoil) c->s->spoil(k, v, cfg->head_dim, cfg->v_head_dim, t);
            test_kv_put(&c->kv, cfg, page, within, h, k, v);
        }
    }
}

static void make_queries(scene *c, test_rng *rng)
{
    const macattn_config *cfg = &c->cfg;
    const float amplitude = c->s->amplitude != 0 ? c->s->amplitude : 1;
    const size_t row = macattn_dtype_row_bytes(cfg->q_dtype, cfg->head_dim);
    const size_t gap = c->s->strided ? 24 : 0, heads = (size_t)cfg->n_heads;
    const size_t head_stride = row + gap, row_stride = head_stride * heads + gap;
    c->q = test_guarded(row_stride * (size_t)(c->n_queries - 1) + head_stride * (heads - 1) + row,
                        c->s->shift);
    float q[MAI_MAX_DIM];
    for (size_t i = 0; i < c->heads; i++) {
        for (int32_t j = 0; j < cfg->head_dim; j++) q[j] = amplitude * (float)test_normal(rng);
        test_encode(cfg->q_dtype, q, cfg->head_dim,
                    c->q.data + i / heads * row_stride + i % heads * head_stride);
    }
    const size_t out = sizeof(float) * (size_t)cfg->v_head_dim;
    const size_t out_head = out + gap, out_row = out_head * heads + gap;
    c->out = test_guarded(out_row * (size_t)(c->n_queries - 1) + out_head * (heads - 1) + out, 0);
    c->io = (macattn_io){.struct_size = sizeof c->io,
                         .q = c->q.data,
                         .kv = c->kv.view,
                         .sinks = c->sinks,
                         .out = (float *)(void *)c->out.data,
                         .lse = c->s->no_lse ? NULL : c->lse};
    if (!c->s->strided) return;
    c->io.q_head_stride = (int64_t)head_stride;
    c->io.q_row_stride = (int64_t)row_stride;
    c->io.out_head_stride = (int64_t)out_head;
    c->io.out_row_stride = (int64_t)out_row;
}

static void scene_create(scene *c, const spec *s)
{
    test_rng rng = {s->seed + 77};
    *c = (scene){.s = s, .cfg = s->cfg};
    c->cfg.v_head_dim = s->cfg.v_head_dim ? s->cfg.v_head_dim : s->cfg.head_dim;
    c->cfg.max_slots = s->n_rows;
    c->cfg.policy = MACATTN_POLICY_EXACT;
    make_rows(c, &rng);
    const test_kv_layout layout = {.n_pages = c->batch.n_pages,
                                   .page_tokens = s->page_size ? s->page_size : max_tokens(s),
                                   .head_major = s->head_major,
                                   .pad = s->pad,
                                   .shift = s->shift};
    test_kv_create(&c->kv, &c->cfg, &layout);
    for (int32_t r = 0; r < s->n_rows; r++) fill_row(c, &c->rows[r], &rng);
    c->heads = (size_t)c->n_queries * (size_t)c->cfg.n_heads;
    c->sinks = s->sinks ? malloc(sizeof *c->sinks * (size_t)c->cfg.n_heads) : NULL;
    for (int32_t h = 0; s->sinks && h < c->cfg.n_heads; h++) {
        c->sinks[h] = (float)(2 * test_normal(&rng));
    }
    const size_t values = c->heads * (size_t)c->cfg.v_head_dim;
    c->lse = malloc(sizeof *c->lse * c->heads);
    c->want = malloc(sizeof *c->want * values);
    c->want_lse = malloc(sizeof *c->want_lse * c->heads);
    c->packed = malloc(sizeof *c->packed * values);
    assert_true(c->lse && c->want && c->want_lse && c->packed);
    make_queries(c, &rng);
    ref_attend(&c->cfg, &c->batch, &c->io, c->want, c->want_lse);
}

static void scene_destroy(scene *c)
{
    test_kv_destroy(&c->kv);
    test_release(&c->q);
    test_release(&c->out);
    free(c->pages);
    free(c->sinks);
    free(c->lse);
    free(c->want);
    free(c->want_lse);
    free(c->packed);
}

/* ---------------------------------------------------------------------------------- checking -- */

/* scale * sum |q_i k_i| for normal numbers is about 0.64 of this. */
static double logit_magnitude(const scene *c)
{
    const double amplitude = c->s->amplitude != 0 ? (double)c->s->amplitude : 1;
    const double scale =
        c->cfg.scale != 0 ? (double)c->cfg.scale : 1 / sqrt((double)c->cfg.head_dim);
    return fabs(scale) * (double)c->cfg.head_dim * amplitude;
}

/* To be called before each call: what it does not write shows. */
static void poison(scene *c)
{
    test_poison(c->out.data, c->out.bytes);
    test_poison(c->lse, sizeof *c->lse * c->heads);
    c->poisoned = true;
}

/* Take the outputs out of their strides; between them nothing may have been written. */
static void pack_out(scene *c)
{
    assert_true(c->poisoned);
    c->poisoned = false;
    const size_t dv = (size_t)c->cfg.v_head_dim, heads = (size_t)c->cfg.n_heads;
    const size_t head = c->io.out_head_stride ? (size_t)c->io.out_head_stride : dv * 4;
    const size_t row = c->io.out_row_stride ? (size_t)c->io.out_row_stride : dv * 4 * heads;
    for (size_t i = 0; i < c->heads; i++) {
        char *out = c->out.data + i / heads * row + i % heads * head;
        memcpy(c->packed + i * dv, out, dv * 4);
        test_poison(out, dv * 4);
    }
    for (size_t i = 0; i < c->out.bytes; i++) assert_int_equal(c->out.data[i], TEST_POISON);
}

static void describe(const scene *c, const char *isa, const char *call, char *text, size_t size)
{
    const macattn_config *f = &c->cfg;
    snprintf(text, size,
             "%s %s: q %s k %s v %s, %d/%d heads, d %d/%d, rows %d, n %lld, page %d%s%s", isa, call,
             macattn_dtype_name(f->q_dtype), macattn_dtype_name(f->k_dtype),
             macattn_dtype_name(f->v_dtype), f->n_heads, f->n_kv_heads, f->head_dim, f->v_head_dim,
             c->s->n_rows, (long long)c->s->n_tokens[0], c->s->page_size,
             f->window ? ", window" : "", f->softcap > 0 ? ", cap" : "");
}

static void check(scene *c, const char *isa, const char *call)
{
    char what[256];
    describe(c, isa, call, what, sizeof what);
    pack_out(c);
    const double v_max = c->s->v_max > 0 ? c->s->v_max : 4;
    const int64_t n = max_tokens(c->s), dv = c->cfg.v_head_dim;
    const double logit = logit_magnitude(c);
    test_close(what, c->packed, c->want, (int64_t)c->heads * dv, test_tolerance(logit, n, v_max));
    if (c->io.lse) {
        strcat(what, " lse");
        test_close_lse(what, c->lse, c->want_lse, (int64_t)c->heads, test_tolerance(logit, n, 1));
    }
}

/* Every call that can compute the scene, on one instruction set. */
static void run_on(scene *c, const char *isa, int32_t n_threads)
{
    macattn_config cfg = c->s->cfg;
    cfg.max_slots = c->s->n_rows;
    cfg.policy = MACATTN_POLICY_EXACT;
    cfg.isa = isa;
    cfg.n_threads = n_threads;
    macattn *m = test_create(&cfg);
    assert_ok(m, macattn_plan(m, &c->batch));
    poison(c);
    assert_ok(m, macattn_attend(m, &c->io));
    check(c, isa, "attend");
    const size_t bytes = c->heads * (size_t)c->cfg.v_head_dim * sizeof(float);
    float *attended = malloc(bytes);
    assert_non_null(attended);
    memcpy(attended, c->packed, bytes);
    bool slots = true, single = true;
    for (int32_t r = 0; r < c->s->n_rows; r++) {
        slots = slots && c->rows[r].slot >= 0;
        single = single && c->rows[r].n_queries == 1;
    }
    if (slots) {
        if (single) {
            poison(c);
            assert_ok(m, macattn_decode(m, 0, &c->io));
            check(c, isa, "decode");
            test_same_bits("decode under exact and attend", c->packed, attended, bytes);
            assert_ok(m, macattn_slot_reset(m, 0));
            for (int32_t r = 0; r < c->s->n_rows; r++) assert_ok(m, macattn_slot_reset(m, r));
            assert_ok(m, macattn_plan(m, &c->batch));
        }
        poison(c);
        assert_ok(m, macattn_prefill(m, 0, &c->io));
        check(c, isa, "prefill");
    }
    free(attended);
    macattn_destroy(m);
}

static void run_on_all(scene *c)
{
    for (int i = 0; macattn_isa_name(i); i++) {
        if (macattn_isa_supported(macattn_isa_name(i))) run_on(c, macattn_isa_name(i), 1);
    }
}

static void run(const spec *s)
{
    scene c;
    scene_create(&c, s);
    run_on_all(&c);
    scene_destroy(&c);
}

/* ------------------------------------------------------------------------------------- tests -- */

static const macattn_dtype kv_types[] = {
    MACATTN_DTYPE_F32,  MACATTN_DTYPE_F16,  MACATTN_DTYPE_BF16,
    MACATTN_DTYPE_Q8_0, MACATTN_DTYPE_Q4_0, MACATTN_DTYPE_Q4_1,
    MACATTN_DTYPE_Q5_0, MACATTN_DTYPE_Q5_1, MACATTN_DTYPE_IQ4_NL};
enum { N_KV_TYPES = sizeof kv_types / sizeof kv_types[0] };

static bool fits(macattn_dtype dtype, int32_t dim)
{
    return macattn_dtype_row_bytes(dtype, dim) > 0;
}

static void test_head_dims(void **state)
{
    (void)state;
    static const int32_t dims[][2] = {{64, 0},  {80, 0},   {96, 0},   {112, 0},   {128, 0},
                                      {192, 0}, {256, 0},  {8, 0},    {16, 0},    {40, 0},
                                      {72, 0},  {136, 0},  {1024, 0}, {576, 512}, {192, 128},
                                      {64, 96}, {128, 40}, {8, 256}};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        for (size_t t = 0; t < N_KV_TYPES; t++) {
            const int32_t dv = dims[i][1] ? dims[i][1] : dims[i][0];
            spec s = {.cfg = test_config(6, 2, dims[i][0]), .n_rows = 2, .n_tokens = {53, 130}};
            if (!fits(kv_types[t], dims[i][0]) || !fits(kv_types[t], dv)) continue;
            s.cfg.v_head_dim = dims[i][1];
            s.cfg.k_dtype = s.cfg.v_dtype = kv_types[t];
            s.seed = i * N_KV_TYPES + t;
            run(&s);
        }
    }
}

static void test_types(void **state)
{
    (void)state;
    for (size_t i = 0; i < 12 * N_KV_TYPES; i++) {
        spec s = {.cfg = test_config(4, 2, 64), .n_rows = 1, .n_tokens = {97}, .seed = i};
        s.cfg.q_dtype = (macattn_dtype)(i % 3);
        s.cfg.k_dtype = kv_types[i / 3 % N_KV_TYPES];
        s.cfg.v_dtype = kv_types[i / 12];
        s.page_size = i % 2 ? 16 : 0;
        run(&s);
        s.cfg.head_dim = 96;
        s.cfg.v_head_dim = 160;
        s.n_queries[0] = 9;
        run(&s);
    }
}

static void test_groups(void **state)
{
    (void)state;
    static const int32_t heads[][2] = {{1, 1}, {2, 1},  {3, 1},  {4, 1},  {5, 1},   {7, 1},
                                       {8, 1}, {6, 6},  {16, 1}, {32, 1}, {8, 2},   {12, 4},
                                       {9, 3}, {35, 5}, {64, 2}, {71, 1}, {100, 10}};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        for (int j = 0; j < 2; j++) {
            spec s = {.cfg = test_config(heads[i][0], heads[i][1], j ? 40 : 128),
                      .n_rows = 2,
                      .n_tokens = {75, 34},
                      .n_queries = {1, j ? 3 : 1},
                      .head_major = i % 2,
                      .seed = i};
            run(&s);
        }
    }
}

static void test_lengths(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1,  2,  3,  7,  8,  15,  16,  17,  31,  32,  33,
                                      54, 63, 64, 65, 97, 127, 128, 129, 255, 256, 257};
    static const int32_t pages[] = {0, 1, 16, 64, 256};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (size_t p = 0; p < 5; p++) {
            spec s = {.cfg = test_config(4, 2, 64),
                      .n_rows = 1,
                      .n_tokens = {lengths[i]},
                      .page_size = pages[p],
                      .head_major = p == 3,
                      .seed = i};
            run(&s);
        }
    }
}

static void test_ragged(void **state)
{
    (void)state;
    static const int32_t pages[] = {0, 1, 16, 64, 256};
    for (size_t p = 0; p < (TEST_LIGHT ? 2 : 5); p++) {
        spec s = {.cfg = test_config(4, 1, 64),
                  .n_rows = 6,
                  .n_tokens = {1, 54, 97, 2047, 2048, 2049},
                  .page_size = pages[p],
                  .seed = p};
        run(&s);
    }
}

static void test_long(void **state)
{
    (void)state;
    spec s = {.cfg = test_config(2, 1, 64), .n_rows = 2, .n_tokens = {16384, 300}, .page_size = 64};
    if (TEST_LIGHT) s.n_tokens[0] = 5000;
    run(&s);
    s.page_size = 0;
    s.cfg.k_dtype = MACATTN_DTYPE_BF16;
    s.cfg.v_dtype = MACATTN_DTYPE_Q8_0;
    run(&s);
    if (TEST_LIGHT) return;
    s.n_rows = 1;
    s.n_tokens[0] = 131072;
    run(&s);
}

static void test_strides(void **state)
{
    (void)state;
    for (int i = 0; i < 32; i++) {
        spec s = {.cfg = test_config(6, 3, 64),
                  .n_rows = 2,
                  .n_tokens = {77, 40},
                  .n_queries = {1, i / 16 ? 5 : 1},
                  .page_size = i & 1 ? 16 : 0,
                  .head_major = i & 2,
                  .pad = i & 4 ? 10 : 0,
                  .strided = i & 8,
                  .seed = (uint64_t)i};
        s.cfg.k_dtype = kv_types[i % N_KV_TYPES];
        s.cfg.v_dtype = kv_types[(i + 1) % N_KV_TYPES];
        run(&s);
    }
}

/* Pointers and rows that are no multiple of their element's size. */
static void test_misaligned(void **state)
{
    (void)state;
    for (int i = 0; i < 24; i++) {
        spec s = {.cfg = test_config(4, 2, i % 2 ? 96 : 128),
                  .n_rows = 1,
                  .n_tokens = {50},
                  .n_queries = {i / 12 ? 6 : 1},
                  .pad = i % 3,
                  .shift = (size_t)(1 + i % 3),
                  .seed = (uint64_t)i};
        s.cfg.k_dtype = kv_types[i % N_KV_TYPES];
        s.cfg.v_dtype = kv_types[i / 2 % N_KV_TYPES];
        s.cfg.q_dtype = (macattn_dtype)(i % 3);
        run(&s);
    }
}

static void test_softcap_sinks(void **state)
{
    (void)state;
    for (int i = 0; i < 16; i++) {
        spec s = {.cfg = test_config(4, 2, 64),
                  .n_rows = 2,
                  .n_tokens = {300, 20},
                  .n_queries = {i & 4 ? 11 : 1, 1},
                  .sinks = i & 1,
                  .no_lse = i & 8,
                  .amplitude = i & 2 ? 8 : 1,
                  .seed = (uint64_t)i};
        s.cfg.softcap = i & 2 ? 15.0f : 0.0f;
        s.cfg.scale = i & 1 ? 0.25f : -0.1f;
        run(&s);
    }
}

static void test_window(void **state)
{
    (void)state;
    static const int64_t windows[] = {1, 2, 15, 16, 17, 100, 128, 500};
    for (size_t i = 0; i < 8; i++) {
        spec s = {.cfg = test_config(4, 2, 64),
                  .n_rows = 3,
                  .n_tokens = {300, 20, 129},
                  .page_size = i % 2 ? 16 : 0,
                  .sinks = i % 3 == 0,
                  .seed = i};
        s.cfg.window = windows[i];
        run(&s);
        s.n_queries[0] = 37;
        s.n_queries[1] = 20;
        s.n_queries[2] = 1;
        run(&s);
    }
}

/* First tokens that are always computed anew mean nothing with a window. */
static void test_window_and_fresh_tokens(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        spec s = {
            .cfg = test_config(4, 2, 64), .n_rows = 2, .n_tokens = {60, 9}, .seed = (uint64_t)i};
        s.cfg.window = i & 1 ? 20 : 50;
        s.cfg.fresh_tokens = i & 2 ? 45 : 12;
        run(&s);
    }
}

static void test_chunks(void **state)
{
    (void)state;
    static const int32_t chunks[][2] = {{1, 1},    {2, 2},     {64, 64},  {65, 65},  {100, 7},
                                        {257, 33}, {130, 130}, {400, 16}, {513, 129}};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        for (int j = 0; j < 2; j++) {
            spec s = {.cfg = test_config(j ? 7 : 4, j ? 1 : 2, j ? 80 : 128),
                      .n_rows = 2,
                      .n_tokens = {chunks[i][0], 90},
                      .n_queries = {chunks[i][1], 3},
                      .page_size = j ? 64 : 0,
                      .seed = i};
            run(&s);
        }
    }
}

/* --------------------------------------------------------------------------- special numbers -- */

/* Logits around +-1e4: the softmax picks one token. Rounding moves logits by 1e-3, and weights with
 * them, so the tolerance is that of the logit's size. */
static void test_extreme_logits(void **state)
{
    (void)state;
    for (size_t t = 0; t < N_KV_TYPES; t++) {
        spec s = {.cfg = test_config(4, 2, 64),
                  .n_rows = 1,
                  .n_tokens = {200},
                  .amplitude = 1e4f,
                  .seed = t};
        s.cfg.k_dtype = s.cfg.v_dtype = kv_types[t];
        run(&s);
        s.n_queries[0] = 17;
        run(&s);
    }
}

static void spoil_tiny(float *k, float *v, int32_t d, int32_t dv, int64_t t)
{
    for (int32_t i = 0; i < d; i++) k[i] = t % 2 ? k[i] * 1e-6f : -0.0f;
    for (int32_t i = 0; i < dv; i++) v[i] = t % 3 ? v[i] * 3e-7f : i % 2 ? -0.0f : 0.0f;
}

static void spoil_denormal(float *k, float *v, int32_t d, int32_t dv, int64_t t)
{
    (void)t;
    for (int32_t i = 0; i < d; i++) k[i] *= 1e-41f;
    for (int32_t i = 0; i < dv; i++) v[i] *= 1e-40f;
}

static void spoil_k_nan(float *k, float *v, int32_t d, int32_t dv, int64_t t)
{
    (void)v, (void)dv;
    if (t == 20) k[d / 2] = NAN;
}

static void spoil_v_nan(float *k, float *v, int32_t d, int32_t dv, int64_t t)
{
    (void)k, (void)d;
    if (t == 33) v[dv - 1] = NAN;
}

static void spoil_v_inf(float *k, float *v, int32_t d, int32_t dv, int64_t t)
{
    (void)k, (void)d;
    if (t == 3) v[0] = INFINITY;
    if (t == 30) v[1] = -INFINITY;
    if (t == 35 || t == 36) v[dv - 1] = t == 35 ? INFINITY : -INFINITY;
}

static void spoil_k_inf(float *k, float *v, int32_t d, int32_t dv, int64_t t)
{
    (void)v, (void)dv, (void)d;
    if (t == 17) k[0] = INFINITY; /* the logit is inf or -inf by the query's sign */
}

/* All logits -inf or NaN, by the query's sign. */
static void spoil_all_k_inf(float *k, float *v, int32_t d, int32_t dv, int64_t t)
{
    (void)v, (void)dv, (void)d, (void)t;
    k[0] = -INFINITY;
}

static void run_spoiled(void (*spoil)(float *, float *, int32_t, int32_t, int64_t), size_t n_types,
                        bool sinks)
{
    for (size_t t = 0; t < n_types; t++) {
        for (int chunk = 1; chunk <= 30; chunk += 29) {
            spec s = {.cfg = test_config(6, 2, 72),
                      .n_rows = 2,
                      .n_tokens = {40, 10},
                      .n_queries = {chunk, 1},
                      .spoil = spoil,
                      .sinks = sinks,
                      .seed = t};
            s.cfg.k_dtype = s.cfg.v_dtype = kv_types[t];
            run(&s);
            s.cfg.head_dim = 128;
            run(&s);
        }
    }
}

static void test_tiny(void **state)
{
    (void)state;
    run_spoiled(spoil_tiny, 3, false);
    run_spoiled(spoil_denormal, 1, false);
}

static void test_nan(void **state)
{
    (void)state;
    run_spoiled(spoil_k_nan, 3, false);
    run_spoiled(spoil_v_nan, 3, true);
}

static void test_infinity(void **state)
{
    (void)state;
    run_spoiled(spoil_v_inf, 3, false);
    run_spoiled(spoil_k_inf, 3, true);
    run_spoiled(spoil_all_k_inf, 3, false);
}

/* A block whose scale is NaN. */
static void test_nan_blocks(void **state)
{
    (void)state;
    spec s = {.cfg = test_config(2, 1, 64), .n_rows = 1, .n_tokens = {40}, .n_queries = {30}};
    for (int i = 3 * 2; i < N_KV_TYPES * 2; i++) {
        const int in_v = i % 2;
        s.cfg.k_dtype = s.cfg.v_dtype = kv_types[i / 2];
        const int64_t block = (int64_t)macattn_dtype_row_bytes(s.cfg.v_dtype, 32);
        scene c;
        scene_create(&c, &s);
        char *at = in_v ? c.kv.v.data + 25 * c.kv.view.v_token_stride + block
                        : c.kv.k.data + 25 * c.kv.view.k_token_stride;
        memset(at, 0x7e, 2);
        ref_attend(&c.cfg, &c.batch, &c.io, c.want, c.want_lse);
        assert_true(isnan(c.want[c.heads * 64 - 1]));
        assert_false(isnan(c.want[0]));
        run_on_all(&c);
        scene_destroy(&c);
    }
}

/* NaN in one head's query is that head's affair alone. */
static void test_nan_query(void **state)
{
    (void)state;
    spec s = {.cfg = test_config(6, 2, 64), .n_rows = 1, .n_tokens = {90}};
    for (int chunk = 1; chunk < 20; chunk += 18) {
        s.n_queries[0] = chunk;
        scene c;
        scene_create(&c, &s);
        const float nan = NAN;
        memcpy(c.q.data + 4 * 64 + 40, &nan, 4); /* head 1 of the first query */
        ref_attend(&c.cfg, &c.batch, &c.io, c.want, c.want_lse);
        assert_true(isnan(c.want_lse[1]));
        assert_false(isnan(c.want_lse[2]));
        run_on_all(&c);
        scene_destroy(&c);
    }
}

/* A sink of -inf is none; one of +inf or NaN makes NaN. A NaN elsewhere is not lost with a sink of
 * -inf. */
static void test_special_sinks(void **state)
{
    (void)state;
    for (int chunk = 1; chunk < 6; chunk += 4) {
        for (int spoiled = 0; spoiled < 2; spoiled++) {
            spec s = {.cfg = test_config(4, 2, 64),
                      .n_rows = 1,
                      .n_tokens = {40},
                      .n_queries = {chunk},
                      .sinks = true,
                      .spoil = spoiled ? spoil_k_nan : NULL};
            scene c;
            scene_create(&c, &s);
            c.sinks[0] = -INFINITY;
            c.sinks[1] = INFINITY;
            c.sinks[2] = NAN;
            ref_attend(&c.cfg, &c.batch, &c.io, c.want, c.want_lse);
            run_on_all(&c);
            scene_destroy(&c);
        }
    }
}

static void test_no_tokens(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        spec s = {.cfg = test_config(4, 2, 64),
                  .n_rows = i & 2 ? 3 : 1,
                  .n_tokens = {0, 33, 0},
                  .page_size = i & 1 ? 16 : 0,
                  .sinks = i & 4};
        run(&s);
    }
}

/* ------------------------------------------------------------------------------------ random -- */

static void random_spec(spec *s, test_rng *rng)
{
    static const int32_t dims[] = {64, 80, 96, 112, 128, 192, 256, 8, 40, 136};
    static const int32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 16, 32};
    static const int32_t pages[] = {0, 0, 1, 16, 64, 256};
    const int32_t n_kv_heads = 1 + (int32_t)test_below(rng, 4);
    *s = (spec){.cfg = test_config(n_kv_heads * groups[test_below(rng, 9)], n_kv_heads,
                                   dims[test_below(rng, 10)])};
    macattn_config *c = &s->cfg;
    if (test_below(rng, 4) == 0) c->v_head_dim = dims[test_below(rng, 10)];
    c->q_dtype = (macattn_dtype)test_below(rng, 3);
    do {
        c->k_dtype = kv_types[test_below(rng, N_KV_TYPES)];
        c->v_dtype = test_below(rng, 3) ? c->k_dtype : kv_types[test_below(rng, N_KV_TYPES)];
    } while (!fits(c->k_dtype, c->head_dim) ||
             !fits(c->v_dtype, c->v_head_dim ? c->v_head_dim : c->head_dim));
    if (test_below(rng, 4) == 0) c->softcap = (float)(1 + 20 * test_uniform(rng));
    if (test_below(rng, 4) == 0) c->window = 1 + test_below(rng, 200);
    c->band = 1 + (int32_t)test_below(rng, 100);
    c->fresh_tokens = test_below(rng, 3) || c->window ? 0 : (int32_t)test_below(rng, 50);
    s->n_rows = 1 + (int32_t)test_below(rng, 4);
    for (int32_t r = 0; r < s->n_rows; r++) {
        s->n_tokens[r] = test_below(rng, test_below(rng, 3) ? 100 : 700) + 1;
        if (test_below(rng, 3) == 0) {
            s->n_queries[r] =
                1 + (int32_t)test_below(rng, s->n_tokens[r] < 80 ? s->n_tokens[r] : 80);
        }
    }
    s->page_size = pages[test_below(rng, 6)];
    s->head_major = test_below(rng, 3) == 0;
    s->strided = test_below(rng, 3) == 0;
    s->sinks = test_below(rng, 3) == 0;
    s->no_lse = test_below(rng, 4) == 0;
    s->pad = test_below(rng, 3) ? 0 : test_below(rng, 70);
    s->shift = test_below(rng, 4) ? 0 : (size_t)test_below(rng, 4);
    s->seed = test_random(rng);
}

static void test_random_shapes(void **state)
{
    (void)state;
    const uint64_t seed = test_env("MACATTN_TEST_SEED", 1), n = TEST_LIGHT ? 25 : 150;
    for (uint64_t i = 0; i < n; i++) {
        test_rng rng = {seed * 1000003 + i};
        spec s;
        random_spec(&s, &rng);
        run(&s);
    }
}

/* Results do not depend on the number of threads. */
/* Rows without tokens, with one query and with several, in any order: an output that no path takes
 * on is one that several of them left to each other. */
static void test_mixed_rows(void **state)
{
    (void)state;
    static const struct {
        int32_t n_queries;
        int64_t n_tokens;
    } kinds[] = {{1, 0}, {1, 0}, {1, 1}, {1, 150}, {1, 40}, {2, 2}, {3, 41}, {37, 37}};
    enum { KINDS = sizeof kinds / sizeof kinds[0] };
    for (uint64_t i = 0; i < (TEST_LIGHT ? 60 : 400); i++) {
        test_rng rng = {i};
        spec s = {.cfg = test_config(4, 2, 32), .seed = i};
        s.n_rows = 1 + (int32_t)test_below(&rng, 5);
        for (int32_t r = 0; r < s.n_rows; r++) {
            /* A few kinds at a time, so that each is also missing often. */
            const size_t kind = (size_t)(test_below(&rng, 3) * (int64_t)(i % 7 + 1)) % KINDS;
            s.n_queries[r] = kinds[kind].n_queries;
            s.n_tokens[r] = kinds[kind].n_tokens;
        }
        s.page_size = test_below(&rng, 2) ? 16 : 0;
        s.cfg.window = test_below(&rng, 3) ? 0 : 20;
        s.cfg.fresh_tokens = test_below(&rng, 3) ? 0 : 4;
        s.sinks = test_below(&rng, 2);
        s.strided = test_below(&rng, 2);
        s.no_lse = test_below(&rng, 4) == 0;
        scene c;
        scene_create(&c, &s);
        run_on(&c, NULL, 1 + (int32_t)(i % 4));
        scene_destroy(&c);
    }
}

/* The first report: a row without tokens beside one with several queries. */
static void test_no_tokens_beside_many(void **state)
{
    (void)state;
    for (int32_t first = 0; first < 2; first++) {
        spec s = {.cfg = test_config(4, 2, 32), .n_rows = 2};
        s.n_tokens[first] = 0;
        s.n_tokens[!first] = s.n_queries[!first] = 9;
        scene c;
        scene_create(&c, &s);
        run_on_all(&c);
        for (int32_t r = 0, query = 0; r < 2; query += spec_queries(&s, r++)) {
            if (s.n_tokens[r] > 0) continue;
            for (size_t h = 0; h < 4; h++) {
                const size_t at = (size_t)query * 4 + h;
                assert_true(isinf(c.lse[at]) && c.lse[at] < 0);
                for (size_t j = 0; j < 32; j++) assert_true(c.packed[at * 32 + j] == 0);
            }
        }
        scene_destroy(&c);
    }
}

static void test_thread_counts(void **state)
{
    (void)state;
    for (int i = 0; i < (TEST_LIGHT ? 3 : 12); i++) {
        test_rng rng = {1234 + (uint64_t)i};
        spec s;
        random_spec(&s, &rng);
        s.n_tokens[0] += i % 2 ? 3000 : 0;
        scene c;
        scene_create(&c, &s);
        float *one = NULL;
        for (int32_t n_threads = 1; n_threads <= 4; n_threads++) {
            run_on(&c, NULL, n_threads);
            macattn_config cfg = s.cfg;
            cfg.max_slots = s.n_rows;
            cfg.n_threads = n_threads;
            macattn *m = test_create(&cfg);
            assert_ok(m, macattn_plan(m, &c.batch));
            poison(&c);
            assert_ok(m, macattn_attend(m, &c.io));
            pack_out(&c);
            const size_t bytes = c.heads * (size_t)c.cfg.v_head_dim * sizeof(float);
            if (one) {
                test_same_bits("one thread and several", c.packed, one, bytes);
            } else {
                one = malloc(bytes);
                assert_non_null(one);
                memcpy(one, c.packed, bytes);
            }
            macattn_destroy(m);
        }
        free(one);
        scene_destroy(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_dims),     cmocka_unit_test(test_types),
        cmocka_unit_test(test_groups),        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_ragged),        cmocka_unit_test(test_long),
        cmocka_unit_test(test_strides),       cmocka_unit_test(test_misaligned),
        cmocka_unit_test(test_softcap_sinks), cmocka_unit_test(test_window),
        cmocka_unit_test(test_chunks),        cmocka_unit_test(test_extreme_logits),
        cmocka_unit_test(test_tiny),          cmocka_unit_test(test_nan),
        cmocka_unit_test(test_infinity),      cmocka_unit_test(test_nan_blocks),
        cmocka_unit_test(test_nan_query),     cmocka_unit_test(test_special_sinks),
        cmocka_unit_test(test_no_tokens),     cmocka_unit_test(test_random_shapes),
        cmocka_unit_test(test_mixed_rows),    cmocka_unit_test(test_no_tokens_beside_many),
        cmocka_unit_test(test_thread_counts), cmocka_unit_test(test_window_and_fresh_tokens),
    };
    return cmocka_run_group_tests_name("attend", tests, NULL, NULL);
}
