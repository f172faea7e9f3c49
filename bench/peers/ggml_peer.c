/* SPDX-License-Identifier: Apache-2.0 */
/* ggml's flash attention as a peer of `macattn bench` (tools/bench/peer.h), built by fetch/get-llama.sh.
 *
 * The graph is the one llama.cpp builds for a layer: q is permuted, K and V are permuted views of the
 * cache whose rows hold all KV heads of a token, the mask is f16, accumulation is asked for in f32.
 * The CPU backend is loaded, and given a thread pool with llama.cpp's default polling, as llama.cpp
 * does; the pool lives as long as the peer. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "peer.h"

#define MASK_ZERO 0x0000u
#define MASK_MINUS_INF 0xfc00u

typedef struct ggml_threadpool *(*threadpool_new_fn)(struct ggml_threadpool_params *params);
typedef void (*threadpool_free_fn)(struct ggml_threadpool *threadpool);
typedef void (*set_threadpool_fn)(ggml_backend_t backend, struct ggml_threadpool *threadpool);

struct peer {
    struct ggml_context *ctx;
    ggml_backend_t backend;
    struct ggml_threadpool *pool;
    threadpool_free_fn pool_free;
    ggml_backend_buffer_t inputs;   /* q and mask */
    ggml_backend_buffer_t *buffers; /* [2 * n_layers] wrapped around the caller's K and V */
    ggml_gallocr_t allocator;
    struct ggml_tensor **out; /* [n_layers] */
    struct ggml_cgraph **graphs;
    int32_t n_layers, newest;
};

static bool type_of(const char *name, enum ggml_type *type)
{
    static const struct {
        const char *name;
        enum ggml_type type;
    } types[] = {{"f32", GGML_TYPE_F32},   {"f16", GGML_TYPE_F16},   {"bf16", GGML_TYPE_BF16},
                 {"q8_0", GGML_TYPE_Q8_0}, {"q4_0", GGML_TYPE_Q4_0}, {"q4_1", GGML_TYPE_Q4_1},
                 {"q5_0", GGML_TYPE_Q5_0}, {"q5_1", GGML_TYPE_Q5_1}, {"iq4_nl", GGML_TYPE_IQ4_NL}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i].name, name) == 0) {
            *type = types[i].type;
            return true;
        }
    }
    return false;
}

/* Standard error is the caller's: errors only. */
static void log_errors(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static ggml_backend_reg_t load_cpu(void)
{
    ggml_log_set(log_errors, NULL);
    ggml_backend_reg_t reg = ggml_backend_reg_by_name("CPU");
    return reg ? reg : ggml_backend_load(MACATTN_GGML_DIR "/libggml-cpu.so");
}

static const char *peer_version(void)
{
    static char text[160];
    if (text[0] == '\0') {
        snprintf(text, sizeof text, "ggml %s (llama-cpp-python %s)", ggml_version(),
                 MACATTN_GGML_SDIST);
    }
    return text;
}

static void peer_destroy(peer *p)
{
    if (!p) {
        return;
    }
    if (p->allocator) {
        ggml_gallocr_free(p->allocator);
    }
    if (p->buffers) {
        for (int32_t i = 0; i < 2 * p->n_layers; i++) {
            if (p->buffers[i]) {
                ggml_backend_buffer_free(p->buffers[i]);
            }
        }
    }
    if (p->inputs) {
        ggml_backend_buffer_free(p->inputs);
    }
    if (p->backend) {
        ggml_backend_free(p->backend);
    }
    if (p->pool) {
        p->pool_free(p->pool);
    }
    if (p->ctx) {
        ggml_free(p->ctx);
    }
    free(p->buffers);
    free(p->graphs);
    free(p->out);
    free(p);
}

static bool start_backend(peer *p, int32_t n_threads)
{
    ggml_backend_reg_t reg = load_cpu();
    if (!reg) {
        return false;
    }
    p->backend = ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), NULL);
    if (!p->backend) {
        return false;
    }
    /* The functions come as void pointers; a union is how C turns them into what they are. */
    union {
        void *p;
        threadpool_new_fn create;
        threadpool_free_fn destroy;
        set_threadpool_fn set;
        ggml_backend_set_n_threads_t set_n_threads;
    } create, destroy, set, set_n_threads;
    create.p = ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_new");
    destroy.p = ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_free");
    set.p = ggml_backend_reg_get_proc_address(reg, "ggml_backend_cpu_set_threadpool");
    set_n_threads.p = ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    if (!create.p || !destroy.p || !set.p || !set_n_threads.p) {
        return false;
    }
    struct ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    p->pool_free = destroy.destroy;
    p->pool = create.create(&params);
    if (!p->pool) {
        return false;
    }
    set_n_threads.set_n_threads(p->backend, n_threads);
    set.set(p->backend, p->pool);
    return true;
}

/* A view [dim, token, kv_head, stream] of the caller's buffer. */
static struct ggml_tensor *kv_view(peer *p, ggml_backend_buffer_t *buffer, const void *data,
                                   size_t bytes, enum ggml_type type, int64_t dim,
                                   const peer_shape *s)
{
    struct ggml_tensor *cache =
        ggml_new_tensor_3d(p->ctx, type, dim * s->n_kv_heads, s->n_rows, s->n_streams);
    /* ggml takes the buffer as its own to write; an input of the graph is only read. */
    union {
        const void *in;
        void *out;
    } unconst = {data};
    *buffer = ggml_backend_cpu_buffer_from_ptr(unconst.out, bytes);
    if (!*buffer || ggml_nbytes(cache) > bytes ||
        ggml_backend_tensor_alloc(*buffer, cache, unconst.out) != GGML_STATUS_SUCCESS) {
        return NULL;
    }
    struct ggml_tensor *view =
        ggml_view_4d(p->ctx, cache, dim, s->n_kv_heads, s->n_rows, s->n_streams,
                     ggml_row_size(type, dim), cache->nb[1], cache->nb[2], 0);
    return ggml_permute(p->ctx, view, 0, 2, 1, 3);
}

