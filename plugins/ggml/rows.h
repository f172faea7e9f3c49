/* SPDX-License-Identifier: Apache-2.0 */
/* From a mask to rows: queries of one sequence, and the cells they see. A mask that macattn
 * cannot express (values other than 0 and -inf, queries that see later tokens, sliding windows
 * over long prompts) leaves the group's nodes of this step to ggml's own operator. */
#ifndef MACATTN_PLUGIN_ROWS_H
#define MACATTN_PLUGIN_ROWS_H

#include "records.h"

/*! rows_analyse() : what the step's rows are, from its first node.  @return : false if they are
 *  not for macattn, or there is no memory. */
bool rows_analyse(attention *a, group *g, const struct ggml_tensor *node, const trace *t);

/*! rows_finish() : what they have in common, once all are known. */
void rows_finish(step *s);

/*! rows_fingerprint() : note the fingerprints of the step's new tokens, their keys being in
 *  place. */
void rows_fingerprint(group *g);

#endif
