/* SPDX-License-Identifier: Apache-2.0 */
/* LongBench v2 from the user's own copy: a JSON array, or one object a line. */
#include "longbench.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int64_t task_truncate_middle(int32_t *tokens, int64_t n, int64_t limit)
{
    if (n <= limit) return n;
    const int64_t first = limit / 2, last = limit - first;
    memmove(tokens + first, tokens + n - last, (size_t)last * sizeof *tokens);
    return limit;
}

/* The letter after `words` in an answer, between `open` and `close`. */
static char letter_after(const char *answer, const char *words, const char *open, const char *close)
{
    for (const char *at = answer; (at = strstr(at, words)); at++) {
        const char *letter = at + strlen(words);
        if (strncmp(letter, open, strlen(open)) != 0) continue;
        letter += strlen(open);
        if (*letter < 'A' || *letter > 'D') continue;
        if (strncmp(letter + 1, close, strlen(close)) == 0) return *letter;
    }
    return 0;
}

char task_choice(const char *answer)
{
    text t = {NULL, 0, 0};
    text_add(&t, "");
    for (const char *c = answer; *c; c++) {
        if (*c != '*') text_add_bytes(&t, c, 1);
    }
    char letter = letter_after(t.s, "The correct answer is ", "(", ")");
    if (!letter) letter = letter_after(t.s, "The correct answer is ", "", "");
    text_free(&t);
    return letter;
}

/* An array of the items; NULL if the file cannot be read or is none. */
static cJSON *read_items(const char *path)
{
    char *bytes = path ? text_read_file(path) : NULL;
    if (!bytes) return NULL;
    cJSON *items = cJSON_Parse(bytes);
    if (!cJSON_IsArray(items)) {
        cJSON_Delete(items);
        items = cJSON_CreateArray();
        for (char *line = strtok(bytes, "\n"); line; line = strtok(NULL, "\n")) {
            cJSON *one = cJSON_Parse(line);
            if (one) cJSON_AddItemToArray(items, one);
        }
    }
    free(bytes);
    if (cJSON_GetArraySize(items) > 0) return items;
    cJSON_Delete(items);
    return NULL;
}

static const char *const fields[] = {"context",  "question", "choice_A",   "choice_B", "choice_C",
                                     "choice_D", "answer",   "difficulty", "length"};
enum { CONTEXT, QUESTION, A, B, C, D, ANSWER, DIFFICULTY, LENGTH, N_FIELDS };

static bool build(const task *self, const task_options *o, int64_t index, int64_t units,
                  task_sample *sample, char *error, size_t error_size)
{
    (void)units;
    cJSON *items = read_items(o->data);
    const char *value[N_FIELDS];
    if (!items) {
        snprintf(error, error_size, "%s needs your copy of the data set (--data FILE)%s%s",
                 self->name, o->data ? "; not readable as such: " : "", o->data ? o->data : "");
        return false;
    }
    const int n = cJSON_GetArraySize(items);
    const cJSON *item = cJSON_GetArrayItem(items, (int)(index % n));
    for (int i = 0; i < N_FIELDS; i++) {
        const cJSON *field = cJSON_GetObjectItemCaseSensitive(item, fields[i]);
        if (!cJSON_IsString(field)) {
            snprintf(error, error_size, "%s: item %lld has no '%s'", self->name,
                     (long long)index % n, fields[i]);
            cJSON_Delete(items);
            return false;
        }
        value[i] = field->valuestring;
    }
    text t = {NULL, 0, 0};
    text_printf(&t,
                "Please read the following text and answer the question below.\n\n<text>\n%s\n"
                "</text>\n\nWhat is the correct answer to this question: %s\nChoices:\n",
                value[CONTEXT], value[QUESTION]);
    for (int i = 0; i < 4; i++) text_printf(&t, "(%c) %s\n", 'A' + i, value[A + i]);
    text_add(&t,
             "\nFormat your response as follows: \"The correct answer is (insert answer here)\".");
    sample->input = text_take(&t);
    sample->answer_prefix = text_copy("");
    text_list_add(&sample->outputs, text_copy(value[ANSWER]));
    text_list_add(&sample->tags, text_copy(value[DIFFICULTY]));
    text_list_add(&sample->tags, text_copy(value[LENGTH]));
    cJSON_Delete(items);
    return true;
}

const task longbench_tasks[] = {{"longbench_v2", "longbench", 128, TASK_CHOICE, 0, build, 0, 0},
                                {NULL, NULL, 0, TASK_MATCH_ALL, 0, NULL, 0, 0}};
