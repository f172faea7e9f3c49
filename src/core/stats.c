/* SPDX-License-Identifier: Apache-2.0 */
/* Counters by layer and head. */
#include <math.h>
#include <string.h>

#include "object.h"

static size_t n_counters(const macattn *m)
{
    return (size_t)m->cfg.n_layers * (size_t)m->cfg.n_heads;
}

static size_t n_groups(const macattn *m)
{
    return (size_t)m->cfg.n_layers * (size_t)m->cfg.n_kv_heads;
}

macattn_status mai_stats_create(macattn *m)
{
    m->counters = mai_alloc_zero(&m->cfg, n_counters(m) * sizeof(mai_counters));
    m->times = mai_alloc_zero(&m->cfg, (size_t)m->cfg.n_layers * sizeof(mai_times));
    m->group_counters = mai_alloc_zero(&m->cfg, n_groups(m) * sizeof(mai_group_counters));
    return m->counters && m->times && m->group_counters
               ? MACATTN_OK
               : mai_fail(m, MACATTN_E_NOMEM, "no memory for the counters");
}

void mai_stats_destroy(macattn *m)
{
    mai_free(&m->cfg, m->counters);
    mai_free(&m->cfg, m->times);
    mai_free(&m->cfg, m->group_counters);
    m->group_counters = NULL;
    m->counters = NULL;
    m->times = NULL;
}

void mai_stats_add(macattn *m, int32_t layer, int32_t head, bool hit, int64_t n_tokens,
                   int64_t n_skipped, double distance2)
{
    mai_counters *c = &m->counters[(size_t)layer * (size_t)m->cfg.n_heads + (size_t)head];
    c->steps++;
    c->tokens_total += (uint64_t)n_tokens;
    if (!hit) {
        c->misses++;
        return;
    }
    c->hits++;
    c->tokens_skipped += (uint64_t)n_skipped;
    const double bin = sqrt(distance2 / (2.0 * m->cfg.head_dim)) * MACATTN_DISTANCE_BINS;
    c->distance[bin < MACATTN_DISTANCE_BINS - 1 ? (int)bin : MACATTN_DISTANCE_BINS - 1]++;
}

void mai_stats_add_sample(macattn *m, int32_t layer, int32_t head, double error2_layer,
                          double error2_head)
{
    mai_counters *c = &m->counters[(size_t)layer * (size_t)m->cfg.n_heads + (size_t)head];
    c->samples++;
    c->error2_layer += error2_layer;
    c->error2_head += error2_head;
}

static mai_group_counters *group_of(const macattn *m, int32_t layer, int32_t kv_head)
{
    return &m->group_counters[(size_t)layer * (size_t)m->cfg.n_kv_heads + (size_t)kv_head];
}

void mai_stats_add_group(macattn *m, int32_t layer, int32_t kv_head, const mai_group_count *count)
{
    mai_group_counters *c = group_of(m, layer, kv_head);
    c->groups[count->how]++;
    c->kv_bytes[count->how] += count->kv_bytes;
    c->run_bytes[count->how] += count->run_bytes;
    c->ring_bytes[count->how] += count->ring_bytes;
}

void mai_stats_add_check(macattn *m, int32_t layer, int32_t kv_head, double error2)
{
    mai_group_counters *c = group_of(m, layer, kv_head);
    c->checks++;
    c->error2_selected += error2;
}

void mai_stats_add_times(macattn *m, int32_t layer, const mai_times *times)
{
    m->times[layer].match_ns += times->match_ns;
    m->times[layer].attend_ns += times->attend_ns;
    m->times[layer].merge_ns += times->merge_ns;
    m->times[layer].judge_ns += times->judge_ns;
    m->times[layer].select_ns += times->select_ns;
}

static void accumulate(macattn_stats *sum, const mai_counters *c)
{
    sum->steps += c->steps;
    sum->hits += c->hits;
    sum->misses += c->misses;
    sum->tokens_total += c->tokens_total;
    sum->tokens_skipped += c->tokens_skipped;
    for (int i = 0; i < MACATTN_DISTANCE_BINS; i++) sum->distance[i] += c->distance[i];
    sum->samples += c->samples;
    sum->error2_layer += c->error2_layer;
    sum->error2_head += c->error2_head;
}

static void accumulate_group(macattn_stats *sum, const mai_group_counters *c)
{
    for (int i = 0; i < MACATTN_WAYS; i++) {
        sum->groups[i] += c->groups[i];
        sum->kv_bytes[i] += c->kv_bytes[i];
        sum->run_bytes[i] += c->run_bytes[i];
        sum->ring_bytes[i] += c->ring_bytes[i];
    }
    sum->checks += c->checks;
    sum->error2_selected += c->error2_selected;
}

/* Of one layer; head -1: all. */
static void accumulate_layer(const macattn *m, int32_t layer, int32_t head, macattn_stats *sum)
{
    const int32_t group = m->shape.group;
    for (int32_t h = 0; h < m->cfg.n_heads; h++) {
        if (head == -1 || head == h)
            accumulate(sum, &m->counters[(size_t)layer * (size_t)m->cfg.n_heads + (size_t)h]);
    }
    for (int32_t kv_head = 0; kv_head < m->cfg.n_kv_heads; kv_head++) {
        if (head == -1 || head / group == kv_head)
            accumulate_group(sum, group_of(m, layer, kv_head));
    }
    sum->match_ns += m->times[layer].match_ns;
    sum->attend_ns += m->times[layer].attend_ns;
    sum->merge_ns += m->times[layer].merge_ns;
    sum->judge_ns += m->times[layer].judge_ns;
    sum->select_ns += m->times[layer].select_ns;
}

macattn_status macattn_stats_get(macattn *m, int32_t layer, int32_t head, macattn_stats *stats)
{
    if (!m) return MACATTN_E_ARG;
    if (!stats) return mai_fail(m, MACATTN_E_ARG, "stats is NULL");
    if (stats->struct_size != sizeof *stats) {
        return mai_fail(m, MACATTN_E_ARG,
                        "stats.struct_size is %zu, not sizeof(macattn_stats) = %zu",
                        stats->struct_size, sizeof *stats);
    }
    if (layer < -1 || layer >= m->cfg.n_layers) {
        return mai_fail(m, MACATTN_E_RANGE, "layer %d is not in [-1, n_layers = %d)", (int)layer,
                        (int)m->cfg.n_layers);
    }
    if (head < -1 || head >= m->cfg.n_heads) {
        return mai_fail(m, MACATTN_E_RANGE, "head %d is not in [-1, n_heads = %d)", (int)head,
                        (int)m->cfg.n_heads);
    }
    macattn_stats sum = {.struct_size = sizeof sum};
    for (int l = 0; l < m->cfg.n_layers; l++) {
        if (layer == -1 || layer == l) accumulate_layer(m, l, head, &sum);
    }
    *stats = sum;
    return MACATTN_OK;
}

macattn_status macattn_stats_reset(macattn *m)
{
    if (!m) return MACATTN_E_ARG;
    memset(m->counters, 0, n_counters(m) * sizeof(mai_counters));
    memset(m->times, 0, (size_t)m->cfg.n_layers * sizeof(mai_times));
    memset(m->group_counters, 0, n_groups(m) * sizeof(mai_group_counters));
    return MACATTN_OK;
}
