/* SPDX-License-Identifier: Apache-2.0 */
#include "trace.h"

#include "division.h"
#include "group.h"
#include "rope.h"
#include "writes.h"

static void begin_graph(attention *a)
{
    a->n_traces = a->next_trace = a->n_masks = 0;
    a->division = division_number();
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
    t->written = writes_cells(node->src[1]->view_src);
    if (!rope || !rope_supported(rope) || rope->ne[0] != q->ne[0] || rope->ne[1] != q->ne[2] ||
        rope->ne[2] != q->ne[1] * q->ne[3] || !t->written) {
        return;
    }
    t->rope = rope;
    params->add_alloc_dep(params->user_data, rope->src[0], node);
    params->add_alloc_dep(params->user_data, rope->src[1], node);
    params->add_alloc_dep(params->user_data, (struct ggml_tensor *)(uintptr_t)t->written, node);
}

void trace_node(attention *a, struct ggml_tensor *node,
                struct ggml_backend_graph_optimize_params *params)
{
    const struct ggml_tensor *k = node->src[1], *cache = k->view_src;
    if (a->division != division_number()) begin_graph(a);
    if (!writes_is_key_cache(cache) || !node->src[3]) return;
    const int use = nth_use(a, cache);
    group_key key = group_key_of(node);
    key.n_cells = cache->ne[1];
    key.n_streams = cache->ne[2];
    key.nth_mask = nth_mask(a, node->src[3]);
    if (key.nth_mask < 0) return;
    group *g = group_get(a, &key);
    const int l = g ? group_layer(g, k, use) : -1;
    if (l < 0 ||
        !array_room_int(&a->traces, &a->traces_capacity, a->n_traces + 1, sizeof *a->traces))
        return;
    trace *t = &a->traces[a->n_traces++];
    *t = (trace){.node = node, .group = g, .layer = l};
    trace_query(a, t, node, params);
    g->layers[l].matches = t->rope != NULL;
    if (t->rope && l > g->rope_layer) g->rope_layer = l;
}

/* Nodes come in the order in which they were traced. */
trace *trace_of(attention *a, const struct ggml_tensor *node)
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
