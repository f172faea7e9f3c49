/* SPDX-License-Identifier: Apache-2.0 */
/* No stale summary is ever used: random programs over a KV cache, through ggml's scheduler and the
 * plug-in.
 *
 * Two layers of attention over caches named and laid out like llama.cpp's, driven by a model of
 * what llama.cpp does to a cache: tokens appended one by one or in chunks, taken back, dropped from
 * the middle, cells reused in any order, prefixes shared (one unified cache) or copied (a stream
 * each), positions of old tokens shifted, and whole sequences replaced in memory behind the graph's
 * back. As in a model, keys of layer 0 depend on a token and its position alone, deeper ones on all
 * before it; and with layer 0 alone nothing may be reused.
 *
 * Every query is one of a few vectors, and RoPE turns by no angle (its frequency scale is 0). So
 * a summary made for the same vector over the same tokens is right to the last digits, whatever
 * its age, and any other is far off: each output is compared with exact attention in double
 * precision. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "macattn/ggml.h"

enum {
    MAX_LAYERS = 2,
    N_KINDS = 3, /* of tokens */
    N_HEADS = 4,
    N_KV_HEADS = 2,
    DIM = 64,
    N_CELLS = 512,
    MAX_SEQUENCES = 3,
    MAX_QUERIES = 48,
    N_VECTORS = 5,
    ROW = N_KV_HEADS * DIM
};

/* f32 sums; and ggml's own operator, which rounds queries to f16 and sums values in f16 (the
 * plug-in stays out of the first graph, and of those like it). */
#define TOLERANCE 1e-5
#define GGML_TOLERANCE 5e-3

static uint64_t state = 1;

static uint64_t hash2(uint64_t a, uint64_t b)
{
    uint64_t h = a * 0x9e3779b97f4a7c15u ^ (b + 0x632be59bd9b4e019u);
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 29;
}

