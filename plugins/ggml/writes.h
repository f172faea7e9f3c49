/* SPDX-License-Identifier: Apache-2.0 */
/* Where new keys are written: seen while graphs are divided, asked for when they are traced. */
#ifndef MACATTN_PLUGIN_WRITES_H
#define MACATTN_PLUGIN_WRITES_H

#include <stdbool.h>

#include "ggml.h"

/*! writes_is_key_cache() : whether a tensor is llama.cpp's cache of a layer's keys. */
bool writes_is_key_cache(const struct ggml_tensor *t);

/*! writes_note() : a SET_ROWS node seen while a graph is being divided. Any context's; thread-safe. */
void writes_note(const struct ggml_tensor *node);

/*! writes_cells() : the cells that the newest such node writes, I64.  @return : NULL if there is none. */
const struct ggml_tensor *writes_cells(const struct ggml_tensor *cache);

#endif
