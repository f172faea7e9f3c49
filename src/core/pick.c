/* SPDX-License-Identifier: Apache-2.0 */
/* What a selection is made of. */
#include "pick.h"

#include <math.h>

#include "sums.h"

int32_t mai_pick(const float *scores, int64_t stride, int group, int32_t first, int32_t n_runs,
                 const float *least, bool always, int32_t *list)
{
    enum { STEP = 32 };
    int32_t n = 0, below[STEP];
    if (always) list[n++] = first - 1;
    for (int32_t i = first; i < n_runs; i += STEP) {
        const int32_t size = n_runs - i < STEP ? n_runs - i : STEP;
        for (int32_t t = 0; t < STEP; t++) below[t] = 1;
        for (int h = 0; h < group; h++) { /* so that compilers take several runs at a time */
            const float *from = scores + h * stride + i, most = least[h];
            for (int32_t t = 0; t < size; t++) below[t] &= from[t] < most;
        }
        for (int32_t t = 0; t < size; t++) {
            list[n] = i + t; /* without a branch: what does not belong there is written over */
            n += !below[t];
        }
    }
    return n;
}

float mai_lse_add(float a, float b)
{
    const double top = fmax((double)a, (double)b), less = fmin((double)a, (double)b);
    if (isnan(a) || isnan(b)) return NAN;
    return less == -INFINITY ? (float)top : (float)(top + log1p(exp(less - top)));
}

float mai_swap_off2(const mai_exact *exact, const float *used, float used_lse, int dv)
{
    const mai_swap swap = mai_swap_far(exact->far_lse, used_lse, exact->lse);
    float off[MAI_MAX_DIM];
    for (int i = 0; i < dv; i++) {
        off[i] = swap.in * (used[i] - exact->out[i]) - swap.out * (exact->far[i] - exact->out[i]);
    }
    return mai_norm2(off, dv);
}

/* To the kernel there are no other heads. */
void mai_attend_some(const mai_run *run, const mai_row_plan *p, const mai_some_heads *x,
                     void *scratch)
{
    mai_shape shape = run->m->shape;
    macattn_kv kv = run->io.kv;
    shape.n_heads = shape.group = x->n_heads;
    shape.n_kv_heads = 1;
    kv.k = (const char *)kv.k + x->kv_head * kv.k_head_stride;
    kv.v = (const char *)kv.v + x->kv_head * kv.v_head_stride;
    mai_attend_args args = {.shape = &shape,
                            .tokens = mai_run_tokens(run, p),
                            .t0 = x->t0,
                            .t1 = x->t1,
                            .kv1 = 1,
                            .q = x->q,
                            .out = x->out,
                            .out_stride = shape.dv,
                            .lse = x->lse,
                            .scratch = scratch};
    args.tokens.kv = &kv;
    args.tokens.runs = x->runs;
    run->m->backend->attend(&args);
}
