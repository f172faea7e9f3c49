/* SPDX-License-Identifier: Apache-2.0 */
/* Selection on the GPU: the means and outliers of runs are the CPU's to the bit, what a group reads is
 * what the reference would read, what comes of it is what the reference computes from that and stays within
 * the budget, prompts teach what they teach the CPU, runs are those of the tokens the slot holds, and
 * a graph does the same. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/host/object.h"
#include "gpu.h"

enum { THEMES = 10, NEEDLES = 32, MOST_ROWS = 5, MOST_HEADS = 16, MOST_DIM = 256 };

/* Made tokens. Every run is of a theme; a query is of one, too, and sees the runs of its theme far
 * above the others. One of NEEDLES runs has a token of another theme, which the mean hides. What a query matches with has nothing to do with that. */
typedef struct world {
    macattn_config cfg;
    macattn *cpu;
    macattn_cuda *gpu;
    test_bench b;    /* row r is KV sequence r */
    int32_t per_row; /* pages; 0: contiguous */
    int32_t *host_pages, *n_tokens, *slots, *pages;
    char *q, *q_match, *k, *v;
    macattn_cuda_batch batch;
    macattn_cuda_io io;
    uint64_t seed, changed; /* changed: of tokens from `from` on */
    int64_t from;
} world;

static void *room(size_t n, size_t size)
{
    void *memory = calloc(n + 1, size);
    assert_non_null(memory);
    return memory;
}

static void fill(uint64_t seed, int32_t n, double factor, float *x)
{
    test_rng rng = {seed};
    for (int32_t i = 0; i < n; i++) x[i] += (float)(factor * test_normal(&rng));
}

static void theme(const world *w, int64_t which, int32_t kv_head, double factor, float *x)
{
    fill(test_hash(w->seed, (uint64_t)(which * 64 + kv_head)), w->cfg.head_dim, factor, x);
}

static void make_token(const world *w, int32_t row, int64_t t, int32_t kv_head, float *k, float *v)
{
    const uint64_t seed =
        test_hash(w->seed + (t >= w->from ? w->changed : 0), (uint64_t)row + 1000);
    const uint64_t own = test_hash(seed + 1, (uint64_t)(t * 64 + kv_head));
    const uint64_t run = test_hash(seed + 2, (uint64_t)(t / 16));
    const bool is_needle = run / THEMES % NEEDLES == 0 && t % 16 == (int64_t)(run >> 32) % 16;
    const int64_t which = (int64_t)((run + (is_needle ? 3 : 0)) % THEMES);
    memset(k, 0, sizeof *k * (size_t)w->cfg.head_dim);
    memset(v, 0, sizeof *v * (size_t)w->cfg.head_dim);
    theme(w, which, kv_head, 1, k);
    for (int32_t i = 0; i < w->cfg.head_dim; i++) k[i] += (float)(4 * (i % 3)); /* in common */
    fill(own, w->cfg.head_dim, 0.5, k);
    fill(own + 1, w->cfg.head_dim, 1, v);
}

static void make_query(const world *w, int32_t row, int64_t pos, int32_t head, float *q,
                       float *q_match)
{
    const int32_t kv_head = head / (w->cfg.n_heads / w->cfg.n_kv_heads), d = w->cfg.head_dim;
    const uint64_t seed = test_hash(w->seed, (uint64_t)row);
    const int64_t which = (int64_t)(test_hash(seed + 3, (uint64_t)pos) % THEMES);
    memset(q, 0, sizeof *q * (size_t)d);
    memset(q_match, 0, sizeof *q * (size_t)d);
    /* Logits are as large whatever the dimension. */
    theme(w, which, kv_head, sqrt(64.0 / d), q);
    fill(test_hash(seed + 5, (uint64_t)(pos * 64 + head)), d, 0.3, q);
    fill(test_hash(seed + 6, (uint64_t)(pos * 64 + head)), d, 1, q_match);
}

/* Tokens [from, n) of a row's sequence, on the host. */
static void put_tokens(world *w, int32_t row, int64_t from, int64_t n)
{
    float k[MOST_DIM], v[MOST_DIM];
    for (int64_t t = from; t < n; t++) {
        const int32_t size = w->b.batch.page_size;
        const int64_t page = w->per_row > 0 ? w->host_pages[row * w->per_row + t / size] : row;
        for (int32_t h = 0; h < w->cfg.n_kv_heads; h++) {
            make_token(w, row, t, h, k, v);
            test_kv_put(&w->b.kv, &w->cfg, page, w->per_row > 0 ? t % size : t, h, k, v);
        }
    }
}

