/* SPDX-License-Identifier: Apache-2.0 */
#include "queries.h"

#include <math.h>
#include <string.h>

#include "rope.h"

/* Whether ggml's allocator kept the query before RoPE: it is computed anew for the last head and
 * token, and has to come out as the query. Otherwise RoPE is undone. */
static match_source find_source(const trace *t)
{
    const struct ggml_tensor *x = t->rope->src[0], *q = t->node->src[0];
    const char *const start = x->data, *const rope = t->rope->data;
    const size_t x_bytes = x->nb[2] * (size_t)x->ne[2];
    const size_t rope_bytes = t->rope->nb[2] * (size_t)t->rope->ne[2];
    const bool apart = start + x_bytes <= rope || rope + rope_bytes <= start;
    if (!t->plain) return apart ? MATCH_KEPT : MATCH_NONE;
    float y[1024], worst = 0, largest = 0;
    const int64_t token = t->rope->ne[2] - 1, head = t->rope->ne[1] - 1;
    const int32_t pos = ((const int32_t *)t->rope->src[1]->data)[token];
    rope_rotate(t->rope, pos, false, 1, start + (size_t)token * x->nb[2] + (size_t)head * x->nb[1],
                0, (char *)y, 0);
    const char *row = (const char *)q->data + (size_t)(q->ne[1] - 1) * q->nb[1] +
                      (size_t)head * q->nb[2] + (size_t)(q->ne[3] - 1) * q->nb[3];
    for (int64_t i = 0; i < q->ne[0]; i++) {
        const float value = ((const float *)(const void *)row)[i];
        worst = fmaxf(worst, fabsf(value - y[i]));
        largest = fmaxf(largest, fabsf(value));
    }
    return apart && worst <= 1e-3f * largest ? MATCH_KEPT : MATCH_UNDO;
}

bool queries_set(attention *a, const struct ggml_tensor *q, macattn_io *io)
{
    io->q = q->data;
    io->q_row_stride = (int64_t)q->nb[1];
    io->q_head_stride = (int64_t)q->nb[2];
    if (q->ne[3] == 1 || q->nb[3] == (size_t)q->ne[1] * q->nb[1]) return true;
    const size_t d = (size_t)q->ne[0], n = (size_t)q->ne[1], n_heads = (size_t)q->ne[2];
    float *packed = attention_scratch(a, n * (size_t)q->ne[3] * n_heads * d * sizeof *packed);
    if (!packed) return false;
    io->q = packed;
    io->q_row_stride = io->q_head_stride = 0;
    for (size_t i = 0; i < n * (size_t)q->ne[3]; i++) {
        for (size_t h = 0; h < n_heads; h++, packed += d) {
            memcpy(packed,
                   (const char *)q->data + i % n * q->nb[1] + h * q->nb[2] + i / n * q->nb[3],
                   d * sizeof *packed);
        }
    }
    return true;
}

static void undo_rope(attention *a, const struct ggml_tensor *node, const struct ggml_tensor *rope,
                      macattn_io *io)
{
    const struct ggml_tensor *q = node->src[0];
    const size_t d = (size_t)q->ne[0], n_heads = (size_t)q->ne[2], n = (size_t)rope->ne[2];
    char *out = (char *)attention_scratch(a, n * n_heads * d * sizeof(float));
    const int32_t *pos = rope->src[1]->data;
    if (!out) return;
    for (size_t i = 0; i < n; i++) {
        rope_rotate(rope, pos[i], true, (int)n_heads,
                    (const char *)q->data + i % (size_t)q->ne[1] * q->nb[1] +
                        i / (size_t)q->ne[1] * q->nb[3],
                    q->nb[2], out + i * n_heads * d * sizeof(float), d * sizeof(float));
    }
    io->q_match = out;
}

void queries_set_match(attention *a, trace *t, macattn_io *io)
{
    if (!t->rope) return;
    if (!t->checked) t->source = find_source(t);
    t->checked = true;
    if (t->source == MATCH_KEPT) {
        const struct ggml_tensor *x = t->rope->src[0];
        io->q_match = x->data;
        io->q_match_row_stride = (int64_t)x->nb[2];
        io->q_match_head_stride = (int64_t)x->nb[1];
    } else if (t->source == MATCH_UNDO) {
        undo_rope(a, t->node, t->rope, io);
    }
}
