/* SPDX-License-Identifier: Apache-2.0 */
#include "tasks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/parse.h"
#include "longbench.h"
#include "longgen.h"
#include "native.h"
#include "ruler.h"

#define MAX_UNITS (1 << 20)

void task_sample_free(task_sample *sample)
{
    free(sample->input);
    free(sample->answer_prefix);
    text_list_free(&sample->outputs);
    text_list_free(&sample->tags);
    memset(sample, 0, sizeof *sample);
}

static const task *const families[] = {ruler_tasks, native_tasks, longgen_tasks, longbench_tasks};

const task *task_of(const char *family, int i)
{
    for (size_t f = 0; f < sizeof families / sizeof families[0]; f++) {
        for (const task *t = families[f]; t->name; t++) {
            if ((!family || strcmp(family, t->family) == 0) && i-- == 0) return t;
        }
    }
    return NULL;
}

const task *task_find(const char *name)
{
    const task *t;
    for (int i = 0; (t = task_of(NULL, i)); i++) {
        if (strcmp(t->name, name) == 0) return t;
    }
    return NULL;
}

static int add_task(const task *t, const task **tasks, int n, int room)
{
    for (int i = 0; i < n; i++) {
        if (tasks[i] == t) return n;
    }
    if (n < room) tasks[n++] = t;
    return n;
}

int task_list(const char *names, const task **tasks, int room, char *error, size_t error_size)
{
    char item[64];
    int n = 0;
    while (parse_next_item(&names, item, sizeof item)) {
        const task *t = task_find(item);
        const int before = n;
        if (t) n = add_task(t, tasks, n, room);
        for (int i = 0; !t && task_of(item, i); i++) n = add_task(task_of(item, i), tasks, n, room);
        if (!t && n == before && !task_of(item, 0)) {
            snprintf(error, error_size, "there is no task or family '%s' (see macattn tasks list)",
                     item);
            return -1;
        }
    }
    if (n == 0) snprintf(error, error_size, "no task is named");
    return n > 0 ? n : -1;
}

/* -------------------------------------------------------------------------------- generation -- */

static int64_t measure(const task *self, const task_options *o, task_sample *sample)
{
    text whole = {NULL, 0, 0};
    text_add(&whole, sample->input);
    text_add(&whole, sample->answer_prefix);
    sample->length = o->counter.count(o->counter.user, whole.s) + self->gen_tokens;
    sample->gen_tokens = self->gen_tokens;
    text_free(&whole);
    return sample->length;
}

static bool build(const task *self, const task_options *o, int64_t index, int64_t units,
                  task_sample *sample, char *error, size_t error_size)
{
    memset(sample, 0, sizeof *sample);
    sample->index = sample->context = index;
    if (!self->build(self, o, index, units * self->increment, sample, error, error_size)) {
        task_sample_free(sample);
        return false;
    }
    (void)measure(self, o, sample);
    return true;
}

static bool fits(const task *self, const task_options *o, int64_t index, int64_t units,
                 int64_t limit)
{
    task_sample sample;
    char ignored[256];
    const bool is_made = build(self, o, index, units, &sample, ignored, sizeof ignored);
    const bool small = is_made && sample.length <= limit;
    if (is_made) task_sample_free(&sample);
    return small;
}

/* Questions to one context are of different lengths; the context must not be. */
#define QUESTION_MARGIN 32

bool task_generate(const task *self, const task_options *options, int64_t index,
                   task_sample *sample, char *error, size_t error_size)
{
    const bool shared = self->questions > 1;
    const int64_t first = shared ? index - index % self->questions : index;
    const int64_t limit = options->length - (shared ? QUESTION_MARGIN : 0);
    int64_t low = 1, high = 2; /* in increments; low fits */
    if (self->increment == 0) return build(self, options, index, 1, sample, error, error_size);
    if (!build(self, options, first, low, sample, error, error_size)) return false;
    if (sample->length > limit) {
        snprintf(error, error_size, "%s: the smallest sample has %lld tokens, more than %lld",
                 self->name, (long long)sample->length, (long long)limit);
        task_sample_free(sample);
        return false;
    }
    task_sample_free(sample);
    for (;; high *= 2) {
        if (high > MAX_UNITS || !fits(self, options, first, high, limit)) break;
        low = high;
    }
    while (high - low > 1) {
        const int64_t units = low + (high - low) / 2;
        if (fits(self, options, first, units, limit))
            low = units;
        else
            high = units;
    }
    return build(self, options, index, low, sample, error, error_size);
}
