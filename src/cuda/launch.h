/* SPDX-License-Identifier: Apache-2.0 */
/* Between the host side (C, host/) and the kernels: their parameters, and functions that launch
 * them. All functions return a cudaError_t as an int; 0 is success. */
#ifndef MAI_CUDA_LAUNCH_H
#define MAI_CUDA_LAUNCH_H

#include <stddef.h>
#include <stdint.h>

#include "core/policy/judge.h"
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
 * ring + i in each array; head[] (where the next one goes) and count[] have one element a ring. */
typedef struct mai_cu_rings {
    int8_t *q8; /* [head_dim] */
    mai_cu_meta *meta;
    int32_t *pos;          /* position of the token the query was made for */
    float *lse;            /* natural log */
    mai_cu_judged *judged; /* NULL unless the policy judges */
    char *q;               /* [head_dim] in q_dtype */
    float *out;            /* [head_dim] */
    int32_t *head, *count;
} mai_cu_rings;

/* What became of a group's candidates in a row. */
typedef enum mai_outcome { MAI_NO_CANDIDATE, MAI_USED, MAI_REFUSED } mai_outcome;

/* Counters of one (layer, head). */
typedef struct mai_cu_counters {
    unsigned long long steps, hits, tokens_total, tokens_skipped;
    unsigned long long distance[MACATTN_DISTANCE_BINS];
} mai_cu_counters;

typedef struct mai_cu_params {
    /* shape and policy */
    int32_t n_rows, n_layers, n_heads, n_kv_heads, group, head_dim;
    int32_t heads_per_block, blocks_per_kv; /* query heads one thread block computes together */
    int32_t even_blocks;                    /* mai_even_blocks */
    int32_t ring, band, fresh, window, min_tokens, n_sms;
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
    /* capture: row i stands for query `capture_query` + i of `capture_queries` of the row
     * `capture_row`, and only fresh and near tokens are computed. capture_row < 0: none */
    int32_t capture_row, capture_query, capture_queries;

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
    float *partial_out; /* [block][place][class][heads_per_block][head_dim] */
    float *partial_lse; /* the same without head_dim; base 2 */
    /* How many have arrived, 0 between calls: [block][place] blocks of the bundle that begins
     * there, then [group] bundles. */
    uint32_t *arrived;
    mai_cu_counters *counters; /* [n_layers][n_heads] */

    /* Of a policy that judges. */
    mai_record *records;       /* [n_layers][n_heads] */
    mai_habit *habits;         /* [n_layers][n_kv_heads] */
    mai_judgement *judgements; /* [n_rows][n_heads] of what was found */
    float *errors;             /* [n_rows][n_heads] seen of refused candidates */
    int32_t *outcomes;         /* [n_rows][n_kv_heads] mai_outcome */
    uint32_t *learnt;          /* [n_kv_heads] groups complete in this step; 0 between calls */
} mai_cu_params;

/* One instantiation of the attention kernel. */
typedef struct mai_cu_attend_kernel {
    const void *function, *judging; /* the latter for policies that judge */
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

/* slots.cu */
int mai_cu_slot_truncate(const mai_cu_params *p, int32_t slot, int64_t n_tokens, void *stream);
/* Heads [head0, head1) of layers [layer0, layer1) get a budget. */
int mai_cu_set_budget(const mai_cu_params *p, int layer0, int layer1, int head0, int head1,
                      float budget, void *stream);

/* capture.cu. Queries p->capture_query.. of `capture_row`, p->n_rows of them: `full_out` and
 * `full_lse` are the engine's results (strides as out's, lse packed), p->out (f32, packed) and
 * p->lse those without the far tokens. */
int mai_cu_capture_insert(const mai_cu_params *p, const void *full_out, int64_t full_row_stride,
                          int64_t full_head_stride, macattn_dtype full_dtype, const float *full_lse,
                          int32_t slot_row, void *stream);

#ifdef __cplusplus
}
#endif

#endif /* MAI_CUDA_LAUNCH_H */
