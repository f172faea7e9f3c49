/* SPDX-License-Identifier: Apache-2.0 */
/* RULER's tasks: haystacks, counts, sizes and metrics as published, the sentences around them
 * and the filler our own. What a sample hides depends on its seed alone; more units only add
 * filler around it. */
#include "ruler.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/random.h"
#include "pieces.h"

/* ------------------------------------------------------------------------------ needle tasks -- */

typedef enum haystack { NOISE, ESSAY, NEEDLES } haystack;

typedef struct needle_spec {
    haystack hay;
    bool uuid_keys, uuid_values;
    int keys, values, queries; /* of the keys, values of a key, keys asked for */
} needle_spec;

static const needle_spec needle_specs[] = {
    {NOISE, false, false, 1, 1, 1},   {ESSAY, false, false, 1, 1, 1},
    {ESSAY, false, true, 1, 1, 1},    {ESSAY, false, false, 4, 1, 1},
    {NEEDLES, false, false, 1, 1, 1}, {NEEDLES, true, true, 1, 1, 1},
    {ESSAY, false, false, 1, 4, 1},   {ESSAY, false, false, 4, 1, 4}};

static char *new_key(const needle_spec *spec, random_state *rng, const text_list *others)
{
    for (;;) {
        char *key = spec->uuid_keys ? task_uuid(rng) : task_key(rng);
        if (!text_list_has(others, key)) return key;
        free(key);
    }
}

static char *new_value(const needle_spec *spec, random_state *rng)
{
    return spec->uuid_values ? task_uuid(rng) : task_digits(rng, 7);
}

static char *needle(const needle_spec *spec, const char *key, const char *value)
{
    text t = {NULL, 0, 0};
    text_printf(&t, "One of the special magic %s for %s is: %s.",
                spec->uuid_values ? "uuids" : "numbers", key, value);
    return text_take(&t);
}

static const char noise[] = "The grass is green. The sky is blue. The sun is yellow. Here we go. "
                            "There and back again.";

/* The units that needles are put between, one a list item. */
static void make_haystack(const needle_spec *spec, const task_options *o, random_state *rng,
                          int64_t units, const text_list *keys, text_list *hay)
{
    if (spec->hay == NOISE) {
        for (int64_t i = 0; i < units; i++) text_list_add(hay, text_copy(noise));
        return;
    }
    if (spec->hay == NEEDLES) {
        for (int64_t i = 0; i < units; i++) {
            char *key = new_key(spec, rng, keys), *value = new_value(spec, rng);
            text_list_add(hay, needle(spec, key, value));
            free(key), free(value);
        }
        return;
    }
    /* Words of the essay, over and over if it is short, cut into sentences. */
    text sentence = {NULL, 0, 0}, made = {NULL, 0, 0};
    if (!o->essay) task_add_prose(&made, rng, units);
    const char *essay = o->essay ? o->essay : made.s, *at = essay;
    for (int64_t words = 0; words < units && essay[strspn(essay, " \t\r\n")] != '\0'; words++) {
        at += strspn(at, " \t\r\n");
        if (*at == '\0') at = essay + strspn(essay, " \t\r\n");
        const size_t n = strcspn(at, " \t\r\n");
        if (sentence.n > 0) text_add(&sentence, " ");
        text_add_bytes(&sentence, at, n);
        if (strchr(".!?", at[n - 1])) text_list_add(hay, text_take(&sentence));
        at += n;
    }
    if (sentence.n > 0) text_list_add(hay, text_take(&sentence));
    text_free(&sentence);
    text_free(&made);
}

