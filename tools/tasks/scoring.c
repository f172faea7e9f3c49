/* SPDX-License-Identifier: Apache-2.0 */
#include "scoring.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "longbench.h"
#include "longgen.h"

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
