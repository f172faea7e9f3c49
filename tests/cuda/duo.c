/* SPDX-License-Identifier: Apache-2.0 */
#include "duo.h"

#include <math.h>
#include <stdlib.h>

#include "cuda/host/object.h"

const test_sequence duo_sequences[4] = {{11, 6, 0.7}, {12, 3, 0.7}, {13, 40, 0.5}, {14, 1, 0.1}};

macattn_config reuse_config(macattn_dtype kv, int32_t heads, int32_t kv_heads, int32_t d)
{
    macattn_config cfg = test_config(heads, kv_heads, d);
    cfg.q_dtype = kv == F8 ? F16 : kv;
    cfg.k_dtype = cfg.v_dtype = kv;
    cfg.ring = 16, cfg.band = 12, cfg.min_tokens = 20, cfg.max_slots = 4, cfg.n_layers = 2;
    cfg.policy = MACATTN_POLICY_PAPER;
    return cfg;
}

void duo_create(duo *x, const macattn_config *cfg, int32_t max_rows, int64_t capacity,
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
    x->most_heads = queries;
    x->decisions = calloc(queries, sizeof *x->decisions);
    assert_non_null(x->decisions);
}

void duo_destroy(duo *x)
{
    void *memory[] = {x->n_tokens, x->slots, x->pages,  x->q,     x->q_match,
                      x->k,        x->v,     x->io.out, x->io.lse};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) assert_cuda(cudaFree(memory[i]));
    macattn_cuda_destroy(x->m);
    ref_mac_destroy(x->ref);
    test_bench_destroy(&x->b);
    free(x->decisions);
}

