/* SPDX-License-Identifier: Apache-2.0 */
/* The reference: the same computations in float64, written to be read, not to be fast. It shares the
 * public structs with the library and nothing else. Arguments are taken to be valid. */
#ifndef MACATTN_REF_H
#define MACATTN_REF_H

#include <stdbool.h>
#include <stdint.h>

#include "macattn/macattn.h"

/* Element i of a row as a double. */
double ref_value(macattn_dtype dtype, const void *row, int64_t i);

/* Attention of query `q` [head_dim] (doubles) of head `head` over tokens [t0, t1) of a row:
 * `out` [v_head_dim], returns the lse. An empty range gives 0 and -inf. */
double ref_range(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
                 const macattn_kv *kv, int head, const double *q, int64_t t0, int64_t t1,
                 double *out);

/* The same, and in `kbar` [head_dim] the gradient of the lse by the query over scale: the mean of
 * the keys, weighted as the values are and by the soft cap's derivative. */
double ref_range_keys(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
                      const macattn_kv *kv, int head, const double *q, int64_t t0, int64_t t1,
                      double *out, double *kbar);

/* (o, l) := merge of (o, l) and (ox, lx), n values each. */
void ref_merge(int n, double *o, double *l, const double *ox, double lx);

/* What macattn_attend computes, for all queries of all rows: out [query row][head][v_head_dim] and
 * lse [query row][head], packed; lse may be NULL. */
void ref_attend(const macattn_config *cfg, const macattn_batch *batch, const macattn_io *io,
                double *out, double *lse);

/* What one head of one row came to in a decode step. */
typedef struct ref_decision {
    bool hit;
    int64_t matched_pos; /* position of the query that was matched */
    int64_t end;         /* tokens its summary covers; on a miss, F */
    double distance2;    /* to the nearest entry, INFINITY if there is none */
    double radius;       /* a hit is nearer than this; negative: never */
} ref_decision;

/* One remembered query; the arrays are valid until the ring changes. */
typedef struct ref_entry {
    int64_t pos, end;
    double lse;  /* of the summary, for the query it was made for */
    double lse0; /* for any other: lse0 + scale q.kbar, q after RoPE; lse_order 0: lse0 */
    const double *q, *out, *kbar; /* [head_dim], [v_head_dim], [head_dim]; lse_order 0: kbar 0 */
} ref_entry;

/* Match-Amend-Complete with whole rings in doubles. NULL without memory. */
typedef struct ref_mac ref_mac;
ref_mac *ref_mac_create(const macattn_config *cfg);
void ref_mac_destroy(ref_mac *r);
/* As macattn_decode and macattn_prefill: out and lse packed; decisions [row][head] or NULL. */
void ref_mac_decode(ref_mac *r, const macattn_batch *batch, int layer, const macattn_io *io,
                    double *out, double *lse, ref_decision *decisions);
void ref_mac_prefill(ref_mac *r, const macattn_batch *batch, int layer, const macattn_io *io,
                     double *out, double *lse);
void ref_mac_reset(ref_mac *r, int slot);
void ref_mac_truncate(ref_mac *r, int slot, int64_t n_tokens);
void ref_mac_fork(ref_mac *r, int from, int to);
int ref_mac_count(const ref_mac *r, int slot, int layer, int head);              /* entries held */
ref_entry ref_mac_entry(const ref_mac *r, int slot, int layer, int head, int i); /* 0: oldest */

/* ------------------------------------------------------------------------------- selection -- */

/* Mean key [head_dim] and mean value [v_head_dim] of run i, tokens [16 i, 16 i + 16), of a row, and its
 * outlier [head_dim], the key farthest from the mean. */
void ref_run(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
             const macattn_kv *kv, int kv_head, int64_t i, double *k, double *v, double *outlier);

/* What the heads of a KV head make of the runs. */
typedef struct ref_selection {
    double *scores; /* [group][n_runs] from `first` on */
    double
        *ratio; /* [n_runs] largest share of the mass it promises to a head, by the threshold: read
                       from 1 on, always before `first`. In float32, runs within 1e-4 of 1 may go
                       either way */
} ref_selection;

/* q [group][head_dim], after RoPE; share [group], of the far tokens in the newest remembered result, 1
 * if there is none; k [n_runs][head_dim] the mean keys as they are kept, what runs have in common
 * added; outlier [n_runs][head_dim] theirs, likewise, NULL where none are kept. Fills the arrays of
 * `out`. */
void ref_select(const macattn_config *cfg, const double *q, const double *share, const double *k,
                const double *outlier, int first, int n_runs, double theta, ref_selection *out);

/* A head's output and lse from a selection, without a sink: the first tokens, the runs that are read,
 * for the others their mean values v [n_runs][v_head_dim] as they are kept, and all behind them. */
double ref_selected(const macattn_config *cfg, const macattn_batch *batch, const macattn_row *row,
                    const macattn_kv *kv, int head, const double *q, const ref_selection *selection,
                    const double *v, int n_runs, double *out);

#endif /* MACATTN_REF_H */
