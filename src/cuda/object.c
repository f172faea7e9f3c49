/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU object on the host: configuration, device memory, arguments, launches. */
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/config.h"
#include "core/policy/policy.h"
#include "launch.h"
#include "schedule.h"

enum { MAX_MEMORY = 32 };

struct macattn_cuda {
    macattn_config cfg; /* validated, all defaults resolved */
    macattn_cuda_config cuda;
    const mai_cu_attend_kernel *kernel;
    mai_cu_params
        params;   /* what does not change from call to call; the rest is filled in per call */
    int n_blocks; /* of the attention kernel: as many as run at a time */
    cudaStream_t stats_stream;
    mai_cu_counters *host_counters; /* page-locked, [n_layers][n_heads] */
    void *memory[MAX_MEMORY];       /* device memory, to be freed */
    int n_memory;
    float *capture_out, *capture_lse; /* [max_rows][n_heads][head_dim], [max_rows][n_heads] */
    char error[320];
};

/* ------------------------------------------------------------------------------------- errors -- */

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static macattn_status
fail(macattn_cuda *m, macattn_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(m->error, sizeof m->error, format, args);
    va_end(args);
    return code;
}

static macattn_status device_status(macattn_cuda *m, const char *what, int status)
{
    if (status == cudaSuccess) return MACATTN_OK;
    return fail(m, status == cudaErrorMemoryAllocation ? MACATTN_E_NOMEM : MACATTN_E_DEVICE,
                "%s: %s", what, cudaGetErrorString((cudaError_t)status));
}

#define DEVICE_TRY(m, what, call) MAI_TRY(device_status(m, what, (int)(call)))

const char *macattn_cuda_last_error(const macattn_cuda *m)
{
    return m ? m->error : "";
}

/* Calls work on the object's device and leave the thread's as it was. */
static macattn_status use_device(macattn_cuda *m, int *before)
{
    DEVICE_TRY(m, "current device", cudaGetDevice(before));
    if (*before != m->cuda.device) DEVICE_TRY(m, "set device", cudaSetDevice(m->cuda.device));
    return MACATTN_OK;
}

static void restore_device(const macattn_cuda *m, int before)
{
    if (before != m->cuda.device) (void)cudaSetDevice(before);
}

/* ------------------------------------------------------------------------------ configuration -- */

macattn_status macattn_cuda_config_init(macattn_cuda_config *config)
{
    if (!config) return MACATTN_E_ARG;
    *config = (macattn_cuda_config){.struct_size = sizeof *config,
                                    .device = -1,
                                    .max_rows = 256,
                                    .out_dtype = MACATTN_DTYPE_F32};
    return MACATTN_OK;
}

static bool is_fp8(macattn_dtype dtype)
{
    return dtype == MACATTN_DTYPE_F8_E4M3;
}

/* What the GPU asks of a configuration beyond what mai_config_resolve has checked. */
static macattn_status check_shape(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    if (c->k_dtype != c->v_dtype) {
        return fail(m, MACATTN_E_UNSUPPORTED, "k_dtype and v_dtype differ; the GPU needs one type");
    }
    if (!is_fp8(c->k_dtype) && c->k_dtype != MACATTN_DTYPE_F16 &&
        c->k_dtype != MACATTN_DTYPE_BF16) {
        return fail(m, MACATTN_E_UNSUPPORTED,
                    "k_dtype %d is not supported; supported are f16, bf16, f8_e4m3",
                    (int)c->k_dtype);
    }
    if (c->head_dim != c->v_head_dim ||
        (c->head_dim != 64 && c->head_dim != 128 && c->head_dim != 256)) {
        return fail(
            m, MACATTN_E_UNSUPPORTED,
            "head_dim %d with v_head_dim %d is not supported; supported are 64, 128 and 256, "
            "both the same",
            (int)c->head_dim, (int)c->v_head_dim);
    }
    return MACATTN_OK;
}

static macattn_status resolve(macattn_cuda *m, const macattn_config *config)
{
    MAI_TRY(mai_config_resolve(config, &m->cfg, m->error, sizeof m->error));
    return check_shape(m);
}