static int by_depth(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Depths in [0, 1], ascending: of 40 even ones without replacement in an essay, anywhere
 * elsewhere. */
static void draw_depths(haystack hay, int n, random_state *rng, double *depths)
{
    bool taken[40] = {false};
    for (int i = 0; i < n; i++) {
        int64_t step;
        if (hay != ESSAY) {
            depths[i] = (double)random_below(rng, 1 << 20) / (1 << 20);
            continue;
        }
        do step = random_below(rng, 40);
        while (taken[step]);
        taken[step] = true;
        depths[i] = (double)step / 39.0;
    }
    qsort(depths, (size_t)n, sizeof *depths, by_depth);
}

static void add_with_needles(text *t, const text_list *hay, const text_list *needles,
                             const double *depths, const char *separator)
{
    int64_t next = 0;
    for (int64_t i = 0; i <= hay->n; i++) {
        while (next < needles->n && (int64_t)(depths[next] * (double)hay->n) <= i) {
            text_printf(t, "%s%s", needles->items[next++], separator);
        }
        if (i < hay->n) text_printf(t, "%s%s", hay->items[i], separator);
    }
}

static bool build_needles(const task *self, const task_options *o, int64_t index, int64_t units,
                          task_sample *sample, char *error, size_t error_size)
{
    (void)error, (void)error_size;
    const needle_spec *spec = &needle_specs[self->variant];
    random_state rng = task_rng(self->name, o->seed, index);
    text_list keys = {NULL, 0, 0}, needles = {NULL, 0, 0}, hay = {NULL, 0, 0}, asked = {NULL, 0, 0};
    double depths[16];
    for (int k = 0; k < spec->keys; k++) {
        text_list_add(&keys, new_key(spec, &rng, &keys));
        for (int v = 0; v < spec->values; v++) {
            char *value = new_value(spec, &rng);
            text_list_add(&needles, needle(spec, keys.items[k], value));
            if (k < spec->queries)
                text_list_add(&sample->outputs, value);
            else
                free(value);
        }
        if (k < spec->queries) text_list_add(&asked, text_copy(keys.items[k]));
    }
    /* Which needle comes first must not tell which is asked for. */
    for (int64_t i = needles.n - 1; i > 0; i--) {
        const int64_t j = random_below(&rng, i + 1);
        char *swap = needles.items[i];
        needles.items[i] = needles.items[j], needles.items[j] = swap;
    }
    draw_depths(spec->hay, (int)needles.n, &rng, depths);
    make_haystack(spec, o, &rng, units, &keys, &hay);

    const bool one = sample->outputs.n == 1;
    const char *type = spec->uuid_values ? (one ? "uuid" : "uuids") : (one ? "number" : "numbers");
    char *query = text_list_join(&asked);
    text t = {NULL, 0, 0}, prefix = {NULL, 0, 0};
    text_printf(&t,
                "%s special magic %s %s hidden in the text below. Keep %s in mind: there will be "
                "a question about %s.\n",
                one ? "A" : "Some", type, one ? "is" : "are", one ? "it" : "them",
                one ? "it" : "them");
    add_with_needles(&t, &hay, &needles, depths, spec->hay == ESSAY ? " " : "\n");
    text_printf(&t, "%sWhat %s the special magic %s for %s mentioned in the provided text?",
                spec->hay == ESSAY ? "\n" : "", one ? "is" : "are all", type, query);
    text_printf(&prefix, " The special magic %s for %s mentioned in the provided text %s", type,
                query, one ? "is" : "are");
    sample->input = text_take(&t), sample->answer_prefix = text_take(&prefix);
    free(query);
    text_list_free(&keys), text_list_free(&needles), text_list_free(&hay), text_list_free(&asked);
    return true;
}

/* ------------------------------------------------------------------------- variable tracking -- */

#define HOPS 4

/* One chain in noise; names of `letters` capitals. The names go to `names`, the value is
 * returned. */
static char *add_chain(text *t, random_state *rng, int letters, int64_t units, text_list *names)
{
    text_list lines = {NULL, 0, 0}, hay = {NULL, 0, 0};
    double depths[HOPS + 1];
    char *value = task_digits(rng, 5);
    while (names->n < HOPS + 1) {
        text name = {NULL, 0, 0};
        for (int i = 0; i < letters; i++) {
            text_printf(&name, "%c", 'A' + (int)random_below(rng, 26));
        }
        char *s = text_take(&name);
        if (text_list_has(names, s))
            free(s);
        else
            text_list_add(names, s);
    }
    for (int i = 0; i <= HOPS; i++) {
        text line = {NULL, 0, 0};
        if (i == 0)
            text_printf(&line, "VAR %s = %s", names->items[0], value);
        else
            text_printf(&line, "VAR %s = VAR %s ", names->items[i], names->items[i - 1]);
        text_list_add(&lines, text_take(&line));
    }
    draw_depths(NOISE, HOPS + 1, rng, depths);
    for (int64_t i = 0; i < units; i++) text_list_add(&hay, text_copy(noise));
    add_with_needles(t, &hay, &lines, depths, "\n");
    text_list_free(&lines), text_list_free(&hay);
    return value;
}

static void add_vt_question(text *t, text *prefix, const char *value)
{
    text_printf(t, "Question: Find all variables that are assigned the value %s in the text above.",
                value);
    text_printf(prefix,
                " Answer: According to the chain(s) of variable assignment in the text above, "
                "%d variables are assigned the value %s, they are: ",
                HOPS + 1, value);
}

static bool build_vt(const task *self, const task_options *o, int64_t index, int64_t units,
                     task_sample *sample, char *error, size_t error_size)
{
    (void)error, (void)error_size;
    static const char intro[] =
        "Follow the chain(s) of variable assignment hidden in this text.\n\n";
    random_state rng = task_rng(self->name, o->seed, index);
    text t = {NULL, 0, 0}, prefix = {NULL, 0, 0};
    text_list shown = {NULL, 0, 0};
    /* A solved one first, with shorter names. */
    text_add(&t, intro);
    char *value = add_chain(&t, &rng, 3, 6, &shown);
    add_vt_question(&t, &t, value);
    for (int64_t i = 0; i < shown.n; i++) text_printf(&t, "%s%s", i ? ", " : "", shown.items[i]);
    free(value);
    text_printf(&t, "\n\n%s", intro);
    value = add_chain(&t, &rng, 5, units, &sample->outputs);
    add_vt_question(&t, &prefix, value);
    free(value);
    text_list_free(&shown);
    sample->input = text_take(&t), sample->answer_prefix = text_take(&prefix);
    return true;
}

/* ----------------------------------------------------------------------------- word counting -- */

static void shuffle(text_list *list, random_state *rng)
{
    for (int64_t i = list->n - 1; i > 0; i--) {
        const int64_t j = random_below(rng, i + 1);
        char *swap = list->items[i];
        list->items[i] = list->items[j], list->items[j] = swap;
    }
}

/* Sorted order finds repeats faster than a scan of the list. */
static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* n different words. */
static void draw_words(text_list *words, random_state *rng, int64_t n)
{
    while (words->n < n) {
        while (words->n < n + n / 50 + 1) {
            text_list_add(words, task_word(rng, 2 + (int)random_below(rng, 3)));
        }
        qsort(words->items, (size_t)words->n, sizeof *words->items, by_text);
        int64_t kept = 0;
        for (int64_t i = 0; i < words->n; i++) {
            if (kept > 0 && strcmp(words->items[kept - 1], words->items[i]) == 0) {
                free(words->items[i]);
            } else {
                words->items[kept++] = words->items[i];
            }
        }
        words->n = kept;
    }
    shuffle(words, rng);
    while (words->n > n) free(words->items[--words->n]);
}

/* A numbered list in which `common` of `total` words come `often` times, the others `seldom`. */
static void add_word_list(text *t, random_state *rng, int64_t total, int64_t common, int often,
                          int seldom, text_list *answers)
{
    text_list words = {NULL, 0, 0}, all = {NULL, 0, 0};
    draw_words(&words, rng, total);
    for (int64_t i = 0; i < total; i++) {
        for (int k = 0; k < (i < common ? often : seldom); k++) {
            text_list_add(&all, text_copy(words.items[i]));
        }
        if (i < common) text_list_add(answers, text_copy(words.items[i]));
    }
    shuffle(&all, rng);
    for (int64_t i = 0; i < all.n; i++) {
        text_printf(t, "%s%lld. %s", i ? " " : "", (long long)i + 1, all.items[i]);
    }
    text_list_free(&words), text_list_free(&all);
}

static bool build_cwe(const task *self, const task_options *o, int64_t index, int64_t units,
                      task_sample *sample, char *error, size_t error_size)
{
    (void)error, (void)error_size;
    static const char intro[] =
        "This is a numbered list of words. Some come often, most do not. Keep "
        "in mind which come most often.\n";
    static const char question[] =
        "\nQuestion: What are the 10 most common words in the above list?";
    static const char answer[] =
        " Answer: The top 10 words that appear most often in the list are:";
    const bool is_short = o->length < 4096;
    random_state rng = task_rng(self->name, o->seed, index);
    text t = {NULL, 0, 0};
    text_list shown = {NULL, 0, 0};
    text_add(&t, intro);
    add_word_list(&t, &rng, is_short ? 20 : 40, 10, is_short ? 3 : 10, is_short ? 1 : 3, &shown);
    text_printf(&t, "%s%s", question, answer);
    for (int64_t i = 0; i < shown.n; i++)
        text_printf(&t, " %lld. %s", (long long)i + 1, shown.items[i]);
    text_printf(&t, "\n%s", intro);
    add_word_list(&t, &rng, 10 + units, 10, is_short ? 6 : 30, is_short ? 1 : 3, &sample->outputs);
    text_add(&t, question);
    text_list_free(&shown);
    sample->input = text_take(&t), sample->answer_prefix = text_copy(answer);
    return true;
}

#define FWE_EXPONENT 2.0
#define FWE_ZETA 1.6449340668482264 /* of 2 */

static bool build_fwe(const task *self, const task_options *o, int64_t index, int64_t units,
                      task_sample *sample, char *error, size_t error_size)
{
    (void)error, (void)error_size;
    random_state rng = task_rng(self->name, o->seed, index);
    const int64_t n = units * (o->length / 32 > 0 ? o->length / 32 : 1);
    const int64_t vocabulary = o->length / 50 > 5 ? o->length / 50 : 5;
    text_list words = {NULL, 0, 0}, all = {NULL, 0, 0};
    while (words.n < vocabulary) {
        text word = {NULL, 0, 0};
        for (int i = 0; i < 6; i++) text_printf(&word, "%c", 'a' + (int)random_below(&rng, 26));
        text_list_add(&words, text_take(&word));
    }
    for (int64_t i = 0; i < vocabulary; i++) {
        const int64_t times = (int64_t)((double)n * pow((double)(i + 1), -FWE_EXPONENT) / FWE_ZETA);
        for (int64_t k = 0; k < times; k++)
            text_list_add(&all, text_copy(i ? words.items[i] : "..."));
        if (i >= 1 && i <= 3) text_list_add(&sample->outputs, text_copy(words.items[i]));
    }
    shuffle(&all, &rng);
    text t = {NULL, 0, 0};
    text_add(&t, "The text below is in code. Dots are noise. Find the three coded words that come "
                 "most often.\n");
    for (int64_t i = 0; i < all.n; i++) text_printf(&t, "%s%s", i ? " " : "", all.items[i]);
    text_add(&t, "\nQuestion: Not counting the dots, what are the three most frequent words in the "
                 "coded text above?");
    sample->input = text_take(&t);
    sample->answer_prefix = text_copy(" Answer: The three most frequent words are:");
    text_list_free(&words), text_list_free(&all);
    return true;
}

/* ------------------------------------------------------------------------ question answering -- */

typedef struct qa_set {
    text_list documents; /* different ones */
    cJSON *questions;    /* [{question, outputs, gold: [document], near: [document]}] */
} qa_set;

static const char *string_of(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static int64_t add_document(qa_set *set, const char *s)
{
    text_list_add(&set->documents, text_copy(s));
    return set->documents.n - 1;
}

/* SQuAD 2.0: the paragraph is gold, the article's other paragraphs come first among the others. */
static bool read_squad(const cJSON *file, qa_set *set)
{
    const cJSON *article, *paragraph, *qa;
    cJSON_ArrayForEach(article, cJSON_GetObjectItemCaseSensitive(file, "data"))
    {
        const cJSON *paragraphs = cJSON_GetObjectItemCaseSensitive(article, "paragraphs");
        const int64_t first = set->documents.n, n = cJSON_GetArraySize(paragraphs);
        int64_t at = first;
        cJSON_ArrayForEach(paragraph, paragraphs)
        {
            const char *context = string_of(paragraph, "context");
            if (!context) return false;
            (void)add_document(set, context);
        }
        cJSON_ArrayForEach(paragraph, paragraphs)
        {
            cJSON_ArrayForEach(qa, cJSON_GetObjectItemCaseSensitive(paragraph, "qas"))
            {
                const cJSON *answers = cJSON_GetObjectItemCaseSensitive(qa, "answers"), *answer;
                if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(qa, "is_impossible"))) continue;
                if (!string_of(qa, "question") || cJSON_GetArraySize(answers) == 0) return false;
                cJSON *one = cJSON_CreateObject(),
                      *outputs = cJSON_AddArrayToObject(one, "outputs");
                cJSON *gold = cJSON_AddArrayToObject(one, "gold");
                cJSON *near = cJSON_AddArrayToObject(one, "near");
                cJSON_AddStringToObject(one, "question", string_of(qa, "question"));
                cJSON_ArrayForEach(answer, answers)
                {
                    const char *s = string_of(answer, "text");
                    if (s) cJSON_AddItemToArray(outputs, cJSON_CreateString(s));
                }
                cJSON_AddItemToArray(gold, cJSON_CreateNumber((double)at));
                for (int64_t i = first; i < first + n; i++) {
                    if (i != at) cJSON_AddItemToArray(near, cJSON_CreateNumber((double)i));
                }
                cJSON_AddItemToArray(set->questions, one);
            }
            at++;
        }
    }
    return cJSON_GetArraySize(set->questions) > 0;
}

