/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory: taken here alone, and freed with the object. */
#include <cuda_runtime_api.h>

#include "configuration.h"
#include "core/policy/policy.h"
#include "cuda/schedule.h"
#include "device.h"
#include "memory.h"

size_t mai_cu_width(const macattn_config *c)
{
    return (size_t)c->head_dim * (mai_cu_keeps_keys(c) ? 2 : 1);
}

static size_t ring_entry_bytes(const macattn_config *c)
{
    return (size_t)c->head_dim + sizeof(mai_cu_meta) + sizeof(int32_t) + sizeof(float) +
           (mai_cu_judges(c) ? sizeof(mai_cu_judged) : 0) +
           macattn_dtype_row_bytes(c->q_dtype, c->head_dim) + mai_cu_width(c) * sizeof(float);
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

/* Segments that n_runs runs take. */
static size_t segments_for(int64_t n_runs)
{
    return (size_t)((n_runs + MAI_CU_SEGMENT - 1) >> MAI_CU_SEGMENT_SHIFT);
}

/* Rows of means in a segment, over all layers and KV heads. */
static size_t segment_rows(const macattn_config *c)
{
    return (size_t)c->n_layers * (size_t)c->n_kv_heads * MAI_CU_SEGMENT;
}

/* Codes and scales of a run: its mean key, its mean value, and its outlier if that is kept. */
static size_t run_bytes(const macattn_config *c)
{
    const size_t row = (size_t)c->head_dim + (size_t)c->head_dim / 32 * sizeof(uint16_t);
    return row * (mai_keeps_outliers(c) ? 3 : 2);
}

macattn_status macattn_cuda_run_bytes(const macattn_config *config, int64_t n_tokens, size_t *bytes)
{
    struct macattn_cuda m = {0};
    if (!bytes) return MACATTN_E_ARG;
    MAI_TRY(mai_cu_resolve(&m, config));
    if (n_tokens < 0 || n_tokens > m.cfg.max_tokens) return MACATTN_E_RANGE;
    *bytes = mai_keeps_runs(&m.cfg) ? segments_for(n_tokens >> MAI_CU_RUN_SHIFT) *
                                          segment_rows(&m.cfg) * run_bytes(&m.cfg)
                                    : 0;
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

/* For a part of a prompt. */
static macattn_status take_prompt(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    const size_t queries = (size_t)mai_cu_captured(c) * (size_t)c->n_heads;
    mai_cu_prompt *x = &m->prompt;
    TAKE(m, &x->summary, queries * mai_cu_width(c) * sizeof *x->summary, false, "capture");
    TAKE(m, &x->lse, queries * sizeof *x->lse, false, "capture");
    TAKE(m, &x->place, queries * sizeof *x->place, false, "capture");
    if (!mai_cu_judges(c)) return MACATTN_OK;
    TAKE(m, &x->samples, MAI_PROMPT_SAMPLES * (size_t)c->n_heads * sizeof *x->samples, false,
         "capture");
    return MACATTN_OK;
}

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
    TAKE(m, &r->lse0, entries * sizeof *r->lse0, false, "rings");
    TAKE(m, &r->q, entries * macattn_dtype_row_bytes(c->q_dtype, c->head_dim), false,
         "rings (queries)");
    TAKE(m, &r->summary, entries * mai_cu_width(c) * sizeof *r->summary, false,
         "rings (summaries)");
    TAKE(m, &r->head, rings * sizeof *r->head, true, "rings");
    TAKE(m, &r->count, rings * sizeof *r->count, true, "rings");
    TAKE(m, &m->params.found, rows * heads * sizeof *m->params.found, true, "decisions");
    m->params.decisions = m->params.found;
    m->params.keys = mai_cu_keeps_keys(c);
    return take_prompt(m);
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
    TAKE(m, &p->seen, rows * heads * sizeof *p->seen, true, "records");
    TAKE(m, &p->unit2, sizeof *p->unit2, true, "records");
    TAKE(m, &p->outcomes, rows * kv_heads * sizeof *p->outcomes, true, "records");
    TAKE(m, &p->learnt, kv_heads * sizeof *p->learnt, true, "records");
    TAKE(m, &p->group_counters, layers * kv_heads * sizeof *p->group_counters, true, "statistics");
    DEVICE_TRY(m, "statistics",
               cudaMallocHost((void **)&m->host_group_counters,
                              layers * kv_heads * sizeof *m->host_group_counters));
    p->judges = 1;
    return mai_cu_device_status(
        m, "budgets", mai_cu_set_budget(p, 0, c->n_layers, 0, c->n_heads, c->budget, NULL));
}

/* The pool of segments, and what each slot has of it. Returns how many there are. */
static macattn_status take_pool(macattn_cuda *m, size_t *n_segments)
{
    const macattn_config *c = &m->cfg;
    const size_t slots = (size_t)c->max_slots;
    const size_t heads = slots * (size_t)c->n_layers * (size_t)c->n_kv_heads;
    const size_t most = segments_for(c->max_tokens >> MAI_CU_RUN_SHIFT);
    const size_t wanted = segments_for((m->cuda.run_tokens + MAI_CU_RUN - 1) >> MAI_CU_RUN_SHIFT);
    const size_t n = m->cuda.run_tokens == 0 || wanted > slots * most ? slots * most : wanted;
    const size_t d = (size_t)c->head_dim, rows = n * segment_rows(c);
    mai_cu_runs *r = &m->params.runs;
    TAKE(m, &r->k, rows * d, false, "means of runs");
    TAKE(m, &r->v, rows * d, false, "means of runs");
    TAKE(m, &r->k_scale, rows * (d / 32) * sizeof *r->k_scale, false, "means of runs");
    TAKE(m, &r->v_scale, rows * (d / 32) * sizeof *r->v_scale, false, "means of runs");
    if (mai_keeps_outliers(c)) {
        TAKE(m, &r->outlier, rows * d, false, "outliers of runs");
        TAKE(m, &r->outlier_scale, rows * (d / 32) * sizeof *r->outlier_scale, false,
             "outliers of runs");
    }
    TAKE(m, &r->common, heads * d * sizeof *r->common, true, "means of runs");
    TAKE(m, &r->made, heads * sizeof *r->made, true, "means of runs");
    TAKE(m, &r->table, slots * most * sizeof *r->table, true, "means of runs");
    TAKE(m, &r->n_segments, slots * sizeof *r->n_segments, true, "means of runs");
    TAKE(m, &r->free, n * sizeof *r->free, true, "means of runs");
    TAKE(m, &r->n_free, sizeof *r->n_free, true, "means of runs");
    r->most = (int32_t)most;
    *n_segments = n;
    return MACATTN_OK;
}

/* What a step works out of the runs of its rows. */
static macattn_status take_selection(macattn_cuda *m, size_t n_segments)
{
    const macattn_config *c = &m->cfg;
    const size_t rows = (size_t)m->cuda.max_rows, all_rows = rows * (size_t)m->params.runs.most;
    const size_t n_runs = (n_segments < all_rows ? n_segments : all_rows) * MAI_CU_SEGMENT;
    const size_t heads = (size_t)c->n_heads, kv_heads = (size_t)c->n_kv_heads;
    mai_cu_params *p = &m->params;
    TAKE(m, &p->row_runs, rows * sizeof *p->row_runs, true, "selections");
    TAKE(m, &p->choices, rows * kv_heads * sizeof *p->choices, true, "selections");
    TAKE(m, &p->scores, n_runs * heads * sizeof *p->scores, false, "scores of runs");
    TAKE(m, &p->lists, n_runs * kv_heads * sizeof *p->lists, false, "lists of runs");
    TAKE(m, &p->piece_lse, (n_runs / MAI_CU_PIECE + rows + 1) * heads * sizeof *p->piece_lse, false,
         "scores of runs");
    TAKE(m, &p->least, rows * heads * sizeof *p->least, true, "selections");
    TAKE(m, &p->scored, rows * kv_heads * sizeof *p->scored, true, "work lists");
    return MACATTN_OK;
}

macattn_status mai_cu_take_runs(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    const size_t kv_heads = (size_t)c->n_kv_heads, selectors = (size_t)c->n_layers * kv_heads;
    const size_t parts = (size_t)MAI_CU_SHOWN_CHUNKS * MAI_CU_SHOWN_PARTS * (size_t)c->n_heads;
    size_t n_segments;
    mai_cu_prompt *x = &m->prompt;
    MAI_TRY(take_pool(m, &n_segments));
    MAI_TRY(take_selection(m, n_segments));
    TAKE(m, &m->params.selectors, selectors * sizeof *m->params.selectors, true, "records");
    TAKE(m, &x->parts, parts * (size_t)(c->head_dim + 1) * sizeof *x->parts, false, "capture");
    TAKE(m, &x->shown, MAI_SELECT_SAMPLES * MAI_THETAS * kv_heads * sizeof *x->shown, false,
         "capture");
    TAKE(m, &x->norms, MAI_SELECT_SAMPLES * (size_t)c->n_heads * sizeof *x->norms, false,
         "capture");
    return mai_cu_device_status(
        m, "means of runs", mai_cu_runs_begin(&m->params, (int)n_segments, (int)selectors, NULL));
}

macattn_status mai_cu_take_work(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    mai_cu_params *p = &m->params;
    const size_t parts =
        (size_t)m->n_blocks * MAI_PLACES * MAI_CLASSES * (size_t)p->heads_per_block;
    const size_t groups =
        (size_t)m->cuda.max_rows * (size_t)c->n_kv_heads * (size_t)p->blocks_per_kv;
    /* The kernels that can sum up keys have room for them in any case. */
    const size_t width = (size_t)c->head_dim * (mai_cu_judges(c) || mai_cu_keeps_keys(c) ? 2 : 1);
    const size_t counters = mai_cu_rings_per_slot(c);
    TAKE(m, &p->partial_out, parts * width * sizeof(float), false, "partial results");
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
    if (m->host_group_counters) (void)cudaFreeHost(m->host_group_counters);
    if (m->stats_stream) (void)cudaStreamDestroy(m->stats_stream);
}
