/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests share: random numbers, tensors that end at a guard page, sequences whose tokens
 * and queries are a function of their position, comparison with the float64 reference. */
#ifndef TEST_SUPPORT_H
#define TEST_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/object.h"
#include "core/plan.h"
#include "macattn/macattn.h"
#include "ref.h"

/* MACATTN_TEST_LIGHT: fewer and smaller cases, for sanitizers and emulated processors. */
#ifdef MACATTN_TEST_LIGHT
#    define TEST_LIGHT 1
#else
#    define TEST_LIGHT 0
#endif

#define assert_ok(m, expr)                                                     \
    do {                                                                       \
        const macattn_status test_status_ = (expr);                            \
        if (test_status_ != MACATTN_OK) {                                      \
            fail_msg("%s: %s: %s", #expr, macattn_status_string(test_status_), \
                     macattn_last_error(m));                                   \
        }                                                                      \
    } while (0)

/* ----------------------------------------------------------------------------------- numbers -- */

typedef struct test_rng {
    uint64_t state;
} test_rng;

uint64_t test_random(test_rng *rng);
int64_t test_below(test_rng *rng, int64_t n); /* [0, n) */
double test_uniform(test_rng *rng);           /* [0, 1) */
double test_normal(test_rng *rng);            /* mean 0, variance 1 */
uint64_t test_hash(uint64_t a, uint64_t b);   /* of two numbers: a seed of its own for each */

/* A type for K or V rows of `dim` elements; every second one is of blocks, where they fit. */
macattn_dtype test_kv_type(test_rng *rng, int32_t dim);

/* An unsigned number from the environment, or `otherwise`. */
uint64_t test_env(const char *name, uint64_t otherwise);

/* `n` values in the type's nearest ones; n is a whole number of blocks. */
void test_encode(macattn_dtype dtype, const float *x, int64_t n, void *out);

/* ------------------------------------------------------------------------------------ memory -- */

/* `bytes` bytes that end `shift` bytes before a page that may not be touched, all 0xff: NaN in
 * every type. */
typedef struct test_memory {
    char *data;
    size_t bytes;
    void *map;
    size_t map_bytes;
} test_memory;

test_memory test_guarded(size_t bytes, size_t shift);
void test_release(test_memory *memory);

/* What outputs hold before a call: no NaN, which comparisons may expect, and far from any
 * result. */
#define TEST_POISON 0x7e
static inline void test_poison(void *out, size_t bytes)
{
    memset(out, TEST_POISON, bytes);
}

/* K and V of `n_pages` pages of `page_tokens` tokens (contiguous sequences: one page each). */
typedef struct test_kv_layout {
    int32_t n_pages;
    int64_t page_tokens;
    bool head_major; /* [page][head][token][dim]; else [page][token][head][dim] */
    int64_t pad;     /* bytes after each row */
    size_t shift;    /* misalignment */
} test_kv_layout;

typedef struct test_kv {
    macattn_kv view;
    test_memory k, v;
} test_kv;

void test_kv_create(test_kv *kv, const macattn_config *cfg, const test_kv_layout *layout);
void test_kv_destroy(test_kv *kv);
/* Write one token's K and V of one head. */
void test_kv_put(test_kv *kv, const macattn_config *cfg, int64_t page, int64_t within, int32_t head,
                 const float *k, const float *v);

/* -------------------------------------------------------------------------------- comparison -- */

/* Bound of |float32 result - float64 result|, for values of magnitude `v_max` and n tokens: the
 * inputs are the same numbers for both, so all that differs is the rounding of float32 sums.
 * `logit` bounds scale * sum |q_i k_i|: a logit's error is a few ulp (2^-24) of that, and moves the
 * weights by as much, relatively; the sum over n tokens adds an error that grows as sqrt(n). */
double test_tolerance(double logit, int64_t n, double v_max);

/* Fails unless got is within `tolerance` of want, and is NaN, +inf or -inf where want is.
 * Returns the largest error. `what` is printed. */