static uint32_t below(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

/* About normal, a function of its seed. */
static float value(uint64_t seed, uint64_t i)
{
    float sum = 0;
    for (uint64_t k = 0; k < 4; k++)
        sum += (float)(hash2(seed, i * 4 + k) >> 40) / (float)(1 << 24) - 0.5f;
    return sum * 1.7320508f;
}

/* ---------------------------------------------------------------------- the model of a cache -- */

typedef struct token {
    int cell, position;
    uint64_t kind, id; /* what it is; and what stood before it, too */
} token;

typedef struct sequence {
    int n;
    token tokens[N_CELLS];
} sequence;

typedef struct world {
    bool unified; /* one stream for all sequences; otherwise one each */
    int n_sequences, n_streams, n_layers;
    sequence sequences[MAX_SEQUENCES];
    int used[MAX_SEQUENCES][N_CELLS]; /* by stream: how many sequences have a token in the cell */

    ggml_backend_t macattn, cpu;
    ggml_backend_sched_t scheduler;
    struct ggml_context *cache_context;
    ggml_backend_buffer_t cache_buffer;
    struct ggml_tensor *k[MAX_LAYERS], *v[MAX_LAYERS];
    struct ggml_context *context; /* of the graph at hand */
    struct ggml_cgraph *graph;
    int shape[4]; /* it is for */
    struct ggml_tensor *q[MAX_LAYERS], *new_k[MAX_LAYERS], *new_v[MAX_LAYERS], *out[MAX_LAYERS];
    struct ggml_tensor *positions, *written, *mask;
    double worst;
    long n_checked, n_by_ggml, n_steps, n_reused_graphs;
} world;

static int stream_of(const world *w, int s)
{
    return w->unified ? 0 : s;
}

static void set_row(struct ggml_tensor *cache, int stream, int cell, uint64_t seed)
{
    ggml_fp16_t *row = (ggml_fp16_t *)cache->data + ((size_t)stream * N_CELLS + (size_t)cell) * ROW;
    for (uint64_t i = 0; i < ROW; i++) row[i] = ggml_fp32_to_fp16(value(seed, i));
}

static uint64_t key_seed(const token *t, int layer)
{
    if (layer == 0) return hash2(t->kind * 4096 + (uint64_t)t->position, 1);
    return hash2(t->id, (uint64_t)layer * 2 + 1);
}

static uint64_t value_seed(const token *t, int layer)
{
    return hash2(layer == 0 ? t->kind : t->id, (uint64_t)layer * 2 + 2);
}

static void name_token(token *t, const token *before, int position)
{
    t->position = position;
    t->kind = below(N_KINDS);
    t->id = hash2(before ? before->id : 0, t->kind * 4096 + (uint64_t)position);
}

static void put_token(world *w, int stream, const token *t)
{
    for (int l = 0; l < w->n_layers; l++) {
        set_row(w->k[l], stream, t->cell, key_seed(t, l));
        set_row(w->v[l], stream, t->cell, value_seed(t, l));
    }
}

static void copy_rows(world *w, int from, int to, int cell)
{
    const size_t bytes = ROW * sizeof(ggml_fp16_t);
    for (int l = 0; l < w->n_layers; l++) {
        char *k = w->k[l]->data, *v = w->v[l]->data;
        const size_t source = ((size_t)from * N_CELLS + (size_t)cell) * bytes;
        const size_t target = ((size_t)to * N_CELLS + (size_t)cell) * bytes;
        memcpy(k + target, k + source, bytes);
        memcpy(v + target, v + source, bytes);
    }
}

static int free_cell(const world *w, int stream, bool anywhere)
{
    int start = anywhere ? (int)below(N_CELLS) : 0;
    for (int i = 0; i < N_CELLS; i++) {
        const int cell = (start + i) % N_CELLS;
        if (w->used[stream][cell] == 0) return cell;
    }
    return -1;
}

static void drop(world *w, int s, int from, int to)
{
    sequence *q = &w->sequences[s];
    for (int i = from; i < to; i++) w->used[stream_of(w, s)][q->tokens[i].cell]--;
    memmove(q->tokens + from, q->tokens + to, (size_t)(q->n - to) * sizeof *q->tokens);
    q->n -= to - from;
}

/* A token's id depends on all before it, as a deep layer's key does. */
static bool append(world *w, int s, bool anywhere)
{
    sequence *q = &w->sequences[s];
    const int stream = stream_of(w, s), cell = free_cell(w, stream, anywhere);
    if (cell < 0 || q->n == N_CELLS) return false;
    q->tokens[q->n].cell = cell;
    name_token(&q->tokens[q->n], q->n > 0 ? &q->tokens[q->n - 1] : NULL, q->n);
    q->n++;
    w->used[stream][cell]++;
    return true;
}

/* --------------------------------------------------------------------------------- the graph -- */

static void die(const char *what)
{
    fprintf(stderr, "test_sequences: %s\n", what);
    exit(1);
}

static void build(world *w, int n_queries, int n_streams, int first_stream, int n_kv)
{
    ggml_free(w->context);
    struct ggml_init_params params = {ggml_tensor_overhead() * 128 + ggml_graph_overhead(), NULL,
                                      true};
    w->context = ggml_init(params);
    w->graph = ggml_new_graph(w->context);
    struct ggml_context *c = w->context;
    const int n = n_queries * n_streams;
    w->positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, n);
    w->written = ggml_new_tensor_1d(c, GGML_TYPE_I64, n);
    w->mask = ggml_new_tensor_4d(c, GGML_TYPE_F16, n_kv, n_queries, 1, n_streams);
    ggml_set_input(w->positions);
    ggml_set_input(w->written);
    ggml_set_input(w->mask);
    for (int l = 0; l < w->n_layers; l++) {
        w->q[l] = ggml_new_tensor_3d(c, GGML_TYPE_F32, DIM, N_HEADS, n);
        w->new_k[l] = ggml_new_tensor_2d(c, GGML_TYPE_F32, ROW, n);
        w->new_v[l] = ggml_new_tensor_2d(c, GGML_TYPE_F32, ROW, n);
        ggml_set_input(w->q[l]);
        ggml_set_input(w->new_k[l]);
        ggml_set_input(w->new_v[l]);
        struct ggml_tensor *scaled =
            ggml_scale(c, w->q[l], 1.0f); /* so that RoPE's input is no leaf */
        struct ggml_tensor *roped =
            ggml_rope_ext(c, scaled, w->positions, NULL, DIM, GGML_ROPE_TYPE_NEOX, 0, 10000.0f,
                          0.0f, 0.0f, 1.0f, 0.0f, 0.0f);
        struct ggml_tensor *k_all =
            ggml_reshape_2d(c, w->k[l], ROW, (int64_t)N_CELLS * w->n_streams);
        struct ggml_tensor *v_all =
            ggml_reshape_2d(c, w->v[l], ROW, (int64_t)N_CELLS * w->n_streams);
        ggml_build_forward_expand(w->graph, roped);
        ggml_build_forward_expand(w->graph, ggml_set_rows(c, k_all, w->new_k[l], w->written));
        ggml_build_forward_expand(w->graph, ggml_set_rows(c, v_all, w->new_v[l], w->written));
        const size_t row = ROW * sizeof(ggml_fp16_t), head = DIM * sizeof(ggml_fp16_t);
        const size_t start = (size_t)first_stream * N_CELLS * row;
        struct ggml_tensor *k = ggml_view_4d(c, w->k[l], DIM, N_KV_HEADS, n_kv, n_streams, head,
                                             row, N_CELLS * row, start);
        struct ggml_tensor *v = ggml_view_4d(c, w->v[l], DIM, N_KV_HEADS, n_kv, n_streams, head,
                                             row, N_CELLS * row, start);
        struct ggml_tensor *q =
            ggml_view_4d(c, roped, DIM, N_HEADS, n_queries, n_streams, roped->nb[1], roped->nb[2],
                         roped->nb[2] * (size_t)n_queries, 0);
        w->out[l] = ggml_flash_attn_ext(
            c, ggml_permute(c, q, 0, 2, 1, 3), ggml_permute(c, k, 0, 2, 1, 3),
            ggml_permute(c, v, 0, 2, 1, 3), w->mask, 1.0f / sqrtf(DIM), 0.0f, 0.0f);
        ggml_set_output(w->out[l]);
        ggml_build_forward_expand(w->graph, w->out[l]);
    }
    ggml_backend_sched_reset(w->scheduler);
    if (!ggml_backend_sched_alloc_graph(w->scheduler, w->graph)) die("no memory for the graph");
    memcpy(w->shape, (int[]){n_queries, n_streams, first_stream, n_kv}, sizeof w->shape);
}

