/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels that make, score and use the means of runs, and attention to listed runs, of each backend,
 * against plain float64 code. */
#include "support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = MAI_SEGMENT + 37, TOKENS = RUNS * MAI_RUN_TOKENS, PAGE = 8 };

static void each_backend(void (*f)(const mai_backend *))
{
    for (int i = 0; mai_backend_at(i); i++) {
        if (mai_backend_at(i)->supported()) f(mai_backend_at(i));
    }
}

/* A cache, its means in two segments, and queries. */
typedef struct bench {
    macattn_config cfg;
    mai_shape shape;
    mai_runs_dims dims;
    test_kv kv;
    int32_t *pages;
    macattn_row row;
    macattn_batch batch;
    mai_tokens tokens;
    test_memory segments[2], scratch;
    mai_runs_view views[2];
    float *q;
    double *k, *v;   /* [RUNS][d], [RUNS][dv] of one KV head, as kept, the common key added */
    double *outlier; /* [RUNS][d], likewise */
} bench;

static void *room(size_t n, size_t size)
{
    void *memory = calloc(n, size);
    assert_non_null(memory);
    return memory;
}

static void open_bench(bench *b, const mai_backend *backend, const macattn_config *cfg,
                       bool outliers, test_rng *rng)
{
    *b = (bench){.cfg = *cfg, .shape = mai_shape_of(cfg)};
    const int32_t n_pages = TOKENS / PAGE;
    const test_kv_layout layout = {
        .n_pages = n_pages, .page_tokens = PAGE, .head_major = cfg->k_dtype == MACATTN_DTYPE_BF16};
    float k[MAI_MAX_DIM], v[MAI_MAX_DIM];
    test_kv_create(&b->kv, cfg, &layout);
    b->pages = room((size_t)n_pages, sizeof *b->pages);
    for (int32_t i = 0; i < n_pages; i++) b->pages[i] = (i * 7 + 3) % n_pages;
    for (int64_t t = 0; t < TOKENS; t++) {
        for (int32_t h = 0; h < cfg->n_kv_heads; h++) {
            /* Keys with a large part in common. */
            for (int32_t i = 0; i < cfg->head_dim; i++)
                k[i] = (float)(5 * (i % 3 - 1) + test_normal(rng));
            for (int32_t i = 0; i < cfg->v_head_dim; i++) v[i] = (float)test_normal(rng);
            test_kv_put(&b->kv, cfg, b->pages[t / PAGE], t % PAGE, h, k, v);
        }
    }
    b->row = (macattn_row){.n_queries = 1, .n_tokens = TOKENS, .pages = b->pages};
    b->batch = (macattn_batch){
        .struct_size = sizeof b->batch, .n_rows = 1, .page_size = PAGE, .n_pages = n_pages};
    b->tokens = (mai_tokens){.kv = &b->kv.view, .pages = b->pages, .page_shift = 3};
    mai_runs_dims_init(&b->dims, &b->shape, outliers);
    for (int i = 0; i < 2; i++) {
        b->segments[i] = test_guarded(b->dims.bytes, 0);
        mai_runs_view_init(&b->views[i], &b->dims, b->segments[i].data);
    }
    mai_ring_dims ring;
    mai_ring_dims_init(&ring, &b->shape, 8, true);
    b->scratch = test_guarded((backend->scratch_bytes(&b->shape, &ring) + 63) / 64 * 64, 0);
    b->q = room((size_t)(cfg->n_heads * cfg->head_dim), sizeof *b->q);
    const float factor = (float)backend->q_factor(&b->shape);
    for (int32_t i = 0; i < cfg->n_heads * cfg->head_dim; i++)
        b->q[i] = (float)test_normal(rng) * factor;
    b->k = room((size_t)RUNS * (size_t)cfg->head_dim, sizeof *b->k);
    b->v = room((size_t)RUNS * (size_t)cfg->v_head_dim, sizeof *b->v);
    b->outlier = room((size_t)RUNS * (size_t)cfg->head_dim, sizeof *b->outlier);
}

static void close_bench(bench *b)
{
    test_kv_destroy(&b->kv);
    for (int i = 0; i < 2; i++) test_release(&b->segments[i]);
    test_release(&b->scratch);
    free(b->pages);
    free(b->q);
    free(b->k);
    free(b->v);
    free(b->outlier);
}