double test_close(const char *what, const float *got, const double *want, int64_t n,
                  double tolerance);
/* The same for lse, whose error is that of a logit and of the sum. */
double test_close_lse(const char *what, const float *got, const double *want, int64_t n,
                      double tolerance);
void test_same_bits(const char *what, const void *a, const void *b, size_t bytes);

/* ----------------------------------------------------------------------------------- objects -- */

/* A configuration for tests: small, one thread. */
macattn_config test_config(int32_t n_heads, int32_t n_kv_heads, int32_t head_dim);
macattn *test_create(const macattn_config *cfg);
macattn_config test_resolved(macattn *m);

/* What a slot saves, which is its whole state. `data` is to be freed. */
typedef struct test_saved {
    uint8_t *data;
    size_t size;
} test_saved;

test_saved test_save(macattn *m, int32_t slot);
/* Fails unless the slot would save just that. */
void test_slot_holds(macattn *m, int32_t slot, const test_saved *saved);

/* --------------------------------------------------------------------------------- sequences -- */

/* The tokens and queries of a made-up sequence. The query of a position (before RoPE) is one of
 * `n_themes` fixed vectors, and some noise, so that it comes back; the same position always
 * gives the same numbers. `seed` tells sequences apart. */
typedef struct test_sequence {
    uint64_t seed;
    int32_t n_themes; /* 6 */
    double noise;     /* up to this much, 0.7 */
} test_sequence;

void test_token(const test_sequence *s, const macattn_config *cfg, int64_t pos, int32_t kv_head,
                float *k, float *v);
void test_query(const test_sequence *s, const macattn_config *cfg, int64_t pos, int32_t layer,
                int32_t head, float *q, float *q_match);

/* Contiguous KV and io for up to `max_rows` rows of up to `capacity` tokens and max_queries queries
 * each. One KV serves all layers. */
typedef struct test_bench {
    macattn_config cfg; /* resolved */
    int32_t max_rows;
    int64_t capacity;
    test_kv kv;
    macattn_row *rows;
    macattn_batch batch;
    macattn_io io;
    char *q, *q_match;
    float *out, *lse;
    double *want, *want_lse;
    int64_t n_queries;
    size_t most_heads; /* (query, head) pairs there is room for */
} test_bench;

void test_bench_create(test_bench *b, const macattn_config *cfg, int32_t max_rows, int64_t capacity,
                       int32_t max_queries);
/* The same for an object's own configuration. */
test_bench test_bench_of(macattn *m, int32_t max_rows, int64_t capacity, int32_t max_queries);
void test_bench_destroy(test_bench *b);
/* Set row r to the sequence's tokens [n_tokens - n_queries, n_tokens) in KV sequence `page`,
 * writing their K and V. */
void test_bench_row(test_bench *b, int32_t r, int32_t slot, int32_t page, const test_sequence *s,
                    int64_t n_tokens, int32_t n_queries);
/* Set the queries of all n_rows rows, for one layer: row r is of sequence s[r]. */
void test_bench_queries(test_bench *b, int32_t n_rows, const test_sequence *s, int32_t layer);
/* Poison the outputs; test_bench_queries does it too. */
void test_bench_poison(test_bench *b);
/* Set one query (and its match query) to values. */
void test_bench_set_query(test_bench *b, int64_t query, int32_t head, const float *q,
                          const float *q_match);
/* Plan the rows that are set, and compute every layer: decode if a row is one query, else
 * prefill. */
void test_bench_run(test_bench *b, macattn *m, int32_t n_rows, const test_sequence *s);
/* The same for one row, set to the sequence's tokens [n_tokens - n_queries, n_tokens), in the KV
 * sequence of the slot's number. */
void test_bench_step(test_bench *b, macattn *m, int32_t slot, const test_sequence *s,
                     int64_t n_tokens, int32_t n_queries);
size_t test_bench_out_bytes(const test_bench *b);

/* Decisions of the newest decode. */
const mai_decision *test_decision(const macattn *m, int32_t row, int32_t head);

#endif /* TEST_SUPPORT_H */
