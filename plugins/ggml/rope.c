/* SPDX-License-Identifier: Apache-2.0 */
#include "rope.h"

#include <math.h>
#include <string.h>

#include "host.h"

/* llama.cpp names the matrix by which it rotates queries and keys for a quantised cache so. */
#define KEY_ROTATION "attn_inp_k_rot"

enum { MAX_ROPE_DIM = 1024 };

const struct ggml_tensor *rope_find(const struct ggml_tensor *query, bool *plain)
{
    *plain = true;
    for (int depth = 0; query && depth < 16; depth++) {
        switch (query->op) {
        case GGML_OP_ROPE: return query;
        case GGML_OP_VIEW:
        case GGML_OP_PERMUTE:
        case GGML_OP_RESHAPE:
        case GGML_OP_TRANSPOSE:
        case GGML_OP_CONT: query = query->src[0]; break;
        case GGML_OP_SCALE:
            *plain = false;
            query = query->src[0];
            break;
        case GGML_OP_MUL_MAT:
            if (strncmp(query->src[0]->name, KEY_ROTATION, strlen(KEY_ROTATION)) != 0) return NULL;
            *plain = false;
            query = query->src[1];
            break;
        default: return NULL;
        }
    }
    return NULL;
}

bool rope_supported(const struct ggml_tensor *rope)
{
    const int n_dims = rope->op_params[1], mode = rope->op_params[2];
    return rope->type == GGML_TYPE_F32 && rope->src[0]->type == GGML_TYPE_F32 &&
           rope->src[0]->nb[0] == sizeof(float) && rope->src[1]->type == GGML_TYPE_I32 &&
           rope->ne[0] <= MAX_ROPE_DIM && n_dims <= rope->ne[0] && n_dims % 2 == 0 &&
           (mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX);
}

static float parameter(const struct ggml_tensor *rope, int i)
{
    float f;
    memcpy(&f, &rope->op_params[i], sizeof f);
    return f;
}

/* Cosine and sine of every pair of dimensions, times the magnitude YaRN gives the result. */
static void angles(const struct ggml_tensor *rope, int32_t pos, float *cosine, float *sine)
{
    const int n_dims = rope->op_params[1], n_ctx_orig = rope->op_params[4];
    const float base = parameter(rope, 5), scale = parameter(rope, 6), ext = parameter(rope, 7);
    const float *factors = rope->src[2] ? rope->src[2]->data : NULL;
    float corr[2];
    host.ggml_rope_yarn_corr_dims(n_dims, n_ctx_orig, base, parameter(rope, 9), parameter(rope, 10),
                                  corr);
    const float step = powf(base, -2.0f / (float)n_dims);
    float theta = (float)pos, magnitude = parameter(rope, 8);
    if (ext != 0.0f) magnitude *= 1.0f + 0.1f * logf(1.0f / scale);
    for (int i = 0; i < n_dims / 2; i++, theta *= step) {
        const float extrapolated = factors ? theta / factors[i] : theta;
        float angle = scale * extrapolated;
        if (ext != 0.0f) {
            const float at = ((float)i - corr[0]) / fmaxf(0.001f, corr[1] - corr[0]);
            const float mix = (1.0f - fminf(1.0f, fmaxf(0.0f, at))) * ext;
            angle = angle * (1.0f - mix) + extrapolated * mix;
        }
        cosine[i] = cosf(angle) * magnitude;
        sine[i] = sinf(angle) * magnitude;
    }
}

void rope_rotate(const struct ggml_tensor *rope, int32_t pos, bool undo, int n_heads, const char *x,
                 size_t x_stride, char *y, size_t y_stride)
{
    const int n_dims = rope->op_params[1], n = n_dims / 2, d = (int)rope->ne[0];
    const bool neox = rope->op_params[2] == GGML_ROPE_TYPE_NEOX;
    float cosine[MAX_ROPE_DIM / 2], sine[MAX_ROPE_DIM / 2];
    angles(rope, pos, cosine, sine);
    for (int i = 0; i < n && undo; i++) {
        const float norm = cosine[i] * cosine[i] + sine[i] * sine[i];
        cosine[i] /= norm;
        sine[i] /= -norm;
    }
    for (int h = 0; h < n_heads; h++) {
        const float *in = (const float *)(const void *)(x + (size_t)h * x_stride);
        float *out = (float *)(void *)(y + (size_t)h * y_stride);
        for (int i = 0; i < n; i++) {
            const int a = neox ? i : 2 * i, b = neox ? i + n : 2 * i + 1;
            const float u = in[a], v = in[b];
            out[a] = u * cosine[i] - v * sine[i];
            out[b] = u * sine[i] + v * cosine[i];
        }
        if (out != in) memcpy(out + n_dims, in + n_dims, sizeof(float) * (size_t)(d - n_dims));
    }
}
