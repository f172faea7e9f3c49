/* SPDX-License-Identifier: Apache-2.0 */
/* The queries of a prompt, as all kernels of a capture see them. */
#ifndef MAI_CUDA_PROMPT_CUH
#define MAI_CUDA_PROMPT_CUH

#include "cuda/device/ring.cuh"
#include "cuda/schedule.h"

namespace mai {

struct Prompt {
    int before; /* tokens before the first query */
    int slot;   /* < 0: nothing is remembered */

    __device__ Prompt(const mai_cu_params &p, const mai_cu_prompt &x)
        : before(row_tokens(p, x.row) - x.n_queries), slot(row_slot(p, x.row))
    {
    }

    __device__ int far_end(const mai_cu_params &p, int query) const
    {
        return mai_far_end(before + query + 1, p.band, p.fresh);
    }

    /* The first query that has something to remember, and no more than is to be remembered. */
    __device__ int first(const mai_cu_params &p, const mai_cu_prompt &x) const
    {
        const int most = mai_prompt_remembers(p.judges, x.n_queries, p.ring);
        const int first = max(p.fresh + p.band - before, x.n_queries - most);
        return min(max(first, 0), x.n_queries);
    }
};

/* Whether the group of a head remembers a prompt's queries; a lane for each head. */
__device__ __forceinline__ bool remembers(const mai_cu_params &p, int kv_head)
{
    const mai_record *records = p.records + (size_t)p.layer * p.n_heads + kv_head * p.group;
    bool has_budget = true;
    for (int h = threadIdx.x & 31; p.judges && h < p.group; h += 32)
        has_budget = has_budget && records[h].budget > 0;
    return __all_sync(ALL, has_budget);
}

/* A captured query's summary; a lane's V values of each half. */
template <int V>
struct Summary {
    float out[V], kbar[V], lse, lse0; /* kbar: 0 where there is none */

    __device__ void load_vectors(const mai_cu_params &p, const float *from)
    {
        const int lane = threadIdx.x & 31;
        load_values<V>(MACATTN_DTYPE_F32, (const char *)from, lane * V, out);
#pragma unroll
        for (int j = 0; j < V; j++) kbar[j] = 0;
        if (p.keys)
            load_values<V>(MACATTN_DTYPE_F32, (const char *)from, 32 * V + lane * V, kbar);
    }

    /* i: of the captured ones. */
    __device__ void load(const mai_cu_params &p, const mai_cu_prompt &x, int i, int head)
    {
        const size_t at = (size_t)i * p.n_heads + head;
        load_vectors(p, x.summary + at * (size_t)width_of(p));
        lse = lse0 = x.lse[at];
        if (!p.keys) return;
        float q[V];
        load_query(p, x, i, head, q);
        lse0 -= key_logit<V>(p, q, kbar);
    }

    /* After RoPE, as the products take it. */
    static __device__ void load_query(const mai_cu_params &p, const mai_cu_prompt &x, int i,
                                      int head, float *q)
    {
        const char *from = p.q + (x.first + i) * p.q_row_stride + head * p.q_head_stride;
        load_values<V>(p.q_dtype, from, (threadIdx.x & 31) * V, q);
        round_query<V>(p.kv_dtype, q);
    }

    __device__ bool is_finite() const
    {
        const bool finite = all_finite<V>(out, lse0);
        return all_finite<V>(kbar, lse0) && finite;
    }
};

/* Before RoPE. */
template <int V>
__device__ __forceinline__ void load_match(const mai_cu_params &p, const mai_cu_prompt &x, int i,
                                           int head, float *q)
{
    const char *from = p.q_match + (x.first + i) * p.m_row_stride + head * p.m_head_stride;
    load_values<V>(p.q_dtype, from, (threadIdx.x & 31) * V, q);
}

/* The share of a captured query's summary in the engine's result. */
__device__ __forceinline__ float share_of(const mai_cu_params &p, const mai_cu_prompt &x, int i,
                                          int head, float lse)
{
    return mai_share(lse, p.lse[(size_t)(x.first + i) * p.n_heads + head]);
}

/* call(head_dim), as a constant; returns from the function around it. */
#define MAI_BY_DIM(p, call)                \
    switch ((p)->head_dim) {               \
    case 64: mai::call(64); break;         \
    case 128: mai::call(128); break;       \
    case 256: mai::call(256); break;       \
    default: return cudaErrorInvalidValue; \
    }                                      \
    return cudaGetLastError()

} // namespace mai

#endif /* MAI_CUDA_PROMPT_CUH */