static macattn_config shape_config(int32_t n_heads, int32_t n_kv_heads, int32_t d, int32_t dv,
                                   macattn_dtype dtype, float softcap)
{
    macattn_config cfg = test_config(n_heads, n_kv_heads, d);
    cfg.v_head_dim = dv;
    cfg.scale = (float)(1 / sqrt(d));
    cfg.k_dtype = cfg.v_dtype = dtype;
    cfg.softcap = softcap;
    return cfg;
}

/* In pieces, as the library does it: run 0 first, then up to the segments' ends. */
static void summarise(const bench *b, const mai_backend *backend, int kv_head)
{
    static const int32_t cuts[] = {0, 1, 64, MAI_SEGMENT, MAI_SEGMENT + 5, RUNS};
    for (int i = 0; i < 5; i++) {
        const mai_summarise_args args = {.shape = &b->shape,
                                         .dims = &b->dims,
                                         .tokens = b->tokens,
                                         .kv_head = kv_head,
                                         .run0 = cuts[i],
                                         .run1 = cuts[i + 1],
                                         .common = b->views[0].common,
                                         .to = &b->views[cuts[i] >> MAI_SEGMENT_SHIFT]};
        backend->summarise(&args);
    }
}

static const char *row_of(const bench *b, int kv_head, int run, bool keys)
{
    const mai_runs_view *view = &b->views[run >> MAI_SEGMENT_SHIFT];
    const size_t at = (size_t)kv_head * MAI_SEGMENT + (size_t)(run % MAI_SEGMENT);
    return keys ? view->k + at * b->dims.k_bytes : view->v + at * b->dims.v_bytes;
}

static const char *outlier_of(const bench *b, int kv_head, int run)
{
    const size_t at = (size_t)kv_head * MAI_SEGMENT + (size_t)(run % MAI_SEGMENT);
    return b->views[run >> MAI_SEGMENT_SHIFT].outlier + at * b->dims.k_bytes;
}

/* What is kept of a KV head, to b->k and b->v. */
static void load_means(bench *b, int kv_head)
{
    const int d = b->cfg.head_dim, dv = b->cfg.v_head_dim;
    for (int run = 0; run < RUNS; run++) {
        for (int i = 0; i < d; i++)
            b->k[run * d + i] = ref_value(b->dims.k_dtype, row_of(b, kv_head, run, true), i) +
                                (double)b->views[0].common[kv_head * d + i];
        for (int i = 0; i < dv; i++)
            b->v[run * dv + i] = ref_value(b->dims.v_dtype, row_of(b, kv_head, run, false), i);
        for (int i = 0; b->dims.outliers && i < d; i++)
            b->outlier[run * d + i] = ref_value(b->dims.k_dtype, outlier_of(b, kv_head, run), i) +
                                      (double)b->views[0].common[kv_head * d + i];
    }
}

/* The largest error a type may make in values up to `most`. */
static double quantum(macattn_dtype dtype, double most)
{
    return dtype == MACATTN_DTYPE_Q8_0 ? most / 127 * 0.51 : most * 0x1p-11;
}

/* ----------------------------------------------------------------------------------- summarise -- */

static void check_means(bench *b, int kv_head)
{
    const int d = b->cfg.head_dim, dv = b->cfg.v_head_dim;
    double k[MAI_MAX_DIM], v[MAI_MAX_DIM], outlier[MAI_MAX_DIM];
    load_means(b, kv_head);
    for (int run = 0; run < RUNS; run++) {
        ref_run(&b->cfg, &b->batch, &b->row, &b->kv.view, kv_head, run, k, v, outlier);
        for (int i = 0; i < d; i++) {
            /* Means of 16 standard normal numbers: the differences are below 2. */
            const double off = fabs(b->k[run * d + i] - k[i]);
            if (!(off <= quantum(b->dims.k_dtype, 2) + 1e-5))
                fail_msg("run %d: K off %g", run, off);
        }
        for (int i = 0; b->dims.outliers && i < d; i++) {
            const double off = fabs(b->outlier[run * d + i] - outlier[i]);
            if (!(off <= quantum(b->dims.k_dtype, 6) + 1e-5))
                fail_msg("run %d: its outlier off %g", run, off);
        }
        for (int i = 0; i < dv; i++) {
            const double off = fabs(b->v[run * dv + i] - v[i]);
            if (!(off <= quantum(b->dims.v_dtype, 2) + 1e-5))
                fail_msg("run %d: V off %g", run, off);
        }
        if (run == 0) {
            for (int i = 0; i < d; i++)
                assert_true(fabs((double)b->views[0].common[kv_head * d + i] - k[i]) < 1e-5);
        }
    }
}