/* ------------------------------------------------------------------------------------ a step -- */

typedef struct query {
    int sequence, n_tokens; /* it sees that many */
    uint64_t vector[N_HEADS];
} query;

static void exact(const world *w, int l, const query *q, int head, double *out)
{
    const sequence *s = &w->sequences[q->sequence];
    const int stream = stream_of(w, q->sequence), kv = head / (N_HEADS / N_KV_HEADS);
    double logits[N_CELLS], top = -INFINITY, sum = 0;
    for (int t = 0; t < q->n_tokens; t++) {
        const size_t at =
            ((size_t)stream * N_CELLS + (size_t)s->tokens[t].cell) * ROW + (size_t)kv * DIM;
        const ggml_fp16_t *k = (const ggml_fp16_t *)w->k[l]->data + at;
        logits[t] = 0;
        for (int i = 0; i < DIM; i++) {
            logits[t] +=
                (double)value(q->vector[head], (uint64_t)i) * (double)ggml_fp16_to_fp32(k[i]);
        }
        logits[t] /= sqrt(DIM);
        top = fmax(top, logits[t]);
    }
    for (int i = 0; i < DIM; i++) out[i] = 0;
    for (int t = 0; t < q->n_tokens; t++) {
        const size_t at =
            ((size_t)stream * N_CELLS + (size_t)s->tokens[t].cell) * ROW + (size_t)kv * DIM;
        const ggml_fp16_t *v = (const ggml_fp16_t *)w->v[l]->data + at;
        const double p = exp(logits[t] - top);
        sum += p;
        for (int i = 0; i < DIM; i++) out[i] += p * (double)ggml_fp16_to_fp32(v[i]);
    }
    for (int i = 0; i < DIM; i++) out[i] /= sum;
}

static void check(world *w, const query *queries, int n)
{
    for (int l = 0; l < w->n_layers; l++) {
        const bool by_ggml =
            ggml_backend_sched_get_tensor_backend(w->scheduler, w->out[l]) != w->macattn;
        for (int i = 0; i < n; i++) {
            for (int h = 0; h < N_HEADS; h++) {
                double want[DIM], error = 0, norm = 0;
                const float *got =
                    (const float *)w->out[l]->data + ((size_t)i * N_HEADS + (size_t)h) * DIM;
                exact(w, l, &queries[i], h, want);
                for (int k = 0; k < DIM; k++) {
                    error += ((double)got[k] - want[k]) * ((double)got[k] - want[k]);
                    norm += want[k] * want[k];
                }
                error = sqrt(error / norm);
                w->n_checked++;
                w->n_by_ggml += by_ggml;
                if (!by_ggml && !(error <= w->worst)) w->worst = error;
                if (!(error <= (by_ggml ? GGML_TOLERANCE : TOLERANCE))) {
                    fprintf(stderr,
                            "step %ld: layer %d, query %d of %d (sequence %d, %d tokens), head %d: "
                            "error %g\n",
                            w->n_steps, l, i, n, queries[i].sequence, queries[i].n_tokens, h,
                            error);
                    die("an output is not exact attention");
                }
            }
        }
    }
}

