/* SPDX-License-Identifier: Apache-2.0 */
#include "tasks.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    while (tool_next_item(&names, item, sizeof item)) {
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

/* ---------------------------------------------------------------------------------- generation -- */

tool_rng task_rng(const char *name, uint64_t seed, int64_t index)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *c = name; *c; c++) hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    tool_rng rng = {hash ^ seed * 0x9e3779b97f4a7c15u ^ (uint64_t)index * 0xd1b54a32d192ed03u};
    (void)tool_random(&rng);
    return rng;
}

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

/* --------------------------------------------------------------------------------------- words -- */

char *task_word(tool_rng *rng, int syllables)
{
    static const char consonants[] = "bdfgklmnprstvz", vowels[] = "aeiou";
    text t = {NULL, 0, 0};
    for (int i = 0; i < syllables; i++) {
        text_add_bytes(&t, &consonants[tool_random_below(rng, sizeof consonants - 1)], 1);
        text_add_bytes(&t, &vowels[tool_random_below(rng, sizeof vowels - 1)], 1);
    }
    return text_take(&t);
}

static const char *const adjectives[] = {
    "amber",   "ancient", "brave",  "bright",  "broad",  "calm",    "careful", "clear",  "cold",
    "curious", "dark",    "deep",   "distant", "early",  "empty",   "faint",   "fair",   "famous",
    "gentle",  "golden",  "green",  "grey",    "happy",  "heavy",   "hidden",  "hollow", "honest",
    "humble",  "late",    "light",  "little",  "lonely", "long",    "loud",    "modest", "narrow",
    "new",     "noble",   "old",    "open",    "pale",   "patient", "plain",   "polite", "proud",
    "quick",   "quiet",   "rapid",  "rare",    "red",    "round",   "rusty",   "sharp",  "shy",
    "silent",  "silver",  "simple", "slow",    "small",  "smooth",  "soft",    "steady", "strange",
    "strong",  "sunny",   "sweet",  "tall",    "thin",   "tidy",    "tiny",    "warm",   "wide",
    "wild",    "wise",    "wooden", "young"};
static const char *const nouns[] = {
    "anchor",   "apple",   "arrow",  "badge",   "barrel",  "basket", "beacon",  "bell",    "bench",
    "bird",     "boat",    "book",   "bottle",  "bridge",  "broom",  "bucket",  "button",  "candle",
    "carpet",   "castle",  "chair",  "circle",  "clock",   "cloud",  "coat",    "compass", "corner",
    "cottage",  "crown",   "desk",   "door",    "drum",    "engine", "farmer",  "feather", "fence",
    "field",    "flag",    "flute",  "forest",  "garden",  "gate",   "glove",   "guitar",  "hammer",
    "harbor",   "hill",    "house",  "island",  "jacket",  "kettle", "key",     "kitchen", "ladder",
    "lake",     "lamp",    "letter", "lion",    "map",     "market", "meadow",  "mirror",  "moon",
    "mountain", "needle",  "ocean",  "orchard", "painter", "paper",  "pencil",  "piano",   "pillow",
    "planet",   "pocket",  "rabbit", "railway", "ribbon",  "river",  "road",    "roof",    "sailor",
    "school",   "shelf",   "ship",   "shoe",    "song",    "spoon",  "spring",  "stone",   "street",
    "table",    "teacher", "tower",  "train",   "tree",    "valley", "village", "violin",  "wagon",
    "wheel",    "window",  "winter"};
static const char *const verbs[] = {
    "admires", "answers", "borrows", "builds", "calls",   "carries", "catches", "cleans",
    "crosses", "draws",   "drops",   "finds",  "follows", "forgets", "guards",  "hears",
    "hides",   "keeps",   "leaves",  "lifts",  "meets",   "mends",   "moves",   "opens",
    "paints",  "passes",  "pulls",   "reads",  "reaches", "sees",    "sells",   "shows",
    "touches", "turns",   "visits",  "watches"};

#define PICK(list, rng) list[tool_random_below(rng, (int64_t)(sizeof list / sizeof list[0]))]

