/* SPDX-License-Identifier: Apache-2.0 */
/* Defaults of a configuration, and what must hold of it. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "config.h"
#include "policy/policy.h"

macattn_status macattn_config_init(macattn_config *config)
{
    if (!config) return MACATTN_E_ARG;
    *config = (macattn_config){
        .struct_size = sizeof *config,
        .q_dtype = MACATTN_DTYPE_F32,
        .k_dtype = MACATTN_DTYPE_F16,
        .v_dtype = MACATTN_DTYPE_F16,
        .max_slots = 1,
        .max_tokens = 131072,
        .policy = MACATTN_POLICY_BUDGET,
        .ring = 512,
        .min_tokens = 2048,
        .tau = 0.45f,
        .budget = 0.002f,
        .spin_us = 100,
    };
    return MACATTN_OK;
}

/* Where the sentence about a bad field goes. */
typedef struct verdict {
    char *error;
    size_t error_size;
} verdict;

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static macattn_status
reject(const verdict *v, macattn_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (v->error_size > 0) vsnprintf(v->error, v->error_size, format, args);
    va_end(args);
    return code;
}

static macattn_status check_range(const verdict *v, const char *name, int64_t value, int64_t low,
                                  int64_t high)
{
    if (value >= low && value <= high) return MACATTN_OK;
    return reject(v, MACATTN_E_RANGE, "%s is %lld; it must be in [%lld, %lld]", name,
                  (long long)value, (long long)low, (long long)high);
}

static macattn_status check_real(const verdict *v, const char *name, float value, float low,
                                 float high)
{
    if (value >= low && value <= high) return MACATTN_OK; /* false for NaN */
    return reject(v, MACATTN_E_RANGE, "%s is %g; it must be in [%g, %g]", name, (double)value,
                  (double)low, (double)high);
}

/* An older caller's struct is shorter: what it lacks takes its default. A newer caller's may be
 * longer, if it leaves at zero what this library does not know. */
static macattn_status copy_config(const verdict *v, const macattn_config *in, macattn_config *out)
{
    const size_t first = offsetof(macattn_config, n_kv_heads); /* no caller is older than that */
    if (in->struct_size < first || in->struct_size > 65536) {
        return reject(v, MACATTN_E_ARG, "struct_size is %zu; call macattn_config_init first",
                      in->struct_size);
    }
    for (size_t i = sizeof *in; i < in->struct_size; i++) {
        if (((const unsigned char *)in)[i] != 0) {
            return reject(v, MACATTN_E_ARG,
                          "the configuration has a field set that version %s does not know",
                          MACATTN_VERSION);
        }
    }
    macattn_config_init(out);
    memcpy(out, in, in->struct_size < sizeof *out ? in->struct_size : sizeof *out);
    out->struct_size = sizeof *out;
    return MACATTN_OK;
}

static macattn_status check_dim(const verdict *v, const char *name, int32_t dim,
                                macattn_dtype dtype)
{
    MAI_TRY(check_range(v, name, dim, 1, MAI_MAX_DIM));
    if (dim % 8 != 0) {
        return reject(v, MACATTN_E_UNSUPPORTED,
                      "%s %d is not supported; supported are the multiples of 8", name, (int)dim);
    }
    if (dtype == MACATTN_DTYPE_Q8_0 && dim % 32 != 0) {
        return reject(v, MACATTN_E_UNSUPPORTED,
                      "%s %d is not supported with q8_0; supported are the multiples of 32", name,
                      (int)dim);
    }
    return MACATTN_OK;
}

static macattn_status check_dtypes(const verdict *v, const macattn_config *c)
{
    MAI_TRY(check_range(v, "q_dtype", (int64_t)c->q_dtype, MACATTN_DTYPE_F32, MACATTN_DTYPE_Q8_0));
    MAI_TRY(check_range(v, "k_dtype", (int64_t)c->k_dtype, MACATTN_DTYPE_F32, MACATTN_DTYPE_Q8_0));
    MAI_TRY(check_range(v, "v_dtype", (int64_t)c->v_dtype, MACATTN_DTYPE_F32, MACATTN_DTYPE_Q8_0));
    if (c->q_dtype == MACATTN_DTYPE_Q8_0) {
        return reject(v, MACATTN_E_UNSUPPORTED,
                      "q_dtype q8_0 is not supported; supported are f32, f16, bf16");
    }
    return MACATTN_OK;
}

