/* SPDX-License-Identifier: Apache-2.0 */
/* Random K, V and queries, laid out as llama.cpp lays out its cache. */
#ifndef MACATTN_TOOLS_BENCH_TENSORS_H
#define MACATTN_TOOLS_BENCH_TENSORS_H

#include "common/parse.h"
#include "common/random.h"
#include "macattn/macattn.h"

/* K and V of several layers: [sequence][row][kv_head][dim], a row being one token. */
typedef struct tensors_kv {
    int32_t n_kv_heads, head_dim, v_head_dim;
    kv_types types;
    int32_t n_layers, n_sequences;
    int64_t n_rows;          /* of a sequence: tokens rounded up to 256, as llama.cpp does */
    size_t k_bytes, v_bytes; /* of one layer */
    size_t k_row, v_row;     /* bytes of one token */
    char **k, **v;           /* [n_layers] */
} tensors_kv;

/* Bytes that n tokens' K and V take, in all heads. */
size_t tensors_kv_bytes(kv_types types, int32_t n_kv_heads, int32_t head_dim,
                        int32_t v_head_dim, int64_t n_tokens);

/* Values are close to standard normal. Fill the first sequence only if `first_only`. */
void tensors_kv_create(tensors_kv *kv, kv_types types, int32_t n_kv_heads, int32_t head_dim,
                       int32_t v_head_dim, int32_t n_sequences, int64_t n_tokens, int32_t n_layers,
                       bool huge, bool first_only, random_state *rng);
void tensors_kv_destroy(tensors_kv *kv);
/* Make every sequence a copy of the first. */
void tensors_kv_copy_first(tensors_kv *kv);

/* The view macattn takes. `page_size` 0: a page is a sequence. */
macattn_kv tensors_kv_view(const tensors_kv *kv, int32_t layer, int32_t page_size);

/* n standard normal values. */
void tensors_fill_normal(float *values, size_t n, random_state *rng);

/* Round a value to f16, bf16. */
uint16_t tensors_f16(float value);
uint16_t tensors_bf16(float value);
/* n values (a whole number of blocks) to any type. */
void tensors_encode(macattn_dtype dtype, const float *values, size_t n, void *out);

#endif /* MACATTN_TOOLS_BENCH_TENSORS_H */