static macattn_status resolve_cuda(macattn_cuda *m, const macattn_cuda_config *cuda)
{
    macattn_cuda_config_init(&m->cuda);
    if (!cuda) return MACATTN_OK;
    if (cuda->struct_size != sizeof *cuda) {
        return fail(m, MACATTN_E_ARG, "struct_size is %zu; call macattn_cuda_config_init first",
                    cuda->struct_size);
    }
    m->cuda = *cuda;
    if (cuda->max_rows < 1 || cuda->max_rows > 65535) {
        return fail(m, MACATTN_E_RANGE, "max_rows is %d; it must be in [1, 65535]",
                    (int)cuda->max_rows);
    }
    if ((unsigned)cuda->out_dtype > MACATTN_DTYPE_BF16) {
        return fail(m, MACATTN_E_RANGE,
                    "out_dtype %d is not supported; supported are f32, f16, bf16",
                    (int)cuda->out_dtype);
    }
    return MACATTN_OK;
}

/* ------------------------------------------------------------------------------------- memory -- */

static bool judges(const macattn_config *c)
{
    return mai_policy_get(c->policy)->judges && mai_keeps_rings(c);
}

static size_t ring_entry_bytes(const macattn_config *c)
{
    const size_t d = (size_t)c->head_dim;
    return d + sizeof(mai_cu_meta) + sizeof(int32_t) + sizeof(float) +
           (judges(c) ? sizeof(mai_cu_judged) : 0) +
           macattn_dtype_row_bytes(c->q_dtype, c->head_dim) + d * sizeof(float);
}

static size_t rings_per_slot(const macattn_config *c)
{
    return (size_t)c->n_layers * (size_t)c->n_heads;
}

static size_t state_bytes(const macattn_config *c)
{
    if (!mai_keeps_rings(c)) return 0;
    return rings_per_slot(c) *
           ((size_t)c->ring * ring_entry_bytes(c) + 2 * sizeof(int32_t) /* head, count */);
}

macattn_status macattn_cuda_state_bytes(const macattn_config *config, size_t *bytes)
{
    struct macattn_cuda m = {0};
    if (!bytes) return MACATTN_E_ARG;
    MAI_TRY(resolve(&m, config));
    *bytes = state_bytes(&m.cfg);
    return MACATTN_OK;
}

/* Device memory, zeroed if asked for, that lives as long as the object. */
static macattn_status take(macattn_cuda *m, void **out, size_t bytes, bool zero, const char *what)
{
    void *p = NULL;
    if (m->n_memory == MAX_MEMORY) return fail(m, MACATTN_E_NOMEM, "no room to note %s", what);
    const cudaError_t status = cudaMalloc(&p, bytes > 0 ? bytes : 1);
    if (status != cudaSuccess) {
        (void)cudaGetLastError(); /* not sticky */
        return fail(m, status == cudaErrorMemoryAllocation ? MACATTN_E_NOMEM : MACATTN_E_DEVICE,
                    "%zu bytes of device memory for %s: %s", bytes, what,
                    cudaGetErrorString(status));
    }
    m->memory[m->n_memory++] = p;
    *out = p;
    if (zero) DEVICE_TRY(m, what, cudaMemset(p, 0, bytes));
    return MACATTN_OK;
}

#define TAKE(m, pointer, bytes, zero, what) MAI_TRY(take(m, (void **)(pointer), bytes, zero, what))

