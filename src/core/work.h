/* SPDX-License-Identifier: Apache-2.0 */
/* The work memory of calls: made large enough by macattn_plan, used by decode and prefill. Its
 * contents do not matter between calls. */
#ifndef MAI_WORK_H
#define MAI_WORK_H

#include "base.h"
#include "policy/judge.h"
#include "policy/select.h"

/* One work item of decode: a chunk, for some kv heads; or a part of what one kv head selects. */
typedef struct mai_item {
    int32_t row, chunk, kv0, kv1;
    int32_t part; /* of a selection; -1: a chunk */
} mai_item;

/* What a selection is computed in: so many parts of the list that is read, of the runs that stand in
 * for their tokens, and the tokens between the last run and b, if all is computed as well. How many
 * there are, and of what size, depends on the numbers of runs alone. */
enum {
    MAI_LIST_PARTS = 16,
    MAI_REST_PARTS = 8,
    MAI_GAP_PART = MAI_LIST_PARTS + MAI_REST_PARTS,
    MAI_SELECT_PARTS
};

/* What was decided for one (row, kv head) that does not reuse. */
typedef struct mai_choice {
    int32_t k;      /* threshold; -1: no selection */
    bool selects;   /* reads a selection */
    bool checks;    /* computed in full, and the selection too, to compare */
    bool too_much;  /* nearly all would have been read */
    bool passed_by; /* selects although there was a candidate, which is compared with nothing */
    int32_t n_read, n_rest; /* runs that are read, and that stand in */
} mai_choice;

/* What was decided for one (row, head). */
typedef struct mai_decision {
    bool hit;
    bool remember;    /* the query is finite, and there is something to remember */
    bool searched;    /* in the ring */
    int32_t entry;    /* hit: index in the ring */
    int64_t start;    /* tokens from here on are computed (besides [0, F)) */
    double distance2; /* hit: squared distance */
    /* Policies that judge (judge.h). */
    bool refused; /* a candidate that was not used: its output waits to be compared */
    mai_judgement judgement;
} mai_decision;

/* A worker's scratch, as offsets. */
typedef struct mai_scratch_layout {
    int32_t most_parts, shown_runs;
    size_t o, lse, summary, shown, bytes; /* the kernels' own begins at 0 */
} mai_scratch_layout;

typedef struct mai_scratch {
    void *kernel; /* the kernels' own (backend.h) */
    /* The parts that one head's output is merged of: pointers to [dv] floats, and their lse. */
    const float **o;
    float *lse;
    float *summary; /* [width] */
    /* What one query of a prompt shows of selection, for a group, of up to shown_runs runs. */
    void *shown;
} mai_scratch;

/* Results that shown.c computes for a query: of each bucket of runs, and of what lies beside them. */
enum { MAI_SHOWN_PARTS = 2 * (MAI_THETAS + 1) + 1 };

typedef struct mai_work {
    mai_buffer q, start, keys, decisions, items; /* keys: [row][n_kv_heads], of mai_attend_args */
    mai_buffer partial_out, partial_lse, lse;    /* partial_out: [chunk][n_heads][width] */
    mai_buffer capture_out, capture_lse;         /* [capture][n_heads]: far of mai_prefill_args */
    mai_buffer samples;                          /* [sample][n_heads] mai_prompt_sample */
    mai_buffer refused_out, below, scratch;      /* refused_out: [row][n_heads][dv]; below: [row] */
    /* Where runs are kept. Of all rows: */
    mai_buffer segments; /* mai_runs_view, each row's in order */
    mai_buffer made;     /* [row] int32_t: runs that were there when the call began */
    mai_buffer choices;  /* [row][n_kv_heads] mai_choice */
    /* Of the rows of which a selection is possible: */
    mai_buffer scores;      /* by row, [n_heads][its runs] */
    mai_buffer list;        /* by row, [n_kv_heads][its runs]: those that are read */
    mai_buffer piece_lse;   /* [piece][n_heads] */
    mai_buffer totals;      /* [row][n_heads] mai_select_total */
    mai_buffer select_out;  /* [row][MAI_SELECT_PARTS][n_heads][width] */
    mai_buffer select_lse;  /* [row][MAI_SELECT_PARTS][n_heads] */
    mai_buffer select_off2; /* [row][n_heads] checks: squared error of the selection */
    mai_buffer
        shown; /* [shown query][n_kv_heads][MAI_THETAS] float: squared errors, mean of heads */
    mai_scratch_layout layout; /* of each worker's scratch */
    float *zeros;              /* [dv] the sink's value */
} mai_work;

/* What a plan asks for. */
typedef struct mai_work_sizes {
    int n_rows, n_chunks, max_row_chunks, n_queries, n_captures, n_samples;
    int n_segments, n_select_rows, n_runs, n_pieces, n_shown, max_shown_runs;
} mai_work_sizes;

/* Make room. The memory only grows; if that fails, there is room for what was planned before. */
macattn_status mai_work_reserve(macattn *m, const mai_work_sizes *sizes);
void mai_work_destroy(macattn *m);

mai_scratch mai_work_scratch(const mai_work *work, int worker);

#endif /* MAI_WORK_H */