static void upload_cache(world *w)
{
    assert_cuda(cudaMemcpy(w->k, w->b.kv.k.data, w->b.kv.k.bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(w->v, w->b.kv.v.data, w->b.kv.v.bytes, cudaMemcpyHostToDevice));
}

static void use_pages(world *w, int32_t page_size)
{
    const int32_t per_row = (int32_t)((w->b.capacity + page_size - 1) / page_size),
                  n = per_row * w->b.max_rows;
    const test_kv_layout layout = {.n_pages = n, .page_tokens = page_size, .head_major = true};
    test_kv_destroy(&w->b.kv);
    test_kv_create(&w->b.kv, &w->b.cfg, &layout);
    w->b.io.kv = w->b.kv.view;
    w->b.batch.page_size = w->batch.page_size = page_size;
    w->b.batch.n_pages = n;
    w->per_row = per_row;
    w->host_pages = room((size_t)n, sizeof *w->host_pages);
    for (int32_t i = 0; i < n; i++) w->host_pages[i] = (int32_t)((int64_t)i * 7919 % n);
    w->pages = upload(w->host_pages, (size_t)n * sizeof *w->host_pages);
    w->batch.page_table_stride = per_row;
}

static world open_world(const macattn_config *cfg, int32_t max_rows, int64_t capacity,
                        int32_t max_queries, int32_t page_size, int64_t run_tokens)
{
    world w = {.cfg = *cfg, .seed = 17, .from = INT64_MAX};
    macattn_cuda_config cuda;
    char error[256] = "";
    w.cfg.v_head_dim = cfg->head_dim;
    w.cfg.scale = 1.0f / sqrtf((float)cfg->head_dim);
    w.cfg.max_tokens = capacity;
    w.cpu = test_create(&w.cfg);
    assert_int_equal(macattn_cuda_config_init(&cuda), MACATTN_OK);
    cuda.max_rows = max_rows, cuda.run_tokens = run_tokens;
    if (macattn_cuda_create(&w.cfg, &cuda, &w.gpu, error, sizeof error) != MACATTN_OK)
        fail_msg("%s", error);
    test_bench_create(&w.b, &w.cfg, max_rows, capacity, max_queries);
    w.batch = (macattn_cuda_batch){.struct_size = sizeof w.batch};
    if (page_size > 0) use_pages(&w, page_size);
    for (int32_t r = 0; r < max_rows; r++) put_tokens(&w, r, 0, capacity);
    const size_t queries = (size_t)max_rows * (size_t)max_queries * (size_t)cfg->n_heads;
    const size_t d = (size_t)cfg->head_dim;
    int32_t numbers[MOST_ROWS];
    for (int32_t r = 0; r < max_rows; r++) numbers[r] = r;
    if (page_size == 0) w.pages = upload(numbers, sizeof numbers);
    w.n_tokens = device(sizeof numbers), w.slots = device(sizeof numbers);
    w.q = device(queries * d * 4), w.q_match = device(queries * d * 4);
    w.k = device(w.b.kv.k.bytes), w.v = device(w.b.kv.v.bytes);
    w.batch.n_tokens = w.n_tokens, w.batch.slots = w.slots, w.batch.pages = w.pages;
    w.io = (macattn_cuda_io){.struct_size = sizeof w.io,
                             .q = w.q,
                             .q_match = w.q_match,
                             .kv = w.b.kv.view,
                             .out = device(queries * d * 4),
                             .lse = device(queries * 4)};
    w.io.kv.k = w.k, w.io.kv.v = w.v;
    upload_cache(&w);
    return w;
}

static void close_world(world *w)
{
    void *memory[] = {w->n_tokens, w->slots, w->pages,  w->q,     w->q_match,
                      w->k,        w->v,     w->io.out, w->io.lse};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) assert_cuda(cudaFree(memory[i]));
    macattn_cuda_destroy(w->gpu);
    macattn_destroy(w->cpu);
    test_bench_destroy(&w->b);
    free(w->host_pages);
}

