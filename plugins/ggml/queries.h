/* SPDX-License-Identifier: Apache-2.0 */
/* A node's queries, and the same before RoPE, by which they are matched. */
#ifndef MACATTN_PLUGIN_QUERIES_H
#define MACATTN_PLUGIN_QUERIES_H

#include "records.h"

/*! queries_set() : queries as macattn wants them: all streams' rows a constant stride apart.
 * @return : false without memory. */
bool queries_set(attention *a, const struct ggml_tensor *q, macattn_io *io);

/*! queries_set_match() : the queries before RoPE, if they can be had. */
void queries_set_match(attention *a, trace *t, macattn_io *io);

#endif