/* HotpotQA, distractor setting: supporting documents are gold, all others may be added. */
static bool read_hotpot(const cJSON *file, qa_set *set)
{
    const cJSON *item, *pair, *fact, *line;
    cJSON_ArrayForEach(item, file)
    {
        const cJSON *facts = cJSON_GetObjectItemCaseSensitive(item, "supporting_facts");
        const cJSON *context = cJSON_GetObjectItemCaseSensitive(item, "context");
        if (!string_of(item, "question") || !string_of(item, "answer") || !cJSON_IsArray(context)) {
            return false;
        }
        cJSON *one = cJSON_CreateObject(), *outputs = cJSON_AddArrayToObject(one, "outputs");
        cJSON *gold = cJSON_AddArrayToObject(one, "gold"),
              *near = cJSON_AddArrayToObject(one, "near");
        cJSON_AddStringToObject(one, "question", string_of(item, "question"));
        cJSON_AddItemToArray(outputs, cJSON_CreateString(string_of(item, "answer")));
        cJSON_ArrayForEach(pair, context)
        {
            const cJSON *title = cJSON_GetArrayItem(pair, 0);
            text t = {NULL, 0, 0};
            bool supports = false;
            if (!cJSON_IsString(title)) {
                cJSON_Delete(one);
                return false;
            }
            text_printf(&t, "%s\n", title->valuestring);
            cJSON_ArrayForEach(line, cJSON_GetArrayItem(pair, 1))
            {
                if (cJSON_IsString(line)) text_add(&t, line->valuestring);
            }
            cJSON_ArrayForEach(fact, facts)
            {
                const cJSON *of = cJSON_GetArrayItem(fact, 0);
                supports |= cJSON_IsString(of) && strcmp(of->valuestring, title->valuestring) == 0;
            }
            char *document = text_take(&t);
            cJSON_AddItemToArray(supports ? gold : near,
                                 cJSON_CreateNumber((double)add_document(set, document)));
            free(document);
        }
        cJSON_AddItemToArray(set->questions, one);
    }
    return cJSON_GetArraySize(set->questions) > 0;
}

