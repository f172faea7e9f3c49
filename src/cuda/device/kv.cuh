/* SPDX-License-Identifier: Apache-2.0 */
/* The types K and V may have, as operands of mma.m16n8k16. For each type:
 *
 *   Product          what both operands are: the type itself; fp8 is widened to f16
 *   key_dim(s, c)    which dims the lane c of a quad multiplies in k-step s: dims key_dim, +1
 *                    (first register) and key_dim + KEY_SECOND, +1. The sum over dims may be
 *                    taken in any order, so fp8 takes the one in which its bytes arrive.
 *   value_dim        which dim of V row g of half h of an m-tile is, for the same reason
 *   load_keys        A operands of 16 tokens and `KSTEPS` k-steps from one ldmatrix
 *   load_values      A operands (V transposed) of 16 tokens and `MTILES` m-tiles
 *
 * Rows of K and V in shared memory are head_dim values, in 16-byte pieces whose order is changed by
 * `piece_at`, so that eight rows' pieces lie in different banks. */
#ifndef MAI_CUDA_KV_CUH
#define MAI_CUDA_KV_CUH

#include <cuda_fp8.h>

#include "common.cuh"

namespace mai {

template <int PIECES>
__host__ __device__ constexpr int piece_at(int row, int piece)
{
    return PIECES >= 8 ? piece ^ (row & 7) : piece ^ ((row >> 1) & (PIECES - 1));
}

/* What those rely on who come from one place to others by an exclusive or: matrix_address from a row's first
 * pieces to its later ones, copies from the rows of 32 pieces to the same pieces of later rows. */
template <int PIECES>
constexpr bool places_are_bits()
{
    constexpr int ROWS = 32 / PIECES;
    for (int row = 0; row < 16; row++) {
        for (int piece = 0; piece < PIECES; piece++) {
            const int at = piece_at<PIECES>(row, piece), first = row % ROWS, later = row - first;
            if (at != (piece_at<PIECES>(row, piece & 1) ^ (piece & ~1))) return false;
            if (at != (piece_at<PIECES>(first, piece) ^ piece_at<PIECES>(later, 0))) return false;
            if (at < 0 || at >= PIECES) return false;
        }
    }
    return true;
}
static_assert(places_are_bits<4>() && places_are_bits<8>() && places_are_bits<16>() &&
              places_are_bits<32>());

/* Address of what this lane hands to ldmatrix.x4: pieces `piece`, which is even, and `piece` + 1 for
 * the upper lanes; `by_rows`: matrices 0, 1 are rows 0-7 and 8-15 of one piece; else matrices 0, 1
 * are two pieces of rows 0-7. `tile` is at a multiple of a row's bytes, so that pieces are bits of
 * the address: all those of a tile come from one register. */
template <int PIECES, bool BY_ROWS>
__device__ __forceinline__ uint32_t matrix_address(uint32_t tile, int piece)
{
    const int lane = threadIdx.x & 31, i = lane >> 3;
    const int row = (lane & 7) + 8 * (BY_ROWS ? i & 1 : i >> 1);
    const int upper = BY_ROWS ? i >> 1 : i & 1;
    return (tile + (uint32_t)(row * PIECES + piece_at<PIECES>(row, upper)) * 16) ^
           (uint32_t)(piece * 16);
}

struct Half16 {
    using Product = __half;
    static constexpr int BYTES = 2, KSTEPS = 1, MTILES = 1, KEY_SECOND = 8;

    static __device__ __forceinline__ int key_dim(int s, int c) { return 16 * s + 2 * c; }
    static __device__ __forceinline__ int value_dim(int m, int g, int half)
    {
        return 16 * m + g + 8 * half;
    }
    template <int PIECES>
    static __device__ __forceinline__ void load_keys(uint32_t a[KSTEPS][4], uint32_t tile, int s)
    {
        load_matrices(a[0], matrix_address<PIECES, true>(tile, 2 * s));
    }
    template <int PIECES>
    static __device__ __forceinline__ void load_values(uint32_t a[MTILES][4], uint32_t tile, int m)
    {
        load_matrices_transposed(a[0], matrix_address<PIECES, false>(tile, 2 * m));
    }
    static __device__ __forceinline__ uint32_t pack(float low, float high)
    {
        const __half2 x = __floats2half2_rn(low, high);
        return *(const uint32_t *)&x;
    }
    static __device__ __forceinline__ void multiply(float d[4], const uint32_t a[4], uint32_t b0,
                                                    uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                     "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

struct Brain16 : Half16 {
    using Product = __nv_bfloat16;

    static __device__ __forceinline__ uint32_t pack(float low, float high)
    {
        const __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
        return *(const uint32_t *)&x;
    }
    static __device__ __forceinline__ void multiply(float d[4], const uint32_t a[4], uint32_t b0,
                                                    uint32_t b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                     "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

struct Float8 : Half16 {
    static constexpr int BYTES = 1, KSTEPS = 2, MTILES = 2, KEY_SECOND = 2;

    static __device__ __forceinline__ int key_dim(int s, int c) { return 16 * s + 4 * c; }
    static __device__ __forceinline__ int value_dim(int m, int g, int half)
    {
        return 16 * m + 2 * g + half;
    }
    /* Two f16 from the low half of x. */
    static __device__ __forceinline__ uint32_t widen(uint32_t x)
    {
        const __half2_raw y =
            __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(x & 0xffffu), __NV_E4M3);
        return (uint32_t)y.x | (uint32_t)y.y << 16;
    }
    /* Four bytes are dims 4c .. 4c + 3 of a token. */
    template <int PIECES>
    static __device__ __forceinline__ void load_keys(uint32_t a[KSTEPS][4], uint32_t tile, int s)
    {
        uint32_t raw[4]; /* rows 0-7, 8-15 of piece s; of piece s + 1 */
        load_matrices(raw, matrix_address<PIECES, true>(tile, s));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            a[i][0] = widen(raw[2 * i]), a[i][2] = widen(raw[2 * i] >> 16);
            a[i][1] = widen(raw[2 * i + 1]), a[i][3] = widen(raw[2 * i + 1] >> 16);
        }
    }
    /* Four bytes are two neighbouring dims of one token, then of the next. */
    template <int PIECES>
    static __device__ __forceinline__ void load_values(uint32_t a[MTILES][4], uint32_t tile, int m)
    {
        uint32_t raw[4]; /* pieces m, m + 1 of tokens 0-7; of tokens 8-15 */
        load_matrices_transposed(raw, matrix_address<PIECES, false>(tile, m));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t low = __byte_perm(raw[i], 0, 0x3120);
            const uint32_t high = __byte_perm(raw[2 + i], 0, 0x3120);
            a[i][0] = widen(low), a[i][1] = widen(low >> 16);
            a[i][2] = widen(high), a[i][3] = widen(high >> 16);
        }
    }
};

} // namespace mai

#endif /* MAI_CUDA_KV_CUH */
