/* SPDX-License-Identifier: Apache-2.0 */
/* A slot whose rings are full, and queries that hit them or not, as asked.
 *
 * All slots hold copies of the same sequence, so that the rings are computed once (with a prompt
 * chunk of `ring` queries at the end of the context) and forked. After a decode the slot is
 * truncated again: every repetition starts from the same state. */
#ifndef MACATTN_TOOLS_BENCH_STREAM_H
#define MACATTN_TOOLS_BENCH_STREAM_H

#include "bench.h"
#include "common/random.h"
#include "common/samples.h"

/* What the queries of one step do. */
typedef struct stream_step {
    float *q;        /* [n_heads][head_dim]: before and after RoPE alike */
    int32_t *source; /* [n_heads] index of the remembered query it repeats, -1: none */
} stream_step;

typedef struct stream {
    macattn_config cfg;
    macattn *m;
    tensors_kv kv; /* one layer; a sequence for each slot */
    int32_t n_slots;
    int64_t n_tokens; /* of a step, the new one included */
    float *ring_q;    /* [ring][n_heads][head_dim]; query i is at n_tokens - 1 - ring + i */
    float *out;       /* [n_heads][v_head_dim] */
} stream;

/* `n_slots` are usable with stream_decode; `more_slots` are left empty. */
void stream_create(bench_session *session, const bench_shape *shape, int32_t ring, int64_t n_tokens,
                   int32_t n_slots, int32_t more_slots, stream *s);
void stream_destroy(stream *s);

/* A step in which hit_ratio of the heads hit. With `same` all of them repeat the query of the same
 * position. */
stream_step stream_step_create(const stream *s, double hit_ratio, bool clustered, bool same,
                               random_state *rng);
void stream_step_free(stream_step *step);

/* Puts the slot back to before the step and plans the step: not part of what is timed. */
void stream_rewind(stream *s, int32_t slot);
/* Plans the row for macattn_attend. */
void stream_plan_exact(stream *s, int32_t sequence);

/* Microseconds of one call under the newest plan. */
double stream_decode_us(stream *s, const stream_step *step);
double stream_exact_us(stream *s, const stream_step *step);

/* Largest error of the newest decode over some of its heads, hits compared with the reference's
 * hit. `sequence` is where it was computed. */
double stream_error(const stream *s, const stream_step *step, int32_t sequence, int max_heads);

/* Bytes of K and V that the step has to read with reuse: a KV head is read from where the first of
 * its query heads needs it. */
double stream_bytes(const stream *s, const stream_step *step);

/* The search's time under a step like these: what a full ring costs more than a ring that holds
 * only the one entry the hits use. One sample for each repetition, until they took `min_us`. */
void stream_match_times(bench_session *session, const bench_shape *shape, int32_t ring,
                        double hit_ratio, double min_us, sample_list *us);
/* Tokens of the row that this is measured with. */
int64_t stream_match_tokens(const bench_session *session, int32_t ring);

#endif /* MACATTN_TOOLS_BENCH_STREAM_H */
