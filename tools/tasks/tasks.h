/* SPDX-License-Identifier: Apache-2.0 */
/* Long-context tasks: made from a seed, or read from a user's own copy of a benchmark, and scored.
 *
 *   ruler      the 13 tasks of RULER (NVIDIA, arXiv 2404.06654): their structure, counts, sizes and scoring,
 *              in our own words and with our own filler, so scores compare settings, not publications
 *   longgen    long structured generation after LongGenBench (Wu et al., arXiv 2409.02076), with a score that
 *              needs no judge
 *   native     what the bundled model was trained to answer: several questions to one context
 *   longbench  LongBench v2 (arXiv 2412.15204), from the user's own copy
 *
 * Everything is a function of the seed and the index: the same sample on every machine. */
#ifndef MACATTN_TOOLS_TASKS_H
#define MACATTN_TOOLS_TASKS_H

#include <stdbool.h>
#include <stdint.h>

#include "text.h"
#include "tool.h"

typedef struct task_sample {
    char *input;         /* the prompt */
    char *answer_prefix; /* goes on after it; "" if none */
    text_list outputs;   /* what a right answer contains */
    text_list tags;      /* longbench: difficulty, length; longgen: see longgen.c */
    int64_t length;      /* tokens of input and answer_prefix, and gen_tokens */
    int64_t index;
    int32_t gen_tokens; /* that the answer may take */
    /* Bytes of the input that samples of the same `context` have in common. 0: nothing. */
    int64_t context, shared_bytes;
} task_sample;

void task_sample_free(task_sample *sample);

/* Tokens of a text. */
typedef struct task_counter {
    int64_t (*count)(void *user, const char *text);
    void *user;
} task_counter;

typedef struct task_options {
    int64_t length; /* tokens of a sample at most, gen_tokens included */
    uint64_t seed;
    task_counter counter;
    const char *essay; /* text of a haystack; NULL = made up */
    const char *data;  /* qa_1, qa_2, longbench: the user's file */
} task_options;

typedef enum task_metric {
    TASK_MATCH_ALL,  /* share of the outputs that the answer contains */
    TASK_MATCH_PART, /* 1 if it contains any */
    TASK_FIRST_LINE, /* 1 if its first line is the output */
    TASK_CHOICE,     /* 1 if the letter it gives is the output */
    TASK_LONGGEN     /* share of completed blocks times share of checks met */
} task_metric;

typedef struct task task;

struct task {
    const char *name, *family;
    int32_t gen_tokens;
    task_metric metric;
    int64_t increment; /* by which the size search goes: units of `build` */
    /* The sample with `units` of filler. False, with a sentence in `error`, if it cannot be made. `self`
     * tells tasks apart that share a function. */
    bool (*build)(const task *self, const task_options *options, int64_t index, int64_t units,
                  task_sample *sample, char *error, size_t error_size);
    int variant;
    int32_t questions; /* samples that share a context; 0 stands for 1 */
};

extern const task ruler_tasks[], native_tasks[], longgen_tasks[], longbench_tasks[];

/* By name; NULL if there is none. */
const task *task_find(const char *name);
/* The i-th task of a family, or of all (NULL); NULL after the last. */
const task *task_of(const char *family, int i);

/* The tasks of a list of names of families and tasks, each once. -1, with a sentence, if there is no such. */
int task_list(const char *names, const task **tasks, int room, char *error, size_t error_size);

/* Sample `index`, as large as `options->length` allows: binary search over the filler. False, with a
 * sentence, if not even the smallest fits or the user's data is not what it should be. */
bool task_generate(const task *self, const task_options *options, int64_t index,
                   task_sample *sample, char *error, size_t error_size);

/* In [0, 1]. Predictions are cleaned as RULER does: control characters become newlines, ends are stripped;
 * letters compare without case. */
double task_score(const task *self, const task_sample *sample, const char *prediction);

/* Mean of scores in per cent and half the width of its 95% interval (normal, from their variance). */
void task_summary(const double *scores, int64_t n, double *mean, double *margin);

/* A generator for one sample. */
tool_rng task_rng(const char *name, uint64_t seed, int64_t index);

/* ------------------------------------------------------------------------------------- pieces -- */

/* A word that can be pronounced and means nothing, of `syllables` of two letters. */
char *task_word(tool_rng *rng, int syllables);
/* Two joined by a hyphen: a key. */
char *task_key(tool_rng *rng);
char *task_digits(tool_rng *rng, int n);
char *task_uuid(tool_rng *rng);
/* About n words of sentences made up from a list of plain ones. */
void task_add_prose(text *t, tool_rng *rng, int64_t n_words);

/* ---------------------------------------------------------------------------------- longbench -- */

/* Keep the first and the last half of `limit` tokens. Returns how many there are then. */
int64_t task_truncate_middle(int32_t *tokens, int64_t n, int64_t limit);
/* The letter of an answer, 0 if it has none. */
char task_choice(const char *answer);

/* ------------------------------------------------------------------------------------ longgen -- */

/* Completion rate and share of checks met, both in [0, 1]. */
void task_longgen_rates(const task_sample *sample, const char *answer, double *completed,
                        double *checks);

#endif /* MACATTN_TOOLS_TASKS_H */
