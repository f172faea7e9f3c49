/* SPDX-License-Identifier: Apache-2.0 */
/* What families of tasks are made of. All strings are the caller's to free. */
#ifndef MACATTN_TOOLS_TASKS_PIECES_H
#define MACATTN_TOOLS_TASKS_PIECES_H

#include "common/random.h"
#include "text.h"

/* A generator for one sample. */
random_state task_rng(const char *name, uint64_t seed, int64_t index);

/* A word that can be pronounced and means nothing, of `syllables` of two letters. */
char *task_word(random_state *rng, int syllables);
/* Two joined by a hyphen: a key. */
char *task_key(random_state *rng);
char *task_digits(random_state *rng, int n);
char *task_uuid(random_state *rng);
/* About n words of sentences made up from a list of plain ones. */
void task_add_prose(text *t, random_state *rng, int64_t n_words);

#endif /* MACATTN_TOOLS_TASKS_PIECES_H */
