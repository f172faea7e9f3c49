/* SPDX-License-Identifier: Apache-2.0 */
/* What `macattn bench --peer NAME` needs of another implementation of attention. A peer is a shared
 * object libmacattn-peer-NAME.so that exports one function, MACATTN_PEER_ENTRY, returning a table.
 * It is loaded at run time only: the command is not linked against any of them. */
#ifndef MACATTN_TOOLS_BENCH_PEER_H
#define MACATTN_TOOLS_BENCH_PEER_H

#include <stddef.h>
#include <stdint.h>

#define MACATTN_PEER_ABI 1
#define MACATTN_PEER_ENTRY "macattn_peer"

/* One shape. K and V of a layer are [stream][token][kv_head][dim], packed, as llama.cpp keeps
 * them: one row holds all KV heads of a token. The buffers belong to the caller and stay where
 * they are. */
typedef struct peer_shape {
    int32_t n_heads, n_kv_heads, head_dim, v_head_dim;
    const char *k_type, *v_type; /* as in macattn_dtype_name */
    float scale, softcap;        /* softcap 0 = off */
    int32_t n_streams;           /* sequences, all of the same length */
    int32_t n_queries;           /* new tokens of each, causal, the last one at n_tokens - 1 */
    int64_t n_tokens;            /* tokens of each sequence that are seen */
    int64_t n_rows;              /* rows a stream has room for: n_tokens rounded up to 256 */
    int32_t n_threads;
    int32_t n_layers; /* how many pairs of buffers: compute() names one of them */
    const void *const *k;
    const void *const *v;
    size_t k_bytes, v_bytes; /* of one buffer */
    const float *q;          /* [stream][query][n_heads][head_dim] f32 */
} peer_shape;

typedef struct peer peer;

typedef struct peer_api {
    int abi;
    const char *(*version)(void);
    /* NULL on failure, with a sentence in `error`. */
    peer *(*create)(const peer_shape *shape, char *error, size_t error_size);
    /* 0 on success. */
    int (*compute)(peer *p, int32_t layer);
    /* Of the newest compute: [stream][query][n_heads][v_head_dim] f32. */
    const float *(*output)(const peer *p);
    void (*destroy)(peer *p);
} peer_api;

typedef const peer_api *(*peer_entry)(void);

#endif /* MACATTN_TOOLS_BENCH_PEER_H */