/* Compute for queries that are the newest tokens of their sequences, stream by stream. */
static void compute(world *w, query *queries, int n_queries, int n_streams, int first_stream)
{
    const int n = n_queries * n_streams;
    int highest = 0;
    for (int i = 0; i < n; i++) {
        const sequence *s = &w->sequences[queries[i].sequence];
        for (int t = 0; t < s->n; t++)
            highest = s->tokens[t].cell > highest ? s->tokens[t].cell : highest;
    }
    const int n_kv = (highest / 64 + 1) * 64;
    const int shape[4] = {n_queries, n_streams, first_stream, n_kv};
    if (w->graph && memcmp(shape, w->shape, sizeof shape) == 0 && below(4) != 0) {
        w->n_reused_graphs++;
    } else {
        build(w, n_queries, n_streams, first_stream, n_kv);
    }
    ggml_fp16_t *mask = w->mask->data;
    for (int i = 0; i < n * n_kv; i++) mask[i] = ggml_fp32_to_fp16(-INFINITY);
    for (int i = 0; i < n; i++) {
        const sequence *s = &w->sequences[queries[i].sequence];
        const token *own = &s->tokens[queries[i].n_tokens - 1];
        for (int t = 0; t < queries[i].n_tokens; t++) {
            mask[(size_t)i * (size_t)n_kv + (size_t)s->tokens[t].cell] = ggml_fp32_to_fp16(0.0f);
        }
        ((int32_t *)w->positions->data)[i] = queries[i].n_tokens - 1;
        ((int64_t *)w->written->data)[i] =
            (int64_t)stream_of(w, queries[i].sequence) * N_CELLS + own->cell;
        for (int l = 0; l < w->n_layers; l++) {
            float *k = (float *)w->new_k[l]->data + (size_t)i * ROW,
                  *v = (float *)w->new_v[l]->data + (size_t)i * ROW;
            for (uint64_t j = 0; j < ROW; j++) {
                k[j] = value(key_seed(own, l), j);
                v[j] = value(value_seed(own, l), j);
            }
            for (int h = 0; h < N_HEADS; h++) {
                float *q = (float *)w->q[l]->data + ((size_t)i * N_HEADS + (size_t)h) * DIM;
                for (uint64_t j = 0; j < DIM; j++) q[j] = value(queries[i].vector[h], j);
            }
        }
    }
    w->n_steps++;
    if (ggml_backend_sched_graph_compute(w->scheduler, w->graph) != GGML_STATUS_SUCCESS)
        die("compute failed");
    check(w, queries, n);
}

static void ask(query *q, int s, int n_tokens)
{
    q->sequence = s;
    q->n_tokens = n_tokens;
    for (int h = 0; h < N_HEADS; h++) q->vector[h] = 1000 + below(N_VECTORS);
}

/* -------------------------------------------------------------------------------- operations -- */

static void grow_unified(world *w)
{
    query queries[MAX_QUERIES];
    int n = 0;
    const bool anywhere = below(3) == 0, chunk = below(6) == 0;
    for (int s = 0; s < w->n_sequences; s++) {
        if (below(3) == 0) continue;
        for (int i = chunk ? 1 + (int)below(12) : 1;
             i > 0 && n < MAX_QUERIES && append(w, s, anywhere); i--) {
            ask(&queries[n++], s, w->sequences[s].n);
        }
    }
    if (n > 0) compute(w, queries, n, 1, 0);
}

static void grow_streams(world *w)
{
    query queries[MAX_QUERIES * MAX_SEQUENCES];
    const int first = (int)below((uint32_t)w->n_sequences);
    const int n_streams = 1 + (int)below((uint32_t)(w->n_sequences - first));
    const int n_queries = below(6) == 0 ? 1 + (int)below(MAX_QUERIES / 2) : 1;
    const bool anywhere = below(5) == 0;
    for (int s = first; s < first + n_streams; s++) {
        if (w->sequences[s].n + n_queries > N_CELLS) return;
    }
    for (int s = first; s < first + n_streams; s++) {
        for (int i = 0; i < n_queries; i++) {
            append(w, s, anywhere);
            ask(&queries[(s - first) * n_queries + i], s, w->sequences[s].n);
        }
    }
    compute(w, queries, n_queries, n_streams, first);
}

