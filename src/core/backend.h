/* SPDX-License-Identifier: Apache-2.0 */
/* The boundary between core (what is computed) and the kernels (how). A backend is a table of
 * functions over plain structs; core never knows which one it holds. Kernels get valid arguments
 * only, allocate nothing, and touch no state but what is handed to them. */
#ifndef MAI_BACKEND_H
#define MAI_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "macattn/macattn.h"

/* What the kernels need to know of the configuration. */
typedef struct mai_shape {
    int32_t n_heads, n_kv_heads, group; /* group = n_heads / n_kv_heads */
    int32_t d, dv;                      /* head_dim of q and K; of V and the output */
    macattn_dtype q_dtype, k_dtype, v_dtype;
    float scale, softcap; /* softcap 0 = off */
} mai_shape;

/* ------------------------------------------------------------------------------------- rings -- */

/* Ring queries are kept twice. For the scan: int8 with a scale per row, cut into chunks of
 * MAI_CHUNK dims, so that a scan may stop after a few chunks, and in blocks of MAI_LANES rows laid
 * out for byte dot products (one lane a row, no horizontal sums):
 *     q8[head][chunk][block][quad of 4 dims][lane][4]   uint8, value + 128
 * For the final word: as they came, in q_dtype. */
#define MAI_CHUNK 32
#define MAI_LANES 16

/* status.c (core): bytes of a block of 32 values; 0 if the type has no blocks. */
size_t mai_dtype_block_bytes(macattn_dtype dtype);

/* Limits of a configuration that kernels rely on. */
#define MAI_MAX_DIM 1024
#define MAI_MAX_HEADS 1024
#define MAI_MAX_CHUNKS (MAI_MAX_DIM / MAI_CHUNK)

/* A summary is one vector of `width` values: the output [dv] and, if its lse is to follow the query
 * (lse_order 1), the mean of the keys it covers [d], weighted as the output weights the values.
 * Its lse for a query q (after RoPE) is lse0 + scale q.kbar; under lse_order 0 just lse0.
 * With a soft cap each key is also weighted by the cap's derivative, 1 - (capped logit / cap)^2,
 * which makes kbar the gradient of the lse in any case. */
typedef struct mai_ring_dims {
    int32_t n_heads, d, dv, capacity; /* capacity = K */
    int32_t width;                    /* dv, or dv + d */
    int32_t n_blocks;                 /* ceil(K / MAI_LANES) */
    int32_t n_chunks;                 /* ceil(d / MAI_CHUNK) */
    size_t q_bytes;                   /* of one query, in q_dtype */
    /* Offsets of the arrays in the allocation, and its size. */
    size_t off_head, off_count, off_pos, off_end, off_lse0, off_moved, off_share, off_scale,
        off_residual, off_norm2, off_q8, off_q, off_out, bytes;
} mai_ring_dims;

typedef struct mai_ring_view {
    int32_t *head;  /* [n_heads] where the next entry goes */
    int32_t *count; /* [n_heads] entries held, <= capacity */
    int32_t *pos;   /* [n_heads][capacity] position (0-based) of the token the query was made for */
    int32_t *end;   /* [n_heads][capacity] the summary covers tokens [F, end) */
    float *lse0;    /* [n_heads][capacity] of the summary's lse, natural log: see above */
    /* What the judge needs to know of a summary (judge.h), [n_heads][capacity]: how far it was
     * reused, and its share of the mass of the result it was made for. insert writes 0. */
    float *moved, *share;
    float *scale;    /* [n_heads][n_blocks * LANES] q = scale * int8 + residual */
    float *residual; /* [n_heads][n_blocks * LANES] norm of the residual, rounded up */
    float *norm2;    /* [n_heads][n_chunks][n_blocks * LANES] squared norm of scale * int8 */
    uint8_t *q8;     /* [n_heads][n_chunks][n_blocks][MAI_CHUNK / 4][LANES][4] */
    char *q;         /* [n_heads][capacity][d] in q_dtype */
    float *out;      /* [n_heads][capacity][width] the summary */
} mai_ring_view;

/* ring.c (core): sizes and pointers. `keys`: summaries have a mean of keys. */
void mai_ring_dims_init(mai_ring_dims *dims, const mai_shape *shape, int32_t capacity, bool keys);
void mai_ring_view_init(mai_ring_view *view, const mai_ring_dims *dims, void *base);

/* -------------------------------------------------------------------------------------- runs -- */

/* Tokens [16 i, 16 i + 16) of a sequence are its run i. Of each run, layer and KV head its mean
 * key is kept, its outlier if they are wanted, which is the key farthest from the mean, and its mean
 * value; keys less one that all runs of the KV head have in common. In 8 bits where the dimension is a
 * whole number of blocks of q8_0, else in f16. They lie in segments of MAI_SEGMENT runs,
 * [kv_head][run][row], so that rows of a KV head are read one after the other. Where a row cannot be
 * kept, because it is not finite or beyond the type, the mean key is NaN: that run is always read. */
