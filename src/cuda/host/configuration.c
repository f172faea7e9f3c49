/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration: what must hold of it beyond what the CPU asks. */
#include "configuration.h"

#include <stddef.h>
#include <string.h>

#include "core/config.h"
#include "core/policy/policy.h"
#include "device.h"

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

/* Of BUDGET where nothing is selected, as with fp8: behind 16K tokens of Qwen2.5-Coder-1.5B the reading at an
 * error of 0.1 was 0.34, 0.27 and 0.59 of all (code, documents, chat) with it, 0.45, 0.41 and 0.57
 * with 256. */
enum { BUDGET_BAND = 2048 };

/* What the GPU asks of a configuration beyond what mai_config_resolve has checked. */
static macattn_status check_shape(macattn_cuda *m)
{
    const macattn_config *c = &m->cfg;
    if (c->k_dtype != c->v_dtype) {
        return mai_cu_fail(m, MACATTN_E_UNSUPPORTED,
                           "k_dtype and v_dtype differ; the GPU needs one type");
    }
    if (!is_fp8(c->k_dtype) && c->k_dtype != MACATTN_DTYPE_F16 &&
        c->k_dtype != MACATTN_DTYPE_BF16) {
        return mai_cu_fail(m, MACATTN_E_UNSUPPORTED,
                           "k_dtype %s is not supported; supported are f16, bf16, f8_e4m3",
                           macattn_dtype_name(c->k_dtype));
    }
    if (c->head_dim != c->v_head_dim ||
        (c->head_dim != 64 && c->head_dim != 128 && c->head_dim != 256)) {
        return mai_cu_fail(
            m, MACATTN_E_UNSUPPORTED,
            "head_dim %d with v_head_dim %d is not supported; supported are 64, 128 and 256, "
            "both the same",
            (int)c->head_dim, (int)c->v_head_dim);
    }
    return MACATTN_OK;
}

macattn_status mai_cu_resolve(macattn_cuda *m, const macattn_config *config)
{
    MAI_TRY(mai_config_resolve(config, &m->cfg, m->error, sizeof m->error));
    double band = 0; /* stays so if the caller's struct is too old to have one */
    macattn_setting_get(config, "band", &band);
    if (is_fp8(m->cfg.k_dtype)) m->cfg.select = 0;
    if (m->cfg.policy == MACATTN_POLICY_BUDGET && m->cfg.select == 0 && band == 0)
        m->cfg.band = BUDGET_BAND;
    return check_shape(m);
}

/* A newer caller's struct may be longer, if it leaves at zero what this library does not know, as
 * a macattn_config may. */
static macattn_status copy_cuda_config(macattn_cuda *m, const macattn_cuda_config *cuda)
{
    const size_t first = offsetof(macattn_cuda_config, out_dtype) + sizeof cuda->out_dtype;
    if (cuda->struct_size < first || cuda->struct_size > 65536) {
        return mai_cu_fail(m, MACATTN_E_ARG,
                           "struct_size is %zu; call macattn_cuda_config_init first",
                           cuda->struct_size);
    }
    for (size_t i = sizeof *cuda; i < cuda->struct_size; i++) {
        if (((const unsigned char *)cuda)[i] != 0) {
            return mai_cu_fail(
                m, MACATTN_E_ARG,
                "the GPU's configuration has a field set that version %s does not know",
                MACATTN_VERSION);
        }
    }
    memcpy(&m->cuda, cuda, cuda->struct_size < sizeof m->cuda ? cuda->struct_size : sizeof m->cuda);
    m->cuda.struct_size = sizeof m->cuda;
    return MACATTN_OK;
}

macattn_status mai_cu_resolve_cuda(macattn_cuda *m, const macattn_cuda_config *cuda)
{
    macattn_cuda_config_init(&m->cuda);
    if (!cuda) return MACATTN_OK;
    MAI_TRY(copy_cuda_config(m, cuda));
    cuda = &m->cuda;
    if (cuda->max_rows < 1 || cuda->max_rows > 65535) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "max_rows is %d; it must be in [1, 65535]",
                           (int)cuda->max_rows);
    }
    if ((unsigned)cuda->out_dtype > MACATTN_DTYPE_BF16) {
        return mai_cu_fail(m, MACATTN_E_RANGE,
                           "out_dtype %d is not supported; supported are f32, f16, bf16",
                           (int)cuda->out_dtype);
    }
    if (cuda->run_tokens < 0) {
        return mai_cu_fail(m, MACATTN_E_RANGE, "run_tokens is %lld; it must not be negative",
                           (long long)cuda->run_tokens);
    }
    return MACATTN_OK;
}

bool mai_cu_judges(const macattn_config *c)
{
    return mai_policy_get(c->policy)->judges && mai_keeps_rings(c);
}

bool mai_cu_keeps_keys(const macattn_config *c)
{
    return mai_keeps_rings(c) && c->lse_order > 0;
}

int32_t mai_cu_captured(const macattn_config *c)
{
    return c->ring < MAI_CU_CAPTURED ? c->ring : MAI_CU_CAPTURED;
}
