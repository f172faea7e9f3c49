/* SPDX-License-Identifier: Apache-2.0 */
/* The work memory of calls: made large enough by macattn_plan, used by decode and prefill. Its
 * contents do not matter between calls. */
#ifndef MAI_WORK_H
#define MAI_WORK_H

#include "base.h"
#include "policy/judge.h"

/* One work item of decode: a chunk, for some kv heads. */
typedef struct mai_item {
    int32_t row, chunk, kv0, kv1;
} mai_item;

/* What was decided for one (row, head). */
typedef struct mai_decision {
    bool hit;
    bool remember;    /* the query is finite, and there is something to remember */
    int32_t entry;    /* hit: index in the ring */
    int64_t start;    /* tokens from here on are computed (besides [0, F)) */
    double distance2; /* hit: squared distance */
    /* Policies that judge (judge.h). */
    bool refused; /* a candidate that was not used: its output waits to be compared */
    mai_judgement judgement;
} mai_decision;

/* A worker's scratch, as offsets. */
typedef struct mai_scratch_layout {
    int32_t most_parts;
    size_t o, lse, summary, bytes; /* the kernels' own begins at 0 */
} mai_scratch_layout;

typedef struct mai_scratch {
    void *kernel; /* the kernels' own (backend.h) */
    /* The parts that one head's output is merged of: pointers to [dv] floats, and their lse. */
    const float **o;
    float *lse;
    float *summary; /* [width] */
} mai_scratch;

typedef struct mai_work {
    mai_buffer q, start, keys, decisions, items; /* keys: [row][n_kv_heads], of mai_attend_args */
    mai_buffer partial_out, partial_lse, lse;    /* partial_out: [chunk][n_heads][width] */
    mai_buffer capture_out, capture_lse;         /* [capture][n_heads]: far of mai_prefill_args */
    mai_buffer samples;                          /* [sample][n_heads] mai_prompt_sample */
    mai_buffer refused_out, below, scratch;      /* refused_out: [row][n_heads][dv]; below: [row] */
    mai_scratch_layout layout;                   /* of each worker's scratch */
    float *zeros;                                /* [dv] the sink's value */
} mai_work;

/* What a plan asks for. */
typedef struct mai_work_sizes {
    int n_rows, n_chunks, max_row_chunks, n_queries, n_captures, n_samples;
} mai_work_sizes;

/* Make room. The memory only grows; if that fails, there is room for what was planned before. */
macattn_status mai_work_reserve(macattn *m, const mai_work_sizes *sizes);
void mai_work_destroy(macattn *m);

mai_scratch mai_work_scratch(const mai_work *work, int worker);

#endif /* MAI_WORK_H */
