/* SPDX-License-Identifier: Apache-2.0 */
/* Telling graphs apart while ggml's scheduler divides them among backends.
 *
 * The scheduler shows no graph; it asks, on one thread and in one go, what the device supports:
 * first about the graph's leaves (tensors in memory, GGML_OP_NONE), then about its nodes. So a leaf
 * asked about after a node is the first of another graph. What is known of a graph being divided
 * belongs to the thread.
 *
 * One graph the device stays out of: the first after a context was made. `-fa auto` builds it to
 * see whether attention would run on the device of its layer, and turns flash attention off for
 * good if not; nothing is computed with it. */
#ifndef MACATTN_PLUGIN_DIVISION_H
#define MACATTN_PLUGIN_DIVISION_H

#include <stdbool.h>
#include <stdint.h>

/*! division_note_context() : a context is being made by this thread.
 *  @return : how many were before it, in this thread, with no graph divided since. */
int division_note_context(void);

/*! division_note_end() : a context ends; its graphs will not come. */
void division_note_end(void);

/*! division_note_leaf(), division_note_node() : the scheduler asks about one. */
void division_note_leaf(void);
void division_note_node(void);

/*! division_number() : of the graph this thread divides, or divided last: no two graphs have the
 *  same. */
uint64_t division_number(void);

/*! division_hidden() : whether the device must stay out of that graph. */
bool division_hidden(void);

#endif
