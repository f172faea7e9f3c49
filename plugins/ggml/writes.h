/* SPDX-License-Identifier: Apache-2.0 */
/* What graphs write into caches of keys: seen while they are divided, asked for when they are
 * traced. */
#ifndef MACATTN_PLUGIN_WRITES_H
#define MACATTN_PLUGIN_WRITES_H

#include <stdbool.h>
#include <stdint.h>

#include "ggml.h"

/*! writes_is_key_cache() : whether a tensor is llama.cpp's cache of a layer's keys. */
bool writes_is_key_cache(const struct ggml_tensor *t);

/*! writes_note() : a node of the graph that this thread divides. */
void writes_note(const struct ggml_tensor *node);

/*! writes_cells() : the cells into which that graph puts new keys, I64.
 *  @return : NULL if it puts none there: contexts may share a cache that one of them only reads. */
const struct ggml_tensor *writes_cells(const struct ggml_tensor *cache);

/*! writes_changes() : how many nodes have been seen, of any graph, that change keys in place (as
 *  for a shift of positions). Which tokens' is not visible. */
uint64_t writes_changes(void);

#endif
