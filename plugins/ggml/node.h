/* SPDX-License-Identifier: Apache-2.0 */
/* Attention nodes of a graph: what macattn can compute of them. */
#ifndef MACATTN_PLUGIN_NODE_H
#define MACATTN_PLUGIN_NODE_H

#include <stdbool.h>

#include "host.h"
#include "macattn/macattn.h"

/* So many queries are a batch: below, each may be computed by itself. */
enum { NODE_MANY_QUERIES = 64 };

/*! node_supported() : whether a FLASH_ATTN_EXT node is of a kind that macattn computes. */
bool node_supported(const struct ggml_tensor *node);

/*! node_float() : a parameter of the operator. 0 scale, 1 max_bias, 2 softcap. */
float node_float(const struct ggml_tensor *node, int i);

/*! node_dtype() : macattn's name of a type.  @return : false if it has none. */
bool node_dtype(enum ggml_type type, macattn_dtype *dtype);

#endif
