/* SPDX-License-Identifier: Apache-2.0 */
#include "node.h"

#include <string.h>

float node_float(const struct ggml_tensor *node, int i)
{
    float f;
    memcpy(&f, &node->op_params[i], sizeof f);
    return f;
}

bool node_dtype(enum ggml_type type, macattn_dtype *dtype)
{
    switch (type) {
    case GGML_TYPE_F32: *dtype = MACATTN_DTYPE_F32; return true;
    case GGML_TYPE_F16: *dtype = MACATTN_DTYPE_F16; return true;
    case GGML_TYPE_BF16: *dtype = MACATTN_DTYPE_BF16; return true;
    case GGML_TYPE_Q8_0: *dtype = MACATTN_DTYPE_Q8_0; return true;
    case GGML_TYPE_Q4_0: *dtype = MACATTN_DTYPE_Q4_0; return true;
    case GGML_TYPE_Q4_1: *dtype = MACATTN_DTYPE_Q4_1; return true;
    case GGML_TYPE_Q5_0: *dtype = MACATTN_DTYPE_Q5_0; return true;
    case GGML_TYPE_Q5_1: *dtype = MACATTN_DTYPE_Q5_1; return true;
    case GGML_TYPE_IQ4_NL: *dtype = MACATTN_DTYPE_IQ4_NL; return true;
    default: return false;
    }
}

/* [head_dim, n_kv, n_kv_heads, n_streams], of which streams are whole numbers of tokens apart. */
static bool supports_cache(const struct ggml_tensor *t)
{
    macattn_dtype dtype;
    if (!node_dtype(t->type, &dtype) || t->ne[0] % 8 != 0 || t->ne[0] > 1024) return false;
    const size_t row = macattn_dtype_row_bytes(dtype, t->ne[0]);
    return row > 0 && t->nb[1] >= row && (t->ne[2] == 1 || t->nb[2] >= row) &&
           t->nb[3] % t->nb[1] == 0;
}

bool node_supported(const struct ggml_tensor *node)
{
    const struct ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const struct ggml_tensor *mask = node->src[3], *sinks = node->src[4];
    const float max_bias = node_float(node, 1);
    if (q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float) || max_bias != 0.0f) return false;
    if (!supports_cache(k) || !supports_cache(v) || q->ne[2] > 1024) return false;
    if (k->ne[2] != v->ne[2] || q->ne[2] % k->ne[2] != 0 || k->ne[1] != v->ne[1]) return false;
    if (q->ne[3] != k->ne[3] || q->ne[3] != v->ne[3]) return false;
    if (q->ne[3] > 1 && k->nb[3] / k->nb[1] != v->nb[3] / v->nb[1]) return false;
    if (mask && (mask->type != GGML_TYPE_F16 || mask->nb[0] != 2 || mask->ne[2] != 1 ||
                 (mask->ne[3] != q->ne[3] && mask->ne[3] != 1))) {
        return false;
    }
    /* Without a mask all see everything, which for macattn is a row for each. */
    if (!mask && q->ne[1] * q->ne[3] > NODE_MANY_QUERIES) return false;
    return !sinks || (sinks->type == GGML_TYPE_F32 && sinks->nb[0] == sizeof(float));
}
