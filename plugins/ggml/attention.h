/* SPDX-License-Identifier: Apache-2.0 */
/* From an attention node to a call of macattn. */
#ifndef MACATTN_PLUGIN_ATTENTION_H
#define MACATTN_PLUGIN_ATTENTION_H

#include "records.h"

/*! attention_compute() : compute one node, with ggml's own operator where macattn cannot; also a
 *  small node of another kind that the device took. */
enum ggml_status attention_compute(attention *a, struct ggml_tensor *node);

#endif
