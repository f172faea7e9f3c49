/* SPDX-License-Identifier: Apache-2.0 */
/* Making and ending an object. */
#include <stdio.h>

#include "config.h"
#include "object.h"
#include "plan.h"

/* Whether summaries have a mean of keys. */
static bool keeps_keys(const macattn_config *c)
{
    return mai_keeps_rings(c) && c->lse_order > 0;
}

mai_shape mai_shape_of(const macattn_config *c)
{
    return (mai_shape){
        .n_heads = c->n_heads,
        .n_kv_heads = c->n_kv_heads,
        .group = c->n_heads / c->n_kv_heads,
        .d = c->head_dim,
        .dv = c->v_head_dim,
        .q_dtype = c->q_dtype,
        .k_dtype = c->k_dtype,
        .v_dtype = c->v_dtype,
        .scale = c->scale,
        .softcap = c->softcap,
    };
}

macattn_status macattn_config_state_bytes(const macattn_config *config, size_t *bytes)
{
    macattn_config c;
    const mai_backend *backend;
    if (!bytes) return MACATTN_E_ARG;
    MAI_TRY(mai_config_resolve(config, &c, NULL, 0));
    MAI_TRY(mai_config_resolve_cpu(&c, &backend, NULL, 0));
    const mai_shape shape = mai_shape_of(&c);
    mai_ring_dims dims;
    mai_ring_dims_init(&dims, &shape, c.ring, keeps_keys(&c));
    *bytes = mai_keeps_rings(&c) ? dims.bytes * (size_t)c.n_layers : 0;
    return MACATTN_OK;
}

macattn_status macattn_config_run_bytes(const macattn_config *config, int64_t n_tokens,
                                        size_t *bytes)
{
    macattn_config c;
    const mai_backend *backend;
    if (!bytes) return MACATTN_E_ARG;
    MAI_TRY(mai_config_resolve(config, &c, NULL, 0));
    MAI_TRY(mai_config_resolve_cpu(&c, &backend, NULL, 0));
    if (n_tokens < 0 || n_tokens > c.max_tokens) return MACATTN_E_RANGE;
    const mai_shape shape = mai_shape_of(&c);
    const size_t segments = (size_t)mai_n_segments(mai_runs_kept(&c, n_tokens));
    mai_runs_dims dims;
    mai_runs_dims_init(&dims, &shape, mai_keeps_outliers(&c));
    *bytes = dims.bytes * segments * (size_t)c.n_layers;
    return MACATTN_OK;
}

static macattn_status fill(macattn *m, char *error, size_t error_size)
{
    m->shape = mai_shape_of(&m->cfg);
    mai_ring_dims_init(&m->ring_dims, &m->shape, m->cfg.ring, keeps_keys(&m->cfg));
    mai_runs_dims_init(&m->runs_dims, &m->shape, mai_keeps_outliers(&m->cfg));
    if (mai_slots_create(m) != MACATTN_OK || mai_stats_create(m) != MACATTN_OK ||
        mai_records_create(m) != MACATTN_OK) {
        snprintf(error, error_size, "no memory for %d slots of %d layers", (int)m->cfg.max_slots,
                 (int)m->cfg.n_layers);
        return MACATTN_E_NOMEM;
    }
    return mai_threads_create(&m->cfg, &m->threads, error, error_size);
}

macattn_status macattn_create(const macattn_config *config, macattn **out, char *error,
                              size_t error_size)
{
    char nowhere[1];
    if (!error || error_size == 0) {
        error = nowhere;
        error_size = sizeof nowhere;
    }
    error[0] = 0;
    if (!out) {
        snprintf(error, error_size, "out is NULL");
        return MACATTN_E_ARG;
    }
    *out = NULL;
    macattn_config cfg;
    const mai_backend *backend;
    MAI_TRY(mai_config_resolve(config, &cfg, error, error_size));
    MAI_TRY(mai_config_resolve_cpu(&cfg, &backend, error, error_size));
    macattn *m = mai_alloc_zero(&cfg, sizeof *m);
    if (!m) {
        snprintf(error, error_size, "no memory for the object");
        return MACATTN_E_NOMEM;
    }
    m->cfg = cfg;
    m->backend = backend;
    const macattn_status status = fill(m, error, error_size);
    if (status != MACATTN_OK) {
        macattn_destroy(m);
        return status;
    }
    *out = m;
    return MACATTN_OK;
}

void macattn_destroy(macattn *m)
{
    if (!m) return;
    const macattn_config cfg = m->cfg; /* its allocator outlives the object */
    mai_threads_destroy(&cfg, m->threads);
    mai_plan_destroy(m);
    mai_work_destroy(m);
    mai_slots_destroy(m);
    mai_stats_destroy(m);
    mai_records_destroy(m);
    mai_free(&cfg, m);
}

macattn_status macattn_get_config(macattn *m, macattn_config *config)
{
    if (!m) return MACATTN_E_ARG;
    if (!config) return mai_fail(m, MACATTN_E_ARG, "config is NULL");
    *config = m->cfg;
    return MACATTN_OK;
}
