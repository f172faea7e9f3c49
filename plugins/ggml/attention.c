/* SPDX-License-Identifier: Apache-2.0 */
/* From an attention node to a call of macattn.
 *
 * Layers of the same shape that read the same kind of cache under the same mask form a group: one
 * macattn object, one set of tracked sequences. The first node of a group in a graph begins a step: its
 * mask is read, sequences are recognised, the object is planned; the nodes of the other layers use the
 * same plan. A mask that macattn cannot express (values other than 0 and -inf, queries that see later
 * tokens, sliding windows over long prompts) leaves the group's nodes of this step to ggml's own
 * operator, and so does a lack of memory. */
#include "attention.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mask.h"
#include "pool.h"
#include "report.h"
#include "rope.h"
#include "tracker.h"

/* Sequences remembered in a cache that all share (llama.cpp's unified cache); elsewhere one a stream. */
#define UNIFIED_SEQUENCES 8
/* Beyond so many queries, rows of fewer than so many queries each are no task for macattn. */
#define MANY_QUERIES 64
#define FEW_QUERIES_A_ROW 8

typedef struct group_key {
    int32_t n_heads, n_kv_heads, head_dim, v_head_dim;
    macattn_dtype k_dtype, v_dtype;
    float scale, softcap;
    int64_t n_cells, n_streams; /* of the cache; 0: no cache, nothing is tracked */
    int32_t nth_mask;           /* of the graph: a model may have several kinds of layers */
} group_key;

typedef struct layer {
    const struct ggml_tensor *cache; /* K's buffer of cells */
    const char *k;                   /* its start, stream 0 */
    size_t cell_stride, head_stride, stream_stride;
    int nth_use;  /* of this cache in the graph: layers may share one */
    bool matches; /* its queries before RoPE can be had */
    uint64_t n_decodes_with_hits;
    report_audit audit;
    macattn_ggml_bytes bytes;
} layer;

typedef struct step_row {
    int32_t stream, first_query, n_queries;
    int64_t n_tokens;
    bool contiguous;
    int64_t first_cell; /* contiguous */
    size_t cells_at;    /* untracked, not contiguous: place in step.cells */
    tracked_row tracked;
} step_row;

typedef enum step_mode { STEP_GGML, STEP_EXACT, STEP_REUSE } step_mode;

typedef struct step {
    step_mode mode;
    const void *mask;
    int64_t n_queries, n_streams, n_kv; /* of the nodes; queries a stream */
    int64_t first_stream;
    step_row *rows;
    int n_rows, rows_capacity;
    int32_t *cells; /* of untracked rows */
    size_t n_cells, cells_capacity;
    int32_t *pages; /* page tables */
    size_t pages_capacity;
    macattn_row *plan_rows;
    bool single; /* one query in every row */
    bool paged;
    uint8_t *done; /* [n_layers] */
} step;

/* A slot, saved. */
typedef struct kept_slot {
    void *data; /* NULL: there was nothing */
    size_t size;
} kept_slot;

typedef struct group {
    group_key key;
    int number;
    macattn *m;
    int m_layers; /* what m was made for */
    layer *layers;
    int n_layers;
    int hash_layer; /* the deepest whose keys depend on position; -1 = none */
    tracker *trackers;
    int n_sequences; /* of each tracker */
    step step;
    kept_slot *kept; /* [n_slots] what macattn_ggml_interface.keep remembered; NULL = nothing */
    int n_slots;
} group;

/* Where the query before RoPE is to be had from. */
typedef enum match_source { MATCH_NONE, MATCH_KEPT, MATCH_UNDO } match_source;

typedef struct trace {
    const struct ggml_tensor *node;
    const struct ggml_tensor *rope;
    const struct ggml_tensor *written; /* cells the new keys go to, I64 */
    group *group;
    int layer;
    bool plain;   /* the query is the ROPE node's output itself */
    bool checked; /* `source` is settled */
    match_source source;
} trace;

struct attention {
    plugin_options options;
    bool said_misfit;
    bool tracks; /* made for a policy that reuses; may compute exactly for now */
    int n_threads;
    macattn_parallel_for parallel_for;
    group **groups;
    int n_groups;
    trace *traces;
    int n_traces, traces_capacity, next_trace;
    const struct ggml_tensor *masks[64]; /* of the graph being traced, in order */
    int n_masks;
    unsigned division; /* that the traces belong to */
    uint64_t *sets[2]; /* what a query sees, and the query before it */
    int64_t set_words;
    float *scratch;
    size_t scratch_bytes;
    ggml_backend_t cpu;
    struct ggml_context *cpu_context;
    struct ggml_cgraph *cpu_graph;
    report_totals totals;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Room for `n` items of `size` bytes in a growing array. */
static bool room(void *array, size_t *capacity, size_t n, size_t size)
{
    void *old;
    if (n <= *capacity) return true;
    memcpy(&old, array, sizeof old);
    const size_t more = n + n / 2 + 16;
    void *p = realloc(old, more * size);
    if (!p) return false;
    memcpy(array, &p, sizeof p);
    *capacity = more;
    return true;
}

static bool room_int(void *array, int *capacity, int n, size_t size)
{
    size_t c = (size_t)*capacity;
    const bool ok = room(array, &c, (size_t)n, size);
    *capacity = (int)c;
    return ok;
}

static float *scratch(attention *a, size_t bytes)
{
    return room(&a->scratch, &a->scratch_bytes, bytes, 1) ? a->scratch : NULL;
}

static float op_float(const struct ggml_tensor *node, int i)
{
    float f;
    memcpy(&f, &node->op_params[i], sizeof f);
    return f;
}

/* --------------------------------------------------------------------------------- what is taken -- */

static bool dtype_of(enum ggml_type type, macattn_dtype *dtype)
{
    switch (type) {
    case GGML_TYPE_F32: *dtype = MACATTN_DTYPE_F32; return true;
    case GGML_TYPE_F16: *dtype = MACATTN_DTYPE_F16; return true;
    case GGML_TYPE_BF16: *dtype = MACATTN_DTYPE_BF16; return true;
    case GGML_TYPE_Q8_0: *dtype = MACATTN_DTYPE_Q8_0; return true;
    default: return false;
    }
}

/* [head_dim, n_kv, n_kv_heads, n_streams], of which streams are whole numbers of tokens apart. */
static bool supports_cache(const struct ggml_tensor *t)
{
    macattn_dtype dtype;
    if (!dtype_of(t->type, &dtype) || t->ne[0] % 8 != 0 || t->ne[0] > 1024) return false;
    const size_t row = macattn_dtype_row_bytes(dtype, t->ne[0]);
    return row > 0 && t->nb[1] >= row && (t->ne[2] == 1 || t->nb[2] >= row) &&
           t->nb[3] % t->nb[1] == 0;
}

bool attention_supports(const struct ggml_tensor *node)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const struct ggml_tensor *mask = node->src[3], *sinks = node->src[4];
    const float max_bias = op_float(node, 1);
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || max_bias != 0.0f) return false;
    if (!supports_cache(k) || !supports_cache(v) || q->ne[2] > 1024) return false;
    if (k->ne[2] != v->ne[2] || q->ne[2] % k->ne[2] != 0 || k->ne[1] != v->ne[1]) return false;
    if (q->ne[3] != k->ne[3] || q->ne[3] != v->ne[3]) return false;
    if (q->ne[3] > 1 && k->nb[3] / k->nb[1] != v->nb[3] / v->nb[1]) return false;
    if (mask && (mask->type != GGML_TYPE_F16 || mask->nb[0] != 2 || mask->ne[2] != 1 ||
                 (mask->ne[3] != q->ne[3] && mask->ne[3] != 1))) {
        return false;
    }
    return !sinks || (sinks->type == GGML_TYPE_F32 && sinks->nb[0] == sizeof(float));
}

