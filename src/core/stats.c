/* SPDX-License-Identifier: Apache-2.0 */
/* Counters by layer and head. */
#include <math.h>
#include <string.h>

#include "object.h"

static size_t n_counters(const macattn *m)
{
    return (size_t)m->cfg.n_layers * (size_t)m->cfg.n_heads;
}

macattn_status mai_stats_create(macattn *m)
{
    m->counters = mai_alloc_zero(&m->cfg, n_counters(m) * sizeof(mai_counters));
    m->times = mai_alloc_zero(&m->cfg, (size_t)m->cfg.n_layers * sizeof(mai_times));
    return m->counters && m->times ? MACATTN_OK
                                   : mai_fail(m, MACATTN_E_NOMEM, "no memory for the counters");
}

void mai_stats_destroy(macattn *m)
{
    mai_free(&m->cfg, m->counters);
    mai_free(&m->cfg, m->times);
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

void mai_stats_add_times(macattn *m, int32_t layer, int64_t match_ns, int64_t attend_ns,
                         int64_t merge_ns, int64_t judge_ns)
{
    m->times[layer].match_ns += (uint64_t)match_ns;
    m->times[layer].attend_ns += (uint64_t)attend_ns;
    m->times[layer].merge_ns += (uint64_t)merge_ns;
    m->times[layer].judge_ns += (uint64_t)judge_ns;
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
        if (layer == -1 || layer == l) {
            sum.match_ns += m->times[l].match_ns;
            sum.attend_ns += m->times[l].attend_ns;
            sum.merge_ns += m->times[l].merge_ns;
            sum.judge_ns += m->times[l].judge_ns;
        }
        for (int h = 0; h < m->cfg.n_heads; h++) {
            if ((layer == -1 || layer == l) && (head == -1 || head == h))
                accumulate(&sum, &m->counters[(size_t)l * (size_t)m->cfg.n_heads + (size_t)h]);
        }
    }
    *stats = sum;
    return MACATTN_OK;
}

macattn_status macattn_stats_reset(macattn *m)
{
    if (!m) return MACATTN_E_ARG;
    memset(m->counters, 0, n_counters(m) * sizeof(mai_counters));
    memset(m->times, 0, (size_t)m->cfg.n_layers * sizeof(mai_times));
    return MACATTN_OK;
}
