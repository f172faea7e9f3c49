/* SPDX-License-Identifier: Apache-2.0 */
/* The first node of a group in a graph begins a step: its mask is read, sequences are
 * recognised, the object is planned; the nodes of the other layers use the same plan. */
#ifndef MACATTN_PLUGIN_STEP_H
#define MACATTN_PLUGIN_STEP_H

#include "records.h"

/*! step_begin() : sets g->step, above all its mode. */
void step_begin(attention *a, group *g, const struct ggml_tensor *node, const trace *t);

/*! step_continues() : whether the node is of the step that was begun last. */
bool step_continues(const group *g, const struct ggml_tensor *node, const trace *t);

#endif
