/* SPDX-License-Identifier: Apache-2.0 */
/* What a selection is made of, while decoding and where a prompt shows what it would have been: lists
 * of runs, and what using it instead of the exact summary does to an output. */
#ifndef MAI_PICK_H
#define MAI_PICK_H

#include "run.h"

/* List the runs of [first, n_runs) that are read, by their scores [group][stride]: all that are not
 * below `least` for every head. The list begins with what is always read, the run before `first`, if
 * the first tokens do not cover all of it. Returns how many are listed. */
int32_t mai_pick(const float *scores, int64_t stride, int group, int32_t first, int32_t n_runs,
                 const float *least, bool always, int32_t *list);

/* Whether the list begins with such a run, and how many of its tokens are not read with the list. */
static inline bool mai_list_always(int64_t fresh_end)
{
    return fresh_end == 0 || fresh_end % MAI_RUN_TOKENS != 0;
}

static inline int64_t mai_list_skip(int64_t fresh_end)
{
    return fresh_end % MAI_RUN_TOKENS;
}

/* log(e^a + e^b) */
float mai_lse_add(float a, float b);

/* One head's exact output [dv], and its summary's. */
typedef struct mai_exact {
    const float *out, *far;
    float lse, far_lse;
} mai_exact;

/* The squared norm of what using another summary does to the output (mai_swap_far). */
float mai_swap_off2(const mai_exact *exact, const float *used, float used_lse, int dv);

/* Attention of the first n_heads heads of a KV head's group, and of no others, to tokens [t0, t1) of
 * the row, or of the listed runs. q [n_heads][d]; out [n_heads][dv], lse [n_heads]. */
typedef struct mai_some_heads {
    int kv_head, n_heads;
    const float *q;
    const int32_t *runs; /* NULL: all */
    int64_t t0, t1;
    float *out, *lse;
} mai_some_heads;
void mai_attend_some(const mai_run *run, const mai_row_plan *p, const mai_some_heads *x,
                     void *scratch);

#endif /* MAI_PICK_H */
