/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels share: the instructions C++ has no name for, conversions, and where a row's
 * tokens are. */
#ifndef MAI_CUDA_COMMON_CUH
#define MAI_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <string.h>

#include "cuda/launch.h"

namespace mai {

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr unsigned ALL = 0xffffffffu; /* lanes */

/* ------------------------------------------------------------------------------ instructions -- */

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes from global to shared memory, past L1; zeros if not `valid`. */
__device__ __forceinline__ void copy16(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING>
__device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t r[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t r[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ uint32_t transpose_matrix(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

__device__ __forceinline__ float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* With programmatic dependent launch: let the next kernel start; wait for the previous one's
 * results. Without, both do nothing. */
__device__ __forceinline__ void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* -------------------------------------------------------------------------------- reductions -- */

__device__ __forceinline__ float warp_max(float x)
{
    for (int i = 16; i > 0; i >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL, x, i));
    return x;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x)
{
    for (int i = 16; i > 0; i >>= 1) x += __shfl_xor_sync(ALL, x, i);
    return x;
}

/* ------------------------------------------------------------------------------- conversions -- */

__device__ __forceinline__ int dtype_bytes(macattn_dtype t)
{
    return t == MACATTN_DTYPE_F32 ? 4 : 2;
}

__device__ __forceinline__ float load_value(macattn_dtype t, const char *row, int i)
{
    if (t == MACATTN_DTYPE_F32) return ((const float *)row)[i];
    if (t == MACATTN_DTYPE_F16) return __half2float(((const __half *)row)[i]);
    return __bfloat162float(((const __nv_bfloat16 *)row)[i]);
}

/* N neighbouring values, from an address aligned to their size. */
template <int N>
__device__ __forceinline__ void load_values(macattn_dtype t, const char *row, int i, float *to)
{
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        if (t == MACATTN_DTYPE_F32) {
            const float2 x = *(const float2 *)(row + 4 * (i + j));
            to[j] = x.x, to[j + 1] = x.y;
        } else if (t == MACATTN_DTYPE_F16) {
            const float2 x = __half22float2(*(const __half2 *)(row + 2 * (i + j)));
            to[j] = x.x, to[j + 1] = x.y;
        } else {
            const float2 x = __bfloat1622float2(*(const __nv_bfloat162 *)(row + 2 * (i + j)));
            to[j] = x.x, to[j + 1] = x.y;
        }
    }
}

template <int N>
__device__ __forceinline__ void store_values(macattn_dtype t, char *row, int i, const float *from)
{
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        if (t == MACATTN_DTYPE_F32) {
            *(float2 *)(row + 4 * (i + j)) = make_float2(from[j], from[j + 1]);
        } else if (t == MACATTN_DTYPE_F16) {
            *(__half2 *)(row + 2 * (i + j)) = __floats2half2_rn(from[j], from[j + 1]);
        } else {
            *(__nv_bfloat162 *)(row + 2 * (i + j)) = __floats2bfloat162_rn(from[j], from[j + 1]);
        }
    }
}

/* A query's values as the products take them: in K's type, f16 for fp8. */
template <int N>
__device__ __forceinline__ void round_query(macattn_dtype kv_dtype, float *q)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        q[i] = kv_dtype == MACATTN_DTYPE_BF16 ? __bfloat162float(__float2bfloat16_rn(q[i]))
                                              : __half2float(__float2half_rn(q[i]));
    }
}

/* -------------------------------------------------------------------------------------- rows -- */

__device__ __forceinline__ int row_tokens(const mai_cu_params &p, int row)
{
    const int n = p.n_tokens[row];
    return n > 0 ? n : 0;
}

__device__ __forceinline__ int row_slot(const mai_cu_params &p, int row)
{
    return p.slots ? p.slots[row] : row;
}

/* Index of the first of a row's page numbers; contiguous: the row's only page number. */
__device__ __forceinline__ int64_t row_pages(const mai_cu_params &p, int row)
{
    if (p.page_shift < 0) return p.pages ? p.pages[row] : row;
    return p.page_indptr ? p.page_indptr[row] : row * p.page_table_stride;
}

/* Values of a summary. */
__device__ __forceinline__ int width_of(const mai_cu_params &p)
{
    return p.keys ? 2 * p.head_dim : p.head_dim;
}

__device__ __forceinline__ size_t ring_of(const mai_cu_params &p, int slot, int head)
{
    return ((size_t)slot * (size_t)p.n_layers + (size_t)p.layer) * (size_t)p.n_heads + (size_t)head;
}

} // namespace mai

#endif /* MAI_CUDA_COMMON_CUH */
