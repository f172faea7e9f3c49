/* SPDX-License-Identifier: Apache-2.0 */
/* A user's message as a model was trained to read it. */
#ifndef MACATTN_TOOLS_EVAL_CHAT_H
#define MACATTN_TOOLS_EVAL_CHAT_H

#include "model.h"

/* The tokens that the model's chat template puts before and behind a message. */
typedef struct eval_chat {
    int32_t *before, *after;
    size_t n_before, n_after;
} eval_chat;

/* Dies if the model has no template that llama.cpp knows. `before` begins with the token that a
 * sequence begins with. */
eval_chat eval_chat_open(const eval_model *m);

/* Without a template: that first token, if there is one, and nothing else. */
eval_chat eval_chat_none(const eval_model *m);

void eval_chat_free(eval_chat *chat);

/* Tokens added to a message's. */
int64_t eval_chat_tokens(const eval_chat *chat);

#endif /* MACATTN_TOOLS_EVAL_CHAT_H */