#define MAI_RUN_SHIFT 4
#define MAI_RUN_TOKENS (1 << MAI_RUN_SHIFT)
#define MAI_SEGMENT_SHIFT 10
#define MAI_SEGMENT (1 << MAI_SEGMENT_SHIFT)

typedef struct mai_runs_dims {
    int32_t n_kv_heads, d, dv;
    macattn_dtype k_dtype, v_dtype; /* of the rows */
    size_t k_bytes, v_bytes;        /* of one row */
    bool outliers;                  /* whether they are kept, in rows like those of the mean keys */
    /* Offsets of the arrays in a segment's allocation, and its size. */
    size_t off_common, off_k, off_v, off_outlier, bytes;
} mai_runs_dims;

typedef struct mai_runs_view {
    float *common; /* [n_kv_heads][d] f32: run 0's mean key. In the first segment alone */
    char *k, *v;   /* [n_kv_heads][MAI_SEGMENT][row] */
    char *outlier; /* likewise; NULL where they are not kept */
} mai_runs_view;

/* runs.c (core): sizes and pointers. */
void mai_runs_dims_init(mai_runs_dims *dims, const mai_shape *shape, bool outliers);
void mai_runs_view_init(mai_runs_view *view, const mai_runs_dims *dims, void *base);

/* -------------------------------------------------------------------------------- primitives -- */

/* Partial attention over some tokens: out [dv] normalised, lse natural (-inf: no token seen). */

/* Where the tokens [first, first + n) of one row lie: byte offsets from k and v of each token's
 * kv_head 0. Lets one kernel serve contiguous, paged and strided caches. */
typedef struct mai_tokens {
    const macattn_kv *kv;
    const int32_t *pages; /* NULL: contiguous */
    int64_t base_page;    /* contiguous: page number of the run */
    int32_t page_shift;   /* paged: log2(page_size) */
    const int32_t *runs;  /* NULL, or a list: tokens are counted through these runs, token t being
                             the (t % MAI_RUN_TOKENS)-th of run runs[t / MAI_RUN_TOKENS] */
} mai_tokens;

/* One work item of decode: one row, tokens [t0, t1), kv heads [kv0, kv1), one query. */
typedef struct mai_attend_args {
    const mai_shape *shape;
    mai_tokens tokens;
    int64_t t0, t1;
    int32_t kv0, kv1;
    const float *q;       /* [n_heads][d] f32, already multiplied by q_factor */
    const int64_t *start; /* [n_heads] the head takes part from this token on; NULL = t0 */
    float *out;           /* [n_heads][out_stride] partial results of heads kv0*group .. kv1*group;
                             those of heads that start at t1 or later are left alone */
    int64_t out_stride;   /* floats, at least as many as are written */
    const uint8_t *keys;  /* [n_kv_heads] not 0: out gets dv + d values, the mean of the keys behind
                             the output (see mai_ring_dims); NULL: nowhere. The output and the lse
                             are the same bit for bit */
    float *lse;           /* [n_heads] likewise */
    void *scratch;        /* backend->scratch_bytes of this worker */
} mai_attend_args;

/* One work item of prefill: queries [q0, q1) of one row, one kv head. Query i (of the row) is at
 * position pos0 + i and sees tokens [max(0, position + 1 - window), position]. Its results are the same bit
 * for bit whichever other queries the item has. */
typedef struct mai_prefill_args {
    const mai_shape *shape;
    mai_tokens tokens;
    int64_t pos0, window; /* window 0 = all */
    int32_t q0, q1, kv_head;
    int32_t n_queries; /* of the row */
    const char *q;     /* query 0, head 0, in q_dtype */
    int64_t q_row_stride, q_head_stride;
    float *out;                              /* query 0, head 0 */
    int64_t out_row_stride, out_head_stride; /* bytes */
    float *lse;                              /* [query][n_heads]; without the sink */
    /* Far summaries of [fresh, position + 1 - band) for queries from capture0 on; capture0 >= q1:
     * none. Indexed [query - capture0][n_heads]. Not together with a window. */
    int32_t capture0;
    int64_t band, fresh;
    float *far_out, *far_lse; /* far_out: of dv values, with far_keys of dv + d */
    bool far_keys;
    void *scratch;
} mai_prefill_args;

/* For each of some neighbouring heads, the nearest entry of its ring that ends at or before
 * max_end, if nearer than radius. */
