/* SPDX-License-Identifier: Apache-2.0 */
/* One head of the float64 reference. */
#ifndef MACATTN_TOOLS_BENCH_REFERENCE_H
#define MACATTN_TOOLS_BENCH_REFERENCE_H

#include "macattn/macattn.h"

/* The float64 value of element i of a row. */
double bench_value(macattn_dtype dtype, const void *row, int64_t i);

/* float64 attention of one query head over the tokens [first, last) of a row. `q` is the query
 * in all heads, packed. */
void bench_reference(const macattn_config *cfg, const macattn_kv *kv, const macattn_row *where,
                     int32_t page_size, int32_t head, const float *q, int64_t first, int64_t last,
                     double *out, double *lse);

#endif /* MACATTN_TOOLS_BENCH_REFERENCE_H */
