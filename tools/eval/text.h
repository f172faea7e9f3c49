/* SPDX-License-Identifier: Apache-2.0 */
/* The texts that `eval` and `tune` measure on. */
#ifndef MACATTN_TOOLS_EVAL_TEXT_H
#define MACATTN_TOOLS_EVAL_TEXT_H

#include "common/random.h"
#include "model.h"

typedef struct eval_document {
    int32_t *tokens; /* with the token a sequence begins with */
    int64_t n;
} eval_document;

typedef struct eval_text {
    eval_document *documents;
    int n;
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

/* At most `max` windows of `n` tokens that do not overlap, spread over the documents: one of
 * each that is long enough, then a second one of each. Returns how many there are. */
int eval_text_windows(const eval_text *text, int64_t n, eval_window *windows, int max);

/* Draw a token from softmax(logits / temperature), none that ends the text; greedily at 0. */
int32_t eval_draw(const eval_model *m, const float *logits, double temperature, random_state *rng);

#endif /* MACATTN_TOOLS_EVAL_TEXT_H */
