/* SPDX-License-Identifier: Apache-2.0 */
/* Calls on slots, budgets and statistics. */
#include <cuda_runtime_api.h>

#include "configuration.h"
#include "core/policy/policy.h"
#include "device.h"
#include "memory.h"

static macattn_status check_slot(macattn_cuda *m, int32_t slot)
{
    if (slot >= 0 && slot < m->cfg.max_slots) return MACATTN_OK;
    return mai_cu_fail(m, MACATTN_E_RANGE, "slot is %d; it must be in [0, %d)", (int)slot,
                       (int)m->cfg.max_slots);
}

macattn_status macattn_cuda_slot_truncate(macattn_cuda *m, int32_t slot, int64_t n_tokens,
                                          void *stream)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_slot(m, slot));
    if (n_tokens < 0) return mai_cu_fail(m, MACATTN_E_RANGE, "n_tokens is negative");
    if (!mai_keeps_rings(&m->cfg)) return MACATTN_OK;
    MAI_TRY(mai_cu_use_device(m, &before));
    const int status = mai_cu_slot_truncate(&m->params, slot, n_tokens, stream);
    mai_cu_restore_device(m, before);
    return mai_cu_device_status(m, "truncate", status);
}

macattn_status macattn_cuda_slot_reset(macattn_cuda *m, int32_t slot, void *stream)
{
    return macattn_cuda_slot_truncate(m, slot, 0, stream);
}

macattn_status macattn_cuda_slot_fork(macattn_cuda *m, int32_t from, int32_t to, void *stream)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_slot(m, from));
    MAI_TRY(check_slot(m, to));
    if (from == to || !mai_keeps_rings(&m->cfg)) return MACATTN_OK;
    const size_t rings = mai_cu_rings_per_slot(&m->cfg), entries = rings * (size_t)m->cfg.ring;
    const size_t d = (size_t)m->cfg.head_dim;
    const mai_cu_rings *r = &m->params.rings;
    const struct {
        void *base;
        size_t bytes; /* of one slot */
    } arrays[] = {
        {r->q8, entries * d},
        {r->meta, entries * sizeof *r->meta},
        {r->pos, entries * sizeof *r->pos},
        {r->lse0, entries * sizeof *r->lse0},
        {r->judged, r->judged ? entries * sizeof *r->judged : 0},
        {r->q, entries * macattn_dtype_row_bytes(m->cfg.q_dtype, m->cfg.head_dim)},
        {r->summary, entries * mai_cu_width(&m->cfg) * sizeof *r->summary},
        {r->head, rings * sizeof *r->head},
        {r->count, rings * sizeof *r->count},
    };
    MAI_TRY(mai_cu_use_device(m, &before));
    int status = cudaSuccess;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays && status == cudaSuccess; i++) {
        char *base = arrays[i].base;
        if (arrays[i].bytes == 0) continue;
        status = (int)cudaMemcpyAsync(base + (size_t)to * arrays[i].bytes,
                                      base + (size_t)from * arrays[i].bytes, arrays[i].bytes,
                                      cudaMemcpyDeviceToDevice, (cudaStream_t)stream);
    }
    if (status == cudaSuccess && mai_keeps_runs(&m->cfg))
        status = mai_cu_runs_fork(&m->params, from, to, stream);
    mai_cu_restore_device(m, before);
    return mai_cu_device_status(m, "fork", status);
}

macattn_status macattn_cuda_set_head_budget(macattn_cuda *m, int32_t layer, int32_t head,
                                            float budget, void *stream)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    if (!mai_cu_judges(&m->cfg)) return mai_cu_fail(m, MACATTN_E_STATE, "the policy is not BUDGET");
    mai_heads x;
    MAI_TRY(mai_budget_heads(&m->cfg, layer, head, budget, &x, m->error, sizeof m->error));
    MAI_TRY(mai_cu_use_device(m, &before));
    const int status =
        mai_cu_set_budget(&m->params, x.layer0, x.layer1, x.head0, x.head1, budget, stream);
    mai_cu_restore_device(m, before);
    return mai_cu_device_status(m, "budgets", status);
}

const macattn_cuda_decision *macattn_cuda_decisions(const macattn_cuda *m)
{
    return m ? m->params.decisions : NULL;
}

