/* SPDX-License-Identifier: Apache-2.0 */
/* The lse merge of two disjoint token ranges, for callers that split attention themselves. */
#include <math.h>

#include "base.h"

macattn_status macattn_merge(int64_t n, int32_t v_head_dim, const float *ox, const float *lx,
                             const float *oy, const float *ly, float *out, float *lse)
{
    if (n < 1 || v_head_dim < 1 || !ox || !lx || !oy || !ly || !out || !lse) return MACATTN_E_ARG;
    for (int64_t i = 0; i < n; i++) {
        const double x = (double)lx[i], y = (double)ly[i], top = x > y ? x : y;
        /* Two empty ranges make an empty one; a NaN comes through. */
        const bool empty = x == -INFINITY && y == -INFINITY;
        const double a = empty ? 0 : exp(x - top), b = empty ? 0 : exp(y - top), sum = a + b;
        const double wx = empty ? 0 : a / sum, wy = empty ? 0 : b / sum;
        lse[i] = empty ? -INFINITY : (float)(top + log(sum));
        for (int64_t j = i * v_head_dim; j < (i + 1) * v_head_dim; j++) {
            /* What an empty range's output holds does not matter, be it NaN. */
            const double vx = wx == 0 ? 0 : wx * (double)ox[j],
                         vy = wy == 0 ? 0 : wy * (double)oy[j];
            out[j] = (float)(vx + vy);
        }
    }
    return MACATTN_OK;
}