/* ---------------------------------------------------------------------------- where keys are written */

#define MAX_WRITES 4096

static struct {
    pthread_mutex_t lock;
    struct {
        const struct ggml_tensor *cache, *written;
    } entries[MAX_WRITES];
    int n, next;
} writes = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool is_key_cache(const struct ggml_tensor *t)
{
    return t && strncmp(t->name, "cache_k_l", strlen("cache_k_l")) == 0;
}

void attention_note_write(const struct ggml_tensor *node)
{
    if (!is_key_cache(node->view_src)) return;
    pthread_mutex_lock(&writes.lock);
    int i = 0;
    while (i < writes.n && writes.entries[i].cache != node->view_src) i++;
    if (i == writes.n) {
        i = writes.next;
        writes.next = (writes.next + 1) % MAX_WRITES;
        if (writes.n < MAX_WRITES) writes.n++;
    }
    writes.entries[i].cache = node->view_src;
    writes.entries[i].written = node->src[1];
    pthread_mutex_unlock(&writes.lock);
}

static const struct ggml_tensor *cells_written(const struct ggml_tensor *cache)
{
    const struct ggml_tensor *written = NULL;
    pthread_mutex_lock(&writes.lock);
    for (int i = 0; i < writes.n; i++) {
        if (writes.entries[i].cache == cache) written = writes.entries[i].written;
    }
    pthread_mutex_unlock(&writes.lock);
    return written && written->type == GGML_TYPE_I64 ? written : NULL;
}

/* ---------------------------------------------------------------------------------------- groups -- */

static group_key key_of(const struct ggml_tensor *node)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    group_key key;
    memset(&key, 0, sizeof key); /* compared as bytes */
    key.n_heads = (int32_t)q->ne[2];
    key.n_kv_heads = (int32_t)k->ne[2];
    key.head_dim = (int32_t)k->ne[0];
    key.v_head_dim = (int32_t)v->ne[0];
    dtype_of(k->type, &key.k_dtype);
    dtype_of(v->type, &key.v_dtype);
    key.scale = op_float(node, 0);
    key.softcap = op_float(node, 2);
    return key;
}

static group *group_get(attention *a, const group_key *key)
{
    for (int i = 0; i < a->n_groups; i++) {
        if (memcmp(&a->groups[i]->key, key, sizeof *key) == 0) return a->groups[i];
    }
    group **groups = realloc(a->groups, (size_t)(a->n_groups + 1) * sizeof *groups);
    if (!groups) return NULL;
    a->groups = groups;
    group *g = calloc(1, sizeof *g);
    if (!g) return NULL;
    g->key = *key;
    g->number = a->n_groups;
    g->hash_layer = -1;
    a->groups[a->n_groups++] = g;
    return g;
}

static int layer_get(group *g, const struct ggml_tensor *k, int nth_use)
{
    const struct ggml_tensor *cache = k->view_src;
    for (int i = 0; i < g->n_layers; i++) {
        if (g->layers[i].cache == cache && g->layers[i].nth_use == nth_use) return i;
    }
    layer *layers = realloc(g->layers, (size_t)(g->n_layers + 1) * sizeof *layers);
    if (!layers) return -1;
    g->layers = layers;
    g->layers[g->n_layers] = (layer){.cache = cache,
                                     .k = cache->data,
                                     .cell_stride = k->nb[1],
                                     .head_stride = k->nb[2],
                                     .stream_stride = k->nb[3],
                                     .nth_use = nth_use};
    return g->n_layers++;
}

/* Layers are numbered over all groups, for those who ask from outside. */
static int layer_index(const attention *a, const group *g, int l)
{
    for (int i = 0; i < a->n_groups && a->groups[i] != g; i++) l += a->groups[i]->n_layers;
    return l;
}

static void object_free(group *g)
{
    for (int i = 0; g->m && i < g->m_layers && i < g->n_layers; i++) {
        macattn_stats stats = {.struct_size = sizeof stats};
        macattn_stats_get(g->m, i, -1, &stats);
        if (stats.steps > 0) report_layer(g->number, i, &stats, &g->layers[i].audit);
        g->layers[i].audit = (report_audit){0};
        g->layers[i].bytes = (macattn_ggml_bytes){0};
        g->layers[i].n_decodes_with_hits = 0;
    }
    macattn_destroy(g->m);
    g->m = NULL;
    free(g->step.done);
    g->step.done = NULL;
}

static void trackers_free(group *g)
{
    for (int i = 0; g->trackers && i < g->key.n_streams; i++) tracker_free(&g->trackers[i]);
    free(g->trackers);
    g->trackers = NULL;
}

static void forget_kept(group *g)
{
    for (int i = 0; g->kept && i < g->n_slots; i++) free(g->kept[i].data);
    free(g->kept);
    g->kept = NULL;
    g->n_slots = 0;
}

static void group_free(group *g)
{
    object_free(g);
    trackers_free(g);
    forget_kept(g);
    free(g->layers);
    free(g->step.rows);
    free(g->step.cells);
    free(g->step.pages);
    free(g->step.plan_rows);
    free(g);
}

