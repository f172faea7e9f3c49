/* SPDX-License-Identifier: Apache-2.0 */
/* What macattn_plan prepares for one step, and the work memory of decode and prefill. */
#ifndef MAI_PLAN_H
#define MAI_PLAN_H

#include "internal.h"

/* Tokens [t0, t1) of a row with one query; the unit whose partial results are merged. The grid of
 * chunks depends on the row's length and the configuration alone, never on threads or on what hits, so
 * that results do not depend on them either. It has edges at F and at b = n - r. */
typedef struct mai_chunk {
    int64_t t0, t1;
} mai_chunk;

typedef struct mai_row_plan {
    macattn_row row;
    uint64_t generation;           /* of the slot when the plan was made */
    int32_t first_query;           /* index of its first query among all rows' queries */
    int64_t fresh_end;             /* F, at most n_tokens; tokens [0, F) are in no summary */
    int64_t far_end;               /* b: a summary made now covers [fresh_end, far_end) */
    int32_t first_chunk, n_chunks; /* rows with one query */
    int32_t capture0;              /* rows with several: first query whose summary is to be kept */
    int32_t first_capture;         /* where it goes, in units of [n_heads] summaries */
} mai_row_plan;

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

struct mai_plan {
    /* Kept from plan to plan; the two take turns, so that a plan that fails leaves the former. */
    mai_buffer meta[2];
    int current; /* -1: no plan yet */
    mai_row_plan *rows;
    mai_chunk *chunks;
    uint8_t *layer_done; /* [n_layers] decode or prefill was called */
    int32_t n_rows, n_chunks, n_queries, n_captures, page_shift;
    bool paged, single; /* single: every row has one query */

    /* Work memory of one call; contents do not matter between calls. */
    mai_buffer q, start, decisions, items, partial_out, partial_lse, lse, capture_out, capture_lse,
        refused_out, below, scratch; /* refused_out: [row][n_heads][dv]; below: [row] */
    size_t scratch_stride;           /* bytes of a worker's scratch */
    int32_t max_row_chunks;
    float *zeros; /* [dv] the sink's value */
};

#endif /* MAI_PLAN_H */
