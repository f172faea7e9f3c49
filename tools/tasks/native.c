/* SPDX-License-Identifier: Apache-2.0 */
/* What the bundled model was trained to answer (model/training/tasks.py), with seeds of its own:
 * several questions to one context, so that the context need be computed once. An answer is
 * right if its line is. */
#include "native.h"

#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/random.h"
#include "pieces.h"

#define QUESTIONS 20 /* to a context */
#define LISTED 8     /* keys in a question for a list */

typedef enum kind { NEEDLES, LISTS, PAIRS, LINES, VARIABLES } kind;

typedef struct fact {
    char *line, *question, *answer;
    char *key; /* of a needle; else NULL */
} fact;

static fact needle_fact(random_state *rng)
{
    text line = {NULL, 0, 0}, question = {NULL, 0, 0};
    char *key = task_key(rng), *value = task_digits(rng, 7);
    text_printf(&line, "One of the special magic numbers for %s is: %s.\n", key, value);
    text_printf(&question, "What is the special magic value for %s mentioned in the text?", key);
    return (fact){text_take(&line), text_take(&question), value, key};
}

static fact pair_fact(random_state *rng)
{
    text line = {NULL, 0, 0}, question = {NULL, 0, 0}, answer = {NULL, 0, 0};
    char *key = task_word(rng, 4), *value = task_digits(rng, 6);
    text_printf(&line, " \"%s\": \"%s\",\n", key, value);
    text_printf(&question, "What is the value of the key \"%s\"?", key);
    text_printf(&answer, "\"%s\"", value);
    free(key), free(value);
    return (fact){text_take(&line), text_take(&question), text_take(&answer), NULL};
}

static fact line_fact(random_state *rng, int64_t i)
{
    text line = {NULL, 0, 0}, question = {NULL, 0, 0}, answer = {NULL, 0, 0};
    char *value = task_digits(rng, 5);
    text_printf(&line, "line %lld: REGISTER_CONTENT is <%s>\n", (long long)i + 1, value);
    text_printf(&question, "What is the REGISTER_CONTENT in line %lld?", (long long)i + 1);
    text_printf(&answer, "<%s>", value);
    free(value);
    return (fact){text_take(&line), text_take(&question), text_take(&answer), NULL};
}

/* The i-th line of chains of three names; any of them may be asked for: 0, 1 or 2 assignments
 * away. */
static fact variable_fact(random_state *rng, int64_t i, char chain[3][16], char value[8])
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
    text_printf(&question, "What is the value of the variable %s?", name);
    fact f = {text_take(&line), text_take(&question), text_copy(value), NULL};
    free(name), free(digits);
    return f;
}

#define NEEDLES_HEAD                                                                           \
    "Some special magic numbers are hidden in the following text. Memorize them. You will be " \
    "quizzed about them afterwards.\n\n"

static const char *const heads[] = {
    NEEDLES_HEAD, NEEDLES_HEAD,
    "Extract the value corresponding to the specified key in the JSON object below.\n\n{\n",
    ("Below is a record of lines. Each line has a line name and its REGISTER_CONTENT. Memorize "
     "them.\n\n"),
    "Memorize and track the chains of variable assignment hidden in the following text.\n\n"};

static fact *make_facts(kind what, random_state *rng, int64_t n)
{
    fact *facts = memory_alloc((size_t)n * sizeof *facts);
    char chain[3][16] = {{0}}, value[8] = {0};
    for (int64_t i = 0; i < n; i++) {
        facts[i] = what == NEEDLES || what == LISTS ? needle_fact(rng)
                   : what == PAIRS                  ? pair_fact(rng)
                   : what == LINES                  ? line_fact(rng, i)
                                                    : variable_fact(rng, i, chain, value);
    }
    return facts;
}

/* Questions are spread over the context; the second term takes turns between the names of a
 * chain. */
static void ask_for_one(text *t, task_sample *sample, const fact *facts, int64_t n,
                        int64_t question)
{
    const int64_t apart = n / QUESTIONS;
    const fact *f = &facts[question * n / QUESTIONS + question % 3 % apart];
    text_printf(t, "Question: %s\nAnswer:", f->question);
    text_list_add(&sample->outputs, text_copy(f->answer));
}

/* Different keys in any order; the answer has a line for each. */
static void ask_for_list(text *t, task_sample *sample, const fact *facts, int64_t n,
                         const task *self, const task_options *o, int64_t index)
{
    random_state rng = task_rng(self->name, ~o->seed, index);
    bool asked[2 * QUESTIONS] = {false};
    text_add(t, "Question: What are the special magic values for ");
    for (int listed = 0; listed < LISTED;) {
        const int64_t i = random_below(&rng, n);
        if (asked[i]) continue;
        asked[i] = true;
        text_printf(t, listed++ ? ", %s" : "%s", facts[i].key);
        text line = {NULL, 0, 0};
        text_printf(&line, "%s: %s", facts[i].key, facts[i].answer);
        text_list_add(&sample->outputs, text_take(&line));
    }
    text_add(t, " mentioned in the text?\nAnswer:\n");
}

/* Pairs and lines are all of the context; needles and assignments lie in prose, as many as are
 * asked for twice over. `units`: lines. */
static bool build(const task *self, const task_options *o, int64_t index, int64_t units,
                  task_sample *sample, char *error, size_t error_size)
{
    (void)error, (void)error_size;
    const kind what = (kind)self->variant;
    random_state rng = task_rng(self->name, o->seed, index / QUESTIONS);
    const bool in_prose = what != PAIRS && what != LINES;
    const int64_t n = in_prose ? (what == VARIABLES ? 3 : 2) * QUESTIONS : units + QUESTIONS;
    fact *facts = make_facts(what, &rng, n);
    text t = {NULL, 0, 0};
    text_add(&t, heads[what]);
    int64_t next = 0;
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
    if (what == LISTS) {
        ask_for_list(&t, sample, facts, n, self, o, index);
    } else {
        ask_for_one(&t, sample, facts, n, index % QUESTIONS);
    }
    sample->input = text_take(&t);
    sample->answer_prefix = text_copy("");
    for (int64_t i = 0; i < n; i++)
        free(facts[i].line), free(facts[i].question), free(facts[i].answer), free(facts[i].key);
    free(facts);
    return true;
}

const task native_tasks[] = {
    {"native_needles", "native", 16, TASK_FIRST_LINE, 8, build, NEEDLES, QUESTIONS},
    {"native_lists", "native", 240, TASK_MATCH_ALL, 8, build, LISTS, QUESTIONS},
    {"native_pairs", "native", 16, TASK_FIRST_LINE, 8, build, PAIRS, QUESTIONS},
    {"native_lines", "native", 16, TASK_FIRST_LINE, 8, build, LINES, QUESTIONS},
    {"native_variables", "native", 16, TASK_FIRST_LINE, 8, build, VARIABLES, QUESTIONS},
    {NULL, NULL, 0, TASK_MATCH_ALL, 0, NULL, 0, 0}};