static bool trackers_create(attention *a, group *g)
{
    const size_t n = (size_t)g->key.n_streams;
    g->n_sequences = n > 1 ? 1 : UNIFIED_SEQUENCES;
    g->trackers = calloc(n, sizeof *g->trackers);
    for (size_t i = 0; g->trackers && i < n; i++) {
        if (!tracker_init(&g->trackers[i], g->n_sequences, g->key.n_cells, &a->totals.tracked)) {
            return false;
        }
    }
    return g->trackers != NULL;
}

/* Whether the settings are for this model. Settings found for another one are not used. */
static bool fits(attention *a, const group *g)
{
    const plugin_model *m = &a->options.model;
    const bool same = (!m->n_heads || m->n_heads == g->key.n_heads) &&
                      (!m->n_kv_heads || m->n_kv_heads == g->key.n_kv_heads) &&
                      (!m->head_dim || m->head_dim == g->key.head_dim) &&
                      (!m->n_layers || m->n_layers == attention_n_layers(a));
    if (!same && !a->said_misfit) {
        a->said_misfit = true;
        host_say(
            "MACATTN_CONFIG=%s is for a model of %d layers with %d/%d heads of %d%s%s; this one "
            "has %d with %d/%d of %d: nothing is reused",
            a->options.config, (int)m->n_layers, (int)m->n_heads, (int)m->n_kv_heads,
            (int)m->head_dim, *m->name ? ", " : "", m->name, (int)attention_n_layers(a),
            (int)g->key.n_heads, (int)g->key.n_kv_heads, (int)g->key.head_dim);
    }
    return same;
}

static bool tracks(attention *a, const group *g)
{
    return a->tracks && g->key.n_streams > 0 && g->hash_layer >= 0 && fits(a, g);
}

/* In the model, as llama.cpp names its cache; -1 = unknown. */
static int32_t layer_number(const layer *l)
{
    if (!is_key_cache(l->cache)) return -1;
    return (int32_t)strtol(l->cache->name + strlen("cache_k_l"), NULL, 10);
}

static void set_head_budgets(const attention *a, const group *g)
{
    const plugin_options *o = &a->options;
    if (!o->scale || o->policy != MACATTN_POLICY_BUDGET || o->scale_heads != g->key.n_heads) return;
    for (int l = 0; l < g->n_layers; l++) {
        const int32_t number = layer_number(&g->layers[l]);
        if (number < 0 || number >= o->scale_layers) continue;
        for (int32_t h = 0; h < g->key.n_heads; h++) {
            const float budget = o->budget * o->scale[number * o->scale_heads + h];
            macattn_set_head_budget(g->m, l, h, budget < 1.0f ? budget : 1.0f);
        }
    }
}

/* The object, under the settings as they are. */
static bool object_make(attention *a, group *g, int n_layers)
{
    macattn_config cfg;
    macattn_config_init(&cfg);
    cfg.n_layers = n_layers;
    cfg.n_heads = g->key.n_heads;
    cfg.n_kv_heads = g->key.n_kv_heads;
    cfg.head_dim = g->key.head_dim;
    cfg.v_head_dim = g->key.v_head_dim;
    cfg.k_dtype = g->key.k_dtype;
    cfg.v_dtype = g->key.v_dtype;
    cfg.scale = g->key.scale;
    cfg.softcap = g->key.softcap;
    cfg.max_tokens = INT32_MAX;
    cfg.policy = g->trackers ? a->options.policy : MACATTN_POLICY_EXACT;
    cfg.ring = a->options.ring;
    cfg.band = options_band(&a->options);
    cfg.tau = a->options.tau;
    cfg.budget = a->options.budget;
    cfg.min_tokens = a->options.min_tokens;
    cfg.isa = a->options.isa;
    cfg.n_threads = a->n_threads;
    cfg.parallel_for = a->parallel_for;
    cfg.parallel_user = &a->n_threads;
    if (g->trackers) cfg.max_slots = (int32_t)g->key.n_streams * g->n_sequences;
    g->step.done = calloc((size_t)n_layers, 1);
    char error[256] = "";
    if (!g->step.done || macattn_create(&cfg, &g->m, error, sizeof error) != MACATTN_OK) {
        host_say("attention is left to ggml: %s", *error ? error : "out of memory");
        object_free(g);
        return false;
    }
    g->m_layers = n_layers;
    if (g->trackers) set_head_budgets(a, g);
    g->step.mask = NULL;
    return true;
}

/* The object and the trackers, for as many layers as are known. More layers than before: start over. */
static bool object_create(attention *a, group *g)
{
    const int n_layers = g->n_layers > 0 ? g->n_layers : 1;
    if (g->m && g->m_layers >= n_layers) return true;
    object_free(g);
    trackers_free(g);
    if (tracks(a, g) && !trackers_create(a, g)) {
        trackers_free(g);
        return false;
    }
    return object_make(a, g, n_layers);
}

/* ----------------------------------------------------------------------------------------- trace -- */

/* The scheduler divides a graph among backends, asking what each supports, before it has the parts
 * optimised: graphs are told apart by that, since most of those built at the start are never computed. */
static atomic_uint divisions;

void attention_note_division(void)
{
    atomic_fetch_add(&divisions, 1);
}

static void begin_graph(attention *a)
{
    a->n_traces = a->next_trace = a->n_masks = 0;
    a->division = atomic_load(&divisions);
}

static int nth_mask(attention *a, const struct ggml_tensor *mask)
{
    for (int i = 0; i < a->n_masks; i++) {
        if (a->masks[i] == mask) return i;
    }
    if (a->n_masks == (int)(sizeof a->masks / sizeof a->masks[0])) return -1;
    a->masks[a->n_masks] = mask;
    return a->n_masks++;
}

static int nth_use(const attention *a, const struct ggml_tensor *cache)
{
    int n = 0;
    for (int i = 0; i < a->n_traces; i++) n += a->traces[i].node->src[1]->view_src == cache;
    return n;
}

static void trace_query(const attention *a, trace *t, struct ggml_tensor *node,
                        struct ggml_backend_graph_optimize_params *params)
{
    if (!a->tracks) return;
    const struct ggml_tensor *q = node->src[0];
    const struct ggml_tensor *rope = rope_find(q, &t->plain);
    t->written = cells_written(node->src[1]->view_src);
    if (!rope || !rope_supported(rope) || rope->ne[0] != q->ne[0] || rope->ne[1] != q->ne[2] ||
        rope->ne[2] != q->ne[1] * q->ne[3] || !t->written) {
        return;
    }
    t->rope = rope;
    params->add_alloc_dep(params->user_data, rope->src[0], node);
    params->add_alloc_dep(params->user_data, rope->src[1], node);
    params->add_alloc_dep(params->user_data, (struct ggml_tensor *)(uintptr_t)t->written, node);
}

