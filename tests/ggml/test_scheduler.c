/* SPDX-License-Identifier: Apache-2.0 */
/* The device as ggml's scheduler sees it when llama.cpp drives it: the graph that only probes,
 * contexts made in turns by two threads, caches that one context writes and another reads, a GPU
 * in the machine, pipelining, encoders, numbers of threads that change, and layers put on the
 * device itself. usage: test_scheduler GGML_FOLDER PLUGIN.so */
#include <dirent.h>
#include <malloc.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"

enum { DIM = 64, N_HEADS = 2, ROW = N_HEADS * DIM, N_CELLS = 256, LAYER = 1 };

static int failures;
static float softcap; /* of the graphs that are built */

static void expect(bool ok, const char *what)
{
    if (ok) return;
    printf("FAILED: %s\n", what);
    failures++;
}

static void die(const char *what)
{
    fprintf(stderr, "test_scheduler: %s\n", what);
    exit(1);
}

/* ---------------------------------------------------------------------------------- contexts -- */

typedef enum keys {
    KEYS_CACHED,     /* views of a cache that the graph writes */
    KEYS_F32,        /* of a cache in f32, made f16 on the way */
    KEYS_WITHOUT,    /* computed in the graph: an encoder */
    KEYS_JOINED,     /* of a cache, with further ones behind */
    KEYS_OF_ANOTHER, /* of a cache that another context writes */
    N_KEYS
} keys;

typedef struct context {
    ggml_backend_t macattn, cpu;
    ggml_backend_sched_t scheduler;
    struct ggml_context *cache_context, *graph_context;
    ggml_backend_buffer_t buffer;
    struct ggml_tensor *k, *v, *k32, *v32, *weight;
    struct ggml_cgraph *graph;
    struct ggml_tensor *q, *new_k, *new_v, *positions, *written, *mask, *out;
    int n;
} context;

static void set_threads(ggml_backend_t backend, int n)
{
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
    void *function = ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    ggml_backend_set_n_threads_t set;
    memcpy(&set, &function, sizeof set);
    set(backend, n);
}

static struct ggml_tensor *new_cache(context *c, enum ggml_type type, const char *name)
{
    struct ggml_tensor *t = ggml_new_tensor_3d(c->cache_context, type, ROW, N_CELLS, 1);
    ggml_format_name(t, "%s%d", name, LAYER);
    return t;
}

/* As llama_context makes one. `cpu_type`: what kind of memory the CPU is given; NULL = its own. */
static void create(context *c, ggml_backend_buffer_type_t cpu_type, bool pipelined)
{
    *c = (context){0};
    c->macattn = ggml_backend_init_by_name("MACATTN", NULL);
    c->cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    if (!c->macattn || !c->cpu) die("no backend");
    set_threads(c->cpu, 1);
    set_threads(c->macattn, 1);
    ggml_backend_t backends[] = {c->macattn, c->cpu};
    ggml_backend_buffer_type_t types[] = {ggml_backend_get_default_buffer_type(c->macattn),
                                          cpu_type ? cpu_type
                                                   : ggml_backend_get_default_buffer_type(c->cpu)};
    c->scheduler = ggml_backend_sched_new(backends, types, 2, 256, pipelined, true);
    c->cache_context = ggml_init((struct ggml_init_params){ggml_tensor_overhead() * 8, NULL, true});
    c->k = new_cache(c, GGML_TYPE_F16, "cache_k_l");
    c->v = new_cache(c, GGML_TYPE_F16, "cache_v_l");
    c->k32 = new_cache(c, GGML_TYPE_F32, "cache_k_l");
    c->v32 = new_cache(c, GGML_TYPE_F32, "cache_v_l");
    c->weight = ggml_new_tensor_1d(c->cache_context, GGML_TYPE_F32, ROW);
    c->buffer = ggml_backend_alloc_ctx_tensors(c->cache_context, c->cpu);
    ggml_backend_buffer_clear(c->buffer, 0);
}

static void destroy(context *c)
{
    ggml_backend_sched_free(c->scheduler);
    ggml_backend_free(c->macattn);
    ggml_backend_free(c->cpu);
    ggml_free(c->graph_context);
    ggml_backend_buffer_free(c->buffer);
    ggml_free(c->cache_context);
}

static struct ggml_tensor *input(context *c, struct ggml_tensor *t)
{
    (void)c;
    ggml_set_input(t);
    return t;
}

