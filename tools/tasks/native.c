/* SPDX-License-Identifier: Apache-2.0 */
/* What the bundled model was trained to answer (model/training/tasks.py), with seeds of its own: several questions
 * to one context, so that the context need be computed once. An answer is right if its line is. */
#include <stdlib.h>
#include <string.h>

#include "tasks.h"

#define QUESTIONS 20 /* to a context */

typedef enum kind { NEEDLES, PAIRS, LINES, VARIABLES } kind;

typedef struct fact {
    char *line, *question, *answer; /* question NULL: it is not asked for */
} fact;

static fact needle_fact(tool_rng *rng)
{
    text line = {NULL, 0, 0}, question = {NULL, 0, 0};
    char *key = task_key(rng), *value = task_digits(rng, 7);
    text_printf(&line, "One of the special magic numbers for %s is: %s.\n", key, value);
    text_printf(&question, "What is the special magic value for %s mentioned in the text?", key);
    free(key);
    return (fact){text_take(&line), text_take(&question), value};
}

static fact pair_fact(tool_rng *rng)
{
    text line = {NULL, 0, 0}, question = {NULL, 0, 0}, answer = {NULL, 0, 0};
    char *key = task_word(rng, 4), *value = task_digits(rng, 6);
    text_printf(&line, " \"%s\": \"%s\",\n", key, value);
    text_printf(&question, "What is the value of the key \"%s\"?", key);
    text_printf(&answer, "\"%s\"", value);
    free(key), free(value);
    return (fact){text_take(&line), text_take(&question), text_take(&answer)};
}

static fact line_fact(tool_rng *rng, int64_t i)
{
    text line = {NULL, 0, 0}, question = {NULL, 0, 0}, answer = {NULL, 0, 0};
    char *value = task_digits(rng, 5);
    text_printf(&line, "line %lld: REGISTER_CONTENT is <%s>\n", (long long)i + 1, value);
    text_printf(&question, "What is the REGISTER_CONTENT in line %lld?", (long long)i + 1);
    text_printf(&answer, "<%s>", value);
    free(value);
    return (fact){text_take(&line), text_take(&question), text_take(&answer)};
}

/* The i-th line of chains of three names; the last name is asked for. */
static fact variable_fact(tool_rng *rng, int64_t i, char chain[3][16], char value[8])
{
    text line = {NULL, 0, 0}, question = {NULL, 0, 0};
    const int64_t hop = i % 3;
    char *name = task_word(rng, 3), *digits = task_digits(rng, 5);
    strncpy(chain[hop], name, 15);
    if (hop == 0) {
        memcpy(value, digits, 6);
        text_printf(&line, "VAR %s = %s\n", name, value);
    } else {
        text_printf(&line, "VAR %s = VAR %s\n", name, chain[hop - 1]);
    }
    if (hop == 2) text_printf(&question, "What is the value of the variable %s?", name);
    fact f = {text_take(&line), hop == 2 ? text_take(&question) : NULL, text_copy(value)};
    free(name), free(digits);
    return f;
}

static const char *const heads[] = {
    "Some special magic numbers are hidden in the following text. Memorize them. You will be "
    "quizzed "
    "about them afterwards.\n\n",
    "Extract the value corresponding to the specified key in the JSON object below.\n\n{\n",
    "Below is a record of lines. Each line has a line name and its REGISTER_CONTENT. Memorize "
    "them.\n\n",
    "Memorize and track the chains of variable assignment hidden in the following text.\n\n"};

static fact *make_facts(kind what, tool_rng *rng, int64_t n)
{
    fact *facts = tool_alloc((size_t)n * sizeof *facts);
    char chain[3][16] = {{0}}, value[8] = {0};
    for (int64_t i = 0; i < n; i++) {
        facts[i] = what == NEEDLES ? needle_fact(rng)
                   : what == PAIRS ? pair_fact(rng)
                   : what == LINES ? line_fact(rng, i)
                                   : variable_fact(rng, i, chain, value);
    }
    return facts;
}

/* Pairs and lines are all of the context; needles and assignments lie in prose, as many as are asked for twice
 * over. `units`: lines. */
static bool build(const task *self, const task_options *o, int64_t index, int64_t units,
                  task_sample *sample, char *error, size_t error_size)
{
    (void)error, (void)error_size;
    const kind what = (kind)self->variant;
    tool_rng rng = task_rng(self->name, o->seed, index / QUESTIONS);
    const bool in_prose = what == NEEDLES || what == VARIABLES;
    const int64_t n = in_prose ? (what == NEEDLES ? 2 : 3) * QUESTIONS : units + QUESTIONS;
    fact *facts = make_facts(what, &rng, n);
    text t = {NULL, 0, 0};
    text_add(&t, heads[what]);
    int64_t asked = 0, next = 0, answer = 0;
    for (int64_t i = 0; i < (in_prose ? units : n); i++) {
        if (!in_prose) text_add(&t, facts[i].line);
        while (in_prose && next < n && next * units <= i * n) text_add(&t, facts[next++].line);
        if (!in_prose) continue;
        text prose = {NULL, 0, 0};
        task_add_prose(&prose, &rng, 18);
        text_printf(&t, "%s\n", prose.s);
        text_free(&prose);
    }
    while (in_prose && next < n) text_add(&t, facts[next++].line);
    text_add(&t, what == PAIRS ? "}\n\n" : "\n");
    sample->context = index / QUESTIONS;
    sample->shared_bytes = (int64_t)t.n;
    /* The question: which of those that can be asked, spread over the context. */
    int64_t askable = 0;
    for (int64_t i = 0; i < n; i++) askable += facts[i].question != NULL;
    const int64_t wanted = (index % QUESTIONS) * askable / QUESTIONS;
    for (int64_t i = 0; i < n; i++) {
        if (facts[i].question && asked++ == wanted) answer = i;
    }
    text_printf(&t, "Question: %s\nAnswer:", facts[answer].question);
    sample->input = text_take(&t);
    sample->answer_prefix = text_copy("");
    text_list_add(&sample->outputs, text_copy(facts[answer].answer));
    for (int64_t i = 0; i < n; i++)
        free(facts[i].line), free(facts[i].question), free(facts[i].answer);
    free(facts);
    return true;
}

const task native_tasks[] = {
    {"native_needles", "native", 16, TASK_FIRST_LINE, 8, build, NEEDLES, QUESTIONS},
    {"native_pairs", "native", 16, TASK_FIRST_LINE, 8, build, PAIRS, QUESTIONS},
    {"native_lines", "native", 16, TASK_FIRST_LINE, 8, build, LINES, QUESTIONS},
    {"native_variables", "native", 16, TASK_FIRST_LINE, 8, build, VARIABLES, QUESTIONS},
    {NULL, NULL, 0, TASK_MATCH_ALL, 0, NULL, 0, 0}};