void attention_trace(attention *a, struct ggml_tensor *node,
                     struct ggml_backend_graph_optimize_params *params)
{
    const struct ggml_tensor *k = node->src[1], *cache = k->view_src;
    if (a->division != atomic_load(&divisions)) begin_graph(a);
    if (!is_key_cache(cache) || !node->src[3]) return;
    const int use = nth_use(a, cache);
    group_key key = key_of(node);
    key.n_cells = cache->ne[1];
    key.n_streams = cache->ne[2];
    key.nth_mask = nth_mask(a, node->src[3]);
    if (key.nth_mask < 0) return;
    group *g = group_get(a, &key);
    const int l = g ? layer_get(g, k, use) : -1;
    if (l < 0 || !room_int(&a->traces, &a->traces_capacity, a->n_traces + 1, sizeof *a->traces))
        return;
    trace *t = &a->traces[a->n_traces++];
    *t = (trace){.node = node, .group = g, .layer = l};
    trace_query(a, t, node, params);
    g->layers[l].matches = t->rope != NULL;
    if (t->rope && l > g->hash_layer) g->hash_layer = l;
}

/* Nodes come in the order in which they were traced. */
static trace *trace_of(attention *a, const struct ggml_tensor *node)
{
    for (int i = 0; i < a->n_traces; i++) {
        const int at = (a->next_trace + i) % a->n_traces;
        if (a->traces[at].node == node) {
            a->next_trace = at + 1;
            return &a->traces[at];
        }
    }
    return NULL;
}

/* Whether ggml's allocator kept the query before RoPE: it is computed anew for the last head and
 * token, and has to come out as the query. Otherwise RoPE is undone. */
static match_source find_source(const trace *t)
{
    const struct ggml_tensor *x = t->rope->src[0], *q = t->node->src[0];
    const char *const start = x->data, *const rope = t->rope->data;
    const size_t x_bytes = x->nb[2] * (size_t)x->ne[2];
    const size_t rope_bytes = t->rope->nb[2] * (size_t)t->rope->ne[2];
    const bool apart = start + x_bytes <= rope || rope + rope_bytes <= start;
    if (!t->plain) return apart ? MATCH_KEPT : MATCH_NONE;
    float y[1024], worst = 0, largest = 0;
    const int64_t token = t->rope->ne[2] - 1, head = t->rope->ne[1] - 1;
    const int32_t pos = ((const int32_t *)t->rope->src[1]->data)[token];
    rope_rotate(t->rope, pos, false, 1, start + (size_t)token * x->nb[2] + (size_t)head * x->nb[1],
                0, (char *)y, 0);
    const char *row = (const char *)q->data + (size_t)(q->ne[1] - 1) * q->nb[1] +
                      (size_t)head * q->nb[2] + (size_t)(q->ne[3] - 1) * q->nb[3];
    for (int64_t i = 0; i < q->ne[0]; i++) {
        const float value = ((const float *)(const void *)row)[i];
        worst = fmaxf(worst, fabsf(value - y[i]));
        largest = fmaxf(largest, fabsf(value));
    }
    return apart && worst <= 1e-3f * largest ? MATCH_KEPT : MATCH_UNDO;
}

/* ------------------------------------------------------------------------------------------ step -- */

static const uint16_t *mask_row(const struct ggml_tensor *mask, int64_t stream, int64_t query)
{
    const size_t plane = mask->ne[3] > 1 ? (size_t)stream * mask->nb[3] : 0;
    return (const uint16_t *)(const void *)((const char *)mask->data + plane +
                                            (size_t)query * mask->nb[1]);
}

static step_row *add_row(step *s, int64_t stream, int64_t query)
{
    if (!room_int(&s->rows, &s->rows_capacity, s->n_rows + 1, sizeof *s->rows)) return NULL;
    step_row *row = &s->rows[s->n_rows++];
    *row = (step_row){.stream = (int32_t)stream,
                      .first_query = (int32_t)(stream * s->n_queries + query),
                      .n_queries = 1};
    return row;
}

/* A row for queries of which nothing is known but what they see. */
static bool begin_untracked(step *s, step_row *row, const uint64_t *seen, int64_t n_words)
{
    row->n_tokens = cells_count(seen, n_words);
    if (!room(&s->cells, &s->cells_capacity, s->n_cells + (size_t)row->n_tokens,
              sizeof *s->cells)) {
        return false;
    }
    int32_t *cells = s->cells + s->n_cells;
    cells_list(seen, n_words, cells);
    row->cells_at = s->n_cells;
    row->first_cell = row->n_tokens > 0 ? cells[0] : 0;
    row->contiguous =
        row->n_tokens == 0 || cells[row->n_tokens - 1] == cells[0] + row->n_tokens - 1;
    s->n_cells += (size_t)row->n_tokens;
    return true;
}

static bool extend_untracked(step *s, step_row *row, int64_t cell)
{
    if (!room(&s->cells, &s->cells_capacity, s->n_cells + 1, sizeof *s->cells)) return false;
    s->cells[s->n_cells++] = (int32_t)cell;
    row->contiguous = row->contiguous && cell == row->first_cell + row->n_tokens;
    row->n_tokens++;
    row->n_queries++;
    return true;
}

/* A stream's fingerprints come from the deepest layer's keys. */
typedef struct probe_source {
    const group *g;
    int64_t stream;
} probe_source;

static uint64_t hash_key(void *user, int64_t cell)
{
    const probe_source *p = user;
    const layer *l = &p->g->layers[p->g->hash_layer];
    const size_t bytes = macattn_dtype_row_bytes(p->g->key.k_dtype, p->g->key.head_dim);
    const char *row = l->k + (size_t)p->stream * l->stream_stride + (size_t)cell * l->cell_stride;
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (int32_t head = 0; head < p->g->key.n_kv_heads; head++, row += l->head_stride) {
        for (size_t i = 0; i < bytes; i += 8) {
            uint64_t word = 0;
            memcpy(&word, row + i, bytes - i < 8 ? bytes - i : 8);
            h = (h ^ word) * 0xff51afd7ed558ccdu;
            h ^= h >> 32;
        }
    }
    return h;
}

/* Everything a step's analysis needs of its first node. */
typedef struct analysis {
    attention *a;
    group *g;
    const struct ggml_tensor *mask;
    const int64_t *written; /* NULL: nothing is tracked */
    int64_t n_words;
} analysis;

static int64_t own_cell(const analysis *an, int64_t stream, int64_t query)
{
    const step *s = &an->g->step;
    const int64_t at = an->written[stream * s->n_queries + query];
    return at - (s->first_stream + stream) * an->g->key.n_cells;
}