#define MAI_MATCH_HEADS 4 /* most heads of one call: while one waits for memory, the others go on */
typedef struct mai_match_args {
    const mai_shape *shape;
    const mai_ring_dims *dims;
    const mai_ring_view *ring;
    int32_t head0, n_heads;
    const char *q;         /* head0's query before RoPE, [d] in q_dtype */
    int64_t q_head_stride; /* bytes */
    double radius;         /* exclusive */
    uint32_t asleep;       /* bit i: head0 + i is not searched, only seen to be finite or not */
    int64_t max_end;
    void *scratch;
} mai_match_args;

typedef struct mai_match {
    int32_t entry;    /* index into the ring, -1: none within the radius */
    bool finite;      /* whether q is: if not, it must not be remembered */
    double distance2; /* squared distance of the entry */
} mai_match;

/* What is kept of runs [run0, run1), of one KV head, all in one segment. */
typedef struct mai_summarise_args {
    const mai_shape *shape;
    const mai_runs_dims *dims;
    mai_tokens tokens;
    int32_t kv_head, run0, run1;
    float *common;           /* [n_kv_heads][d]; run0 is 0: written first, 0 if not finite */
    const mai_runs_view *to; /* the segment */
} mai_summarise_args;

/* What runs [run0, run1) promise to the heads of one KV head:
 *     score = scale q.(common + mean) [soft cap applied] + log MAI_RUN_TOKENS
 * which estimates the logarithm of the sum of the exponentials of the run's logits. With outliers, the
 * log-sum-exp of the outlier's logit and of such a score of the run's 15 other tokens, whose mean key
 * is (16 mean - outlier) / 15. */
typedef struct mai_score_args {
    const mai_shape *shape;
    const mai_runs_dims *dims;
    const mai_runs_view *segments; /* [run / MAI_SEGMENT] */
    int32_t kv_head, run0, run1;
    const float *q; /* [group][d], as for attend */
    float *scores;  /* [group][stride], by the number of the run */
    int64_t stride;
    float *lse;    /* [group] of the scores that are numbers; -inf: of none */
    void *scratch; /* backend->scratch_bytes of this worker */
} mai_score_args;

/* Some runs by their means, for the heads of one KV head: a partial result as attend's, with one
 * token's key and value for MAI_RUN_TOKENS of them. A score of -inf leaves a run out, whatever its
 * rows hold. */
typedef struct mai_stand_in_args {
    const mai_shape *shape;
    const mai_runs_dims *dims;
    const mai_runs_view *segments;
    int32_t kv_head, n;
    int32_t run0;        /* runs [run0, run0 + n) */
    const int32_t *runs; /* not NULL: [n] these instead */
    const float *scores; /* [group][stride], by the number of the run */
    int64_t stride;
    const float *top; /* [group] what no score is above by much. Where all are below it by 69 or
                         more, which is 1e-30 of the mass that it stands for, the result is empty */
    float *out;       /* [group][out_stride] */
    int64_t out_stride;
    bool keys;     /* out gets dv + d values, as from attend */
    float *lse;    /* [group] */
    void *scratch; /* backend->scratch_bytes of this worker */
} mai_stand_in_args;

typedef struct mai_backend {
    const char *name;
    int (*supported)(void);
    size_t (*scratch_bytes)(const mai_shape *shape, const mai_ring_dims *dims);
    /* What load_q's factor is to be for attend: scale, and the units in which logits are
     * computed. */
    double (*q_factor)(const mai_shape *shape);
    /* Most queries one prefill item may have. */
    int (*prefill_queries)(const mai_shape *shape);
    /* One query of q_dtype to f32, times factor. */
    void (*load_q)(const mai_shape *shape, const void *q, float factor, float *out);
    void (*attend)(const mai_attend_args *args);
    void (*prefill)(const mai_prefill_args *args);
    void (*match)(const mai_match_args *args, mai_match *results); /* [n_heads] */
    /* Write the next entry of one head's ring: encodes q, copies the rest, advances the circle. */
    void (*insert)(const mai_ring_dims *dims, const mai_ring_view *ring, macattn_dtype q_dtype,
                   int32_t head, const void *q, int32_t pos, int32_t end, float lse0,
                   const float *summary);
    void (*summarise)(const mai_summarise_args *args);
    void (*score)(const mai_score_args *args);
    void (*stand_in)(const mai_stand_in_args *args);
    /* Merge n partial results over disjoint tokens, in their order: o[i] is [width], lse -inf
     * stands for an empty one (whose o is not read). `out` must not overlap any o. Each value's
     * bits depend on the parts' values at the same place alone, not on the width. */
    void (*merge)(int32_t width, int n, const float *const *o, const float *lse, float *out,
                  float *lse_out);
} mai_backend;

/* dispatch.c (src/cpu): best first; NULL past the last. */
const mai_backend *mai_backend_at(int index);
/* By name, or the best supported one for NULL; NULL if unknown or not supported here. */
const mai_backend *mai_backend_find(const char *name);

#endif /* MAI_BACKEND_H */
