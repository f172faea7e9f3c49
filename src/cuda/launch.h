/* SPDX-License-Identifier: Apache-2.0 */
/* Between the host side (C, host/) and the kernels: their parameters, and functions that launch
 * them. All functions return a cudaError_t as an int; 0 is success. */
#ifndef MAI_CUDA_LAUNCH_H
#define MAI_CUDA_LAUNCH_H

#include <stddef.h>
#include <stdint.h>

#include "core/policy/select.h"
#include "cuda/softcap.h"
#include "macattn/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the search needs of a remembered query, q = scale * int8 + residual: 16 bytes, one load. */
typedef struct mai_cu_meta {
    float scale, residual; /* residual: its norm, rounded up */
    float norm2;           /* squared norm of scale * int8 */
    int32_t end;           /* the summary covers [F, end) */
} mai_cu_meta;

/* What the judge needs of it (core/policy/judge.h): how far its summary was reused, and its share
 * of the mass. */
typedef struct mai_cu_judged {
    float moved, share;
} mai_cu_judged;

/* The rings. Entry i of (slot, layer, head) is at ((slot * n_layers + layer) * n_heads + head) *
 * ring + i in each array; head[] (where the next one goes) and count[] have one element a ring.
 * A summary is one vector: the output, in units of the stored V, and under lse_order 1 the mean of
 * the keys it covers, kbar, in units of the stored K (core/backend.h). Its lse for a query q is
 * lse0 + scale q.kbar. */
typedef struct mai_cu_rings {
    int8_t *q8; /* [head_dim] */
    mai_cu_meta *meta;
    int32_t *pos;          /* position of the token the query was made for */
    float *lse0;           /* natural log */
    mai_cu_judged *judged; /* NULL unless the policy judges */
    char *q;               /* [head_dim] in q_dtype */
    float *summary;        /* [width] */
    int32_t *head, *count;
} mai_cu_rings;

enum {
    MAI_CU_RUN_SHIFT = 4, /* tokens of a run */
    MAI_CU_RUN = 1 << MAI_CU_RUN_SHIFT,
    MAI_CU_SEGMENT_SHIFT = 6, /* runs of a segment */
    MAI_CU_SEGMENT = 1 << MAI_CU_SEGMENT_SHIFT,
    MAI_CU_PIECE = 256,       /* runs that a block scores in one go */
    MAI_CU_MOST_GROUP = 1024, /* heads: as many as a layer may have */
};

/* The means and outliers of runs (core/policy/select.h), in segments from a pool that all slots share. A segment
 * has MAI_CU_SEGMENT runs of all layers and KV heads; run i of a slot is in the segment
 * table[slot][i / MAI_CU_SEGMENT], there in row ((segment * n_layers + layer) * n_kv_heads +
 * kv_head) * MAI_CU_SEGMENT + i % MAI_CU_SEGMENT of each array. The values are those of the CPU's
 * rows of q8_0: codes, and one scale for 32 of them; of 16 codes in 16 bytes the order is the one
 * in which the products take them (device/runs.cuh). */
typedef struct mai_cu_runs {
    int8_t *k, *v, *outlier; /* [head_dim]; outlier NULL: these are not kept */
    uint16_t *k_scale, *v_scale, *outlier_scale; /* [head_dim / 32] f16 */
    float
        *common; /* [slot][layer][kv_head][head_dim] the first run's mean key; keys are less it */
    int32_t *made; /* [slot][layer][kv_head] how many are made, from the first one on */
    int32_t *table, *n_segments; /* [slot][most]; [slot] how many of them there are */
    int32_t *free, *n_free;      /* segments that no slot has */
    int32_t most;                /* of a slot */
} mai_cu_runs;

/* Which runs a row has to choose from, in one step. */
typedef struct mai_cu_row_runs {
    int32_t n_runs; /* 0: none, or there was no room for them */
    int32_t first;  /* before the row's part of scores and lists: runs, in whole segments */
    int32_t pieces; /* of all rows up to and with this one; each has at least one */
} mai_cu_row_runs;

/* What became of a group in a row: of its candidates; or it reads a selection; or it does that to
 * be compared with the exact result. */
typedef enum mai_outcome {
    MAI_NO_CANDIDATE,
    MAI_USED,
    MAI_REFUSED,
    MAI_SELECTED,
    MAI_CHECKED
} mai_outcome;

/* A group's choice in a row. */
typedef struct mai_cu_choice {
    int32_t outcome; /* mai_outcome */
    int32_t k;       /* of the threshold that scores were put to; -1: they were not looked at */
    int32_t listed;  /* tokens of the listed runs */
    int32_t n_rest;  /* runs that stand in */
    int32_t first;   /* mai_cu_row_runs */
    int32_t n_runs;
    float error;                 /* expected of the selection, in units of the layer */
    int16_t too_much, passed_by; /* nearly all would be read; a candidate was not asked for */
} mai_cu_choice;