static bool begin_row(const analysis *an, step_row *row, int64_t stream, int64_t query,
                      const uint64_t *seen)
{
    step *s = &an->g->step;
    if (an->written) {
        const int64_t own = own_cell(an, stream, query);
        probe_source source = {an->g, s->first_stream + stream};
        const tracker_probe probe = {hash_key, &source};
        tracker *t = &an->g->trackers[s->first_stream + stream];
        if (own >= 0 && own < s->n_kv && cells_has(seen, own) &&
            tracker_continue(t, seen, own, &probe, &row->tracked)) {
            return true;
        }
        row->tracked.sequence = NULL;
    }
    return begin_untracked(s, row, seen, an->n_words);
}

/* Add a query to the row if it sees what the query before it saw, and one cell more. */
static bool extend_row(const analysis *an, step_row *row, int64_t stream, int64_t query,
                       const uint64_t *before, const uint64_t *seen)
{
    step *s = &an->g->step;
    const int64_t more = cells_one_more(before, seen, an->n_words);
    if (more < 0) return false;
    if (!row->tracked.sequence) return extend_untracked(s, row, more);
    if (more != own_cell(an, stream, query) || !tracker_append(&row->tracked, more)) return false;
    row->n_queries++;
    return true;
}

static bool analyse_stream(const analysis *an, int64_t stream)
{
    attention *a = an->a;
    step *s = &an->g->step;
    uint64_t *before = a->sets[0], *seen = a->sets[1];
    step_row *row = NULL;
    if (an->written) {
        int64_t *cells = (int64_t *)(void *)scratch(a, (size_t)s->n_queries * sizeof *cells);
        int64_t n = 0;
        if (!cells) return false;
        for (int64_t i = 0; i < s->n_queries; i++) {
            const int64_t own = own_cell(an, stream, i);
            if (own >= 0 && own < an->g->key.n_cells) cells[n++] = own;
        }
        tracker_begin_step(&an->g->trackers[s->first_stream + stream], cells, n);
    }
    for (int64_t i = 0; i < s->n_queries; i++) {
        /* Trackers know sets of all cells, masks speak of the first n_kv. */
        memset(seen, 0, (size_t)a->set_words * sizeof *seen);
        if (!cells_from_mask(mask_row(an->mask, stream, i), s->n_kv, seen)) return false;
        if (!row || !extend_row(an, row, stream, i, before, seen)) {
            row = add_row(s, stream, i);
            if (!row || !begin_row(an, row, stream, i, seen)) return false;
        }
        uint64_t *swap = before;
        before = seen;
        seen = swap;
    }
    return true;
}

/* Without a mask every query sees everything. */
static bool analyse_unmasked(step *s)
{
    for (int64_t i = 0; i < s->n_queries * s->n_streams; i++) {
        step_row *row = add_row(s, i / s->n_queries, i % s->n_queries);
        if (!row) return false;
        row->contiguous = true;
        row->n_tokens = s->n_kv;
    }
    return true;
}

static void finish_rows(step *s)
{
    s->single = true;
    s->paged = false;
    for (int r = 0; r < s->n_rows; r++) {
        step_row *row = &s->rows[r];
        if (row->tracked.sequence) {
            row->n_tokens = row->tracked.n_tokens;
            row->contiguous = row->tracked.contiguous;
            row->first_cell = row->tracked.cells[0];
        }
        s->single = s->single && row->n_queries == 1;
        s->paged = s->paged || !row->contiguous;
    }
}

/* What the step's rows are. False: they are not for macattn. */
static bool analyse(attention *a, group *g, const struct ggml_tensor *node, const trace *t)
{
    step *s = &g->step;
    analysis an = {.a = a, .g = g, .mask = node->src[3], .n_words = cells_words(s->n_kv)};
    if (!an.mask) return analyse_unmasked(s);
    const int64_t words = cells_words(g->key.n_cells > s->n_kv ? g->key.n_cells : s->n_kv);
    for (int i = 0; i < 2 && words > a->set_words; i++) {
        uint64_t *set = realloc(a->sets[i], (size_t)words * sizeof *set);
        if (!set) return false;
        a->sets[i] = set;
    }
    if (words > a->set_words) a->set_words = words;
    if (t && t->written && g->trackers && t->written->ne[0] == s->n_queries * s->n_streams) {
        an.written = t->written->data;
    }
    for (int64_t stream = 0; stream < s->n_streams; stream++) {
        if (!analyse_stream(&an, stream)) return false;
    }
    const int64_t n = s->n_queries * s->n_streams;
    return n <= MANY_QUERIES || s->n_rows * FEW_QUERIES_A_ROW <= n;
}

/* ------------------------------------------------------------------------------------------ plan -- */

static int32_t slot_of(const group *g, const step_row *row)
{
    return (int32_t)(g->step.first_stream + row->stream) * g->n_sequences + row->tracked.index;
}

/* Reuse in a step needs every row to be a sequence that was seen to go on, none of them twice. */
static bool may_reuse(const step *s)
{
    for (int r = 0; r < s->n_rows; r++) {
        const tracked_row *t = &s->rows[r].tracked;
        if (!t->sequence || !t->settled) return false;
        for (int i = 0; i < r; i++) {
            if (s->rows[i].tracked.sequence == t->sequence) return false;
        }
    }
    return s->n_rows > 0;
}

/* Bring the object's slots to where the sequences are. */
static bool move_slots(group *g)
{
    for (int r = 0; r < g->step.n_rows; r++) {
        const step_row *row = &g->step.rows[r];
        if (!row->tracked.sequence) continue;
        const int32_t slot = slot_of(g, row);
        int64_t length = 0;
        if (row->tracked.keep == 0) {
            if (macattn_slot_reset(g->m, slot) != MACATTN_OK) return false;
            continue;
        }
        if (row->tracked.fork_of >= 0) {
            const int32_t from = slot - row->tracked.index + row->tracked.fork_of;
            if (macattn_slot_fork(g->m, from, slot) != MACATTN_OK) return false;
        }
        macattn_slot_length(g->m, slot, &length);
        if (length > row->tracked.keep &&
            macattn_slot_truncate(g->m, slot, row->tracked.keep) != MACATTN_OK) {
            return false;
        }
    }
    return true;
}

