/* SPDX-License-Identifier: Apache-2.0 */
/* Long-context tasks: made from a seed, or read from a user's own copy of a benchmark, and scored.
 *
 *   ruler      the 13 tasks of RULER (NVIDIA, arXiv 2404.06654): their structure, counts, sizes and
 *              scoring, in our own words and with our own filler, so scores compare settings, not
 *              publications
 *   longgen    long structured generation after LongGenBench (Wu et al., arXiv 2409.02076), with a
 *              score that needs no judge
 *   native     what the bundled model was trained to answer: several questions to one context
 *   longbench  LongBench v2 (arXiv 2412.15204), from the user's own copy
 *
 * Everything is a function of the seed and the index: the same sample on every machine. */
#ifndef MACATTN_TOOLS_TASKS_TASKS_H
#define MACATTN_TOOLS_TASKS_TASKS_H

#include <stdbool.h>
#include <stddef.h>

#include "task.h"

void task_sample_free(task_sample *sample);

/* By name; NULL if there is none. */
const task *task_find(const char *name);
/* The i-th task of a family, or of all (NULL); NULL after the last. */
const task *task_of(const char *family, int i);

/* The tasks of a list of names of families and tasks, each once. -1, with a sentence, if there
 * is no such. */
int task_list(const char *names, const task **tasks, int room, char *error, size_t error_size);

/* Sample `index`, as large as `options->length` allows: binary search over the filler. False,
 * with a sentence, if not even the smallest fits or the user's data is not what it should be. */
bool task_generate(const task *self, const task_options *options, int64_t index,
                   task_sample *sample, char *error, size_t error_size);

#endif /* MACATTN_TOOLS_TASKS_TASKS_H */
