/* SPDX-License-Identifier: Apache-2.0 */
#include "group.h"

#include <stdlib.h>
#include <string.h>

#include "node.h"
#include "writes.h"

/* Sequences remembered in a cache that all share (llama.cpp's unified cache); elsewhere one a
 * stream. */
#define UNIFIED_SEQUENCES 8

group_key group_key_of(const struct ggml_tensor *node)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    group_key key;
    memset(&key, 0, sizeof key); /* compared as bytes */
    key.n_heads = (int32_t)q->ne[2];
    key.n_kv_heads = (int32_t)k->ne[2];
    key.head_dim = (int32_t)k->ne[0];
    key.v_head_dim = (int32_t)v->ne[0];
    node_dtype(k->type, &key.k_dtype);
    node_dtype(v->type, &key.v_dtype);
    key.scale = node_float(node, 0);
    key.softcap = node_float(node, 2);
    return key;
}

group *group_get(attention *a, const group_key *key)
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
    g->rope_layer = -1;
    a->groups[a->n_groups++] = g;
    return g;
}

int group_layer(group *g, const struct ggml_tensor *k, int nth_use)
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
int group_layer_index(const attention *a, const group *g, int l)
{
    for (int i = 0; i < a->n_groups && a->groups[i] != g; i++) l += a->groups[i]->n_layers;
    return l;
}

/* The group of a layer, and its number there. */
group *group_of_layer(const attention *a, int32_t index, int *l)
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

/* In the model, as llama.cpp names its cache; -1 = unknown. */
int32_t group_model_layer(const layer *l)
{
    if (!writes_is_key_cache(l->cache)) return -1;
    return (int32_t)strtol(l->cache->name + strlen("cache_k_l"), NULL, 10);
}

uint64_t group_token_bytes(const group *g)
{
    const group_key *k = &g->key;
    return (uint64_t)k->n_kv_heads * (macattn_dtype_row_bytes(k->k_dtype, k->head_dim) +
                                      macattn_dtype_row_bytes(k->v_dtype, k->v_head_dim));
}