/* Page tables for rows whose cells do not follow one another: pages of one cell. */
static bool fill_pages(group *g, int64_t stream_cells)
{
    step *s = &g->step;
    size_t n = 0, at = 0;
    for (int r = 0; r < s->n_rows; r++) n += (size_t)s->rows[r].n_tokens;
    if (!room(&s->pages, &s->pages_capacity, n, sizeof *s->pages)) return false;
    for (int r = 0; r < s->n_rows; r++) {
        const step_row *row = &s->rows[r];
        const int32_t base = (int32_t)(row->stream * stream_cells);
        const int32_t *cells =
            row->tracked.sequence ? row->tracked.cells : s->cells + row->cells_at;
        s->plan_rows[r].pages = s->pages + at;
        for (int64_t i = 0; i < row->n_tokens; i++) {
            const int64_t cell = row->contiguous ? row->first_cell + i : cells[i];
            s->pages[at++] = base + (int32_t)cell;
        }
    }
    return true;
}

static bool plan(group *g, const struct ggml_tensor *k)
{
    step *s = &g->step;
    macattn_row *rows = realloc(s->plan_rows, (size_t)s->rows_capacity * sizeof *rows);
    if (!rows) return false;
    s->plan_rows = rows;
    const int64_t stream_cells = (int64_t)(k->nb[3] / k->nb[1]);
    for (int r = 0; r < s->n_rows; r++) {
        const step_row *row = &s->rows[r];
        rows[r] = (macattn_row){.slot = s->mode == STEP_REUSE ? slot_of(g, row) : -1,
                                .n_queries = row->n_queries,
                                .n_tokens = row->n_tokens,
                                .page = (int32_t)(row->stream * stream_cells + row->first_cell)};
    }
    if (s->paged && !fill_pages(g, stream_cells)) return false;
    const macattn_batch batch = {.struct_size = sizeof batch,
                                 .n_rows = s->n_rows,
                                 .rows = rows,
                                 .page_size = s->paged ? 1 : 0,
                                 .n_pages = (int32_t)(s->n_streams * stream_cells)};
    return macattn_plan(g->m, &batch) == MACATTN_OK;
}

static void begin_step(attention *a, group *g, const struct ggml_tensor *node, const trace *t)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1];
    step *s = &g->step;
    s->mask = node->src[3] ? node->src[3]->data : NULL;
    s->n_queries = q->ne[1];
    s->n_streams = q->ne[3];
    s->n_kv = k->ne[1];
    s->first_stream = t ? (int64_t)(k->view_offs / k->nb[3]) : 0;
    s->n_rows = 0;
    s->n_cells = 0;
    s->mode = STEP_GGML;
    memset(s->done, 0, (size_t)g->m_layers);
    const bool expressible = analyse(a, g, node, t);
    finish_rows(s);
    if (g->trackers && !move_slots(g)) return;
    if (!expressible || s->n_rows == 0) return;
    const bool reuses = g->trackers && a->options.policy != MACATTN_POLICY_EXACT;
    s->mode = reuses && may_reuse(s) ? STEP_REUSE : STEP_EXACT;
    if (!plan(g, k)) s->mode = STEP_GGML;
}

static bool same_step(const group *g, const struct ggml_tensor *node, const trace *t)
{
    const struct ggml_tensor *q = node->src[0];
    const step *s = &g->step;
    return t && node->src[3] && s->mask == node->src[3]->data && s->n_queries == q->ne[1] &&
           s->n_streams == q->ne[3] && s->n_kv == node->src[1]->ne[1] && !s->done[t->layer];
}

/* --------------------------------------------------------------------------------------- compute -- */

static enum ggml_status compute_by_ggml(attention *a, struct ggml_tensor *node)
{
    if (!a->cpu_context) {
        struct ggml_init_params params = {host.ggml_graph_overhead_custom(16, false) + 1024, NULL,
                                          true};
        a->cpu_context = host.ggml_init(params);
        if (a->cpu_context) a->cpu_graph = host.ggml_new_graph_custom(a->cpu_context, 16, false);
        a->cpu = host.ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    }
    if (!a->cpu || !a->cpu_context) {
        host_say("there is no CPU backend to leave %s to", node->name);
        return GGML_STATUS_FAILED;
    }
    ggml_backend_reg_t reg =
        host.ggml_backend_dev_backend_reg(host.ggml_backend_get_device(a->cpu));
    void *function = host.ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    ggml_backend_set_n_threads_t set;
    memcpy(&set, &function, sizeof set);
    if (set) set(a->cpu, a->n_threads);
    host.ggml_graph_clear(a->cpu_graph);
    host.ggml_graph_add_node(a->cpu_graph, node);
    return host.ggml_backend_graph_compute(a->cpu, a->cpu_graph);
}

/* Queries as macattn wants them: all streams' rows a constant stride apart. */
static bool set_query(attention *a, const struct ggml_tensor *q, macattn_io *io)
{
    io->q = q->data;
    io->q_row_stride = (int64_t)q->nb[1];
    io->q_head_stride = (int64_t)q->nb[2];
    if (q->ne[3] == 1 || q->nb[3] == (size_t)q->ne[1] * q->nb[1]) return true;
    const size_t d = (size_t)q->ne[0], n = (size_t)q->ne[1], n_heads = (size_t)q->ne[2];
    float *packed = scratch(a, n * (size_t)q->ne[3] * n_heads * d * sizeof *packed);
    if (!packed) return false;
    io->q = packed;
    io->q_row_stride = io->q_head_stride = 0;
    for (size_t i = 0; i < n * (size_t)q->ne[3]; i++) {
        for (size_t h = 0; h < n_heads; h++, packed += d) {
            memcpy(packed,
                   (const char *)q->data + i % n * q->nb[1] + h * q->nb[2] + i / n * q->nb[3],
                   d * sizeof *packed);
        }
    }
    return true;
}

static void undo_rope(attention *a, const struct ggml_tensor *node, const struct ggml_tensor *rope,
                      macattn_io *io)
{
    const struct ggml_tensor *q = node->src[0];
    const size_t d = (size_t)q->ne[0], n_heads = (size_t)q->ne[2], n = (size_t)rope->ne[2];
    char *out = (char *)scratch(a, n * n_heads * d * sizeof(float));
    const int32_t *pos = rope->src[1]->data;
    if (!out) return;
    for (size_t i = 0; i < n; i++) {
        rope_rotate(rope, pos[i], true, (int)n_heads,
                    (const char *)q->data + i % (size_t)q->ne[1] * q->nb[1] +
                        i / (size_t)q->ne[1] * q->nb[3],
                    q->nb[2], out + i * n_heads * d * sizeof(float), d * sizeof(float));
    }
    io->q_match = out;
}

