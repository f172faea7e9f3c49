/* SPDX-License-Identifier: Apache-2.0 */
#include "samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "say.h"

void sample_list_add(sample_list *s, double value)
{
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 64;
        double *values = realloc(s->values, room * sizeof *values);
        if (!values) {
            die(EXIT_FAILED, "out of memory");
        }
        s->values = values;
        s->room = room;
    }
    s->values[s->n++] = value;
}

static int compare_reals(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double sample_list_quantile(const sample_list *s, double quantile)
{
    if (s->n == 0) {
        return (double)NAN;
    }
    double *sorted = memory_alloc(s->n * sizeof *sorted);
    memcpy(sorted, s->values, s->n * sizeof *sorted);
    qsort(sorted, s->n, sizeof *sorted, compare_reals);
    double at = quantile * (double)(s->n - 1);
    size_t low = (size_t)at;
    size_t high = low + 1 < s->n ? low + 1 : low;
    double value = sorted[low] + (at - (double)low) * (sorted[high] - sorted[low]);
    free(sorted);
    return value;
}

double sample_list_median(const sample_list *s)
{
    return sample_list_quantile(s, 0.5);
}

void sample_list_free(sample_list *s)
{
    free(s->values);
    *s = (sample_list){0};
}