/* Counters of one (layer, KV head), by macattn_way. */
typedef struct mai_cu_group_counters {
    unsigned long long groups[MACATTN_WAYS], kv_bytes[MACATTN_WAYS], run_bytes[MACATTN_WAYS];
    unsigned long long checks;
    double error2_selected;
} mai_cu_group_counters;

/* Counters of one (layer, head). */
typedef struct mai_cu_counters {
    unsigned long long steps, hits, tokens_total, tokens_skipped;
    unsigned long long distance[MACATTN_DISTANCE_BINS];
    unsigned long long samples;
    double error2_layer, error2_head;
} mai_cu_counters;

/* What a head's result showed: its squared norm, and that of the difference which a refused
 * candidate would have made; both in units of the stored V. norm2 < 0: there are no tokens. */
typedef struct mai_cu_seen {
    float norm2, off2;
} mai_cu_seen;

typedef struct mai_cu_params {
    /* shape and policy */
    int32_t n_rows, n_layers, n_heads, n_kv_heads, group, head_dim;
    int32_t heads_per_block, blocks_per_kv; /* query heads one thread block computes together */
    int32_t even_blocks;                    /* mai_even_blocks */
    int32_t ring, band, fresh, window, min_tokens, n_sms;
    int32_t keys; /* 1: summaries have a mean of keys */
    float scale, k_scale, v_scale, radius2;
    mai_softcap softcap;
    macattn_dtype q_dtype, kv_dtype, out_dtype;

    /* the step */
    int32_t layer;
    int32_t reuse; /* 1: decisions are made, and queries remembered */
    int32_t
        judges; /* 1: what the search found is a candidate, to be judged (core/policy/judge.h) */
    const int32_t *slots, *n_tokens, *pages, *page_indptr;
    int64_t page_table_stride;
    int32_t page_shift; /* -1: contiguous */

    const char *q, *q_match, *k, *v;
    int64_t q_row_stride, q_head_stride, m_row_stride, m_head_stride;
    int64_t k_page_stride, k_token_stride, k_head_stride;
    int64_t v_page_stride, v_token_stride, v_head_stride;
    const float *sinks;
    char *out;
    int64_t out_row_stride, out_head_stride;
    float *lse;

    /* state and work memory */
    mai_cu_rings rings;
    macattn_cuda_decision *found; /* [n_rows][n_heads] by the search */
    /* [n_rows][n_heads] what became of it; found itself unless judged */
    macattn_cuda_decision *decisions;
    float *partial_out; /* [block][place][class][heads_per_block][width of the kernel's sums] */
    float *partial_lse; /* the same without width; base 2 */
    /* How many have arrived, 0 between calls: [block][place] blocks of the bundle that begins
     * there, then [group] bundles. */
    uint32_t *arrived;
    mai_cu_counters *counters; /* [n_layers][n_heads] */

    /* Of a policy that judges. */
    mai_record *records;       /* [n_layers][n_heads] */
    mai_habit *habits;         /* [n_layers][n_kv_heads] */
    mai_judgement *judgements; /* [n_rows][n_heads] of what was found */
    mai_cu_seen *seen;         /* [n_rows][n_heads] */
    float *unit2;              /* mai_layer_unit2 as the step found it */
    int32_t *outcomes;         /* [n_rows][n_kv_heads] mai_outcome */
    uint32_t *learnt;          /* [n_kv_heads] groups complete in this step; 0 between calls */
    mai_cu_group_counters *group_counters; /* [n_layers][n_kv_heads] */

    /* Of one that selects. Of a row's part of scores and lists, R is its length: its runs in
     * whole segments. */
    int32_t selects; /* 1: in this call, too */
    mai_cu_runs runs;
    mai_selector *selectors;   /* [n_layers][n_kv_heads] */
    mai_cu_row_runs *row_runs; /* [n_rows] */
    mai_cu_choice *choices;    /* [n_rows][n_kv_heads] */
    float *scores;             /* [n_heads][R] in powers of 2; -inf: the run does not stand in */
    int32_t *lists;            /* [n_kv_heads][R] runs that are read, in order */
    float *piece_lse;          /* [piece of all rows][n_heads] in powers of 2 */
    float *least;              /* [n_rows][n_heads] mai_select_least, in powers of 2 */
    uint32_t *scored;          /* [n_rows][n_kv_heads] pieces done; 0 between calls */
} mai_cu_params;