/* Rows with their queries: row r is tokens of sequence r in slot slots[r]. */
static void set_rows(world *w, int32_t n_rows, const int32_t *slots, const int32_t *sequences,
                     const int64_t *n_tokens, int32_t n_queries)
{
    float q[MOST_DIM], q_match[MOST_DIM];
    int32_t n[MOST_ROWS], page_of[MOST_ROWS];
    int64_t query = 0;
    w->b.batch.n_rows = w->batch.n_rows = n_rows;
    for (int32_t r = 0; r < n_rows; r++) {
        const int32_t sequence = sequences[r];
        n[r] = (int32_t)n_tokens[r], page_of[r] = sequence;
        w->b.rows[r] = (macattn_row){
            .slot = slots[r], .n_queries = n_queries, .n_tokens = n_tokens[r], .page = sequence};
        if (w->per_row > 0) w->b.rows[r].pages = w->host_pages + sequence * w->per_row;
        for (int32_t i = 0; i < n_queries; i++, query++) {
            for (int32_t h = 0; h < w->cfg.n_heads; h++) {
                make_query(w, sequence, n_tokens[r] - n_queries + i, h, q, q_match);
                test_bench_set_query(&w->b, query, h, q, q_match);
            }
        }
    }
    w->b.n_queries = query;
    test_bench_poison(&w->b);
    const size_t bytes = (size_t)query * (size_t)w->cfg.n_heads *
                         macattn_dtype_row_bytes(w->cfg.q_dtype, w->cfg.head_dim);
    const size_t out = (size_t)query * (size_t)w->cfg.n_heads;
    assert_cuda(cudaMemcpy(w->n_tokens, n, sizeof *n * (size_t)n_rows, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(w->slots, slots, sizeof *n * (size_t)n_rows, cudaMemcpyHostToDevice));
    if (w->per_row == 0)
        assert_cuda(
            cudaMemcpy(w->pages, page_of, sizeof *n * (size_t)n_rows, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(w->q, w->b.q, bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(w->q_match, w->b.q_match, bytes, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemset(w->io.out, 0xff, out * (size_t)w->cfg.head_dim * 4));
    assert_cuda(cudaMemset(w->io.lse, 0xff, out * 4));
}

static macattn_config select_config(int32_t select, macattn_dtype dtype, int32_t heads,
                                    int32_t kv_heads, int32_t d, float budget)
{
    macattn_config cfg = test_config(heads, kv_heads, d);
    cfg.policy = MACATTN_POLICY_BUDGET;
    cfg.select = select;
    cfg.budget = budget;
    cfg.q_dtype = cfg.k_dtype = cfg.v_dtype = dtype;
    cfg.ring = 64, cfg.band = 32, cfg.fresh_tokens = 4, cfg.min_tokens = 0, cfg.n_layers = 1;
    cfg.max_slots = MOST_ROWS;
    return cfg;
}

/* ------------------------------------------------------------------------- what the GPU holds -- */

static int32_t code_byte(int32_t dim)
{
    const int32_t in = dim % 16;
    return dim - in + (in < 8 ? 2 * in : 2 * in - 15);
}

static int32_t made_of(const world *w, int32_t slot, int32_t kv_head)
{
    int32_t *made = download(w->gpu->params.runs.made + slot * w->cfg.n_kv_heads + kv_head, 4);
    const int32_t n = *made;
    free(made);
    return n;
}

/* Codes and scales, one row. `want`: of q8_0. */
static void check_codes(const char *what, const int8_t *from, const uint16_t *from_scales,
                        const char *want, int32_t d)
{
    int8_t *codes = download(from, (size_t)d);
    uint16_t *scales = download(from_scales, (size_t)(d / 16));
    for (int32_t i = 0; i < d; i++) {
        uint16_t scale;
        memcpy(&scale, want + i / 32 * 34, 2);
        const int8_t code = (int8_t)want[i / 32 * 34 + 2 + i % 32];
        if (scales[i / 32] != scale || codes[code_byte(i)] != code)
            fail_msg("%s, dim %d: %d * %04x, not %d * %04x", what, i, codes[code_byte(i)],
                     scales[i / 32], code, scale);
    }
    free(codes), free(scales);
}

/* A slot's means and outliers are the CPU's. */
static void check_runs(const world *w, int32_t slot, int32_t n_runs)
{
    const mai_runs_dims *dims = &w->cpu->runs_dims;
    const mai_cu_runs *r = &w->gpu->params.runs;
    const int32_t d = w->cfg.head_dim, kv_heads = w->cfg.n_kv_heads;
    const mai_slot *s = &w->cpu->slots[slot];
    assert_true(s->n_runs[0] >= n_runs);
    assert_int_equal(r->outlier != NULL, dims->outliers);
    mai_runs_view *views = room((size_t)mai_n_segments(s->n_runs[0]), sizeof *views);
    mai_runs_segments(s, 0, mai_n_segments(s->n_runs[0]), views);
    int32_t *table = download(r->table + slot * r->most, (size_t)r->most * 4);
    for (int32_t h = 0; h < kv_heads; h++) {
        assert_true(made_of(w, slot, h) >= n_runs);
        float *common = download(r->common + (slot * kv_heads + h) * d, (size_t)d * sizeof *common);
        test_same_bits("what keys have in common", common, views[0].common + h * d,
                       (size_t)d * sizeof *common);
        free(common);
        for (int32_t run = 0; run < n_runs; run++) {
            const size_t row =
                (size_t)(table[run / MAI_CU_SEGMENT] * kv_heads + h) * MAI_CU_SEGMENT +
                (size_t)(run % MAI_CU_SEGMENT);
            const size_t at = (size_t)h * MAI_SEGMENT + (size_t)(run % MAI_SEGMENT);
            const size_t codes = row * (size_t)d, scales = row * (size_t)(d / 32);
            const mai_runs_view *view = &views[run / MAI_SEGMENT];
            char where[64];
            snprintf(where, sizeof where, "slot %d head %d run %d", slot, h, run);
            check_codes(where, r->k + codes, r->k_scale + scales, view->k + at * dims->k_bytes, d);
            check_codes(where, r->v + codes, r->v_scale + scales, view->v + at * dims->v_bytes, d);
            if (!dims->outliers) continue;
            check_codes(where, r->outlier + codes, r->outlier_scale + scales,
                        view->outlier + at * dims->k_bytes, d);
        }
    }
    free(table), free(views);
}

/* Runs of a slot as the CPU keeps them, in doubles. */
typedef struct kept {
    double *k, *v, *outlier; /* [n_runs][d]; outlier NULL: these are not kept */
} kept;

static kept kept_of(const macattn *m, int32_t slot, int32_t kv_head)
{
    const mai_slot *s = &m->slots[slot];
    const mai_runs_dims *dims = &m->runs_dims;
    const int n_runs = s->n_runs[0], d = dims->d;
    const size_t n = (size_t)(n_runs * d);
    kept x = {room(n, sizeof *x.k), room(n, sizeof *x.v),
              dims->outliers ? room(n, sizeof *x.outlier) : NULL};
    mai_runs_view *views = room((size_t)mai_n_segments(n_runs), sizeof *views);
    mai_runs_segments(s, 0, mai_n_segments(n_runs), views);
    for (int i = 0; i < n_runs; i++) {
        const mai_runs_view *view = &views[i / MAI_SEGMENT];
        const size_t at = (size_t)kv_head * MAI_SEGMENT + (size_t)(i % MAI_SEGMENT);
        for (int j = 0; j < d; j++) {
            const double common = (double)views[0].common[kv_head * d + j];
            x.k[i * d + j] = ref_value(dims->k_dtype, view->k + at * dims->k_bytes, j) + common;
            if (x.outlier)
                x.outlier[i * d + j] =
                    ref_value(dims->k_dtype, view->outlier + at * dims->k_bytes, j) + common;
            x.v[i * d + j] = ref_value(dims->v_dtype, view->v + at * dims->v_bytes, j);
        }
    }
    free(views);
    return x;
}

static size_t entry_of(const world *w, int32_t slot, int32_t head, int32_t at)
{
    return ((size_t)slot * (size_t)w->cfg.n_heads + (size_t)head) * (size_t)w->cfg.ring +
           (size_t)at;
}

/* The newest entry of a head's ring; -1: none. */
static int32_t newest_of(const world *w, int32_t slot, int32_t head)
{
    const size_t ring = (size_t)(slot * w->cfg.n_heads + head);
    int32_t *next = download(w->gpu->params.rings.head + ring, 4);
    int32_t *count = download(w->gpu->params.rings.count + ring, 4);
    const int32_t at = *count == 0 ? -1 : (*next + w->cfg.ring - 1) % w->cfg.ring;
    free(next), free(count);
    return at;
}

static double newest_share(const world *w, int32_t slot, int32_t head)
{
    const int32_t at = newest_of(w, slot, head);
    if (at < 0) return 1;
    mai_cu_judged *judged =
        download(w->gpu->params.rings.judged + entry_of(w, slot, head, at), sizeof *judged);
    const double share = (double)judged->share;
    free(judged);
    return share;
}

/* The newest summaries on both sides, of the same step. */
static void check_newest(const world *w, int32_t slot, int32_t head)
{
    const mai_ring_view *ring = &w->cpu->slots[slot].rings[0]->view;
    const int32_t d = w->cfg.head_dim, K = w->cfg.ring, at = newest_of(w, slot, head);
    const size_t want = (size_t)(head * K + (ring->head[head] + K - 1) % K);
    const size_t width = (size_t)w->cpu->ring_dims.width, got = entry_of(w, slot, head, at);
    const double tolerance = 0.02; /* a run near the bound may be read by one of them */
    double x[2 * MOST_DIM];
    float *summary = download(w->gpu->params.rings.summary + got * width, width * sizeof *summary);
    mai_cu_judged *judged = download(w->gpu->params.rings.judged + got, sizeof *judged);
    for (size_t i = 0; i < width; i++) x[i] = (double)ring->out[want * width + i];
    check_head("a summary", slot, head, (const char *)summary, F32, x, d, tolerance);
    if (width > (size_t)d)
        check_head("its keys", slot, head, (const char *)(summary + d), F32, x + d, d, tolerance);
    if (!(fabsf(judged->share - ring->share[want]) <= 0.01f))
        fail_msg("slot %d head %d: share %g, not %g", slot, head, (double)judged->share,
                 (double)ring->share[want]);
    free(summary), free(judged);
}

/* --------------------------------------------------------------------------------- decisions -- */

/* Make every group use threshold k, as if that had been learnt, and as if reuse knew nothing. */
static void force(world *w, int k)
{
    const int32_t heads = w->cfg.n_heads, kv_heads = w->cfg.n_kv_heads;
    for (int32_t h = 0; h < kv_heads; h++) {
        mai_selector_init(&w->cpu->selectors[h]);
        w->cpu->selectors[h].n_samples = 64;
        for (int i = 0; i < k; i++) w->cpu->selectors[h].e2[i] = 100;
    }
    mai_record *records = download(w->gpu->params.records, (size_t)heads * sizeof *records);
    for (int32_t h = 0; h < heads; h++) w->cpu->records[h].n_samples = records[h].n_samples = 0;
    assert_cuda(cudaMemcpy(w->gpu->params.records, records, (size_t)heads * sizeof *records,
                           cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(w->gpu->params.selectors, w->cpu->selectors,
                           (size_t)kv_heads * sizeof *w->cpu->selectors, cudaMemcpyHostToDevice));
    free(records);
}

typedef struct tally {
    int64_t selected, others, near; /* near: runs that the reference reads and the GPU does not, or
                                       the other way round */
} tally;

/* What the GPU read of row r becomes what the reference reads, but only where it may differ. */
static void take_list(const world *w, int32_t r, int32_t kv_head, const mai_cu_choice *choice,
                      int32_t first, int32_t n_runs, ref_selection *s, tally *t)
{
    const int32_t stride = (n_runs + MAI_CU_SEGMENT - 1) / MAI_CU_SEGMENT * MAI_CU_SEGMENT;
    const int64_t fresh = w->cfg.fresh_tokens,
                  gap = w->b.rows[r].n_tokens - w->cfg.band - n_runs * 16;
    int32_t *list = download(
        w->gpu->params.lists + (size_t)choice->first * (size_t)w->cfg.n_kv_heads + kv_head * stride,
        (size_t)stride * sizeof *list);
    int32_t next = 0, rest = 0;
    if (fresh == 0 || fresh % 16 != 0) assert_int_equal(list[next++], first - 1);
    for (int32_t i = first; i < n_runs; i++) {
        const bool read = next < stride && list[next] == i && next * 16 < choice->listed - gap;
        const bool wanted = s->ratio[i] >= 1;
        if (read != wanted && fabs(s->ratio[i] - 1) > 2e-3)
            fail_msg("row %d kv head %d run %d of %d, whose ratio is %.6f, is%s read", r, kv_head,
                     i, n_runs, s->ratio[i], read ? "" : " not");
        t->near += read != wanted;
        s->ratio[i] = read ? 1 : 0;
        next += read, rest += !read;
    }
    if (gap > 0) assert_int_equal(list[next], n_runs);
    assert_int_equal(choice->listed, next * 16 + gap);
    assert_int_equal(choice->n_rest, rest);
    free(list);
}

/* Decide and compute row r in the reference, and compare. */
static void check_row(world *w, int32_t r, int k, const double *share, const float *out,
                      const float *lse, const mai_cu_choice *choices, tally *t)
{
    const macattn_config *c = &w->cfg;
    const macattn_row *row = &w->b.rows[r];
    const int32_t group = c->n_heads / c->n_kv_heads, d = c->head_dim;
    const int32_t n_runs = (int32_t)(row->n_tokens - c->band) / 16;
    const int32_t first = mai_select_first(c->fresh_tokens, 16);
    static double q[MOST_HEADS * MOST_DIM], want[MOST_DIM], zero[MOST_DIM];
    for (int32_t kv_head = 0; kv_head < c->n_kv_heads; kv_head++) {
        const mai_cu_choice *choice = &choices[r * c->n_kv_heads + kv_head];
        ref_selection s = {room((size_t)(group * n_runs), sizeof(double)),
                           room((size_t)n_runs, sizeof(double))};
        kept x = kept_of(w->cpu, row->slot, kv_head);
        for (int32_t h = 0; h < group; h++) {
            const size_t at = (size_t)(r * c->n_heads + kv_head * group + h);
            for (int32_t i = 0; i < d; i++)
                q[h * d + i] = ref_value(
                    c->q_dtype, (const char *)w->b.q + at * macattn_dtype_row_bytes(c->q_dtype, d),
                    i);
        }
        ref_select(c, q, share + kv_head * group, x.k, x.outlier, first, n_runs, ldexp(1, -5 - k),
                   &s);
        if (choice->k != k)
            fail_msg("row %d kv head %d: threshold %d, not %d", r, kv_head, choice->k, k);
        if (choice->outcome == MAI_SELECTED) {
            take_list(w, r, kv_head, choice, first, n_runs, &s, t);
            t->selected++;
        } else {
            int32_t n = 0;
            for (int32_t i = first; i < n_runs; i++) {
                n += s.ratio[i] >= 1 - 2e-3;
                s.ratio[i] = 1;
            }
            if (!choice->too_much || 4 * n <= 3 * (n_runs - first))
                fail_msg("row %d kv head %d: outcome %d, %d of %d runs to read", r, kv_head,
                         choice->outcome, n, n_runs - first);
            t->others++;
        }
        for (int32_t h = 0; h < group; h++) {
            const int32_t head = kv_head * group + h;
            double l = ref_selected(c, &w->b.batch, row, &w->b.kv.view, head, q + h * d, &s, x.v,
                                    n_runs, want);
            if (w->b.io.sinks) ref_merge(d, want, &l, zero, (double)w->b.io.sinks[head]);
            check_head("a selection", r, head, (const char *)(out + (r * c->n_heads + head) * d),
                       F32, want, d, 2 * relative_tolerance(c->k_dtype, F32));
            check_lse("its lse", r, head, lse[r * c->n_heads + head], l);
        }
        free(x.k), free(x.v), free(x.outlier), free(s.scores), free(s.ratio);
    }
}

typedef struct case_of {
    int32_t n_heads, n_kv_heads, d, fresh, page_size;
    macattn_dtype dtype;
    float softcap;
    bool sinks;
    int32_t lse_order, select;
} case_of;

/* Rows of different lengths, step after step. */
static void decisions(const case_of *x, int k, tally *t)
{
    enum { ROWS = 3, LONGEST = 1300 };
    static const int32_t rows[ROWS] = {0, 1, 2}, slots[ROWS] = {3, 0, 2};
    static const float sinks[MOST_HEADS] = {0.5f, 1, 2, 0, 1, 3, 0.25f, 2, 0, 1, 0, 1, 1, 0, 2, 1};
    macattn_config cfg = select_config(x->select, x->dtype, x->n_heads, x->n_kv_heads, x->d, 0.5f);
    cfg.fresh_tokens = x->fresh;
    cfg.softcap = x->softcap;
    cfg.lse_order = x->lse_order;
    world w = open_world(&cfg, ROWS, LONGEST, 1, x->page_size, 0);
    float *gpu_sinks = upload(sinks, sizeof sinks);
    if (x->sinks) w.b.io.sinks = sinks, w.io.sinks = gpu_sinks;
    const size_t heads = (size_t)(ROWS * cfg.n_heads);
    for (int i = 0; i < (small() ? 3 : 12); i++) {
        const int64_t lengths[ROWS] = {500 + i, 355 + i, 1280 + i};
        double share[ROWS][MOST_HEADS];
        set_rows(&w, ROWS, slots, rows, lengths, 1);
        for (int32_t r = 0; r < ROWS; r++) {
            for (int32_t h = 0; h < cfg.n_heads; h++) share[r][h] = newest_share(&w, slots[r], h);
        }
        force(&w, k);
        assert_ok(w.cpu, macattn_plan(w.cpu, &w.b.batch));
        assert_ok(w.cpu, macattn_decode(w.cpu, 0, &w.b.io));
        assert_gpu_ok(w.gpu, macattn_cuda_decode(w.gpu, 0, &w.batch, &w.io, NULL));
        float *out = download(w.io.out, heads * (size_t)cfg.head_dim * sizeof *out);
        float *lse = download(w.io.lse, heads * sizeof *lse);
        const size_t n = (size_t)(ROWS * cfg.n_kv_heads);
        mai_cu_choice *choices = download(w.gpu->params.choices, n * sizeof *choices);
        for (int32_t r = 0; r < ROWS; r++) {
            const int64_t near = t->near;
            check_row(&w, r, k, share[r], out, lse, choices, t);
            for (int32_t h = 0; near == t->near && h < cfg.n_heads; h++)
                check_newest(&w, slots[r], h);
            if (i % 11 == 0) check_runs(&w, slots[r], (int32_t)(lengths[r] - cfg.band) / 16);
        }
        free(out), free(lse), free(choices);
    }
    assert_cuda(cudaFree(gpu_sinks));
    close_world(&w);
}

static void test_decisions(void **state)
{
    (void)state;
    static const case_of cases[] = {
        {8, 2, 64, 4, 0, F16, 0, false, 1, 2},    {6, 2, 64, 0, 32, F16, 0, true, 1, 2},
        {4, 2, 128, 16, 8, BF16, 0, false, 1, 2}, {10, 1, 128, 20, 16, F16, 0, false, 0, 2},
        {4, 2, 64, 4, 1, F16, 25, true, 1, 2},    {4, 2, 256, 4, 64, BF16, 0, true, 1, 2},
        {16, 1, 64, 4, 0, BF16, 0, false, 1, 2},  {4, 2, 128, 4, 16, BF16, 30, true, 1, 2},
        {8, 2, 64, 0, 0, F16, 0, false, 1, 1},    {4, 2, 128, 4, 4, BF16, 25, true, 1, 1},
        {4, 2, 256, 16, 16, F16, 0, false, 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tally t = {0};
        for (int k = 0; k < 6; k += small() ? 5 : 1) decisions(&cases[i], k, &t);
        print_message("case %zu: %lld selections, %lld read in full, %lld runs near the bound\n", i,
                      (long long)t.selected, (long long)t.others, (long long)t.near);
        assert_true(t.selected > (small() ? 5 : 100));
    }
}

/* ------------------------------------------------------------------------------------ prompts -- */

/* A part of a prompt on both sides: the CPU is the engine, too. */
static void prompt_part(world *w, int32_t slot, int64_t n, int32_t n_queries)
{
    const int32_t row = 0;
    const size_t heads = (size_t)n_queries * (size_t)w->cfg.n_heads, d = (size_t)w->cfg.head_dim;
    set_rows(w, 1, &slot, &row, &n, n_queries);
    assert_ok(w->cpu, macattn_plan(w->cpu, &w->b.batch));
    assert_ok(w->cpu, macattn_prefill(w->cpu, 0, &w->b.io));
    assert_cuda(cudaMemcpy(w->io.out, w->b.out, heads * d * 4, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(w->io.lse, w->b.lse, heads * 4, cudaMemcpyHostToDevice));
    assert_gpu_ok(w->gpu, macattn_cuda_capture(w->gpu, 0, &w->batch, 0, n_queries, &w->io, NULL));
    assert_cuda(cudaDeviceSynchronize());
}

static void check_selectors(const world *w)
{
    const size_t n = (size_t)w->cfg.n_kv_heads;
    mai_selector *got = download(w->gpu->params.selectors, n * sizeof *got);
    for (size_t h = 0; h < n; h++) {
        const mai_selector *want = &w->cpu->selectors[h];
        assert_int_equal(got[h].n_samples, want->n_samples);
        for (int k = 0; k < MAI_THETAS; k++) {
            const double x = sqrt((double)got[h].e2[k]), y = sqrt((double)want->e2[k]);
            if (!(fabs(x - y) <= 0.02 * y + 1e-3))
                fail_msg("kv head %zu, threshold %d: shown %.6g, the CPU %.6g", h, k, x, y);
        }
    }
    free(got);
}

static void prompt_shows(int32_t select, int32_t fresh, float softcap, bool with_sinks,
                         int32_t part, int32_t page_size)
{
    enum { N = 600 };
    static const float sinks[8] = {0.5f, 1, 2, 0, 1, 3, 0.25f, 2};
    macattn_config cfg = select_config(select, F16, 8, 2, 64, 0.05f);
    cfg.fresh_tokens = fresh;
    cfg.softcap = softcap;
    cfg.ring = 256;
    world w = open_world(&cfg, 1, N, N, page_size, 0);
    float *gpu_sinks = upload(sinks, sizeof sinks);
    if (with_sinks) w.b.io.sinks = sinks, w.io.sinks = gpu_sinks;
    for (int64_t n = part; n <= N; n += part) prompt_part(&w, 1, n, part);
    check_selectors(&w);
    assert_true(w.cpu->selectors[0].n_samples >= (part == N ? 4 : N / part - 1));
    check_runs(&w, 1, (N - cfg.band) / 16);
    assert_cuda(cudaFree(gpu_sinks));
    close_world(&w);
}

static void test_prompts(void **state)
{
    (void)state;
    for (int32_t select = 1; select <= 2; select++) {
        prompt_shows(select, 4, 0, false, 600, 0);
        prompt_shows(select, 0, 0, true, 200, 16);
        prompt_shows(select, 16, 20, false, 150, 4);
    }
}

/* A tenth of the runs carry the mass: little more is read, and the error is the one allowed. */
static void test_tenth(void **state)
{
    (void)state;
    enum { PROMPT = 1536, CAPACITY = 2048, HEADS = 8, KV = 2, DIM = 64, PART = 128 };
    const macattn_config cfg = select_config(2, F16, HEADS, KV, DIM, 0.05f);
    const int32_t slot = 0, row = 0;
    world w = open_world(&cfg, 1, CAPACITY, PART, 0, 0);
    int64_t selected = 0, cpu_selected = 0, groups = 0, differ = 0;
    double error2 = 0;
    for (int64_t n = PART; n <= PROMPT; n += PART) prompt_part(&w, slot, n, PART);
    check_selectors(&w);
    assert_gpu_ok(w.gpu, macattn_cuda_stats_reset(w.gpu, NULL));
    for (int64_t n = PROMPT + 1; n <= (small() ? PROMPT + 80 : CAPACITY); n++) {
        set_rows(&w, 1, &slot, &row, &n, 1);
        const double unit2 = (double)mai_layer_unit2(w.cpu->records, HEADS);
        assert_ok(w.cpu, macattn_plan(w.cpu, &w.b.batch));
        assert_ok(w.cpu, macattn_decode(w.cpu, 0, &w.b.io));
        assert_gpu_ok(w.gpu, macattn_cuda_decode(w.gpu, 0, &w.batch, &w.io, NULL));
        float *out = download(w.io.out, HEADS * DIM * sizeof *out);
        mai_cu_choice *choices = download(w.gpu->params.choices, KV * sizeof *choices);
        const mai_choice *cpu = (const mai_choice *)w.cpu->work.choices.ptr;
        bool cpu_selects[KV];
        for (int h = 0; h < KV; h++) cpu_selects[h] = cpu[h].selects && !cpu[h].checks;
        assert_ok(w.cpu, macattn_attend(w.cpu, &w.b.io));
        for (int h = 0; h < KV; h++) {
            const bool selects = choices[h].outcome == MAI_SELECTED;
            double off2 = 0;
            for (int i = h * HEADS / KV * DIM; i < (h + 1) * HEADS / KV * DIM; i++)
                off2 += pow((double)out[i] - (double)w.b.out[i], 2);
            groups++, selected += selects, cpu_selected += cpu_selects[h];
            differ += selects != cpu_selects[h];
            if (selects)
                error2 += off2 / (HEADS / KV) / unit2;
            else
                assert_true(off2 < 1e-4 * unit2);
        }
        free(out), free(choices);
    }
    macattn_stats s = {.struct_size = sizeof s};
    assert_gpu_ok(w.gpu, macattn_cuda_stats_get(w.gpu, -1, -1, &s));
    const double rms = sqrt(error2 / (double)selected), mean = (PROMPT + 1 + CAPACITY) / 2.0;
    const double read =
        ((double)s.kv_bytes[MACATTN_SELECTED] + (double)s.run_bytes[MACATTN_SELECTED]) /
        ((double)s.groups[MACATTN_SELECTED] * 2 * DIM * 2 * mean);
    print_message(
        "%lld of %lld groups selected, %lld by the CPU, %lld differ; error %.4f, read %.3f; "
        "checks %lld: %.4f\n",
        (long long)selected, (long long)groups, (long long)cpu_selected, (long long)differ, rms,
        read, (long long)s.checks, sqrt(s.error2_selected / (double)(s.checks > 0 ? s.checks : 1)));
    assert_int_equal((int64_t)s.groups[MACATTN_SELECTED], selected);
    assert_int_equal((int64_t)(s.groups[0] + s.groups[1] + s.groups[2]), groups);
    assert_true(s.checks > 0 && s.run_bytes[MACATTN_REUSED] == 0);
    assert_true(10 * selected > 9 * groups);
    assert_true(50 * differ <= groups);
    assert_true(rms <= (double)cfg.budget);
    assert_true(read <= 0.22);
    close_world(&w);
}

/* -------------------------------------------------------------------------------------- slots -- */

/* Both sides decode one token of a sequence in a slot, at threshold 2. Returns how many groups
 * selected on the GPU. */
static int step(world *w, int32_t slot, int32_t sequence, int64_t n)
{
    int selected = 0;
    set_rows(w, 1, &slot, &sequence, &n, 1);
    force(w, 2);
    assert_ok(w->cpu, macattn_plan(w->cpu, &w->b.batch));
    assert_ok(w->cpu, macattn_decode(w->cpu, 0, &w->b.io));
    assert_gpu_ok(w->gpu, macattn_cuda_decode(w->gpu, 0, &w->batch, &w->io, NULL));
    const size_t heads = (size_t)w->cfg.n_heads, d = (size_t)w->cfg.head_dim;
    float *out = download(w->io.out, heads * d * sizeof *out);
    mai_cu_choice *choices =
        download(w->gpu->params.choices, (size_t)w->cfg.n_kv_heads * sizeof *choices);
    for (int32_t h = 0; h < w->cfg.n_kv_heads; h++) selected += choices[h].outcome == MAI_SELECTED;
    double off2 = 0, all2 = 0;
    for (size_t i = 0; i < heads * d; i++) {
        off2 += pow((double)out[i] - (double)w->b.out[i], 2);
        all2 += pow((double)w->b.out[i], 2);
    }
    /* A run near the bound may go either way. */
    if (!(sqrt(off2 / all2) < 0.02))
        fail_msg("slot %d, %lld tokens: off by %g from the CPU", slot, (long long)n,
                 sqrt(off2 / all2));
    free(out), free(choices);
    return selected;
}

/* Truncated and gone on with otherwise, forked, reset: runs are always those of the tokens. */
static void slots_with(int32_t select)
{
    enum { N = 700, CUT = 430 };
    const macattn_config cfg = select_config(select, F16, 4, 2, 64, 0.5f);
    world w = open_world(&cfg, 2, 1300, 1, 0, 0);
    size_t bytes = 0;
    int32_t *n_free = download(w.gpu->params.runs.n_free, 4);
    const int32_t all = *n_free;
    free(n_free);
    assert_int_equal(step(&w, 1, 0, N), 2);
    check_runs(&w, 1, (N - cfg.band) / 16);
    assert_ok(w.cpu, macattn_slot_fork(w.cpu, 1, 3));
    assert_gpu_ok(w.gpu, macattn_cuda_slot_fork(w.gpu, 1, 3, NULL));
    check_runs(&w, 3, (N - cfg.band) / 16);
    assert_ok(w.cpu, macattn_slot_truncate(w.cpu, 1, CUT));
    assert_gpu_ok(w.gpu, macattn_cuda_slot_truncate(w.gpu, 1, CUT, NULL));
    assert_int_equal(made_of(&w, 1, 0), CUT / 16);
    assert_int_equal(step(&w, 3, 0, N + 1), 2); /* not touched by that */
    w.from = CUT, w.changed = 99;
    put_tokens(&w, 0, CUT, 1300);
    upload_cache(&w);
    assert_int_equal(step(&w, 1, 0, 1200), 2);
    check_runs(&w, 1, (1200 - cfg.band) / 16);
    assert_ok(w.cpu, macattn_slot_reset(w.cpu, 3));
    assert_gpu_ok(w.gpu, macattn_cuda_slot_reset(w.gpu, 3, NULL));
    assert_int_equal(made_of(&w, 3, 1), 0);
    assert_int_equal(step(&w, 3, 1, 800), 2);
    check_runs(&w, 3, (800 - cfg.band) / 16);
    for (int32_t slot = 0; slot < MOST_ROWS; slot++)
        assert_gpu_ok(w.gpu, macattn_cuda_slot_reset(w.gpu, slot, NULL));
    n_free = download(w.gpu->params.runs.n_free, 4);
    assert_int_equal(*n_free, all);
    free(n_free);
    assert_int_equal(macattn_cuda_run_bytes(&cfg, 1024, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 64 * 2 * (1 + select) * (64 + 4));
    close_world(&w);
}

static void test_slots(void **state)
{
    (void)state;
    slots_with(1);
    slots_with(2);
}

/* One step of two rows. Returns a bit for each that selects. */
static int pool_step(world *w, int64_t n)
{
    const int32_t both[2] = {0, 1};
    const int64_t lengths[2] = {n, n};
    int selected[2] = {0, 0};
    set_rows(w, 2, both, both, lengths, 1);
    force(w, 2);
    assert_gpu_ok(w->gpu, macattn_cuda_decode(w->gpu, 0, &w->batch, &w->io, NULL));
    mai_cu_choice *choices = download(w->gpu->params.choices, 4 * sizeof *choices);
    float *out = download(w->io.out, 2 * 4 * 64 * sizeof *out);
    assert_ok(w->cpu, macattn_plan(w->cpu, &w->b.batch));
    assert_ok(w->cpu, macattn_attend(w->cpu, &w->b.io));
    for (int g = 0; g < 4; g++) selected[g / 2] += choices[g].outcome == MAI_SELECTED;
    for (int32_t i = 0; i < 8; i++) {
        double want[64];
        if (selected[i / 4] > 0) continue;
        for (int d = 0; d < 64; d++) want[d] = (double)w->b.out[i * 64 + d];
        check_head("without means", i / 4, i % 4, (const char *)(out + i * 64), F32, want, 64,
                   2 * relative_tolerance(F16, F32));
    }
    assert_true(selected[0] % 2 == 0 && selected[1] % 2 == 0);
    free(out), free(choices);
    return selected[0] / 2 + selected[1];
}

/* The pool has room for one sequence: the other one is read in full, until it has the room. */
static void test_pool(void **state)
{
    (void)state;
    const macattn_config cfg = select_config(2, F16, 4, 2, 64, 0.5f);
    world w = open_world(&cfg, 2, 1600, 1, 0, 2048);
    const int first = pool_step(&w, 1500);
    assert_true(first == 1 || first == 2);
    assert_int_equal(pool_step(&w, 1501), first);
    assert_gpu_ok(w.gpu, macattn_cuda_slot_reset(w.gpu, first - 1, NULL));
    /* Alone, the other one gets it. */
    const int32_t only = 2 - first;
    const int64_t n = 1502;
    set_rows(&w, 1, &only, &only, &n, 1);
    force(&w, 2);
    assert_gpu_ok(w.gpu, macattn_cuda_decode(w.gpu, 0, &w.batch, &w.io, NULL));
    assert_cuda(cudaDeviceSynchronize());
    assert_int_equal(pool_step(&w, 1503), 3 - first);
    close_world(&w);
}

/* -------------------------------------------------------------------------------------- graph -- */

/* A graph, replayed while lengths change, does what calls do, to the bit; rows without a slot or
 * without tokens are none of its business. */
static void test_graph(void **state)
{
    (void)state;
    enum { ROWS = 4, STEPS = 40 };
    const macattn_config cfg = select_config(2, F16, 8, 2, 64, 0.5f);
    const int32_t slots[ROWS] = {2, -1, 0, 4}, rows[ROWS] = {0, 1, 2, 3};
    const size_t bytes = (size_t)ROWS * 8 * 64 * sizeof(float);
    world w[2];
    float *out[2];
    cudaGraph_t graph;
    cudaGraphExec_t exec = NULL;
    cudaStream_t stream;
    int selected = 0;
    assert_cuda(cudaStreamCreate(&stream));
    for (int i = 0; i < 2; i++) w[i] = open_world(&cfg, ROWS, 1100, 1, 0, 0);
    for (int n = 0; n < (small() ? 3 : STEPS); n++) {
        const int64_t lengths[ROWS] = {1000 + n, 600 + n, n < 20 ? 0 : 300 + n, 444 + n};
        for (int i = 0; i < 2; i++) {
            set_rows(&w[i], ROWS, slots, rows, lengths, 1);
            if (n == 0) force(&w[i], 1);
            assert_cuda(cudaDeviceSynchronize());
            if (i == 0) {
                assert_gpu_ok(w[i].gpu,
                              macattn_cuda_decode(w[i].gpu, 0, &w[i].batch, &w[i].io, stream));
            } else {
                if (!exec) {
                    assert_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
                    assert_gpu_ok(w[i].gpu,
                                  macattn_cuda_decode(w[i].gpu, 0, &w[i].batch, &w[i].io, stream));
                    assert_cuda(cudaStreamEndCapture(stream, &graph));
                    assert_cuda(cudaGraphInstantiateWithFlags(&exec, graph, 0));
                }
                assert_cuda(cudaGraphLaunch(exec, stream));
            }
            out[i] = download(w[i].io.out, bytes);
        }
        mai_cu_choice *choices = download(w[0].gpu->params.choices, ROWS * 2 * sizeof *choices);
        for (int g = 0; g < ROWS * 2; g++) selected += choices[g].outcome == MAI_SELECTED;
        test_same_bits("a graph", out[1], out[0], bytes);
        for (size_t i = 0; i < bytes / sizeof(float); i++) assert_true(isfinite(out[0][i]));
        free(out[0]), free(out[1]), free(choices);
    }
    print_message("%d selections\n", selected);
    assert_true(selected > (small() ? 6 : 100));
    assert_cuda(cudaGraphExecDestroy(exec));
    assert_cuda(cudaGraphDestroy(graph));
    for (int i = 0; i < 2; i++) close_world(&w[i]);
    assert_cuda(cudaStreamDestroy(stream));
}

int main(void)
{
    if (gpu_missing()) return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decisions), cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_tenth),     cmocka_unit_test(test_slots),
        cmocka_unit_test(test_pool),      cmocka_unit_test(test_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
