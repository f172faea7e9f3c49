/* SPDX-License-Identifier: Apache-2.0 */
#include "random.h"

#include <math.h>

/* splitmix64. */
uint64_t random_next(random_state *rng)
{
    uint64_t z = (rng->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int64_t random_below(random_state *rng, int64_t n)
{
    return (int64_t)(random_next(rng) % (uint64_t)n);
}

/* Box and Muller. */
float random_normal(random_state *rng)
{
    double u = ((double)(random_next(rng) >> 11) + 1.0) * 0x1p-53;
    double w = (double)(random_next(rng) >> 11) * 0x1p-53;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * w));
}
