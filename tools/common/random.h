/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers that are the same on every machine. */
#ifndef MACATTN_TOOLS_COMMON_RANDOM_H
#define MACATTN_TOOLS_COMMON_RANDOM_H

#include <stdint.h>

typedef struct random_state {
    uint64_t state;
} random_state;

uint64_t random_next(random_state *rng);
int64_t random_below(random_state *rng, int64_t n);
float random_normal(random_state *rng);

#endif /* MACATTN_TOOLS_COMMON_RANDOM_H */