static void summarise_all(const mai_backend *backend)
{
    static const struct {
        int32_t d, dv;
        macattn_dtype dtype;
    } cases[] = {{32, 64, MACATTN_DTYPE_F32},  {128, 32, MACATTN_DTYPE_F16},
                 {40, 8, MACATTN_DTYPE_BF16},  {64, 96, MACATTN_DTYPE_Q8_0},
                 {96, 64, MACATTN_DTYPE_Q4_1}, {96, 24, MACATTN_DTYPE_F16}};
    test_rng rng = {3};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const macattn_config cfg = shape_config(4, 2, cases[i].d, cases[i].dv, cases[i].dtype, 0);
        bench b;
        open_bench(&b, backend, &cfg, i != 0, &rng);
        assert_int_equal(b.dims.k_dtype, cases[i].d % 32 ? MACATTN_DTYPE_F16 : MACATTN_DTYPE_Q8_0);
        for (int h = 0; h < 2; h++) {
            summarise(&b, backend, h);
            check_means(&b, h);
        }
        close_bench(&b);
    }
}

/* What cannot be kept is always read: its key is not a number, and its value harmless. */
static void summarise_strange(const mai_backend *backend)
{
    static const float strange[] = {NAN, INFINITY, -INFINITY, 1e9f};
    test_rng rng = {4};
    for (int32_t d = 32; d <= 40; d += 8) {
        const macattn_config cfg = shape_config(2, 1, d, d, MACATTN_DTYPE_F32, 0);
        bench b;
        open_bench(&b, backend, &cfg, true, &rng);
        for (int i = 0; i < 8; i++) {
            const int run = 5 + 3 * i, at = i % 4;
            const int64_t t = run * MAI_RUN_TOKENS + i;
            float k[40] = {0}, v[40] = {0};
            (i < 4 ? k : v)[7] = strange[at];
            test_kv_put(&b.kv, &cfg, b.pages[t / PAGE], t % PAGE, 0, k, v);
        }
        summarise(&b, backend, 0);
        load_means(&b, 0);
        for (int run = 0; run < RUNS; run++) {
            const bool is_strange = run >= 5 && run <= 26 && run % 3 == 2;
            assert_int_equal(isnan(b.k[run * d]), is_strange);
            for (int i = 0; i < d; i++)
                assert_true(isfinite(b.v[run * d + i]) && isfinite(b.outlier[run * d + i]));
        }
        /* Where the first run has no finite mean, the others are relative to nothing. */
        const float nan_key[40] = {NAN}, value[40] = {0};
        test_kv_put(&b.kv, &cfg, b.pages[0], 2, 0, nan_key, value);
        summarise(&b, backend, 0);
        load_means(&b, 0);
        assert_true(isnan(b.k[0]) && isfinite(b.k[d]));
        for (int i = 0; i < d; i++) assert_true(b.views[0].common[i] == 0);
        close_bench(&b);
    }
}

/* --------------------------------------------------------------------------------------- score -- */

static double want_score(const bench *b, const mai_backend *backend, int head, int run)
{
    const int d = b->cfg.head_dim;
    const double cap = (double)b->cfg.softcap;
    const double unit = (double)b->cfg.scale / (double)(float)backend->q_factor(&b->shape);
    double s = 0, one = 0;
    for (int i = 0; i < d; i++) s += unit * (double)b->q[head * d + i] * b->k[run * d + i];
    for (int i = 0; i < d; i++) one += unit * (double)b->q[head * d + i] * b->outlier[run * d + i];
    if (!b->dims.outliers) return (cap > 0 ? cap * tanh(s / cap) : s) + log(MAI_RUN_TOKENS);
    s = (16 * s - one) / 15;
    return log(15 * exp(cap > 0 ? cap * tanh(s / cap) : s) +
               exp(cap > 0 ? cap * tanh(one / cap) : one));
}