static void add_counters(macattn_stats *s, const mai_cu_counters *c)
{
    s->steps += c->steps;
    s->hits += c->hits;
    s->misses += c->steps - c->hits;
    s->tokens_total += c->tokens_total;
    s->tokens_skipped += c->tokens_skipped;
    for (int i = 0; i < MACATTN_DISTANCE_BINS; i++) s->distance[i] += c->distance[i];
    s->samples += c->samples;
    s->error2_layer += c->error2_layer;
    s->error2_head += c->error2_head;
}

static void add_group_counters(macattn_stats *s, const mai_cu_group_counters *c)
{
    for (int i = 0; i < MACATTN_WAYS; i++) {
        s->groups[i] += c->groups[i];
        s->kv_bytes[i] += c->kv_bytes[i];
        s->run_bytes[i] += c->run_bytes[i];
    }
    s->checks += c->checks;
    s->error2_selected += c->error2_selected;
}

macattn_status macattn_cuda_stats_get(macattn_cuda *m, int32_t layer, int32_t head,
                                      macattn_stats *stats)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    if (!stats || stats->struct_size != sizeof *stats) {
        return mai_cu_fail(m, MACATTN_E_ARG, "stats is NULL or its struct_size is not set");
    }
    if (layer < -1 || layer >= m->cfg.n_layers || head < -1 || head >= m->cfg.n_heads) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "layer %d, head %d: there are %d and %d", (int)layer,
                           (int)head, (int)m->cfg.n_layers, (int)m->cfg.n_heads);
    }
    MAI_TRY(mai_cu_use_device(m, &before));
    const size_t bytes = mai_cu_rings_per_slot(&m->cfg) * sizeof *m->host_counters;
    cudaError_t status = cudaMemcpyAsync(m->host_counters, m->params.counters, bytes,
                                         cudaMemcpyDeviceToHost, m->stats_stream);
    const int32_t kv_heads = m->cfg.n_kv_heads;
    const size_t groups = m->host_group_counters ? (size_t)m->cfg.n_layers * (size_t)kv_heads : 0;
    if (status == cudaSuccess && groups > 0) {
        status = cudaMemcpyAsync(m->host_group_counters, m->params.group_counters,
                                 groups * sizeof *m->host_group_counters, cudaMemcpyDeviceToHost,
                                 m->stats_stream);
    }
    if (status == cudaSuccess) status = cudaStreamSynchronize(m->stats_stream);
    mai_cu_restore_device(m, before);
    MAI_TRY(mai_cu_device_status(m, "statistics", (int)status));
    *stats = (macattn_stats){.struct_size = sizeof *stats};
    for (int l = 0; l < m->cfg.n_layers; l++) {
        for (int h = 0; h < m->cfg.n_heads; h++) {
            if ((layer >= 0 && l != layer) || (head >= 0 && h != head)) continue;
            add_counters(stats, &m->host_counters[(size_t)l * (size_t)m->cfg.n_heads + (size_t)h]);
        }
    }
    const int32_t of_head = head / (m->cfg.n_heads / kv_heads);
    for (int32_t i = 0; i < (int32_t)groups; i++) {
        if ((layer >= 0 && i / kv_heads != layer) || (head >= 0 && i % kv_heads != of_head))
            continue;
        add_group_counters(stats, &m->host_group_counters[i]);
    }
    return MACATTN_OK;
}

macattn_status macattn_cuda_stats_reset(macattn_cuda *m, void *stream)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(mai_cu_use_device(m, &before));
    const size_t groups = (size_t)m->cfg.n_layers * (size_t)m->cfg.n_kv_heads;
    cudaError_t status = cudaMemsetAsync(
        m->params.counters, 0, mai_cu_rings_per_slot(&m->cfg) * sizeof *m->params.counters,
        (cudaStream_t)stream);
    if (status == cudaSuccess && m->params.group_counters) {
        status = cudaMemsetAsync(m->params.group_counters, 0,
                                 groups * sizeof *m->params.group_counters, (cudaStream_t)stream);
    }
    mai_cu_restore_device(m, before);
    return mai_cu_device_status(m, "statistics", (int)status);
}