/* Sequence b becomes a copy of the beginning of a. */
static void share(world *w, int a, int b)
{
    if (a == b || w->sequences[a].n == 0) return;
    const int n = 1 + (int)below((uint32_t)w->sequences[a].n);
    drop(w, b, 0, w->sequences[b].n);
    for (int i = 0; i < n; i++) {
        const token *t = &w->sequences[a].tokens[i];
        w->sequences[b].tokens[i] = *t;
        w->used[stream_of(w, b)][t->cell]++;
        if (!w->unified) copy_rows(w, a, b, t->cell);
    }
    w->sequences[b].n = n;
}

/* Other tokens in the same cells, written past the graph: as many, or the first ones kept. */
static void replace(world *w, int s)
{
    sequence *q = &w->sequences[s];
    const int from = below(2) == 0 || q->n == 0 ? 0 : (int)below((uint32_t)q->n);
    for (int i = 0; i < q->n; i++) {
        if (w->used[stream_of(w, s)][q->tokens[i].cell] > 1)
            return; /* shared: not this one's to change */
    }
    for (int i = from; i < q->n; i++) {
        name_token(&q->tokens[i], i > 0 ? &q->tokens[i - 1] : NULL, q->tokens[i].position);
        put_token(w, stream_of(w, s), &q->tokens[i]);
    }
}

/* Positions of the first tokens change, by a graph that turns their keys in place. */
static void shift(world *w, int s)
{
    const sequence *q = &w->sequences[s];
    if (q->n < 4) return;
    const int n = 1 + (int)below((uint32_t)q->n - 2);
    ggml_backend_sched_reset(w->scheduler);
    ggml_free(w->context);
    w->context = ggml_init(
        (struct ggml_init_params){ggml_tensor_overhead() * 16 + ggml_graph_overhead(), NULL, true});
    struct ggml_context *c = w->context;
    struct ggml_cgraph *graph = ggml_new_graph(c);
    struct ggml_tensor *by = ggml_new_tensor_1d(c, GGML_TYPE_I32, N_CELLS);
    ggml_set_input(by);
    const size_t row = ROW * sizeof(ggml_fp16_t), head = DIM * sizeof(ggml_fp16_t);
    for (int l = 0; l < w->n_layers; l++) {
        struct ggml_tensor *k = ggml_view_3d(c, w->k[l], DIM, N_KV_HEADS, N_CELLS, head, row,
                                             (size_t)stream_of(w, s) * N_CELLS * row);
        ggml_build_forward_expand(graph, ggml_rope_inplace(c, k, by, DIM, GGML_ROPE_TYPE_NEOX));
    }
    if (!ggml_backend_sched_alloc_graph(w->scheduler, graph)) die("no memory for the shift");
    memset(by->data, 0, ggml_nbytes(by));
    for (int i = 0; i < n; i++) ((int32_t *)by->data)[q->tokens[i].cell] = 7;
    if (ggml_backend_sched_graph_compute(w->scheduler, graph) != GGML_STATUS_SUCCESS)
        die("shift failed");
    w->graph = NULL;
}

static void change(world *w)
{
    const int s = (int)below((uint32_t)w->n_sequences), n = w->sequences[s].n;
    switch (below(14)) {
    case 0: drop(w, s, 0, n); break;
    case 1:
    case 2:
    case 3:
    case 4: /* take back a few, as after a rejected draft */
        drop(w, s, n > 6 ? n - (int)below(6) : n, n);
        break;
    case 5: /* take back many */
        if (n > 0) drop(w, s, (int)below((uint32_t)n), n);
        break;
    case 6: /* context shift */
        if (n > 8) drop(w, s, 2, 2 + (int)below((uint32_t)n / 2));
        break;
    case 7:
    case 8: share(w, s, (int)below((uint32_t)w->n_sequences)); break;
    case 9:
    case 10: replace(w, s); break;
    case 11: shift(w, s); break;
    default: break;
    }
}

