/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory: taken here alone, and freed with the object. */
#include <cuda_runtime_api.h>

#include "configuration.h"
#include "core/policy/policy.h"
#include "cuda/schedule.h"
#include "device.h"
#include "memory.h"

static size_t ring_entry_bytes(const macattn_config *c)
{
    const size_t d = (size_t)c->head_dim;
    return d + sizeof(mai_cu_meta) + sizeof(int32_t) + sizeof(float) +
           (mai_cu_judges(c) ? sizeof(mai_cu_judged) : 0) +
           macattn_dtype_row_bytes(c->q_dtype, c->head_dim) + d * sizeof(float);
}

size_t mai_cu_rings_per_slot(const macattn_config *c)
{
    return (size_t)c->n_layers * (size_t)c->n_heads;
}

static size_t state_bytes(const macattn_config *c)
{
    if (!mai_keeps_rings(c)) return 0;
    return mai_cu_rings_per_slot(c) *
           ((size_t)c->ring * ring_entry_bytes(c) + 2 * sizeof(int32_t) /* head, count */);
}

macattn_status macattn_cuda_state_bytes(const macattn_config *config, size_t *bytes)
{
    struct macattn_cuda m = {0};
    if (!bytes) return MACATTN_E_ARG;
    MAI_TRY(mai_cu_resolve(&m, config));
    *bytes = state_bytes(&m.cfg);
    return MACATTN_OK;
}

/* Device memory, zeroed if asked for, that lives as long as the object. */
static macattn_status take(macattn_cuda *m, void **out, size_t bytes, bool zero, const char *what)
{
    void *p = NULL;
    if (m->n_memory == MAX_MEMORY)
        return mai_cu_fail(m, MACATTN_E_NOMEM, "no room to note %s", what);
    const cudaError_t status = cudaMalloc(&p, bytes > 0 ? bytes : 1);
    if (status != cudaSuccess) {
        (void)cudaGetLastError(); /* not sticky */
        return mai_cu_fail(
            m, status == cudaErrorMemoryAllocation ? MACATTN_E_NOMEM : MACATTN_E_DEVICE,
            "%zu bytes of device memory for %s: %s", bytes, what, cudaGetErrorString(status));
    }
    m->memory[m->n_memory++] = p;
    *out = p;
    if (zero) DEVICE_TRY(m, what, cudaMemset(p, 0, bytes));
    return MACATTN_OK;
}

#define TAKE(m, pointer, bytes, zero, what) MAI_TRY(take(m, (void **)(pointer), bytes, zero, what))

macattn_status mai_cu_take_rings(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    const size_t rings = (size_t)c->max_slots * mai_cu_rings_per_slot(c);
    const size_t entries = rings * (size_t)c->ring, d = (size_t)c->head_dim;
    const size_t rows = (size_t)m->cuda.max_rows, heads = (size_t)c->n_heads;
    mai_cu_rings *r = &m->params.rings;
    TAKE(m, &r->q8, entries * d, false, "rings (codes)");
    TAKE(m, &r->meta, entries * sizeof *r->meta, false, "rings (codes)");
    TAKE(m, &r->pos, entries * sizeof *r->pos, false, "rings");
    TAKE(m, &r->lse, entries * sizeof *r->lse, false, "rings");
    TAKE(m, &r->q, entries * macattn_dtype_row_bytes(c->q_dtype, c->head_dim), false,
         "rings (queries)");
    TAKE(m, &r->out, entries * d * sizeof *r->out, false, "rings (summaries)");
    TAKE(m, &r->head, rings * sizeof *r->head, true, "rings");
    TAKE(m, &r->count, rings * sizeof *r->count, true, "rings");
    TAKE(m, &m->params.found, rows * heads * sizeof *m->params.found, true, "decisions");
    m->params.decisions = m->params.found;
    TAKE(m, &m->capture_out, rows * heads * d * sizeof(float), false, "capture");
    TAKE(m, &m->capture_lse, rows * heads * sizeof(float), false, "capture");
    return MACATTN_OK;
}

/* What a policy that judges keeps beside the rings. */
macattn_status mai_cu_take_judge(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    const size_t layers = (size_t)c->n_layers, rows = (size_t)m->cuda.max_rows;
    const size_t heads = (size_t)c->n_heads, kv_heads = (size_t)c->n_kv_heads;
    const size_t entries = (size_t)c->max_slots * mai_cu_rings_per_slot(c) * (size_t)c->ring;
    mai_cu_params *p = &m->params;
    TAKE(m, &p->rings.judged, entries * sizeof *p->rings.judged, false, "rings");
    TAKE(m, &p->decisions, rows * heads * sizeof *p->decisions, true, "decisions");
    TAKE(m, &p->records, layers * heads * sizeof *p->records, true, "records");
    TAKE(m, &p->habits, layers * kv_heads * sizeof *p->habits, true, "records");
    TAKE(m, &p->judgements, rows * heads * sizeof *p->judgements, true, "records");
    TAKE(m, &p->errors, rows * heads * sizeof *p->errors, true, "records");
    TAKE(m, &p->outcomes, rows * kv_heads * sizeof *p->outcomes, true, "records");
    TAKE(m, &p->learnt, kv_heads * sizeof *p->learnt, true, "records");
    p->judges = 1;
    return mai_cu_device_status(
        m, "budgets", mai_cu_set_budget(p, 0, c->n_layers, 0, c->n_heads, c->budget, NULL));
}

macattn_status mai_cu_take_work(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    mai_cu_params *p = &m->params;
    const size_t parts =
        (size_t)m->n_blocks * MAI_PLACES * MAI_CLASSES * (size_t)p->heads_per_block;
    const size_t groups =
        (size_t)m->cuda.max_rows * (size_t)c->n_kv_heads * (size_t)p->blocks_per_kv;
    const size_t counters = mai_cu_rings_per_slot(c);
    TAKE(m, &p->partial_out, parts * (size_t)c->head_dim * sizeof(float), false, "partial results");
    TAKE(m, &p->partial_lse, parts * sizeof(float), false, "partial results");
    TAKE(m, &p->arrived, (2 * (size_t)m->n_blocks + groups) * sizeof *p->arrived, true,
         "work lists");
    TAKE(m, &p->counters, counters * sizeof *p->counters, true, "statistics");
    DEVICE_TRY(m, "statistics",
               cudaMallocHost((void **)&m->host_counters, counters * sizeof *m->host_counters));
    DEVICE_TRY(m, "statistics", cudaStreamCreateWithFlags(&m->stats_stream, cudaStreamNonBlocking));
    return MACATTN_OK;
}

void mai_cu_free_all(macattn_cuda *m)
{
    for (int i = 0; i < m->n_memory; i++) (void)cudaFree(m->memory[i]);
    if (m->host_counters) (void)cudaFreeHost(m->host_counters);
    if (m->stats_stream) (void)cudaStreamDestroy(m->stats_stream);
}