static macattn_status take_rings(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    const size_t rings = (size_t)c->max_slots * rings_per_slot(c);
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
static macattn_status take_judge(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    const size_t layers = (size_t)c->n_layers, rows = (size_t)m->cuda.max_rows;
    const size_t heads = (size_t)c->n_heads, kv_heads = (size_t)c->n_kv_heads;
    const size_t entries = (size_t)c->max_slots * rings_per_slot(c) * (size_t)c->ring;
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
    return device_status(m, "budgets",
                         mai_cu_set_budget(p, 0, c->n_layers, 0, c->n_heads, c->budget, NULL));
}

static macattn_status take_work(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    mai_cu_params *p = &m->params;
    const size_t parts =
        (size_t)m->n_blocks * MAI_PLACES * MAI_CLASSES * (size_t)p->heads_per_block;
    const size_t groups =
        (size_t)m->cuda.max_rows * (size_t)c->n_kv_heads * (size_t)p->blocks_per_kv;
    const size_t counters = rings_per_slot(c);
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

static void free_all(macattn_cuda *m)
{
    for (int i = 0; i < m->n_memory; i++) (void)cudaFree(m->memory[i]);
    if (m->host_counters) (void)cudaFreeHost(m->host_counters);
    if (m->stats_stream) (void)cudaStreamDestroy(m->stats_stream);
}

/* ------------------------------------------------------------------------------------- object -- */

static void fill_params(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    mai_cu_params *p = &m->params;
    const int group = c->n_heads / c->n_kv_heads, most = m->kernel->heads;
    p->n_layers = c->n_layers, p->n_heads = c->n_heads, p->n_kv_heads = c->n_kv_heads;
    p->group = group, p->head_dim = c->head_dim;
    p->heads_per_block = group < most ? group : most;
    p->blocks_per_kv = (group + most - 1) / most;
    p->ring = c->ring, p->band = c->band, p->fresh = c->fresh_tokens;
    p->window = c->window > INT32_MAX ? INT32_MAX : (int32_t)c->window;
    p->min_tokens = c->min_tokens > INT32_MAX ? INT32_MAX : (int32_t)c->min_tokens;
    p->scale = c->scale, p->softcap = c->softcap;
    const double radius = mai_policy_get(c->policy)->radius(c, INT64_MAX);
    p->radius2 = radius < 0 ? -1.0f : (float)(radius * radius);
    p->q_dtype = c->q_dtype, p->kv_dtype = c->k_dtype, p->out_dtype = m->cuda.out_dtype;
    p->capture_row = -1;
}

static macattn_status choose_kernel(macattn_cuda *m)
{
    int sms, shared, major, per_sm = 0;
    const int device = m->cuda.device;
    DEVICE_TRY(m, "device",
               cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    DEVICE_TRY(m, "device", cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
    DEVICE_TRY(m, "device",
               cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    if (major < 8) {
        return fail(m, MACATTN_E_DEVICE, "device %d has compute capability %d; 8.0 is needed",
                    device, major);
    }
    const macattn_config *c = &m->cfg;
    m->kernel =
        mai_cu_attend_find(c->k_dtype, c->head_dim, c->n_heads / c->n_kv_heads, (size_t)shared);
    if (!m->kernel) {
        return fail(m, MACATTN_E_UNSUPPORTED, "no kernel fits %d bytes of shared memory", shared);
    }
    DEVICE_TRY(m, "kernel", mai_cu_attend_prepare(m->kernel, &per_sm));
    DEVICE_TRY(m, "kernel", mai_cu_match_prepare(c->head_dim));
    if (per_sm < 1) return fail(m, MACATTN_E_DEVICE, "the kernel does not fit this device");
    m->n_blocks = sms * per_sm;
    m->params.n_sms = sms;
    return MACATTN_OK;
}

static macattn_status create(macattn_cuda *m, const macattn_config *config,
                             const macattn_cuda_config *cuda)
{
    int before;
    MAI_TRY(resolve(m, config));
    MAI_TRY(resolve_cuda(m, cuda));
    if (m->cuda.device < 0) DEVICE_TRY(m, "current device", cudaGetDevice(&m->cuda.device));
    MAI_TRY(use_device(m, &before));
    macattn_status status = choose_kernel(m);
    if (status == MACATTN_OK) fill_params(m);
    if (status == MACATTN_OK) status = take_work(m);
    if (status == MACATTN_OK && mai_keeps_rings(&m->cfg)) status = take_rings(m);
    if (status == MACATTN_OK && judges(&m->cfg)) status = take_judge(m);
    if (status == MACATTN_OK) status = device_status(m, "create", (int)cudaDeviceSynchronize());
    if (status != MACATTN_OK) free_all(m);
    restore_device(m, before);
    return status;
}

macattn_status macattn_cuda_create(const macattn_config *config, const macattn_cuda_config *cuda,
                                   macattn_cuda **out, char *error, size_t error_size)
{
    if (!out) return MACATTN_E_ARG;
    *out = NULL;
    const macattn_config plain = {0};
    macattn_cuda *m = mai_alloc_zero(&plain, sizeof *m);
    if (!m) return MACATTN_E_NOMEM;
    const macattn_status status = create(m, config, cuda);
    if (error && error_size > 0) snprintf(error, error_size, "%s", m->error);
    if (status == MACATTN_OK)
        *out = m;
    else
        mai_free(&plain, m);
    return status;
}

void macattn_cuda_destroy(macattn_cuda *m)
{
    int before;
    if (!m) return;
    if (use_device(m, &before) == MACATTN_OK) {
        free_all(m);
        restore_device(m, before);
    }
    const macattn_config plain = {0};
    mai_free(&plain, m);
}

/* ---------------------------------------------------------------------------------- arguments -- */

static macattn_status check_batch(macattn_cuda *m, const macattn_cuda_batch *b)
{
    if (!b || b->struct_size != sizeof *b) {
        return fail(m, MACATTN_E_ARG, "batch is NULL or its struct_size is not set");
    }
    if (b->n_rows < 1 || b->n_rows > m->cuda.max_rows) {
        return fail(m, MACATTN_E_RANGE, "n_rows is %d; it must be in [1, %d]", (int)b->n_rows,
                    (int)m->cuda.max_rows);
    }
    if (!b->n_tokens) return fail(m, MACATTN_E_ARG, "n_tokens is NULL");
    if (b->page_size < 0 || (b->page_size & (b->page_size - 1)) != 0) {
        return fail(m, MACATTN_E_RANGE, "page_size is %d; it must be 0 or a power of two",
                    (int)b->page_size);
    }
    if (b->page_size > 0 && !b->pages) return fail(m, MACATTN_E_ARG, "pages is NULL");
    if (b->page_size > 0 && !b->page_indptr && b->page_table_stride < 1) {
        return fail(m, MACATTN_E_ARG, "page_indptr is NULL and page_table_stride is not set");
    }
    return MACATTN_OK;
}

static macattn_status check_pointer(macattn_cuda *m, const char *name, const void *p)
{
    if (!p) return fail(m, MACATTN_E_ARG, "%s is NULL", name);
    if ((uintptr_t)p % 16 != 0) {
        return fail(m, MACATTN_E_ARG, "%s is not aligned to 16 bytes", name);
    }
    return MACATTN_OK;
}

static macattn_status check_stride(macattn_cuda *m, const char *name, int64_t stride)
{
    if (stride % 16 == 0) return MACATTN_OK;
    return fail(m, MACATTN_E_ARG, "%s is %lld; it must be a multiple of 16", name,
                (long long)stride);
}

static macattn_status check_io(macattn_cuda *m, const macattn_cuda_io *io)
{
    if (!io || io->struct_size != sizeof *io) {
        return fail(m, MACATTN_E_ARG, "io is NULL or its struct_size is not set");
    }
    const struct {
        const char *name;
        int64_t stride;
    } strides[] = {
        {"q_row_stride", io->q_row_stride},
        {"q_head_stride", io->q_head_stride},
        {"q_match_row_stride", io->q_match_row_stride},
        {"q_match_head_stride", io->q_match_head_stride},
        {"out_row_stride", io->out_row_stride},
        {"out_head_stride", io->out_head_stride},
        {"k_page_stride", io->kv.k_page_stride},
        {"k_token_stride", io->kv.k_token_stride},
        {"k_head_stride", io->kv.k_head_stride},
        {"v_page_stride", io->kv.v_page_stride},
        {"v_token_stride", io->kv.v_token_stride},
        {"v_head_stride", io->kv.v_head_stride},
    };
    MAI_TRY(check_pointer(m, "q", io->q));
    MAI_TRY(check_pointer(m, "k", io->kv.k));
    MAI_TRY(check_pointer(m, "v", io->kv.v));
    MAI_TRY(check_pointer(m, "out", io->out));
    if (io->q_match) MAI_TRY(check_pointer(m, "q_match", io->q_match));
    for (size_t i = 0; i < sizeof strides / sizeof *strides; i++) {
        MAI_TRY(check_stride(m, strides[i].name, strides[i].stride));
    }
    if (!isfinite(io->k_scale) || !isfinite(io->v_scale)) {
        return fail(m, MACATTN_E_RANGE, "k_scale and v_scale must be finite");
    }
    return MACATTN_OK;
}

/* Strides of [row][head][dim]: what is given, or packed. */
static void row_strides(const macattn_cuda *m, macattn_dtype dtype, int64_t row, int64_t head,
                        int64_t *row_out, int64_t *head_out)
{
    const int64_t bytes = (int64_t)macattn_dtype_row_bytes(dtype, m->cfg.head_dim);
    *head_out = head ? head : bytes;
    *row_out = row ? row : bytes * m->cfg.n_heads;
}

static mai_cu_params params_of(const macattn_cuda *m, const macattn_cuda_batch *b,
                               const macattn_cuda_io *io)
{
    mai_cu_params p = m->params;
    p.n_rows = b->n_rows;
    p.slots = b->slots, p.n_tokens = b->n_tokens;
    p.pages = b->pages, p.page_indptr = b->page_indptr, p.page_table_stride = b->page_table_stride;
    p.page_shift = -1;
    for (int32_t size = b->page_size; size > 0; size >>= 1) p.page_shift++;
    p.q = io->q, p.q_match = io->q_match;
    row_strides(m, p.q_dtype, io->q_row_stride, io->q_head_stride, &p.q_row_stride,
                &p.q_head_stride);
    row_strides(m, p.q_dtype, io->q_match_row_stride, io->q_match_head_stride, &p.m_row_stride,
                &p.m_head_stride);
    row_strides(m, p.out_dtype, io->out_row_stride, io->out_head_stride, &p.out_row_stride,
                &p.out_head_stride);
    p.k = io->kv.k, p.v = io->kv.v;
    p.k_page_stride = io->kv.k_page_stride, p.v_page_stride = io->kv.v_page_stride;
    p.k_token_stride = io->kv.k_token_stride, p.v_token_stride = io->kv.v_token_stride;
    p.k_head_stride = io->kv.k_head_stride, p.v_head_stride = io->kv.v_head_stride;
    p.k_scale = io->k_scale == 0 ? 1.0f : io->k_scale;
    p.v_scale = io->v_scale == 0 ? 1.0f : io->v_scale;
    p.sinks = io->sinks, p.out = io->out, p.lse = io->lse;
    return p;
}

/* -------------------------------------------------------------------------------------- calls -- */

static macattn_status launch(macattn_cuda *m, mai_cu_params *p, bool matches, void *stream)
{
    int before;
    p->even_blocks = mai_even_blocks(m->n_blocks, p->n_rows * p->n_kv_heads * p->blocks_per_kv);
    MAI_TRY(use_device(m, &before));
    macattn_status status = MACATTN_OK;
    if (matches) status = device_status(m, "match", mai_cu_match_launch(p, stream));
    if (status == MACATTN_OK) {
        status = device_status(m, "attend",
                               mai_cu_attend_launch(m->kernel, p, m->n_blocks, matches, stream));
    }
    restore_device(m, before);
    return status;
}

macattn_status macattn_cuda_attend(macattn_cuda *m, const macattn_cuda_batch *batch,
                                   const macattn_cuda_io *io, void *stream)
{
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_batch(m, batch));
    MAI_TRY(check_io(m, io));
    mai_cu_params p = params_of(m, batch, io);
    return launch(m, &p, false, stream);
}

static macattn_status check_layer(macattn_cuda *m, int32_t layer)
{
    if (layer >= 0 && layer < m->cfg.n_layers) return MACATTN_OK;
    return fail(m, MACATTN_E_RANGE, "layer is %d; it must be in [0, %d)", (int)layer,
                (int)m->cfg.n_layers);
}

macattn_status macattn_cuda_decode(macattn_cuda *m, int32_t layer, const macattn_cuda_batch *batch,
                                   const macattn_cuda_io *io, void *stream)
{
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_layer(m, layer));
    MAI_TRY(check_batch(m, batch));
    MAI_TRY(check_io(m, io));
    mai_cu_params p = params_of(m, batch, io);
    p.layer = layer;
    p.reuse = mai_keeps_rings(&m->cfg) && io->q_match;
    if (p.reuse && !batch->slots && batch->n_rows > m->cfg.max_slots) {
        return fail(m, MACATTN_E_RANGE, "slots is NULL and there are %d rows for %d slots",
                    (int)batch->n_rows, (int)m->cfg.max_slots);
    }
    return launch(m, &p, p.reuse, stream);
}

/* Queries [first, first + n) of the row: their fresh and near tokens, then the entries. */
static macattn_status capture_some(macattn_cuda *m, mai_cu_params *p, int32_t first, int32_t n,
                                   const macattn_cuda_io *io, int32_t slot_row, void *stream)
{
    int64_t full_row_stride, full_head_stride;
    row_strides(m, m->cuda.out_dtype, io->out_row_stride, io->out_head_stride, &full_row_stride,
                &full_head_stride);
    p->capture_query = first;
    p->n_rows = n;
    p->q = (const char *)io->q + first * p->q_row_stride;
    MAI_TRY(launch(m, p, false, stream));
    return device_status(m, "capture",
                         mai_cu_capture_insert(p, io->out, full_row_stride, full_head_stride,
                                               m->cuda.out_dtype, io->lse, slot_row, stream));
}

macattn_status macattn_cuda_capture(macattn_cuda *m, int32_t layer, const macattn_cuda_batch *batch,
                                    int32_t row, int32_t n_queries, const macattn_cuda_io *io,
                                    void *stream)
{
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_layer(m, layer));
    MAI_TRY(check_batch(m, batch));
    MAI_TRY(check_io(m, io));
    if (!mai_keeps_rings(&m->cfg)) {
        return fail(m, MACATTN_E_STATE, "this configuration remembers nothing");
    }
    if (!io->q_match || !io->lse) return fail(m, MACATTN_E_ARG, "q_match or lse is NULL");
    if (row < 0 || row >= batch->n_rows || n_queries < 1) {
        return fail(m, MACATTN_E_RANGE, "row is %d of %d, n_queries is %d", (int)row,
                    (int)batch->n_rows, (int)n_queries);
    }
    mai_cu_params p = params_of(m, batch, io);
    p.layer = layer, p.reuse = 1;
    p.capture_row = row, p.capture_queries = n_queries;
    p.out_dtype = MACATTN_DTYPE_F32;
    p.out = (char *)m->capture_out, p.lse = m->capture_lse;
    row_strides(m, MACATTN_DTYPE_F32, 0, 0, &p.out_row_stride, &p.out_head_stride);
    int32_t first = n_queries > m->cfg.ring ? n_queries - m->cfg.ring : 0;
    for (; first < n_queries; first += m->cuda.max_rows) {
        const int32_t left = n_queries - first;
        const int32_t n = left < m->cuda.max_rows ? left : m->cuda.max_rows;
        MAI_TRY(capture_some(m, &p, first, n, io, row, stream));
    }
    return MACATTN_OK;
}

/* -------------------------------------------------------------------------------------- slots -- */

static macattn_status check_slot(macattn_cuda *m, int32_t slot)
{
    if (slot >= 0 && slot < m->cfg.max_slots) return MACATTN_OK;
    return fail(m, MACATTN_E_RANGE, "slot is %d; it must be in [0, %d)", (int)slot,
                (int)m->cfg.max_slots);
}

macattn_status macattn_cuda_slot_truncate(macattn_cuda *m, int32_t slot, int64_t n_tokens,
                                          void *stream)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(check_slot(m, slot));
    if (n_tokens < 0) return fail(m, MACATTN_E_RANGE, "n_tokens is negative");
    if (!mai_keeps_rings(&m->cfg)) return MACATTN_OK;
    MAI_TRY(use_device(m, &before));
    const int status = mai_cu_slot_truncate(&m->params, slot, n_tokens, stream);
    restore_device(m, before);
    return device_status(m, "truncate", status);
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
    const size_t rings = rings_per_slot(&m->cfg), entries = rings * (size_t)m->cfg.ring;
    const size_t d = (size_t)m->cfg.head_dim;
    const mai_cu_rings *r = &m->params.rings;
    const struct {
        void *base;
        size_t bytes; /* of one slot */
    } arrays[] = {
        {r->q8, entries * d},
        {r->meta, entries * sizeof *r->meta},
        {r->pos, entries * sizeof *r->pos},
        {r->lse, entries * sizeof *r->lse},
        {r->judged, r->judged ? entries * sizeof *r->judged : 0},
        {r->q, entries * macattn_dtype_row_bytes(m->cfg.q_dtype, m->cfg.head_dim)},
        {r->out, entries * d * sizeof *r->out},
        {r->head, rings * sizeof *r->head},
        {r->count, rings * sizeof *r->count},
    };
    MAI_TRY(use_device(m, &before));
    int status = cudaSuccess;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays && status == cudaSuccess; i++) {
        char *base = arrays[i].base;
        if (arrays[i].bytes == 0) continue;
        status = (int)cudaMemcpyAsync(base + (size_t)to * arrays[i].bytes,
                                      base + (size_t)from * arrays[i].bytes, arrays[i].bytes,
                                      cudaMemcpyDeviceToDevice, (cudaStream_t)stream);
    }
    restore_device(m, before);
    return device_status(m, "fork", status);
}