static bool read_qa(const task *self, const char *path, qa_set *set, char *error, size_t error_size)
{
    memset(set, 0, sizeof *set);
    char *bytes = path ? text_read_file(path) : NULL;
    if (!bytes) {
        snprintf(error, error_size, "%s needs your copy of %s (--data FILE)%s%s", self->name,
                 self->variant ? "HotpotQA's dev set, distractor setting" : "SQuAD 2.0's dev set",
                 path ? "; cannot read " : "", path ? path : "");
        return false;
    }
    cJSON *file = cJSON_Parse(bytes);
    set->questions = cJSON_CreateArray();
    const bool is_good = file && (self->variant ? read_hotpot(file, set) : read_squad(file, set));
    if (!is_good) snprintf(error, error_size, "%s: %s is not what it should be", self->name, path);
    cJSON_Delete(file);
    free(bytes);
    return is_good;
}

static void free_qa(qa_set *set)
{
    text_list_free(&set->documents);
    cJSON_Delete(set->questions);
}

/* Gold documents, then near ones, then any, until there are `n`. */
static void choose_documents(const qa_set *set, const cJSON *question, int64_t n, random_state *rng,
                             text_list *chosen)
{
    static const char *const order[] = {"gold", "near"};
    bool *taken = memory_alloc((size_t)set->documents.n * sizeof *taken);
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        const cJSON *one;
        cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(question, order[i]))
        {
            const int64_t at = (int64_t)one->valuedouble;
            if ((i == 0 || chosen->n < n) && !taken[at]) {
                taken[at] = true;
                text_list_add(chosen, text_copy(set->documents.items[at]));
            }
        }
    }
    for (int64_t tries = 0; chosen->n < n && tries < 20 * n; tries++) {
        const int64_t at = random_below(rng, set->documents.n);
        if (taken[at]) continue;
        taken[at] = true;
        text_list_add(chosen, text_copy(set->documents.items[at]));
    }
    free(taken);
}

