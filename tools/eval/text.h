/* SPDX-License-Identifier: Apache-2.0 */
/* The texts that `eval` and `tune` measure on. */
#ifndef MACATTN_TOOLS_EVAL_TEXT_H
#define MACATTN_TOOLS_EVAL_TEXT_H

#include "chat.h"
#include "common/random.h"
#include "model.h"

typedef struct eval_document {
    int32_t *tokens; /* with the token a sequence begins with, if it is no message */
    int64_t n;
} eval_document;

typedef struct eval_text {
    eval_document *documents;
    int n;
    bool is_chat; /* documents are messages */
    eval_chat chat;
    int32_t **prompts; /* [n_prompts] made of messages */
    int n_prompts;
} eval_text;

/* Adds a file's documents, which zero bytes separate. Dies if it cannot be read. */
void eval_text_add_file(eval_text *text, const eval_model *m, const char *path);

/* Adds a document that the model writes itself: `n` tokens, drawn at temperature 1 without
 * reuse. */
void eval_text_add_sample(eval_text *text, eval_model *m, int64_t n, uint64_t seed);

void eval_text_free(eval_text *text);

/* A run of tokens in a document, and where it begins. */
typedef struct eval_window {
    const int32_t *tokens;
    int document;
    int64_t start;
} eval_window;

/* At most `max` prompts of `n` tokens, one for each message that is long enough. What is too much is
 * cut out of the middle of a message, so that a question at its end, or its beginning, stays. They
 * belong to the text. */
int eval_text_prompts(eval_text *text, int64_t n, eval_window *windows, int max);

/* At most `max` windows of `n` tokens that do not overlap, spread over the documents: one of
 * each that is long enough, then a second one of each. Returns how many there are. */
int eval_text_windows(const eval_text *text, int64_t n, eval_window *windows, int max);

/* Draw a token from softmax(logits / temperature), greedily at 0; one that ends the text only if it
 * `may_end`. */
int32_t eval_draw(const eval_model *m, const float *logits, double temperature, bool may_end,
                  random_state *rng);

#endif /* MACATTN_TOOLS_EVAL_TEXT_H */