/* ------------------------------------------------------------------------------------- budgets -- */

macattn_status macattn_cuda_set_head_budget(macattn_cuda *m, int32_t layer, int32_t head,
                                            float budget, void *stream)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    if (!judges(&m->cfg)) return fail(m, MACATTN_E_STATE, "the policy is not BUDGET");
    mai_heads x;
    MAI_TRY(mai_budget_heads(&m->cfg, layer, head, budget, &x, m->error, sizeof m->error));
    MAI_TRY(use_device(m, &before));
    const int status =
        mai_cu_set_budget(&m->params, x.layer0, x.layer1, x.head0, x.head1, budget, stream);
    restore_device(m, before);
    return device_status(m, "budgets", status);
}

/* --------------------------------------------------------------------------------- statistics -- */

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
}

macattn_status macattn_cuda_stats_get(macattn_cuda *m, int32_t layer, int32_t head,
                                      macattn_stats *stats)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    if (!stats || stats->struct_size != sizeof *stats) {
        return fail(m, MACATTN_E_ARG, "stats is NULL or its struct_size is not set");
    }
    if (layer < -1 || layer >= m->cfg.n_layers || head < -1 || head >= m->cfg.n_heads) {
        return fail(m, MACATTN_E_RANGE, "layer %d, head %d: there are %d and %d", (int)layer,
                    (int)head, (int)m->cfg.n_layers, (int)m->cfg.n_heads);
    }
    MAI_TRY(use_device(m, &before));
    const size_t bytes = rings_per_slot(&m->cfg) * sizeof *m->host_counters;
    cudaError_t status = cudaMemcpyAsync(m->host_counters, m->params.counters, bytes,
                                         cudaMemcpyDeviceToHost, m->stats_stream);
    if (status == cudaSuccess) status = cudaStreamSynchronize(m->stats_stream);
    restore_device(m, before);
    MAI_TRY(device_status(m, "statistics", (int)status));
    *stats = (macattn_stats){.struct_size = sizeof *stats};
    for (int l = 0; l < m->cfg.n_layers; l++) {
        for (int h = 0; h < m->cfg.n_heads; h++) {
            if ((layer >= 0 && l != layer) || (head >= 0 && h != head)) continue;
            add_counters(stats, &m->host_counters[(size_t)l * (size_t)m->cfg.n_heads + (size_t)h]);
        }
    }
    return MACATTN_OK;
}

macattn_status macattn_cuda_stats_reset(macattn_cuda *m, void *stream)
{
    int before;
    if (!m) return MACATTN_E_ARG;
    MAI_TRY(use_device(m, &before));
    const cudaError_t status =
        cudaMemsetAsync(m->params.counters, 0, rings_per_slot(&m->cfg) * sizeof *m->params.counters,
                        (cudaStream_t)stream);
    restore_device(m, before);
    return device_status(m, "statistics", (int)status);
}