void duo_upload(duo *x)
{
    int32_t n[DUO_MAX_ROWS], slots[DUO_MAX_ROWS], pages[DUO_MAX_ROWS];
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
    assert_cuda(cudaMemset(x->io.out, 0xff, x->most_heads * (size_t)x->cfg.head_dim * 4));
    assert_cuda(cudaMemset(x->io.lse, 0xff, x->most_heads * 4));
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

void duo_check(duo *x, const char *what, double tolerance)
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

/* A ring on the host. */
typedef struct host_ring {
    int32_t head, count;
    mai_cu_meta *meta;
    int32_t *pos;
    float *lse0, *summary;
} host_ring;

static host_ring download_ring(const duo *x, int32_t slot, int32_t layer, int32_t head)
{
    const macattn_config *c = &x->cfg;
    const mai_cu_rings *r = &x->m->params.rings;
    const size_t at =
        ((size_t)slot * (size_t)c->n_layers + (size_t)layer) * (size_t)c->n_heads + (size_t)head;
    const size_t n = (size_t)c->ring, width = (size_t)c->head_dim * (c->lse_order ? 2 : 1);
    host_ring ring;
    int32_t *numbers[2] = {download(r->head + at, 4), download(r->count + at, 4)};
    ring.head = *numbers[0], ring.count = *numbers[1];
    free(numbers[0]), free(numbers[1]);
    ring.meta = download(r->meta + at * n, n * sizeof *ring.meta);
    ring.pos = download(r->pos + at * n, n * sizeof *ring.pos);
    ring.lse0 = download(r->lse0 + at * n, n * sizeof *ring.lse0);
    ring.summary = download(r->summary + at * n * width, n * width * sizeof *ring.summary);
    return ring;
}

static void free_ring(host_ring *ring)
{
    free(ring->meta), free(ring->pos), free(ring->lse0), free(ring->summary);
}

static double norm(const double *x, int32_t n)
{
    double sum = 0;
    for (int32_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}

static void check_entry(const duo *x, int32_t head, const host_ring *ring, int32_t at,
                        const ref_entry *want)
{
    const int32_t d = x->cfg.head_dim;
    const double tolerance = 2 * relative_tolerance(x->cfg.k_dtype, F32);
    const float *summary = ring->summary + (size_t)at * (size_t)(x->cfg.lse_order ? 2 * d : d);
    assert_int_equal(ring->pos[at], want->pos);
    assert_int_equal(ring->meta[at].end, want->end);
    check_head("a summary", at, head, (const char *)summary, F32, want->out, d, tolerance);
    double slack = 2e-3 + 2e-4 * (fabs(want->lse) + fabs(want->lse0));
    if (x->cfg.lse_order) {
        check_head("its keys", at, head, (const char *)(summary + d), F32, want->kbar, d,
                   tolerance);
        slack += tolerance * (double)x->cfg.scale * norm(want->q, d) * norm(want->kbar, d);
    }
    if (!(fabs((double)ring->lse0[at] - want->lse0) <= slack))
        fail_msg("entry %d of head %d: lse0 %.9g, not %.9g", at, head, (double)ring->lse0[at],
                 want->lse0);
}

int64_t duo_check_rings(duo *x, int32_t slot)
{
    int64_t entries = 0;
    for (int32_t i = 0; i < x->cfg.n_layers * x->cfg.n_heads; i++) {
        const int32_t layer = i / x->cfg.n_heads, head = i % x->cfg.n_heads, K = x->cfg.ring;
        host_ring ring = download_ring(x, slot, layer, head);
        assert_int_equal(ring.count, ref_mac_count(x->ref, slot, layer, head));
        for (int32_t k = 0; k < ring.count; k++) {
            const ref_entry want = ref_mac_entry(x->ref, slot, layer, head, k);
            check_entry(x, head, &ring, (ring.head - ring.count + k + K) % K, &want);
        }
        entries += ring.count;
        free_ring(&ring);
    }
    return entries;
}

/* What the reference makes of a layer's prompt, the bench's only row, is captured. */
static void capture_layer(duo *x, int32_t layer, const test_sequence *s)
{
    const int32_t n = x->b.rows[0].n_queries;
    const size_t heads = (size_t)n * (size_t)x->cfg.n_heads, d = (size_t)x->cfg.head_dim;
    float *out = malloc(heads * d * sizeof *out), *lse = malloc(heads * sizeof *lse);
    assert_true(out && lse);
    test_bench_queries(&x->b, 1, s, layer);
    duo_upload(x);
    ref_mac_prefill(x->ref, &x->b.batch, layer, &x->b.io, x->b.want, x->b.want_lse);
    for (size_t i = 0; i < heads * d; i++) out[i] = (float)x->b.want[i];
    for (size_t i = 0; i < heads; i++) lse[i] = (float)x->b.want_lse[i];
    assert_cuda(cudaMemcpy(x->io.out, out, heads * d * sizeof *out, cudaMemcpyHostToDevice));
    assert_cuda(cudaMemcpy(x->io.lse, lse, heads * sizeof *lse, cudaMemcpyHostToDevice));
    assert_gpu_ok(x->m, macattn_cuda_capture(x->m, layer, &x->batch, 0, n, &x->io, NULL));
    assert_cuda(cudaDeviceSynchronize());
    free(out), free(lse);
}

void duo_capture(duo *x, const test_sequence *s)
{
    for (int32_t layer = 0; layer < x->cfg.n_layers; layer++) capture_layer(x, layer, s);
}

void duo_decode(duo *x, const test_sequence *s)
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
        duo_check(x, "decode", 2 * relative_tolerance(x->cfg.k_dtype, F32));
    }
}

void duo_row(duo *x, int32_t r, int32_t slot, int64_t n_tokens, int32_t n_queries)
{
    test_bench_row(&x->b, r, slot, slot, &duo_sequences[slot], n_tokens, n_queries);
}

void duo_capture_layer(duo *x, int32_t layer, int32_t slot, int32_t n)
{
    duo_row(x, 0, slot, n, n);
    capture_layer(x, layer, &duo_sequences[slot]);
}
