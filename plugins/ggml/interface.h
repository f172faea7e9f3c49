/* SPDX-License-Identifier: Apache-2.0 */
/* The functions that macattn/ggml.h offers to the program. */
#ifndef MACATTN_PLUGIN_INTERFACE_H
#define MACATTN_PLUGIN_INTERFACE_H

#include "context.h"

/*! interface_get() : a macattn_ggml_interface_t. */
const macattn_ggml_interface *interface_get(int32_t version);

/*! interface_init() : `settings` are those of new contexts; borrowed. */
void interface_init(plugin_settings *settings);

/*! interface_enabled() : false while the program wants graphs left to ggml. */
bool interface_enabled(void);

/*! A context was made, and is about to end. */
void interface_note_context(attention *a);
void interface_note_end(const attention *a);

#endif
