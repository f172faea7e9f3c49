/* SPDX-License-Identifier: Apache-2.0 */
/* Measured values and their quantiles. */
#ifndef MACATTN_TOOLS_COMMON_SAMPLES_H
#define MACATTN_TOOLS_COMMON_SAMPLES_H

#include <stddef.h>

typedef struct sample_list {
    double *values;
    size_t n, room;
} sample_list;

void sample_list_add(sample_list *s, double value);
double sample_list_quantile(const sample_list *s, double quantile); /* NAN if empty */
double sample_list_median(const sample_list *s);
void sample_list_free(sample_list *s);

#endif /* MACATTN_TOOLS_COMMON_SAMPLES_H */