char *task_key(tool_rng *rng)
{
    text t = {NULL, 0, 0};
    const char *adjective = PICK(adjectives, rng), *noun = PICK(nouns, rng);
    text_printf(&t, "%s-%s", adjective, noun);
    return text_take(&t);
}

char *task_digits(tool_rng *rng, int n)
{
    text t = {NULL, 0, 0};
    for (int i = 0; i < n; i++) text_printf(&t, "%d", (int)tool_random_below(rng, i ? 10 : 9) + !i);
    return text_take(&t);
}

char *task_uuid(tool_rng *rng)
{
    const uint64_t a = tool_random(rng), b = tool_random(rng);
    text t = {NULL, 0, 0};
    text_printf(&t, "%08x-%04x-4%03x-%04x-%012llx", (unsigned)(a >> 32),
                (unsigned)(a >> 16 & 0xffff), (unsigned)(a & 0xfff),
                (unsigned)(b >> 48 & 0x3fff) | 0x8000u, (unsigned long long)(b & 0xffffffffffff));
    return text_take(&t);
}

void task_add_prose(text *t, tool_rng *rng, int64_t n_words)
{
    for (int64_t i = 0; i < n_words; i += 9) {
        const char *a = PICK(adjectives, rng), *b = PICK(nouns, rng), *c = PICK(verbs, rng);
        const char *d = PICK(adjectives, rng), *e = PICK(nouns, rng), *f = PICK(nouns, rng);
        text_printf(t, "%sThe %s %s %s the %s %s near the %s.", t->n > 0 ? " " : "", a, b, c, d, e,
                    f);
    }
}

/* ------------------------------------------------------------------------------------- scoring -- */

/* Control characters become newlines, ends are stripped, letters are made small. */
static char *cleaned(const char *s)
{
    char *copy = text_copy(s);
    size_t n = strlen(copy), first = 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)copy[i];
        copy[i] = (char)(c < 0x20 ? '\n' : tolower(c));
    }
    while (n > 0 && isspace((unsigned char)copy[n - 1])) copy[--n] = '\0';
    while (first < n && isspace((unsigned char)copy[first])) first++;
    memmove(copy, copy + first, n - first + 1);
    return copy;
}

static double share_found(const task_sample *sample, const char *prediction, bool any)
{
    char *answer = cleaned(prediction);
    int64_t found = 0;
    for (int64_t i = 0; i < sample->outputs.n; i++) {
        char *output = cleaned(sample->outputs.items[i]);
        found += strstr(answer, output) != NULL;
        free(output);
    }
    free(answer);
    if (sample->outputs.n == 0) return 0;
    return any ? found > 0 : (double)found / (double)sample->outputs.n;
}

static double first_line_is(const task_sample *sample, const char *prediction)
{
    char *line = text_copy(prediction);
    line[strcspn(line, "\n")] = '\0';
    char *answer = cleaned(line), *output = cleaned(sample->outputs.items[0]);
    const bool same = strcmp(answer, output) == 0;
    free(line), free(answer), free(output);
    return same;
}

double task_score(const task *self, const task_sample *sample, const char *prediction)
{
    double completed, checks;
    switch (self->metric) {
    case TASK_MATCH_ALL: return share_found(sample, prediction, false);
    case TASK_MATCH_PART: return share_found(sample, prediction, true);
    case TASK_FIRST_LINE: return first_line_is(sample, prediction);
    case TASK_CHOICE: return task_choice(prediction) == sample->outputs.items[0][0];
    case TASK_LONGGEN:
        task_longgen_rates(sample, prediction, &completed, &checks);
        return completed * checks;
    }
    return 0;
}

void task_summary(const double *scores, int64_t n, double *mean, double *margin)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += scores[i];
    *mean = n > 0 ? 100.0 * sum / (double)n : (double)NAN;
    for (int64_t i = 0; i < n; i++) {
        const double off = 100.0 * scores[i] - *mean;
        squares += off * off;
    }
    *margin = n > 1 ? 1.96 * sqrt(squares / (double)(n - 1) / (double)n) : (double)NAN;
}