static void score_case(const mai_backend *backend, const macattn_config *cfg, bool outliers,
                       test_rng *rng)
{
    enum { FROM = 3, TO = RUNS - 2 };
    const int group = cfg->n_heads / cfg->n_kv_heads, kv_head = cfg->n_kv_heads - 1;
    const uint16_t nan16 = 0x7e00;
    float *scores = room((size_t)group * RUNS, sizeof *scores), lse[MAI_MAX_HEADS];
    bench b;
    open_bench(&b, backend, cfg, outliers, rng);
    summarise(&b, backend, kv_head);
    memcpy((char *)(uintptr_t)row_of(&b, kv_head, 100, true), &nan16, 2);
    load_means(&b, kv_head);
    test_poison(scores, (size_t)group * RUNS * sizeof *scores);
    test_poison(lse, sizeof lse);
    const float poison = scores[0];
    const mai_score_args args = {.shape = &b.shape,
                                 .dims = &b.dims,
                                 .segments = b.views,
                                 .kv_head = kv_head,
                                 .run0 = FROM,
                                 .run1 = TO,
                                 .q = b.q + kv_head * group * cfg->head_dim,
                                 .scores = scores,
                                 .stride = RUNS,
                                 .lse = lse,
                                 .scratch = b.scratch.data};
    backend->score(&args);
    for (int h = 0; h < group; h++) {
        double top = -INFINITY, sum = 0;
        for (int run = 0; run < RUNS; run++) {
            const float got = scores[h * RUNS + run];
            const double want = want_score(&b, backend, kv_head * group + h, run);
            if (run < FROM || run >= TO) {
                assert_true(got == poison);
            } else if (run == 100) {
                assert_true(isnan(got));
            } else if (!(fabs((double)got - want) < 3e-5)) {
                fail_msg("%s: head %d, run %d: %.9g, not %.9g", backend->name, h, run, (double)got,
                         want);
            } else {
                top = fmax(top, want);
            }
        }
        for (int run = FROM; run < TO; run++)
            sum += run == 100 ? 0 : exp(want_score(&b, backend, kv_head * group + h, run) - top);
        assert_true(fabs((double)lse[h] - (top + log(sum))) < 1e-5);
    }
    assert_true(lse[group] == poison);
    close_bench(&b);
    free(scores);
}

static void score_all(const mai_backend *backend)
{
    test_rng rng = {5};
    static const int32_t heads[][2] = {{1, 1}, {6, 2}, {8, 2}, {5, 1}};
    for (int i = 0; i < 4; i++) {
        for (int capped = 0; capped < 2; capped++) {
            const macattn_config cfg = shape_config(heads[i][0], heads[i][1], i % 2 ? 64 : 40, 32,
                                                    MACATTN_DTYPE_F16, capped ? 4.0f : 0.0f);
            score_case(backend, &cfg, false, &rng);
            score_case(backend, &cfg, true, &rng);
        }
    }
}

/* ------------------------------------------------------------------------------------ stand_in -- */

/* Doubles: a head's result of the listed runs. */
static double want_stand_in(const bench *b, const float *scores, const int32_t *runs, int n,
                            double *o, double *kbar)
{
    const int d = b->cfg.head_dim, dv = b->cfg.v_head_dim;
    const double cap = (double)b->cfg.softcap;
    double top = -INFINITY, sum = 0;
    memset(o, 0, sizeof *o * (size_t)dv);
    memset(kbar, 0, sizeof *kbar * (size_t)d);
    for (int i = 0; i < n; i++) top = fmax(top, (double)scores[runs[i]]);
    for (int i = 0; i < n; i++) {
        const double s = (double)scores[runs[i]], w = exp(s - top);
        if (s == -INFINITY) continue; /* left out, be its rows what they are */
        const double t = cap > 0 ? (s - log(MAI_RUN_TOKENS)) / cap : 0;
        sum += w;
        for (int j = 0; j < dv; j++) o[j] += w * b->v[runs[i] * dv + j];
        for (int j = 0; j < d; j++) kbar[j] += w * (1 - t * t) * b->k[runs[i] * d + j];
    }
    for (int j = 0; j < dv; j++) o[j] /= sum;
    for (int j = 0; j < d; j++) kbar[j] /= sum;
    return top + log(sum);
}