static bool build_qa(const task *self, const task_options *o, int64_t index, int64_t units,
                     task_sample *sample, char *error, size_t error_size)
{
    static const char rule[] = "Answer the question based on the given documents. Only give me the "
                               "answer and do not output "
                               "any other words.\n\n";
    qa_set set;
    random_state rng = task_rng(self->name, o->seed, index);
    if (!read_qa(self, o->data, &set, error, error_size)) {
        free_qa(&set);
        return false;
    }
    const cJSON *question =
        cJSON_GetArrayItem(set.questions, (int)(index % cJSON_GetArraySize(set.questions)));
    const cJSON *output;
    cJSON_ArrayForEach(output, cJSON_GetObjectItemCaseSensitive(question, "outputs"))
    {
        text_list_add(&sample->outputs, text_copy(output->valuestring));
    }
    text_list chosen = {NULL, 0, 0};
    text t = {NULL, 0, 0};
    choose_documents(&set, question, units, &rng, &chosen);
    shuffle(&chosen, &rng);
    text_add(&t, rule);
    for (int64_t i = 0; i < chosen.n; i++) {
        text_printf(&t, "%sDocument %lld:\n%s", i ? "\n\n" : "", (long long)i + 1, chosen.items[i]);
    }
    text_printf(&t, "\n\n%sQuestion: %s", rule, string_of(question, "question"));
    sample->input = text_take(&t);
    sample->answer_prefix = text_copy(" Answer:");
    text_list_free(&chosen);
    free_qa(&set);
    return true;
}

