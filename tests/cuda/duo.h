/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of match-amend-complete on the GPU beside the reference. */
#ifndef TEST_CUDA_DUO_H
#define TEST_CUDA_DUO_H

#include "gpu.h"

enum { DUO_MAX_ROWS = 8 };

/* A sequence of steps on the GPU and in the reference. */
typedef struct duo {
    macattn_config cfg;
    macattn_cuda *m;
    ref_mac *ref;
    test_bench b;
    macattn_cuda_batch batch;
    macattn_cuda_io io;
    int32_t *n_tokens, *slots, *pages; /* device */
    char *q, *q_match, *k, *v;
    ref_decision *decisions;
    size_t most_heads; /* (query, head) pairs there is room for */
    int64_t hits, misses, ties;
} duo;

extern const test_sequence duo_sequences[4];

macattn_config reuse_config(macattn_dtype kv, int32_t heads, int32_t kv_heads, int32_t d);
void duo_create(duo *x, const macattn_config *cfg, int32_t max_rows, int64_t capacity,
                int32_t max_queries);
void duo_destroy(duo *x);
/* Bring the bench's rows, queries, keys and values to the device, and poison the outputs there. */
void duo_upload(duo *x);
void duo_check(duo *x, const char *what, double tolerance);
/* Fails unless the slot's rings are the reference's: which queries are remembered, and their
 * summaries. Returns how many entries there are. */
int64_t duo_check_rings(duo *x, int32_t slot);
/* Every layer's prompt of the bench's only row, computed by the reference and captured. */
void duo_capture(duo *x, const test_sequence *s);
/* One decode step of the bench's rows for all layers. */
void duo_decode(duo *x, const test_sequence *s);
/* An engine has computed a prompt of n tokens, the whole of the slot's sequence: capture it. */
void duo_capture_layer(duo *x, int32_t layer, int32_t slot, int32_t n);
void duo_row(duo *x, int32_t r, int32_t slot, int64_t n_tokens, int32_t n_queries);

#endif /* TEST_CUDA_DUO_H */