/* Heads of what lies in rows. */
static struct ggml_tensor *heads(struct ggml_context *g, struct ggml_tensor *rows)
{
    const size_t head = ggml_row_size(rows->type, DIM);
    return ggml_permute(g, ggml_view_3d(g, rows, DIM, N_HEADS, rows->ne[1], head, rows->nb[1], 0),
                        0, 2, 1, 3);
}

static struct ggml_tensor *as_f16(struct ggml_context *g, struct ggml_tensor *t)
{
    return t->type == GGML_TYPE_F32 ? ggml_cast(g, t, GGML_TYPE_F16) : t;
}

/* One layer for n tokens; `cache`: whose. Values one by one, as without flash attention, if
 * `apart`. */
static void build(context *c, const context *cache, keys kind, int n, bool masked, bool apart)
{
    ggml_free(c->graph_context);
    c->graph_context = ggml_init(
        (struct ggml_init_params){ggml_tensor_overhead() * 64 + ggml_graph_overhead(), NULL, true});
    struct ggml_context *g = c->graph_context;
    c->graph = ggml_new_graph(g);
    c->n = n;
    c->q = input(c, ggml_new_tensor_3d(g, GGML_TYPE_F32, DIM, N_HEADS, n));
    c->new_k = input(c, ggml_new_tensor_2d(g, GGML_TYPE_F32, ROW, n));
    c->new_v = input(c, ggml_new_tensor_2d(g, GGML_TYPE_F32, ROW, n));
    c->positions = input(c, ggml_new_tensor_1d(g, GGML_TYPE_I32, n));
    c->written = input(c, ggml_new_tensor_1d(g, GGML_TYPE_I64, apart ? n * ROW : n));
    struct ggml_tensor *roped =
        ggml_rope(g, ggml_scale(g, c->q, 1.0f), c->positions, DIM, GGML_ROPE_TYPE_NEOX);
    ggml_build_forward_expand(c->graph, roped);
    struct ggml_tensor *k = kind == KEYS_F32 ? cache->k32 : cache->k;
    struct ggml_tensor *v = kind == KEYS_F32 ? cache->v32 : cache->v;
    if (kind == KEYS_WITHOUT) {
        k = ggml_mul(g, c->new_k, c->weight);
        v = ggml_mul(g, c->new_v, c->weight);
    } else if (kind != KEYS_OF_ANOTHER) {
        struct ggml_tensor *to =
            ggml_reshape_2d(g, v, apart ? 1 : ROW, v->ne[1] * (apart ? ROW : 1));
        struct ggml_tensor *from =
            apart ? ggml_reshape_2d(g, c->new_v, 1, (int64_t)n * ROW) : c->new_v;
        struct ggml_tensor *cells = apart ? ggml_view_1d(g, c->written, n, 0) : c->written;
        ggml_build_forward_expand(c->graph, ggml_set_rows(g, k, c->new_k, cells));
        ggml_build_forward_expand(c->graph, ggml_set_rows(g, to, from, c->written));
    }
    k = heads(g, k);
    v = heads(g, v);
    if (kind == KEYS_JOINED) {
        k = ggml_concat(g, k, ggml_cast(g, heads(g, c->new_k), GGML_TYPE_F16), 1);
        v = ggml_concat(g, v, ggml_cast(g, heads(g, c->new_v), GGML_TYPE_F16), 1);
    }
    k = as_f16(g, k);
    v = as_f16(g, v);
    c->mask = masked ? input(c, ggml_new_tensor_2d(g, GGML_TYPE_F16, k->ne[1], n)) : NULL;
    c->out = ggml_flash_attn_ext(g, ggml_permute(g, roped, 0, 2, 1, 3), k, v, c->mask,
                                 1.0f / sqrtf(DIM), 0.0f, softcap);
    ggml_set_output(c->out);
    ggml_build_forward_expand(c->graph, c->out);
}

/* Divide the graph at hand: whether attention is the device's. */
static bool divide(context *c)
{
    ggml_backend_sched_reset(c->scheduler);
    ggml_backend_sched_split_graph(c->scheduler, c->graph);
    return ggml_backend_sched_get_tensor_backend(c->scheduler, c->out) == c->macattn;
}

static bool divide_new(context *c, keys kind, int n, bool masked)
{
    build(c, c, kind, n, masked, false);
    return divide(c);
}

