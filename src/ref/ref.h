/* SPDX-License-Identifier: Apache-2.0 */
/* The float64 oracle: what macattn computes, written to be read. Plain loops, doubles everywhere, and
 * nothing shared with the library but the public structs. The tests and `macattn check` compare with
 * it. Arguments are not checked. */
#ifndef REF_H
#define REF_H

#include <stdbool.h>
#include <stdint.h>

#include "macattn/macattn.h"

/* `n` elements of a row, from its first one on. */
void ref_load(macattn_dtype dtype, const void *row, int64_t n, double *out);

/* Merge a further disjoint range (o, lse) into (out, out_lse): dv values, natural lse. */
void ref_merge(int32_t dv, double *out, double *out_lse, const double *o, double lse);

/* One head of one query over tokens [t0, t1) of batch row `row`, without window and sink. `query`
 * counts the queries of all rows, as in macattn_io. out [dv]; no tokens give 0 and -inf. */
void ref_range(const macattn_config *cfg, const macattn_batch *batch, const macattn_io *io,
               int32_t row, int64_t query, int32_t head, int64_t t0, int64_t t1, double *out,
               double *lse);

/* Full attention: causal, with window and sinks. out [query row][n_heads][dv] and lse
 * [query row][n_heads] are packed; io's own outputs are not used. */
void ref_attend(const macattn_config *cfg, const macattn_batch *batch, const macattn_io *io,
                double *out, double *lse);

/* --------------------------------------------------------------------- match, amend, complete -- */

/* One remembered query of a (slot, layer, head). */
typedef struct ref_entry {
    int64_t pos;    /* position of its token */
    int64_t end;    /* the summary covers tokens [F, end) */
    double lse;
    double *q;      /* [head_dim] before RoPE */
    double *out;    /* [v_head_dim] */
} ref_entry;

/* What was decided for one (row, head) of the newest decode. */
typedef struct ref_decision {
    bool hit, remembered;
    int64_t pos, end;    /* hit: of the matched entry */
    double distance2;    /* of the nearest entry; infinity if there is none */
    double radius;       /* hit: distance below it; negative: never */
} ref_decision;

typedef struct ref_mac ref_mac;

/* `cfg` as macattn_get_config gives it. NULL without memory. */
ref_mac *ref_mac_create(const macattn_config *cfg);
void ref_mac_destroy(ref_mac *mac);

/* As macattn_decode and macattn_prefill, out and lse as in ref_attend. */
void ref_mac_decode(ref_mac *mac, const macattn_batch *batch, int32_t layer, const macattn_io *io,
                    double *out, double *lse);
void ref_mac_prefill(ref_mac *mac, const macattn_batch *batch, int32_t layer, const macattn_io *io,
                     double *out, double *lse);

void ref_mac_reset(ref_mac *mac, int32_t slot);
void ref_mac_truncate(ref_mac *mac, int32_t slot, int64_t n_tokens);
void ref_mac_fork(ref_mac *mac, int32_t from, int32_t to);
int64_t ref_mac_length(const ref_mac *mac, int32_t slot);

ref_decision ref_mac_decision(const ref_mac *mac, int32_t row, int32_t head);
int32_t ref_mac_count(const ref_mac *mac, int32_t slot, int32_t layer, int32_t head);
/* Entry i of a ring, 0 being the oldest. */
const ref_entry *ref_mac_entry(const ref_mac *mac, int32_t slot, int32_t layer, int32_t head,
                               int32_t i);

#endif /* REF_H */
