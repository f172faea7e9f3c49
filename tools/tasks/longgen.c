/* SPDX-License-Identifier: Apache-2.0 */
/* Long structured generation after LongGenBench (Wu et al.): one instruction, a long answer in
 * numbered blocks, and things that must be in certain blocks: once, in a range, or every so often.
 * The scenarios, counts, block marks and the completion rate (CR) are theirs; the events are ours,
 * and instead of a judge's yes or no a check is met if its block contains the event's words in
 * order (letters small, runs of other characters one space). So the score has another name.
 *
 * A sample's `outputs` are the events, its `tags` the block of each; the first output and tag
 * are the block's word and how many there are. */
#include "longgen.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/random.h"
#include "pieces.h"

typedef struct scenario {
    const char *word, *about, *thing;
    int number;
} scenario;

static const scenario scenarios[] = {
    {"Week", "a diary of one year, week by week", "the writer", 52},
    {"Menu Week", "the weekly menus of a restaurant for one year", "the menu", 52},
    {"Floor", "the plan of a tower of 100 floors, floor by floor", "the floor", 100},
    {"Block", "the plan of a city of 100 blocks, block by block", "the block", 100},
    {"Day", "a diary of one year, day by day", "the writer", 365},
    {"Menu Day", "the daily menus of a restaurant for one year", "the menu", 365},
    {"Floor", "the plan of a tower of 300 floors, floor by floor", "the floor", 300},
    {"Block", "the plan of a city of 361 blocks, block by block", "the block", 361}};

/* An event of two words that no other sample part contains by chance. */
static char *event(random_state *rng)
{
    char *key = task_key(rng), *word = task_word(rng, 3);
    text t = {NULL, 0, 0};
    *strchr(key, '-') = ' ';
    text_printf(&t, "the %s of %s", key, word);
    free(key), free(word);
    return text_take(&t);
}

static void add_check(task_sample *sample, const char *what, int block)
{
    text tag = {NULL, 0, 0};
    text_printf(&tag, "%d", block);
    text_list_add(&sample->outputs, text_copy(what));
    text_list_add(&sample->tags, text_take(&tag));
}

static bool build(const task *self, const task_options *o, int64_t index, int64_t units,
                  task_sample *sample, char *error, size_t error_size)
{
    (void)units, (void)error, (void)error_size;
    const scenario *s = &scenarios[self->variant];
    random_state rng = task_rng(self->name, o->seed, index);
    text t = {NULL, 0, 0}, prefix = {NULL, 0, 0};
    add_check(sample, s->word, s->number);
    text_printf(&t,
                "Write %s. Write all %d parts, one after the other, none left out, each of about "
                "150 words. Begin each part with '#*# %s N:', N being its number, and write "
                "'*** finished' after the last.\n",
                s->about, s->number, s->word);
    for (int i = 0; i < 5; i++) { /* once */
        const int block = 1 + (int)random_below(&rng, s->number);
        char *what = event(&rng);
        text_printf(&t, "In %s %d, %s must mention %s.\n", s->word, block, s->thing, what);
        add_check(sample, what, block);
        free(what);
    }
    for (int i = 0; i < 2; i++) { /* in a range of three */
        const int block = 1 + (int)random_below(&rng, s->number - 2);
        char *what = event(&rng);
        text_printf(&t, "From %s %d to %s %d, %s must mention %s each time.\n", s->word, block,
                    s->word, block + 2, s->thing, what);
        for (int k = 0; k < 3; k++) add_check(sample, what, block + k);
        free(what);
    }
    for (int i = 0; i < 2; i++) { /* every so often */
        const int first = 1 + (int)random_below(&rng, 5);
        const int step = s->number / 8 + (int)random_below(&rng, 4);
        char *what = event(&rng);
        text_printf(&t, "Every %d parts, beginning with %s %d, %s must mention %s.\n", step,
                    s->word, first, s->thing, what);
        for (int k = first; k <= s->number; k += step) add_check(sample, what, k);
        free(what);
    }
    text_add(&t, "\n*** started ***\n");
    text_printf(&prefix, "#*# %s 1:", s->word);
    sample->input = text_take(&t), sample->answer_prefix = text_take(&prefix);
    return true;
}

/* Letters small, everything else one space. */
static char *normalised(const char *s, size_t n)
{
    text t = {NULL, 0, 0};
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)s[i];
        const char one = (char)(isalnum(c) || c >= 0x80 ? tolower(c) : ' ');
        if (one != ' ' || (t.n > 0 && t.s[t.n - 1] != ' ')) text_add_bytes(&t, &one, 1);
    }
    return text_take(&t);
}

/* The number after the first "<word> " followed by digits in a block; 0 if there is none. */
static int block_number(const char *block, size_t n, const char *word)
{
    const size_t length = strlen(word);
    for (size_t i = 0; i + length + 1 < n; i++) {
        if (strncmp(block + i, word, length) != 0 || block[i + length] != ' ') continue;
        if (isdigit((unsigned char)block[i + length + 1])) return atoi(block + i + length + 1);
    }
    return 0;
}

void task_longgen_rates(const task_sample *sample, const char *answer, double *completed,
                        double *checks)
{
    const char *word = sample->outputs.items[0];
    const int number = atoi(sample->tags.items[0]);
    char **blocks = memory_alloc(((size_t)number + 1) * sizeof *blocks);
    text whole = {NULL, 0, 0};
    text_add(&whole, sample->answer_prefix);
    text_add(&whole, answer);
    int present = 0;
    for (const char *at = whole.s, *end; at; at = end) {
        end = strstr(at, "#*#");
        const size_t n = end ? (size_t)(end - at) : strlen(at);
        const int i = block_number(at, n, word);
        if (i >= 1 && i <= number && !blocks[i]) { /* the first block of a number counts */
            blocks[i] = normalised(at, n);
            present++;
        }
        if (end) end += 3;
    }
    int64_t met = 0;
    for (int64_t i = 1; i < sample->outputs.n; i++) {
        const char *block = blocks[atoi(sample->tags.items[i])];
        char *what = normalised(sample->outputs.items[i], strlen(sample->outputs.items[i]));
        met += block && strstr(block, what) != NULL;
        free(what);
    }
    *completed = (double)present / number;
    *checks = sample->outputs.n > 1 ? (double)met / (double)(sample->outputs.n - 1) : 0;
    for (int i = 0; i <= number; i++) free(blocks[i]);
    free(blocks);
    text_free(&whole);
}

#define SHORT 16000 /* tokens of an answer, as in the benchmark */
#define LONG 32000

const task longgen_tasks[] = {{"longgen_week", "longgen", SHORT, TASK_LONGGEN, 0, build, 0, 0},
                              {"longgen_menu", "longgen", SHORT, TASK_LONGGEN, 0, build, 1, 0},
                              {"longgen_floor", "longgen", SHORT, TASK_LONGGEN, 0, build, 2, 0},
                              {"longgen_block", "longgen", SHORT, TASK_LONGGEN, 0, build, 3, 0},
                              {"longgen_day_32k", "longgen", LONG, TASK_LONGGEN, 0, build, 4, 0},
                              {"longgen_menu_32k", "longgen", LONG, TASK_LONGGEN, 0, build, 5, 0},
                              {"longgen_floor_32k", "longgen", LONG, TASK_LONGGEN, 0, build, 6, 0},
                              {"longgen_block_32k", "longgen", LONG, TASK_LONGGEN, 0, build, 7, 0},
                              {NULL, NULL, 0, TASK_MATCH_ALL, 0, NULL, 0, 0}};
