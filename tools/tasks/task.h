/* SPDX-License-Identifier: Apache-2.0 */
/* What a task is, and a sample of it. */
#ifndef MACATTN_TOOLS_TASKS_TASK_H
#define MACATTN_TOOLS_TASKS_TASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text.h"

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
    /* The sample with `units` of filler. False, with a sentence in `error`, if it cannot be
     * made. `self` tells tasks apart that share a function. */
    bool (*build)(const task *self, const task_options *options, int64_t index, int64_t units,
                  task_sample *sample, char *error, size_t error_size);
    int variant;
    int32_t questions; /* samples that share a context; 0 stands for 1 */
};

#endif /* MACATTN_TOOLS_TASKS_TASK_H */
