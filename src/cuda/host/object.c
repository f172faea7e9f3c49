/* SPDX-License-Identifier: Apache-2.0 */
/* The life of an object. */
#include <cuda_runtime_api.h>
#include <stdio.h>

#include "configuration.h"
#include "core/policy/policy.h"
#include "device.h"
#include "memory.h"

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
    p->scale = c->scale, p->softcap = mai_softcap_of(c->softcap);
    const double radius = mai_policy_get(c->policy)->radius(c, INT64_MAX);
    p->radius2 = radius < 0 ? -1.0f : (float)(radius * radius);
    p->q_dtype = c->q_dtype, p->kv_dtype = c->k_dtype, p->out_dtype = m->cuda.out_dtype;
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
        return mai_cu_fail(m, MACATTN_E_DEVICE,
                           "device %d has compute capability %d; 8.0 is needed", device, major);
    }
    const macattn_config *c = &m->cfg;
    m->kernel =
        mai_cu_attend_find(c->k_dtype, c->head_dim, c->n_heads / c->n_kv_heads, (size_t)shared);
    if (!m->kernel) {
        return mai_cu_fail(m, MACATTN_E_UNSUPPORTED, "no kernel fits %d bytes of shared memory",
                           shared);
    }
    DEVICE_TRY(m, "kernel", mai_cu_attend_prepare(m->kernel, &per_sm));
    DEVICE_TRY(m, "kernel", mai_cu_match_prepare(c->head_dim));
    DEVICE_TRY(m, "kernel", mai_cu_far_prepare(c->k_dtype, c->head_dim));
    if (mai_keeps_runs(c)) {
        int per_sm_select = 0;
        DEVICE_TRY(m, "kernel",
                   mai_cu_select_prepare(c->head_dim, mai_keeps_outliers(c), &per_sm_select));
        DEVICE_TRY(m, "kernel", mai_cu_shown_prepare(c->head_dim));
        m->n_select_blocks = sms * per_sm_select;
        if (per_sm_select < 1) per_sm = 0;
    }
    if (per_sm < 1) return mai_cu_fail(m, MACATTN_E_DEVICE, "the kernel does not fit this device");
    m->n_blocks = sms * per_sm;
    m->params.n_sms = sms;
    return MACATTN_OK;
}

static macattn_status create(macattn_cuda *m, const macattn_config *config,
                             const macattn_cuda_config *cuda)
{
    int before;
    MAI_TRY(mai_cu_resolve(m, config));
    MAI_TRY(mai_cu_resolve_cuda(m, cuda));
    if (m->cuda.device < 0) DEVICE_TRY(m, "current device", cudaGetDevice(&m->cuda.device));
    MAI_TRY(mai_cu_use_device(m, &before));
    macattn_status status = choose_kernel(m);
    if (status == MACATTN_OK) fill_params(m);
    if (status == MACATTN_OK) status = mai_cu_take_work(m);
    if (status == MACATTN_OK && mai_keeps_rings(&m->cfg)) status = mai_cu_take_rings(m);
    if (status == MACATTN_OK && mai_cu_judges(&m->cfg)) status = mai_cu_take_judge(m);
    if (status == MACATTN_OK && mai_keeps_runs(&m->cfg)) status = mai_cu_take_runs(m);
    if (status == MACATTN_OK)
        status = mai_cu_device_status(m, "create", (int)cudaDeviceSynchronize());
    if (status != MACATTN_OK) mai_cu_free_all(m);
    mai_cu_restore_device(m, before);
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
    if (mai_cu_use_device(m, &before) == MACATTN_OK) {
        mai_cu_free_all(m);
        mai_cu_restore_device(m, before);
    }
    const macattn_config plain = {0};
    mai_free(&plain, m);
}