static void set_match(attention *a, trace *t, macattn_io *io)
{
    if (!t->rope) return;
    if (!t->checked) t->source = find_source(t);
    t->checked = true;
    if (t->source == MATCH_KEPT) {
        const struct ggml_tensor *x = t->rope->src[0];
        io->q_match = x->data;
        io->q_match_row_stride = (int64_t)x->nb[2];
        io->q_match_head_stride = (int64_t)x->nb[1];
    } else if (t->source == MATCH_UNDO) {
        undo_rope(a, t->node, t->rope, io);
    }
}

/* ||x - y|| / ||y|| */
static double relative_error(const float *x, const float *y, int32_t n)
{
    double error = 0, norm = 0;
    for (int32_t i = 0; i < n; i++) {
        const double e = (double)x[i] - (double)y[i];
        error += e * e;
        norm += (double)y[i] * (double)y[i];
    }
    return norm > 0 ? sqrt(error / norm) : error > 0;
}

/* A head's counters before a step. */
typedef struct head_before {
    uint64_t hits, skipped;
} head_before;

static void read_heads(const group *g, int l, head_before *heads)
{
    for (int32_t h = 0; h < g->key.n_heads; h++) {
        macattn_stats stats = {.struct_size = sizeof stats};
        macattn_stats_get(g->m, l, h, &stats);
        heads[h] = (head_before){stats.hits, stats.tokens_skipped};
    }
}

static void note_error(const attention *a, group *g, int l, int32_t head, double error)
{
    report_audit *report = &g->layers[l].audit;
    report->n++;
    report->sum += error;
    if (error > report->max) report->max = error;
    if (a->options.on_audit) {
        a->options.on_audit(a->options.audit_user, layer_index(a, g, l), head, error);
    }
}

/* Compute again, exactly, and compare the heads that hit. */
static void audit(const attention *a, group *g, int l, const macattn_io *io,
                  const head_before *before, const head_before *after)
{
    const step *s = &g->step;
    const size_t dv = (size_t)g->key.v_head_dim, n_heads = (size_t)g->key.n_heads;
    float *exact = malloc((size_t)s->n_rows * n_heads * dv * sizeof *exact);
    macattn_io again = *io;
    again.out = exact;
    again.out_row_stride = again.out_head_stride = 0;
    if (!exact || macattn_attend(g->m, &again) != MACATTN_OK) {
        free(exact);
        return;
    }
    for (size_t h = 0; h < n_heads; h++) {
        if (after[h].hits == before[h].hits) continue;
        for (int r = 0; r < s->n_rows; r++) {
            const size_t at = ((size_t)r * n_heads + h) * dv;
            note_error(a, g, l, (int32_t)h, relative_error(io->out + at, exact + at, (int32_t)dv));
        }
    }
    free(exact);
}

/* What a step of one sequence read. A KV head's rows are left out as far as all its query heads leave
 * them out. */
static void count_bytes(const attention *a, group *g, int l, const head_before *before,
                        const head_before *after)
{
    const int64_t n = g->step.rows[0].n_tokens, far = n - options_band(&a->options);
    const int32_t per_kv_head = g->key.n_heads / g->key.n_kv_heads;
    const uint64_t row = macattn_dtype_row_bytes(g->key.k_dtype, g->key.head_dim) +
                         macattn_dtype_row_bytes(g->key.v_dtype, g->key.v_head_dim);
    macattn_ggml_bytes *bytes = &g->layers[l].bytes;
    for (int32_t kv_head = 0; kv_head < g->key.n_kv_heads; kv_head++) {
        uint64_t least = before ? UINT64_MAX : 0;
        for (int32_t h = kv_head * per_kv_head; before && h < (kv_head + 1) * per_kv_head; h++) {
            const uint64_t skipped = after[h].skipped - before[h].skipped;
            if (skipped < least) least = skipped;
        }
        bytes->total += (uint64_t)n * row;
        bytes->far += far > 0 ? (uint64_t)far * row : 0;
        bytes->skipped += least * row;
    }
}

static bool decode(attention *a, group *g, int l, const macattn_io *io)
{
    const int every = a->options.audit_every;
    const bool count = a->options.count_bytes && g->step.n_rows == 1;
    if (every == 0 && !count) return macattn_decode(g->m, l, io) == MACATTN_OK;
    head_before before[1024], after[1024];
    read_heads(g, l, before);
    if (macattn_decode(g->m, l, io) != MACATTN_OK) return false;
    read_heads(g, l, after);
    if (count) count_bytes(a, g, l, before, after);
    bool hit = false;
    for (int32_t h = 0; h < g->key.n_heads; h++) hit = hit || after[h].hits > before[h].hits;
    if (every > 0 && hit && ++g->layers[l].n_decodes_with_hits % (uint64_t)every == 0) {
        audit(a, g, l, io, before, after);
    }
    return true;
}

static bool attend(attention *a, group *g, const trace *t, const macattn_io *io)
{
    if (macattn_attend(g->m, io) != MACATTN_OK) return false;
    const step *s = &g->step;
    if (t && a->options.count_bytes && s->single && s->n_rows == 1) {
        count_bytes(a, g, t->layer, NULL, NULL);
    }
    return true;
}

static bool compute_by_macattn(attention *a, group *g, trace *t, struct ggml_tensor *node)
{
    const struct ggml_tensor *k = node->src[1], *v = node->src[2];
    const step *s = &g->step;
    macattn_io io = {.struct_size = sizeof io,
                     .kv = {.k = k->data,
                            .v = v->data,
                            .k_page_stride = (int64_t)k->nb[1],
                            .k_token_stride = (int64_t)k->nb[1],
                            .k_head_stride = (int64_t)k->nb[2],
                            .v_page_stride = (int64_t)v->nb[1],
                            .v_token_stride = (int64_t)v->nb[1],
                            .v_head_stride = (int64_t)v->nb[2]},
                     .sinks = node->src[4] ? node->src[4]->data : NULL,
                     .out = node->data};
    if (!set_query(a, node->src[0], &io)) return false;
    if (s->mode == STEP_EXACT) return attend(a, g, t, &io);
    set_match(a, t, &io);
    if (s->single) return decode(a, g, t->layer, &io);
    return macattn_prefill(g->m, t->layer, &io) == MACATTN_OK;
}

static void note_fingerprints(group *g)
{
    step *s = &g->step;
    for (int r = 0; r < s->n_rows; r++) {
        probe_source source = {g, s->first_stream + s->rows[r].stream};
        const tracker_probe probe = {hash_key, &source};
        if (s->rows[r].tracked.sequence) tracker_fingerprint(&s->rows[r].tracked, &probe);
    }
}