static void fill_mask(const peer_shape *s, uint16_t *mask)
{
    for (int32_t stream = 0; stream < s->n_streams; stream++) {
        for (int32_t i = 0; i < s->n_queries; i++) {
            int64_t seen = s->n_tokens - s->n_queries + i + 1;
            for (int64_t t = 0; t < s->n_rows; t++) {
                *mask++ = t < seen ? MASK_ZERO : MASK_MINUS_INF;
            }
        }
    }
}

static bool build(peer *p, const peer_shape *s, char *error, size_t error_size)
{
    enum ggml_type k_type, v_type;
    if (!type_of(s->k_type, &k_type) || !type_of(s->v_type, &v_type)) {
        snprintf(error, error_size, "ggml has no type %s/%s", s->k_type, s->v_type);
        return false;
    }
    struct ggml_tensor *q_in = ggml_new_tensor_4d(p->ctx, GGML_TYPE_F32, s->head_dim, s->n_heads,
                                                  s->n_queries, s->n_streams);
    struct ggml_tensor *mask =
        ggml_new_tensor_4d(p->ctx, GGML_TYPE_F16, s->n_rows, s->n_queries, 1, s->n_streams);
    p->inputs = ggml_backend_alloc_ctx_tensors(p->ctx, p->backend);
    uint16_t *mask_bits = malloc(ggml_nbytes(mask));
    if (!p->inputs || !mask_bits) {
        free(mask_bits);
        snprintf(error, error_size, "out of memory");
        return false;
    }
    fill_mask(s, mask_bits);
    ggml_backend_tensor_set(mask, mask_bits, 0, ggml_nbytes(mask));
    ggml_backend_tensor_set(q_in, s->q, 0, ggml_nbytes(q_in));
    free(mask_bits);

    struct ggml_tensor *q = ggml_permute(p->ctx, q_in, 0, 2, 1, 3);
    for (int32_t i = 0; i < s->n_layers; i++) {
        struct ggml_tensor *k =
            kv_view(p, &p->buffers[2 * i], s->k[i], s->k_bytes, k_type, s->head_dim, s);
        struct ggml_tensor *v =
            kv_view(p, &p->buffers[2 * i + 1], s->v[i], s->v_bytes, v_type, s->v_head_dim, s);
        if (!k || !v) {
            snprintf(error, error_size, "ggml cannot use the buffers");
            return false;
        }
        p->out[i] = ggml_flash_attn_ext(p->ctx, q, k, v, mask, s->scale, 0.0f, s->softcap);
        ggml_prec_set_acc(p->out[i], GGML_PREC_F32);
        if (!ggml_backend_supports_op(p->backend, p->out[i])) {
            snprintf(error, error_size, "ggml's flash attention does not support this shape");
            return false;
        }
        ggml_set_output(p->out[i]);
        p->graphs[i] = ggml_new_graph_custom(p->ctx, 16, false);
        ggml_build_forward_expand(p->graphs[i], p->out[i]);
    }
    return true;
}

static bool allocate_outputs(peer *p)
{
    /* One graph of all layers, so that every output has memory of its own. */
    struct ggml_cgraph *all = ggml_new_graph_custom(p->ctx, 16 * (size_t)p->n_layers, false);
    for (int32_t i = 0; i < p->n_layers; i++) {
        ggml_build_forward_expand(all, p->out[i]);
    }
    p->allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(p->backend));
    return p->allocator && ggml_gallocr_alloc_graph(p->allocator, all);
}

static peer *peer_create(const peer_shape *s, char *error, size_t error_size)
{
    peer *p = calloc(1, sizeof *p);
    if (!p) {
        snprintf(error, error_size, "out of memory");
        return NULL;
    }
    size_t layers = (size_t)s->n_layers;
    p->n_layers = s->n_layers;
    p->buffers = calloc(2 * layers, sizeof *p->buffers);
    p->out = calloc(layers, sizeof(struct ggml_tensor *));
    p->graphs = calloc(layers, sizeof(struct ggml_cgraph *));
    struct ggml_init_params params = {
        .mem_size = (16 * layers + 16) * ggml_tensor_overhead() +
                    2 * (layers + 1) * ggml_graph_overhead_custom(16 * layers, false),
        .no_alloc = true};
    p->ctx = ggml_init(params);
    snprintf(error, error_size, "ggml's CPU backend could not be started from %s",
             MACATTN_GGML_DIR);
    if (!p->buffers || !p->out || !p->graphs || !p->ctx || !start_backend(p, s->n_threads) ||
        !build(p, s, error, error_size)) {
        peer_destroy(p);
        return NULL;
    }
    if (!allocate_outputs(p)) {
        snprintf(error, error_size, "out of memory");
        peer_destroy(p);
        return NULL;
    }
    return p;
}

static int peer_compute(peer *p, int32_t layer)
{
    p->newest = layer;
    return ggml_backend_graph_compute(p->backend, p->graphs[layer]) == GGML_STATUS_SUCCESS ? 0 : -1;
}

static const float *peer_output(const peer *p)
{
    return p->out[p->newest]->data;
}

__attribute__((visibility("default"))) const peer_api *macattn_peer(void);

const peer_api *macattn_peer(void)
{
    static const peer_api api = {.abi = MACATTN_PEER_ABI,
                                 .version = peer_version,
                                 .create = peer_create,
                                 .compute = peer_compute,
                                 .output = peer_output,
                                 .destroy = peer_destroy};
    return &api;
}
