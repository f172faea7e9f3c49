/* SPDX-License-Identifier: Apache-2.0 */
#include "context.h"

#include <stdlib.h>

#include "group.h"

attention *attention_create(const plugin_settings *settings)
{
    attention *a = calloc(1, sizeof *a);
    if (!a) return NULL;
    a->settings = *settings;
    a->tracks = settings->config.policy != MACATTN_POLICY_EXACT;
    a->n_threads = 1;
    a->pool = pool_create();
    if (!a->pool) {
        free(a);
        return NULL;
    }
    return a;
}

void attention_free(attention *a)
{
    if (!a) return;
    for (int i = 0; i < a->n_groups; i++) group_free(a->groups[i]);
    report_add(&a->totals);
    if (a->cpu) host.ggml_backend_free(a->cpu);
    if (a->cpu_context) host.ggml_free(a->cpu_context);
    pool_free(a->pool);
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
    pool_set_threads(a->pool, a->n_threads);
}

macattn_status attention_layer(const attention *a, int32_t index, macattn_ggml_layer *info)
{
    int l;
    const group *g = group_of_layer(a, index, &l);
    if (!info || info->struct_size != sizeof *info) return MACATTN_E_ARG;
    if (!g) return MACATTN_E_RANGE;
    *info = (macattn_ggml_layer){.struct_size = sizeof *info,
                                 .number = group_model_layer(&g->layers[l]),
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
    group *g = group_of_layer(a, index, &l);
    if (!g || !g->m || l >= g->m_layers) return MACATTN_E_RANGE;
    return macattn_stats_get(g->m, l, head, stats);
}

macattn_status attention_bytes(const attention *a, int32_t index, macattn_ggml_bytes *bytes)
{
    int l;
    const group *g = group_of_layer(a, index, &l);
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
    group_forget_kept(g);
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
    for (int i = 0; !ok && i < a->n_groups; i++) group_forget_kept(a->groups[i]);
    return ok ? MACATTN_OK : MACATTN_E_NOMEM;
}

static bool restart_group(attention *a, group *g)
{
    const int n_layers = g->m_layers;
    const bool reuses = a->settings.config.policy != MACATTN_POLICY_EXACT;
    if (!g->m) return true;
    group_object_free(g);
    if (!group_object_make(a, g, n_layers)) return false;
    for (int i = 0; reuses && g->kept && i < g->n_slots; i++) {
        const kept_slot *kept = &g->kept[i];
        if (kept->data && macattn_slot_load(g->m, i, kept->data, kept->size) != MACATTN_OK) {
            return false;
        }
    }
    return true;
}

macattn_status attention_restart(attention *a, const plugin_settings *settings)
{
    if (!a->tracks && settings->config.policy != MACATTN_POLICY_EXACT) return MACATTN_E_STATE;
    a->settings = *settings;
    report_add(&a->totals);
    a->totals = (report_totals){0};
    bool ok = true;
    for (int i = 0; i < a->n_groups; i++) ok = restart_group(a, a->groups[i]) && ok;
    return ok ? MACATTN_OK : MACATTN_E_NOMEM;
}

macattn_status attention_set_budgets(attention *a, const plugin_settings *settings)
{
    if (a->settings.config.policy != MACATTN_POLICY_BUDGET) return MACATTN_E_STATE;
    a->settings.config.budget = settings->config.budget;
    a->settings.scale = settings->scale;
    a->settings.scale_layers = settings->scale_layers;
    a->settings.scale_heads = settings->scale_heads;
    for (int i = 0; i < a->n_groups; i++) group_set_budgets(a, a->groups[i]);
    return MACATTN_OK;
}