static enum ggml_status compute(attention *a, group *g, trace *t, struct ggml_tensor *node,
                                report_calls **calls)
{
    step *s = &g->step;
    if (!same_step(g, node, t)) begin_step(a, g, node, t);
    *calls = s->single ? &a->totals.decode : &a->totals.prefill;
    bool ok = s->mode != STEP_GGML && compute_by_macattn(a, g, t, node);
    if (!ok) {
        *calls = &a->totals.ggml;
        ok = compute_by_ggml(a, node) == GGML_STATUS_SUCCESS;
    }
    if (t) s->done[t->layer] = 1;
    if (t && g->trackers && t->layer == g->hash_layer) note_fingerprints(g);
    return ok ? GGML_STATUS_SUCCESS : GGML_STATUS_FAILED;
}

enum ggml_status attention_compute(attention *a, struct ggml_tensor *node)
{
    const uint64_t start = now_ns();
    report_calls *calls = &a->totals.ggml;
    enum ggml_status status;
    trace *t = trace_of(a, node);
    const group_key key = key_of(node);
    group *g = t ? t->group : group_get(a, &key);
    if (g && object_create(a, g)) {
        status = compute(a, g, t, node, &calls);
    } else {
        status = compute_by_ggml(a, node);
    }
    calls->calls++;
    calls->ns += now_ns() - start;
    return status;
}

/* --------------------------------------------------------------------------------------- context -- */

attention *attention_create(const plugin_options *options)
{
    attention *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->options = *options;
    a->tracks = options->policy != MACATTN_POLICY_EXACT;
    a->n_threads = 1;
    a->parallel_for = pool_parallel_for();
    return a;
}

void attention_free(attention *a)
{
    if (!a) return;
    for (int i = 0; i < a->n_groups; i++) group_free(a->groups[i]);
    report_add(&a->totals);
    if (a->cpu) host.ggml_backend_free(a->cpu);
    if (a->cpu_context) host.ggml_free(a->cpu_context);
    free(a->groups);
    free(a->traces);
    free(a->sets[0]);
    free(a->sets[1]);
    free(a->scratch);
    free(a);
}

void attention_set_threads(attention *a, int n_threads)
{
    a->n_threads = n_threads > 0 ? n_threads : 1;
}

/* ------------------------------------------------------------------------------- asked from outside -- */

/* The group of a layer, and its number there. */
static group *group_of(const attention *a, int32_t index, int *l)
{
    for (int i = 0; i < a->n_groups && index >= 0; i++) {
        if (index < a->groups[i]->n_layers) {
            *l = index;
            return a->groups[i];
        }
        index -= a->groups[i]->n_layers;
    }
    return NULL;
}

int32_t attention_n_layers(const attention *a)
{
    int32_t n = 0;
    for (int i = 0; i < a->n_groups; i++) n += a->groups[i]->n_layers;
    return n;
}

macattn_status attention_layer(const attention *a, int32_t index, macattn_ggml_layer *info)
{
    int l;
    const group *g = group_of(a, index, &l);
    if (!info || info->struct_size != sizeof *info) return MACATTN_E_ARG;
    if (!g) return MACATTN_E_RANGE;
    *info = (macattn_ggml_layer){.struct_size = sizeof *info,
                                 .number = layer_number(&g->layers[l]),
                                 .group = g->number,
                                 .n_heads = g->key.n_heads,
                                 .n_kv_heads = g->key.n_kv_heads,
                                 .head_dim = g->key.head_dim,
                                 .v_head_dim = g->key.v_head_dim,
                                 .reuses = g->trackers && g->layers[l].matches};
    return MACATTN_OK;
}

macattn_status attention_stats(attention *a, int32_t index, int32_t head, macattn_stats *stats)
{
    int l;
    group *g = group_of(a, index, &l);
    if (!g || !g->m || l >= g->m_layers) return MACATTN_E_RANGE;
    return macattn_stats_get(g->m, l, head, stats);
}

macattn_status attention_bytes(const attention *a, int32_t index, macattn_ggml_bytes *bytes)
{
    int l;
    const group *g = group_of(a, index, &l);
    if (!bytes) return MACATTN_E_ARG;
    if (!g) return MACATTN_E_RANGE;
    *bytes = g->layers[l].bytes;
    return MACATTN_OK;
}

const report_totals *attention_totals(const attention *a)
{
    return &a->totals;
}

static bool keep_slot(group *g, int32_t slot, kept_slot *kept)
{
    int64_t length = 0;
    if (macattn_slot_length(g->m, slot, &length) != MACATTN_OK) return false;
    if (length == 0) return true;
    if (macattn_slot_save(g->m, slot, NULL, &kept->size) != MACATTN_OK) return false;
    kept->data = malloc(kept->size);
    return kept->data && macattn_slot_save(g->m, slot, kept->data, &kept->size) == MACATTN_OK;
}

static bool keep_group(group *g)
{
    forget_kept(g);
    if (!g->m || !g->trackers) return true;
    const int n = (int)g->key.n_streams * g->n_sequences;
    g->kept = calloc((size_t)n, sizeof *g->kept);
    if (!g->kept) return false;
    g->n_slots = n;
    for (int i = 0; i < n; i++) {
        if (!keep_slot(g, i, &g->kept[i])) return false;
    }
    return true;
}

macattn_status attention_keep(attention *a)
{
    bool ok = true;
    for (int i = 0; ok && i < a->n_groups; i++) ok = keep_group(a->groups[i]);
    for (int i = 0; !ok && i < a->n_groups; i++) forget_kept(a->groups[i]);
    return ok ? MACATTN_OK : MACATTN_E_NOMEM;
}

static bool restart_group(attention *a, group *g)
{
    const int n_layers = g->m_layers;
    if (!g->m) return true;
    object_free(g);
    if (!object_make(a, g, n_layers)) return false;
    for (int i = 0; g->kept && i < g->n_slots; i++) {
        const kept_slot *kept = &g->kept[i];
        if (kept->data && macattn_slot_load(g->m, i, kept->data, kept->size) != MACATTN_OK) {
            return false;
        }
    }
    return true;
}

macattn_status attention_restart(attention *a, const plugin_options *options)
{
    if (!a->tracks && options->policy != MACATTN_POLICY_EXACT) return MACATTN_E_STATE;
    a->options = *options;
    report_add(&a->totals);
    a->totals = (report_totals){0};
    bool ok = true;
    for (int i = 0; i < a->n_groups; i++) ok = restart_group(a, a->groups[i]) && ok;
    return ok ? MACATTN_OK : MACATTN_E_NOMEM;
}