/* One instantiation of the attention kernel. */
typedef struct mai_cu_attend_kernel {
    const void *plain;     /* exact attention, and reuse without means of keys */
    const void *keeping;   /* with them */
    const void *judging;   /* for policies that judge, with or without */
    const void *selecting; /* and select; NULL: there is no selection of such K and V */
    macattn_dtype kv_dtype;
    int32_t head_dim, heads; /* heads: most a thread block computes together */
    int32_t unit;            /* tokens */
    int32_t threads;
    size_t shared_bytes;
} mai_cu_attend_kernel;

/* attend/table.cu: the instantiation for a shape that fits a block's shared memory, or NULL. */
const mai_cu_attend_kernel *mai_cu_attend_find(macattn_dtype kv_dtype, int head_dim, int group,
                                               size_t shared_limit);
/* Once per kernel and device: allow its shared memory; and how many blocks fit on a
 * multiprocessor. */
int mai_cu_attend_prepare(const mai_cu_attend_kernel *kernel, int *blocks_per_sm);
int mai_cu_attend_launch(const mai_cu_attend_kernel *kernel, const mai_cu_params *p, int n_blocks,
                         int after_match, void *stream);

/* match.cu. Prepare: once per device. */
int mai_cu_match_prepare(int head_dim);
int mai_cu_match_launch(const mai_cu_params *p, void *stream);

/* select.cu: between the two. Prepare: once per device. */
int mai_cu_select_prepare(int head_dim, int outliers, int *n_blocks);
int mai_cu_select_launch(const mai_cu_params *p, int n_blocks, void *stream);

/* slots.cu */
/* All segments are free, no slot has any. */
int mai_cu_runs_begin(const mai_cu_params *p, int n_segments, int n_selectors, void *stream);
int mai_cu_runs_fork(const mai_cu_params *p, int32_t from, int32_t to, void *stream);
int mai_cu_slot_truncate(const mai_cu_params *p, int32_t slot, int64_t n_tokens, void *stream);
/* Heads [head0, head1) of layers [layer0, layer1) get a budget. */
int mai_cu_set_budget(const mai_cu_params *p, int layer0, int layer1, int head0, int head1,
                      float budget, void *stream);

/* A prompt that an engine has computed: the newest `n_queries` tokens of a row. Queries, the
 * engine's outputs and lse are those of the parameters, by query. */
typedef struct mai_cu_prompt {
    int32_t row, n_queries;
    int32_t first, n; /* queries that are looked at in one go: at most MAI_CU_CAPTURED */
    /* Work memory. */
    float *summary; /* [n][n_heads][width], over [F, b) of each query */
    float *lse;     /* [n][n_heads] of those, natural log */
    int32_t *place; /* [n][n_heads] entries made before it; complemented if it makes none */
    mai_prompt_sample *samples; /* [MAI_PROMPT_SAMPLES][n_heads] */
    /* What one query shows of selection: sums of parts, by chunks of the runs; and of each query
     * the mean of the heads' squared errors. */
    float *parts; /* [MAI_CU_SHOWN_CHUNKS][n_heads][MAI_CU_SHOWN_PARTS][head_dim + 1] */
    float *shown; /* [MAI_SELECT_SAMPLES][n_kv_heads][MAI_THETAS] in units of the stored V */
    float *norms; /* [MAI_SELECT_SAMPLES][n_heads] squared norms of the outputs */
} mai_cu_prompt;

enum {
    MAI_CU_CAPTURED = 256,
    MAI_CU_SHOWN_CHUNKS = 16,
    /* Of each bucket of runs its tokens and its means, then the tokens after the last run. */
    MAI_CU_SHOWN_PARTS = 2 * (MAI_THETAS + 1) + 1,
};

/* capture/. In this order for queries [first, first + n): their summaries; which of them make an
 * entry; what those that are samples show; the entries. Then, for the whole prompt, what the
 * samples teach. Prepare: once per device. */
int mai_cu_far_prepare(macattn_dtype kv_dtype, int head_dim);
int mai_cu_far_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream);
int mai_cu_place_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream);
int mai_cu_show_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream);
int mai_cu_insert_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream);
int mai_cu_learn_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream);
/* Where the policy selects: make the means of a prompt's runs; then, after what reuse shows, what
 * query `sample` of those that show selections does. */
int mai_cu_make_runs_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream);
int mai_cu_shown_prepare(int head_dim);
int mai_cu_shown_launch(const mai_cu_params *p, const mai_cu_prompt *x, int sample, void *stream);

#ifdef __cplusplus
}
#endif

#endif /* MAI_CUDA_LAUNCH_H */