static macattn_status check_model(const verdict *v, macattn_config *c)
{
    MAI_TRY(check_range(v, "n_layers", c->n_layers, 1, 65536));
    MAI_TRY(check_range(v, "n_heads", c->n_heads, 1, MAI_MAX_HEADS));
    MAI_TRY(check_range(v, "n_kv_heads", c->n_kv_heads, 1, c->n_heads));
    if (c->n_heads % c->n_kv_heads != 0) {
        return reject(v, MACATTN_E_ARG, "n_heads %d is not a multiple of n_kv_heads %d",
                      (int)c->n_heads, (int)c->n_kv_heads);
    }
    MAI_TRY(check_dtypes(v, c));
    if (c->v_head_dim == 0) c->v_head_dim = c->head_dim;
    MAI_TRY(check_dim(v, "head_dim", c->head_dim, c->k_dtype));
    MAI_TRY(check_dim(v, "v_head_dim", c->v_head_dim, c->v_dtype));
    if (c->scale == 0) c->scale = (float)(1.0 / sqrt((double)c->head_dim));
    if (!isfinite(c->scale)) return reject(v, MACATTN_E_RANGE, "scale is not finite");
    MAI_TRY(check_real(v, "softcap", c->softcap, 0, 1e6f));
    return check_range(v, "window", c->window, 0, INT32_MAX);
}

static macattn_status check_state(const verdict *v, macattn_config *c)
{
    MAI_TRY(check_range(v, "max_slots", c->max_slots, 1, 65536));
    MAI_TRY(check_range(v, "max_tokens", c->max_tokens, 1, INT32_MAX));
    if (!mai_policy_get(c->policy)) {
        return reject(v, MACATTN_E_RANGE,
                      "policy %d does not exist; there are EXACT (0), PAPER (1), BUDGET (2)",
                      (int)c->policy);
    }
    MAI_TRY(check_range(v, "ring", c->ring, 1, 4096));
    MAI_TRY(check_range(v, "band", c->band, 0, INT32_MAX));
    if (c->band == 0) c->band = MACATTN_DEFAULT_BAND(c->policy);
    MAI_TRY(check_range(v, "fresh_tokens", c->fresh_tokens, 0, INT32_MAX / 2));
    MAI_TRY(check_range(v, "min_tokens", c->min_tokens, 0, INT64_MAX));
    MAI_TRY(check_real(v, "budget", c->budget, 0, 1));
    return check_real(v, "tau", c->tau, 0, 1);
}

static macattn_status check_running(const verdict *v, macattn_config *c,
                                    const mai_backend **backend)
{
    if (c->n_threads == 0) c->n_threads = mai_threads_default();
    MAI_TRY(check_range(v, "n_threads", c->n_threads, 1, 1024));
    MAI_TRY(check_range(v, "spin_us", c->spin_us, 0, 1000000));
    if (!c->alloc != !c->free) {
        return reject(v, MACATTN_E_ARG, "alloc and free must both be set, or neither");
    }
    *backend = mai_backend_find(c->isa);
    if (!*backend) {
        return reject(v, MACATTN_E_ISA,
                      "instruction set \"%s\" does not exist or is not supported here",
                      c->isa ? c->isa : "(any)");
    }
    c->isa = (*backend)->name;
    return MACATTN_OK;
}

macattn_status mai_config_resolve(const macattn_config *in, macattn_config *out,
                                  const mai_backend **backend, char *error, size_t error_size)
{
    const verdict v = {error, error_size};
    if (!in) return reject(&v, MACATTN_E_ARG, "config is NULL");
    MAI_TRY(copy_config(&v, in, out));
    MAI_TRY(check_model(&v, out));
    MAI_TRY(check_state(&v, out));
    return check_running(&v, out, backend);
}
