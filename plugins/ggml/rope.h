/* SPDX-License-Identifier: Apache-2.0 */
/* The query before RoPE: finding the ROPE node a query came from, and undoing it. */
#ifndef MACATTN_PLUGIN_ROPE_H
#define MACATTN_PLUGIN_ROPE_H

#include <stdbool.h>

#include "ggml.h"

/*! rope_find() : the ROPE node behind the query of an attention node, through views and what
 *  changes every query in the same way (a constant factor; the rotation llama.cpp applies under a
 *  quantised cache). `plain` : nothing but views lies between, so that the ROPE node's output is
 *  the query.
 * @return : NULL if there is none, or anything else lies between. */
const struct ggml_tensor *rope_find(const struct ggml_tensor *query, bool *plain);

/*! rope_supported() : whether rope_rotate knows the node's kind: NORMAL and NEOX layouts, any
 *  number of rotated dimensions, frequency factors, YaRN; f32. */
bool rope_supported(const struct ggml_tensor *rope);

/*! rope_rotate() : `n_heads` heads of one token, [n_heads][head_dim] with strides in bytes, by the
 *  node's parameters at position `pos`; `undo` : back. `x` and `y` may be the same. */
void rope_rotate(const struct ggml_tensor *rope, int32_t pos, bool undo, int n_heads, const char *x,
                 size_t x_stride, char *y, size_t y_stride);

#endif
