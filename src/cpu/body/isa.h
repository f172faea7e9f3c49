/* SPDX-License-Identifier: Apache-2.0 */
/* One instruction set's backend: the bodies, compiled over the vector vocabulary that the including
 * file has chosen, and their table. The including file defines MAI_FN (the suffix of the functions that
 * may show up in a profile), MAI_ISA_NAME, MAI_ISA_BACKEND, and MAI_ISA_SUPPORTED. */

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/backend.h"

#include "rows.h"

#include "tile.h"

#include "attend.h"

#include "prefill.h"

#include "ring.h"

#include "runs.h"

/* l = log sum exp(l_i), o = sum exp(l_i - l) o_i. A NaN or +inf among the lse makes all NaN. */
static void MAI_FN(merge)(int32_t width, int n, const float *const *o, const float *lse, float *out,
                          float *lse_out)
{
    float top = -INFINITY;
    double sum = 0;
    for (int i = 0; i < n; i++) {
        if (lse[i] > top || lse[i] != lse[i]) top = lse[i];
    }
    memset(out, 0, sizeof(float) * (size_t)width);
    *lse_out = top;
    if (top == -INFINITY) return;
    for (int i = 0; i < n; i++) {
        if (lse[i] == -INFINITY) continue;
        const float weight = expf(lse[i] - top);
        const V w = v_set1(weight);
        sum += (double)weight;
        int j = 0;
        for (; j + VL <= width; j += VL)
            v_store(out + j, v_fma(v_load(o[i] + j), w, v_load(out + j)));
        if (j < width) {
            const int rest = width - j;
            v_store_n(out + j, v_fma(v_load_n(o[i] + j, rest), w, v_load_n(out + j, rest)), rest);
        }
    }
    scale_floats(out, width, (float)(1 / sum));
    *lse_out = (float)((double)top + log(sum));
}

static size_t MAI_FN(scratch_bytes)(const mai_shape *shape, const mai_ring_dims *dims)
{
    size_t bytes = attend_scratch_bytes(shape);
    const size_t prefill = prefill_scratch_bytes(shape), match = match_scratch_bytes(dims);
    const size_t runs = runs_scratch_bytes(shape);
    if (prefill > bytes) bytes = prefill;
    if (runs > bytes) bytes = runs;
    bytes += tile_work_bytes(shape); /* which each of the three begins with */
    return match > bytes ? match : bytes;
}

const mai_backend MAI_ISA_BACKEND = {
    .name = MAI_ISA_NAME,
    .supported = MAI_ISA_SUPPORTED,
    .scratch_bytes = MAI_FN(scratch_bytes),
    .q_factor = mai_q_factor,
    .prefill_queries = prefill_queries,
    .load_q = load_q,
    .attend = MAI_FN(attend),
    .prefill = MAI_FN(prefill),
    .match = MAI_FN(match),
    .insert = MAI_FN(insert),
    .summarise = MAI_FN(summarise),
    .score = MAI_FN(score),
    .stand_in = MAI_FN(stand_in),
    .merge = MAI_FN(merge),
};
