/* SPDX-License-Identifier: Apache-2.0 */
/* Logits of many positions. */
#ifndef MACATTN_TOOLS_EVAL_LOGITS_H
#define MACATTN_TOOLS_EVAL_LOGITS_H

#include <stddef.h>
#include <stdint.h>

/* For large vocabularies more than fits in memory, so in a file without a name. */
typedef struct logit_store {
    float *at;
    size_t bytes;
    int32_t vocab;
} logit_store;

/* Room for n positions. Dies if there is none. */
logit_store logits_open(int64_t n, int32_t vocab);
void logits_close(logit_store *store);

/* The logits of position i. */
float *logits_row(const logit_store *store, int64_t i);

#endif /* MACATTN_TOOLS_EVAL_LOGITS_H */
