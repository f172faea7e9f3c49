/* SPDX-License-Identifier: Apache-2.0 */
/* What families of tasks are made of. All strings are the caller's to free. */
#ifndef MACATTN_TOOLS_TASKS_PIECES_H
#define MACATTN_TOOLS_TASKS_PIECES_H

#include "common/tool.h"
#include "text.h"

/* A generator for one sample. */
tool_rng task_rng(const char *name, uint64_t seed, int64_t index);

/* A word that can be pronounced and means nothing, of `syllables` of two letters. */
char *task_word(tool_rng *rng, int syllables);
/* Two joined by a hyphen: a key. */
char *task_key(tool_rng *rng);
char *task_digits(tool_rng *rng, int n);
char *task_uuid(tool_rng *rng);
/* About n words of sentences made up from a list of plain ones. */
void task_add_prose(text *t, tool_rng *rng, int64_t n_words);

#endif /* MACATTN_TOOLS_TASKS_PIECES_H */