void group_object_free(group *g)
{
    for (int i = 0; g->m && i < g->m_layers && i < g->n_layers; i++) {
        macattn_stats stats = {.struct_size = sizeof stats};
        macattn_stats_get(g->m, i, -1, &stats);
        const uint64_t tokens = stats.tokens_total / (uint64_t)g->key.n_heads; /* of each head */
        if (stats.steps > 0)
            report_layer(g->number, i, &stats, tokens * group_token_bytes(g), &g->layers[i].audit);
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

void group_forget_kept(group *g)
{
    for (int i = 0; g->kept && i < g->n_slots; i++) free(g->kept[i].data);
    free(g->kept);
    g->kept = NULL;
    g->n_slots = 0;
}

void group_free(group *g)
{
    group_object_free(g);
    trackers_free(g);
    group_forget_kept(g);
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
    const plugin_model *m = &a->settings.model;
    const bool same = (!m->n_heads || m->n_heads == g->key.n_heads) &&
                      (!m->n_kv_heads || m->n_kv_heads == g->key.n_kv_heads) &&
                      (!m->head_dim || m->head_dim == g->key.head_dim) &&
                      (!m->n_layers || m->n_layers == attention_n_layers(a));
    if (!same && !a->said_misfit) {
        a->said_misfit = true;
        host_say(
            "MACATTN_CONFIG=%s is for a model of %d layers with %d/%d heads of %d%s%s; this one "
            "has %d with %d/%d of %d: nothing is reused",
            a->settings.config_path, (int)m->n_layers, (int)m->n_heads, (int)m->n_kv_heads,
            (int)m->head_dim, *m->name ? ", " : "", m->name, (int)attention_n_layers(a),
            (int)g->key.n_heads, (int)g->key.n_kv_heads, (int)g->key.head_dim);
    }
    return same;
}

/* Fingerprints need keys that depend on position, and keys that depend on all tokens before:
 * layer 0's depend on their own alone. */
static bool tracks(attention *a, const group *g)
{
    return a->tracks && g->key.n_streams > 0 && g->rope_layer >= 0 &&
           group_model_layer(&g->layers[g->n_layers - 1]) > 0 && fits(a, g);
}

void group_set_budgets(const attention *a, group *g)
{
    const plugin_settings *o = &a->settings;
    if (!g->m || !g->trackers || o->config.policy != MACATTN_POLICY_BUDGET) return;
    macattn_set_head_budget(g->m, -1, -1, o->config.budget);
    if (!o->scale || o->scale_heads != g->key.n_heads) return;
    for (int l = 0; l < g->m_layers; l++) {
        const int32_t number = group_model_layer(&g->layers[l]);
        if (number < 0 || number >= o->scale_layers) continue;
        for (int32_t h = 0; h < g->key.n_heads; h++) {
            const float budget = o->config.budget * o->scale[number * o->scale_heads + h];
            macattn_set_head_budget(g->m, l, h, budget < 1.0f ? budget : 1.0f);
        }
    }
}

/* What a sequence may take now, said once: nobody who loads a plug-in expects it. */
static void note_memory(attention *a, group *g, const macattn_config *cfg)
{
    size_t rings = 0, runs = 0;
    macattn_config_state_bytes(cfg, &rings);
    macattn_config_run_bytes(cfg, g->key.n_cells, &runs);
    g->memory = (report_memory){.rings = rings, .runs = runs};
    a->totals.memory = (report_memory){0};
    for (int i = 0; i < a->n_groups; i++) {
        a->totals.memory.rings += a->groups[i]->memory.rings;
        a->totals.memory.runs += a->groups[i]->memory.runs;
    }
    if (g->said_memory || rings == 0) return;
    g->said_memory = true;
    host_say("reuse in %d layers takes up to %.1f MB a sequence: %.1f for %d remembered queries a "
             "head, %.1f for means of K and V at %lld tokens",
             (int)cfg->n_layers, 1e-6 * (double)(rings + runs), 1e-6 * (double)rings,
             (int)cfg->ring, 1e-6 * (double)runs, (long long)g->key.n_cells);
}

/* The object, under the settings as they are. */
bool group_object_make(attention *a, group *g, int n_layers)
{
    macattn_config cfg = a->settings.config;
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
    cfg.policy = g->trackers ? a->settings.config.policy : MACATTN_POLICY_EXACT;
    cfg.ring = settings_ring(&a->settings); /* also where no query is remembered: a prompt's */
    cfg.band = settings_band(&a->settings); /* parts, and so its rounding, depend on both */
    cfg.n_threads = pool_limit(a->pool);    /* it cannot grow; the pool uses as many as ggml does */
    cfg.parallel_for = pool_parallel_for;
    cfg.parallel_user = a->pool;
    if (g->trackers) cfg.max_slots = (int32_t)g->key.n_streams * g->n_sequences;
    g->step.done = calloc((size_t)n_layers, 1);
    char error[256] = "";
    if (!g->step.done || macattn_create(&cfg, &g->m, error, sizeof error) != MACATTN_OK) {
        host_say("attention is left to ggml: %s", *error ? error : "out of memory");
        group_object_free(g);
        return false;
    }
    g->m_layers = n_layers;
    group_set_budgets(a, g);
    if (g->trackers) note_memory(a, g, &cfg);
    g->step.mask = NULL;
    return true;
}

/* The object and the trackers, for as many layers as are known. More layers than before: start
 * over. */
bool group_object_create(attention *a, group *g)
{
    const int n_layers = g->n_layers > 0 ? g->n_layers : 1;
    if (g->m && g->m_layers >= n_layers) return true;
    if (g->failed) return false;
    group_object_free(g);
    trackers_free(g);
    g->failed = (tracks(a, g) && !trackers_create(a, g)) || !group_object_make(a, g, n_layers);
    if (g->failed) trackers_free(g);
    return !g->failed;
}