static void make_room(world *w)
{
    for (int s = 0; s < w->n_sequences; s++) {
        const int most = w->unified ? N_CELLS / w->n_sequences - 30 : N_CELLS - 60;
        if (w->sequences[s].n > most) drop(w, s, 0, w->sequences[s].n);
    }
}

/* -------------------------------------------------------------------------------------- main -- */

static void world_create(world *w, bool unified, int n_layers)
{
    *w = (world){.unified = unified,
                 .n_layers = n_layers,
                 .n_sequences = MAX_SEQUENCES,
                 .n_streams = unified ? 1 : MAX_SEQUENCES};
    w->macattn = ggml_backend_init_by_name("MACATTN", NULL);
    w->cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    if (!w->macattn || !w->cpu) die("the plug-in or the CPU backend is not loaded");
    ggml_backend_t backends[] = {w->macattn, w->cpu};
    w->scheduler = ggml_backend_sched_new(backends, NULL, 2, 256, false, true);
    struct ggml_init_params params = {ggml_tensor_overhead() * 8, NULL, true};
    w->cache_context = ggml_init(params);
    for (int l = 0; l < w->n_layers; l++) {
        w->k[l] = ggml_new_tensor_3d(w->cache_context, GGML_TYPE_F16, ROW, N_CELLS, w->n_streams);
        w->v[l] = ggml_new_tensor_3d(w->cache_context, GGML_TYPE_F16, ROW, N_CELLS, w->n_streams);
        ggml_format_name(w->k[l], "cache_k_l%d", l);
        ggml_format_name(w->v[l], "cache_v_l%d", l);
    }
    w->cache_buffer = ggml_backend_alloc_ctx_tensors(w->cache_context, w->cpu);
    ggml_backend_buffer_clear(w->cache_buffer, 0);
}

static void world_free(world *w)
{
    ggml_backend_sched_free(w->scheduler);
    ggml_free(w->context);
    ggml_backend_buffer_free(w->cache_buffer);
    ggml_free(w->cache_context);
    ggml_backend_free(w->macattn);
    ggml_backend_free(w->cpu);
}

/* Of the context that was made last. */
static uint64_t hits(void)
{
    macattn_ggml_interface_t get;
    void *function = ggml_backend_reg_get_proc_address(ggml_backend_reg_by_name("MACATTN"),
                                                       MACATTN_GGML_INTERFACE);
    memcpy(&get, &function, sizeof get);
    const macattn_ggml_interface *plugin = get(MACATTN_GGML_INTERFACE_VERSION);
    uint64_t n = 0;
    for (int l = 0; l < plugin->n_layers(plugin->newest()); l++) {
        macattn_stats stats = {.struct_size = sizeof stats};
        if (plugin->stats(plugin->newest(), l, -1, &stats) == MACATTN_OK) n += stats.hits;
    }
    return n;
}

static void run(bool unified, int n_layers, uint64_t seed, int n_operations)
{
    static world w;
    state = seed;
    world_create(&w, unified, n_layers);
    for (int i = 0; i < n_operations; i++) {
        make_room(&w);
        if (below(8) == 0) change(&w);
        if (unified) {
            grow_unified(&w);
        } else {
            grow_streams(&w);
        }
    }
    const uint64_t n_hits = hits();
    if ((n_hits > 0) != (n_layers > 1)) die("summaries are reused iff there is a deeper layer");
    printf("%s cache, %d layers, seed %llu: %llu hits, %ld steps (%ld with the graph of the step "
           "before), %ld outputs "
           "(%ld by ggml), worst "
           "error %.2g\n",
           unified ? "unified" : "split", n_layers, (unsigned long long)seed,
           (unsigned long long)n_hits, w.n_steps, w.n_reused_graphs, w.n_checked, w.n_by_ggml,
           w.worst);
    world_free(&w);
}

int main(int argc, char **argv)
{
    if (argc < 3) die("usage: test_sequences GGML_FOLDER PLUGIN.so [operations] [seed]");
    const int n = argc > 3 ? atoi(argv[3]) : 3000;
    const uint64_t seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 1;
    ggml_backend_load_all_from_path(argv[1]);
    if (!ggml_backend_load(argv[2])) die("the plug-in does not load");
    for (uint64_t i = 0; i < 3; i++) {
        run(true, MAX_LAYERS, seed + i, n);
        run(false, MAX_LAYERS, seed + i, n);
    }
    run(true, 1, seed, n / 4);
    run(false, 1, seed, n / 4);
    return 0;
}