static float value(uint64_t i)
{
    i = (i + 1) * 0x9e3779b97f4a7c15u;
    i = (i ^ i >> 32) * 0xd6e8feb86659fd93u;
    return (float)(i >> 40) / (float)(1 << 23) - 1.0f;
}

static void fill(struct ggml_tensor *t, uint64_t seed)
{
    for (int64_t i = 0; i < ggml_nelements(t); i++)
        ((float *)t->data)[i] = value(seed + (uint64_t)i);
}

/* Tokens `first` and on, into the cells of the same number; each sees those before it, or all. */
static void compute(context *c, int first, bool all)
{
    ggml_backend_sched_reset(c->scheduler);
    if (!ggml_backend_sched_alloc_graph(c->scheduler, c->graph)) die("no memory");
    memset(c->out->data, 0xff, ggml_nbytes(c->out)); /* may be where an input lies before */
    fill(c->q, 1000 + (uint64_t)first);
    if (c->new_k->data) fill(c->new_k, 2000 + (uint64_t)first);
    if (c->new_v->data) fill(c->new_v, 3000 + (uint64_t)first);
    for (int i = 0; i < c->n; i++) {
        ((int32_t *)c->positions->data)[i] = first + i;
        if (c->written->data) ((int64_t *)c->written->data)[i] = first + i;
        for (int64_t j = 0; c->mask && j < c->mask->ne[0]; j++) {
            ((ggml_fp16_t *)c->mask->data)[i * c->mask->ne[0] + j] =
                ggml_fp32_to_fp16(all || j <= first + i ? 0.0f : -INFINITY);
        }
    }
    if (ggml_backend_sched_graph_compute(c->scheduler, c->graph) != GGML_STATUS_SUCCESS) {
        die("compute failed");
    }
}

/* ------------------------------------------------------------------------------------- tests -- */

/* The first graph is llama.cpp's, to see whether flash attention stays on; of any kind, and
 * however long. */
static void test_probe(void)
{
    for (int kind = 0; kind < KEYS_OF_ANOTHER; kind++) {
        for (int n = 1; n <= 4; n += 3) {
            context c;
            create(&c, NULL, false);
            expect(!divide_new(&c, kind, n, true), "the graph that probes is not the device's");
            expect(divide_new(&c, kind, n, true), "the next is, of the same length");
            expect(divide_new(&c, kind, 1, true), "and one of a token");
            destroy(&c);
        }
    }
    context unused, c;
    create(&unused, NULL, false);
    destroy(&unused); /* it never divided a graph */
    create(&c, NULL, false);
    expect(!divide_new(&c, KEYS_CACHED, 1, true), "a context before that came to nothing");
    expect(divide_new(&c, KEYS_CACHED, 1, true), "then as always");
    destroy(&c);
}

static pthread_barrier_t barrier;

static void *make_context(void *arg)
{
    const bool second = arg != NULL;
    for (int i = 0; i < 20; i++) {
        context c;
        if (second) pthread_barrier_wait(&barrier);
        create(&c, NULL, false);
        if (!second) pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier); /* both are made, neither has divided a graph */
        if (second) pthread_barrier_wait(&barrier);
        expect(!divide_new(&c, KEYS_CACHED, second ? 4 : 1, true), "each thread's first graph");
        if (!second) pthread_barrier_wait(&barrier);
        expect(divide_new(&c, KEYS_CACHED, second ? 4 : 1, true), "each thread's second graph");
        pthread_barrier_wait(&barrier);
        destroy(&c);
    }
    return NULL;
}

static void test_two_threads(void)
{
    pthread_t other;
    pthread_barrier_init(&barrier, NULL, 2);
    if (pthread_create(&other, NULL, make_context, &barrier) != 0) die("no thread");
    make_context(NULL);
    pthread_join(other, NULL);
    pthread_barrier_destroy(&barrier);
}

/* A draft model may read the cache of its target. The graph that wrote it is gone by then. */
static void test_shared_cache(void)
{
    context target, draft;
    create(&target, NULL, false);
    divide_new(&target, KEYS_CACHED, 2, true);
    create(&draft, NULL, false);
    divide_new(&draft, KEYS_CACHED, 2, true);
    for (int i = 0; i < 8; i++) {
        build(&target, &target, KEYS_CACHED, 1, true, false);
        compute(&target, i, false);
        ggml_free(target.graph_context);
        target.graph_context = NULL;
        build(&draft, &target, KEYS_OF_ANOTHER, 1, true, false);
        compute(&draft, i, false);
        expect(isfinite(((float *)draft.out->data)[0]), "a reader of another's cache");
    }
    destroy(&draft);
    destroy(&target);
}

