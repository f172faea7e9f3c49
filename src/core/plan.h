/* SPDX-License-Identifier: Apache-2.0 */
/* What macattn_plan prepares for one step. Only read afterwards, but for `layer_done`. */
#ifndef MAI_PLAN_H
#define MAI_PLAN_H

#include "object.h"

/* Tokens [t0, t1) of a row with one query; the unit whose partial results are merged. The grid
 * of chunks depends on the row's length and the configuration alone, never on threads or on what
 * hits, so that results do not depend on them either. It has edges at F and at b = n - r. */
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
    int32_t first_sample, n_samples; /* of those, which show what reuse would cost (judge.h) */
    int32_t n_runs;                  /* runs before the band; 0 where none are kept */
    int32_t first_segment;           /* where its segments lie among all rows' */
    /* Rows with one query, if a selection is possible: how many runs a threshold is put to, and
     * the row's place among all such rows, its runs' and their pieces' among all. */
    int32_t n_scored, select_row, first_run, first_piece;
    /* Rows with several: queries that show what selection would cost (select.h). */
    int32_t first_shown, n_shown;
} mai_row_plan;

struct mai_plan {
    /* Kept from plan to plan; the two take turns, so that a plan that fails leaves the former. */
    mai_buffer meta[2];
    int current; /* -1: no plan yet */
    mai_row_plan *rows;
    mai_chunk *chunks;
    uint8_t *layer_done; /* [n_layers] decode or prefill was called */
    int32_t n_rows, n_chunks, n_queries, n_captures, n_samples, page_shift;
    int32_t n_segments, n_select_rows, n_runs, n_pieces, n_shown;
    int32_t n_single; /* rows with one query; they may have no tokens, and so no chunks */
    bool paged;
};

/* Runs are scored in pieces, the first of which begins with the first run that a threshold is put
 * to, the others at multiples of this. */
#define MAI_PIECE_RUNS 512
static inline int32_t mai_n_pieces(int32_t n_runs)
{
    return (n_runs + MAI_PIECE_RUNS - 1) / MAI_PIECE_RUNS;
}

void mai_plan_destroy(macattn *m);

#endif /* MAI_PLAN_H */