/* Listed runs; or neighbouring ones, of which every third is left out, one of them one that is always
 * read. */
static void stand_in_case(const mai_backend *backend, const macattn_config *cfg, bool keys, int n,
                          bool listed, test_rng *rng)
{
    enum { RUN0 = 1000 };
    const uint16_t nan16 = 0x7e00;
    const int group = cfg->n_heads / cfg->n_kv_heads, kv_head = cfg->n_kv_heads - 1;
    const int d = cfg->head_dim, dv = cfg->v_head_dim, width = dv + d + 8;
    const double most = cfg->softcap > 0 ? (double)cfg->softcap : 6;
    float *scores = room((size_t)group * RUNS, sizeof *scores), top[MAI_MAX_HEADS];
    float lse[MAI_MAX_HEADS];
    int32_t *runs = room(RUNS, sizeof *runs);
    double o[MAI_MAX_DIM], kbar[MAI_MAX_DIM];
    bench b;
    open_bench(&b, backend, cfg, true, rng);
    summarise(&b, backend, kv_head);
    if (!listed) memcpy((char *)(uintptr_t)row_of(&b, kv_head, RUN0 + 1, true), &nan16, 2);
    load_means(&b, kv_head);
    for (int i = 0; i < n; i++) runs[i] = listed ? (int32_t)((int64_t)i * RUNS / n) : RUN0 + i;
    for (int h = 0; h < group; h++) {
        top[h] = (float)(most + log(MAI_RUN_TOKENS));
        for (int i = 0; i < RUNS; i++)
            scores[h * RUNS + i] =
                (float)(log(MAI_RUN_TOKENS) + most * (2 * test_uniform(rng) - 1) * 0.99);
        for (int i = RUN0 + 1; !listed && i < RUNS; i += 3) scores[h * RUNS + i] = -INFINITY;
    }
    test_memory out = test_guarded(sizeof(float) * (size_t)(group * width), 0);
    test_poison(out.data, out.bytes);
    const float *got = (const float *)(const void *)out.data, poison = got[0];
    const mai_stand_in_args args = {.shape = &b.shape,
                                    .dims = &b.dims,
                                    .segments = b.views,
                                    .kv_head = kv_head,
                                    .n = n,
                                    .run0 = listed ? -1 : RUN0,
                                    .runs = listed ? runs : NULL,
                                    .scores = scores,
                                    .stride = RUNS,
                                    .top = top,
                                    .out = (float *)(void *)out.data,
                                    .out_stride = width,
                                    .keys = keys,
                                    .lse = lse,
                                    .scratch = b.scratch.data};
    backend->stand_in(&args);
    for (int h = 0; h < group; h++, got += width) {
        const double want = want_stand_in(&b, scores + h * RUNS, runs, n, o, kbar);
        assert_true(fabs((double)lse[h] - want) < 1e-5);
        test_close("o", got, o, dv, 2e-5);
        if (keys) test_close("kbar", got + dv, kbar, d, 1e-4);
        for (int i = dv + (keys ? d : 0); i < width; i++) assert_true(got[i] == poison);
    }
    test_release(&out);
    close_bench(&b);
    free(scores);
    free(runs);
}

static void stand_in_all(const mai_backend *backend)
{
    static const int32_t heads[][2] = {{1, 1}, {6, 2}, {8, 2}, {5, 1}};
    static const int counts[] = {1, 15, 16, 17, 500};
    test_rng rng = {6};
    for (int i = 0; i < 5; i++) {
        const int32_t *h = heads[i % 4];
        const macattn_config cfg = shape_config(h[0], h[1], i % 2 ? 64 : 40, i < 3 ? 32 : 72,
                                                MACATTN_DTYPE_F16, i % 3 == 1 ? 5.0f : 0.0f);
        stand_in_case(backend, &cfg, i % 2 == 0, counts[i], true, &rng);
        stand_in_case(backend, &cfg, i % 2 == 1, counts[4 - i], true, &rng);
        stand_in_case(backend, &cfg, i % 2 == 0, i < 4 ? counts[i] : RUNS - 1000, false, &rng);
        stand_in_case(backend, &cfg, i % 2 == 1, 33, false, &rng);
    }
}