#ifndef __SANITIZE_THREAD__
static int n_os_threads(void)
{
    int n = 0;
    DIR *folder = opendir("/proc/self/task");
    while (folder && readdir(folder)) n++;
    if (folder) closedir(folder);
    return n;
}

/* The first graph's number of threads is no limit for those after it. */
static void test_threads(void)
{
    context c;
    create(&c, NULL, false);
    divide_new(&c, KEYS_CACHED, 32, true);
    build(&c, &c, KEYS_CACHED, 32, true, false);
    compute(&c, 0, false);
    const int before = n_os_threads();
    set_threads(c.macattn, 2);
    build(&c, &c, KEYS_CACHED, 32, true, false);
    compute(&c, 32, false);
    expect(sysconf(_SC_NPROCESSORS_ONLN) < 2 || n_os_threads() > before,
           "more threads than at first");
    destroy(&c);
}
#endif

static size_t in_use(void)
{
    const struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* Every query sees everything, as in an encoder: left to ggml, and no list for each query. */
static void test_encoder(void)
{
    enum { N = 2048 };
    context c;
    create(&c, NULL, false);
    divide_new(&c, KEYS_WITHOUT, 1, true);
    expect(divide_new(&c, KEYS_WITHOUT, 8, false), "a few queries without a mask");
    expect(!divide_new(&c, KEYS_WITHOUT, 1500, false), "many queries without a mask");
    build(&c, &c, KEYS_WITHOUT, N, true, false);
    const size_t before = in_use();
    compute(&c, 0, true);
    const size_t by_graph = in_use() - before;
    compute(&c, 0, true);
    expect(isfinite(((float *)c.out->data)[0]), "an encoder's output");
    /* Of which are ggml's: inputs, mask and output. */
    const size_t by_ggml = ggml_backend_sched_get_buffer_size(c.scheduler, c.cpu) +
                           ggml_backend_sched_get_buffer_size(c.scheduler, c.macattn);
    expect(by_graph < by_ggml + ((size_t)4 << 20), "memory of an encoder");
    destroy(&c);
}

/* What macattn refuses to make an object for is left to ggml, and said once. */
static void test_refused(void)
{
    context c;
    char text[4096];
    size_t said = 0;
    FILE *f = tmpfile();
    const int before = dup(STDERR_FILENO);
    create(&c, NULL, false);
    divide_new(&c, KEYS_CACHED, 1, true);
    softcap = 1e7f;
    dup2(fileno(f), STDERR_FILENO);
    for (int i = 0; i < 5; i++) {
        build(&c, &c, KEYS_CACHED, 1, true, false);
        compute(&c, i, false);
        expect(isfinite(((float *)c.out->data)[0]), "what is left to ggml");
    }
    softcap = 0;
    dup2(before, STDERR_FILENO);
    close(before);
    rewind(f);
    while (fgets(text, sizeof text, f)) said += strstr(text, "attention is left to ggml") != NULL;
    fclose(f);
    expect(said == 1, "a refusal is said once");
    destroy(&c);
}

static void test_pipelined(void)
{
    struct ggml_backend_dev_props props;
    ggml_backend_dev_get_props(ggml_backend_dev_by_name("MACATTN"), &props);
    expect(props.caps.async && props.caps.events, "GPUs may go on being pipelined");
    context plain, pipelined;
    create(&plain, NULL, false);
    divide_new(&plain, KEYS_CACHED, 1, true);
    create(&pipelined, NULL, true);
    divide_new(&pipelined, KEYS_CACHED, 1, true);
    for (int i = 0; i < 12; i++) {
        build(&plain, &plain, KEYS_CACHED, 1, true, false);
        build(&pipelined, &pipelined, KEYS_CACHED, 1, true, false);
        compute(&plain, i, false);
        compute(&pipelined, i, false);
        expect(memcmp(plain.out->data, pipelined.out->data, ggml_nbytes(plain.out)) == 0,
               "the same with four copies of every input");
    }
    destroy(&plain);
    destroy(&pipelined);
}

/* --------------------------------------------------------------------------- a GPU's machine -- */

static const char *gpu_name(ggml_backend_dev_t dev)
{
    (void)dev;
    return "TESTGPU";
}

static enum ggml_backend_dev_type gpu_type(ggml_backend_dev_t dev)
{
    (void)dev;
    return GGML_BACKEND_DEVICE_TYPE_GPU;
}

static const char *gpu_reg_name(ggml_backend_reg_t reg)
{
    (void)reg;
    return "TESTGPU";
}

static size_t gpu_count(ggml_backend_reg_t reg)
{
    (void)reg;
    return 1;
}

static struct ggml_backend_device gpu;

static ggml_backend_dev_t gpu_get(ggml_backend_reg_t reg, size_t i)
{
    (void)reg;
    (void)i;
    return &gpu;
}

/* llama.cpp gives the CPU the GPU's kind of host memory there. */
static void test_beside_gpu(void)
{
    static struct ggml_backend_reg reg;
    struct ggml_backend_buffer_type pinned = *ggml_backend_cpu_buffer_type();
    reg = (struct ggml_backend_reg){
        .api_version = GGML_BACKEND_API_VERSION,
        .iface = {.get_name = gpu_reg_name, .get_device_count = gpu_count, .get_device = gpu_get}};
    gpu.iface.get_name = gpu_name;
    gpu.iface.get_description = gpu_name;
    gpu.iface.get_type = gpu_type;
    gpu.reg = &reg;
    ggml_backend_register(&reg);
    context c, alone;
    create(&alone, NULL, false);
    divide_new(&alone, KEYS_CACHED, 1, true);
    create(&c, &pinned, false);
    expect(!divide_new(&c, KEYS_CACHED, 1, true), "the graph that probes, beside a GPU");
    for (int kind = 0; kind < KEYS_WITHOUT; kind++) {
        expect(divide_new(&c, kind, 1, true), "decoding in host memory is the device's");
        expect(!divide_new(&c, kind, 64, true), "long prompts are the GPU's");
    }
    for (int i = 0; i < 12; i++) {
        build(&c, &c, KEYS_CACHED, 1, true, false);
        build(&alone, &alone, KEYS_CACHED, 1, true, false);
        compute(&c, i, false);
        compute(&alone, i, false);
        expect(memcmp(c.out->data, alone.out->data, ggml_nbytes(c.out)) == 0, "the same output");
    }
    build(&c, &c, KEYS_CACHED, 1, true, true);
    divide(&c);
    for (int i = 0; i < ggml_graph_n_nodes(c.graph); i++) {
        struct ggml_tensor *node = ggml_graph_node(c.graph, i);
        expect(node->op != GGML_OP_SET_ROWS ||
                   ggml_backend_sched_get_tensor_backend(c.scheduler, node) == c.cpu,
               "without flash attention nothing is taken");
    }
    destroy(&c);
    destroy(&alone);
}

/* `--device MACATTN`: refused, since llama.cpp would turn flash attention off. */
static void test_layers_on_device(void)
{
    ggml_backend_dev_t dev = ggml_backend_dev_by_name("MACATTN");
    ggml_backend_t first = ggml_backend_dev_init(dev, NULL),
                   second = ggml_backend_dev_init(dev, NULL);
    expect(first && second, "two contexts before either divides a graph");
    ggml_backend_free(first);
    ggml_backend_free(second);
    ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev),
                                      "ggml_backend_dev_get_extra_bufts");
    first = ggml_backend_dev_init(dev, NULL);
    second = ggml_backend_dev_init(dev, NULL);
    expect(first && !second, "a context with the device twice");
    ggml_backend_free(first);
    first = ggml_backend_dev_init(dev, NULL);
    expect(first != NULL, "the next context");
    ggml_backend_free(first);
}

int main(int argc, char **argv)
{
    if (argc != 3) die("usage: test_scheduler GGML_FOLDER PLUGIN.so");
    ggml_backend_load_all_from_path(argv[1]);
    if (!ggml_backend_load(argv[2])) die("the plug-in does not load");
#ifndef __SANITIZE_THREAD__ /* OpenMP's own barriers are not visible to it */
    test_threads();
#endif
    test_probe();
    test_two_threads();
    test_shared_cache();
    test_encoder();
    test_refused();
    test_pipelined();
    test_beside_gpu();
    test_layers_on_device();
    printf("%d failures\n", failures);
    return failures > 0;
}