const task ruler_tasks[] = {
    {"niah_single_1", "ruler", 128, TASK_MATCH_ALL, 25, build_needles, 0, 0},
    {"niah_single_2", "ruler", 128, TASK_MATCH_ALL, 500, build_needles, 1, 0},
    {"niah_single_3", "ruler", 128, TASK_MATCH_ALL, 500, build_needles, 2, 0},
    {"niah_multikey_1", "ruler", 128, TASK_MATCH_ALL, 500, build_needles, 3, 0},
    {"niah_multikey_2", "ruler", 128, TASK_MATCH_ALL, 25, build_needles, 4, 0},
    {"niah_multikey_3", "ruler", 128, TASK_MATCH_ALL, 25, build_needles, 5, 0},
    {"niah_multivalue", "ruler", 128, TASK_MATCH_ALL, 500, build_needles, 6, 0},
    {"niah_multiquery", "ruler", 128, TASK_MATCH_ALL, 500, build_needles, 7, 0},
    {"vt", "ruler", 30, TASK_MATCH_ALL, 25, build_vt, 0, 0},
    {"cwe", "ruler", 120, TASK_MATCH_ALL, 10, build_cwe, 0, 0},
    {"fwe", "ruler", 50, TASK_MATCH_ALL, 1, build_fwe, 0, 0},
    {"qa_1", "ruler", 32, TASK_MATCH_PART, 1, build_qa, 0, 0},
    {"qa_2", "ruler", 32, TASK_MATCH_PART, 1, build_qa, 1, 0},
    {NULL, NULL, 0, TASK_MATCH_ALL, 0, NULL, 0, 0}};