/* Scores far below `top`, and none at all. */
static void stand_in_nothing(const mai_backend *backend)
{
    const macattn_config cfg = shape_config(2, 1, 32, 32, MACATTN_DTYPE_F16, 0);
    float scores[2 * 16], out[2 * 64], lse[2];
    const float top[2] = {0, 0};
    int32_t runs[16];
    test_rng rng = {7};
    bench b;
    open_bench(&b, backend, &cfg, true, &rng);
    summarise(&b, backend, 0);
    for (int i = 0; i < 16; i++) runs[i] = i;
    test_poison(out, sizeof out);
    const mai_stand_in_args args = {.shape = &b.shape,
                                    .dims = &b.dims,
                                    .segments = b.views,
                                    .n = 16,
                                    .runs = runs,
                                    .scores = scores,
                                    .stride = 16,
                                    .top = top,
                                    .out = out,
                                    .out_stride = 64,
                                    .keys = true,
                                    .lse = lse,
                                    .scratch = b.scratch.data};
    /* Weights that are no numbers of full precision any more, whose inverses are infinite, or that
     * are 0. */
    const float low[] = {-80, -87, -88, -90, -95, -100, -103, -104, -1e4f, -INFINITY};
    for (size_t k = 0; k < sizeof low / sizeof low[0]; k++) {
        for (int i = 0; i < 32; i++) scores[i] = i < 16 ? low[k] : -INFINITY;
        backend->stand_in(&args);
        for (int h = 0; h < 2; h++) {
            assert_true(lse[h] == -INFINITY);
            for (int i = 0; i < 64; i++) assert_true(out[h * 64 + i] == 0);
        }
    }
    /* And those just above. */
    for (int i = 0; i < 32; i++) scores[i] = i == 3 || i == 20 ? -65.0f : -90.0f;
    backend->stand_in(&args);
    for (int h = 0; h < 2; h++) {
        assert_true(fabsf(lse[h] + 65) < 1e-4f);
        for (int i = 0; i < 64; i++) assert_true(isfinite(out[h * 64 + i]));
    }
    close_bench(&b);
}

/* ---------------------------------------------------------------------------------------- lists -- */

/* Attention to listed runs is attention to a cache that holds just their tokens, to the bit. */
static void listed(const mai_backend *backend)
{
    enum { LISTED = 21, FROM = 4, TO = LISTED * MAI_RUN_TOKENS };
    const macattn_config cfg = shape_config(6, 2, 64, 32, MACATTN_DTYPE_F16, 0);
    const int64_t width = 64 + 32;
    test_rng rng = {8};
    bench b;
    open_bench(&b, backend, &cfg, true, &rng);
    int32_t runs[LISTED], pages[2 * LISTED];
    float out[2][6 * (64 + 32)], lse[2][6];
    for (int i = 0; i < LISTED; i++) {
        runs[i] = (int32_t)(i < 2 ? i : 40 * i + test_below(&rng, 30));
        for (int j = 0; j < 2; j++) pages[2 * i + j] = b.pages[2 * runs[i] + j];
    }
    const uint8_t keys[2] = {1, 0};
    test_poison(out, sizeof out);
    for (int k = 0; k < 2; k++) {
        mai_attend_args args = {.shape = &b.shape,
                                .tokens = b.tokens,
                                .t0 = FROM,
                                .t1 = TO,
                                .kv1 = 2,
                                .q = b.q,
                                .out = out[k],
                                .out_stride = width,
                                .keys = keys,
                                .lse = lse[k],
                                .scratch = b.scratch.data};
        if (k == 0) args.tokens.runs = runs;
        if (k == 1) args.tokens.pages = pages;
        backend->attend(&args);
    }
    test_same_bits("output", out[0], out[1], sizeof out[0]);
    test_same_bits("lse", lse[0], lse[1], sizeof lse[0]);
    close_bench(&b);
}

static void test_summarise(void **state)
{
    (void)state;
    each_backend(summarise_all);
    each_backend(summarise_strange);
}

static void test_score(void **state)
{
    (void)state;
    each_backend(score_all);
}

static void test_stand_in(void **state)
{
    (void)state;
    each_backend(stand_in_all);
    each_backend(stand_in_nothing);
}

static void test_listed(void **state)
{
    (void)state;
    each_backend(listed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_summarise),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_stand_in),
        cmocka_unit_test(test_listed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
