/* SPDX-License-Identifier: Apache-2.0 */
/* The graph before it is computed: which layer an attention node is, and where its query comes
 * from. */
#ifndef MACATTN_PLUGIN_TRACE_H
#define MACATTN_PLUGIN_TRACE_H

#include "records.h"

/*! trace_node() : an attention node of a graph that is going to be computed; finds out where its
 *  query comes from, and asks through `params` that what is needed of that stays in memory. */
void trace_node(attention *a, struct ggml_tensor *node,
                struct ggml_backend_graph_optimize_params *params);

/*! trace_of() : what was found out.  @return : NULL if nothing: such a node is computed exactly. */
trace *trace_of(attention *a, const struct ggml_tensor *node);

#endif
