/* SPDX-License-Identifier: Apache-2.0 */
/* Means and outliers of runs: where they are, their codes as operands of the products, and making
 * them.
 *
 * Of 16 codes in 16 bytes byte 2g is dim g and byte 2g + 1 dim g + 8. A lane that gets two
 * neighbouring bytes of two runs, as ldmatrix hands them out, so has rows g and g + 8 of the
 * transposed operand, the same dims as of a tile of V (kv.cuh). */
#ifndef MAI_CUDA_RUNS_CUH
#define MAI_CUDA_RUNS_CUH

#include "kv.cuh"

namespace mai
{

/* Which byte of its 16 a dim's code is, and which dim a byte is. */
__host__ __device__ constexpr int code_byte(int dim)
{
    return (dim & ~15) + (dim % 16 < 8 ? 2 * (dim % 16) : 2 * (dim % 16 - 8) + 1);
}

__host__ __device__ constexpr int code_dim(int byte)
{
    return (byte & ~15) + byte % 16 / 2 + (byte & 1) * 8;
}

/* One (slot, layer, KV head). */
__device__ __forceinline__ size_t runs_of(const mai_cu_params &p, int slot, int kv_head)
{
    return ((size_t)slot * p.n_layers + p.layer) * p.n_kv_heads + kv_head;
}

/* The row of a run in the arrays. */
__device__ __forceinline__ size_t run_row(const mai_cu_params &p, int slot, int kv_head, int run)
{
    const int segment = p.runs.table[(size_t)slot * p.runs.most + (run >> MAI_CU_SEGMENT_SHIFT)];
    return (((size_t)segment * p.n_layers + p.layer) * p.n_kv_heads + kv_head) * MAI_CU_SEGMENT +
           run % MAI_CU_SEGMENT;
}

/* Runs of a sequence that lie before its band, as mai_runs_kept has it. */
__device__ __forceinline__ int runs_kept(const mai_cu_params &p, int n_tokens)
{
    if (n_tokens < p.min_tokens || n_tokens < p.band) return 0;
    return (n_tokens - p.band) >> MAI_CU_RUN_SHIFT;
}

__host__ __device__ __forceinline__ int segments_for(int n_runs)
{
    return (n_runs + MAI_CU_SEGMENT - 1) >> MAI_CU_SEGMENT_SHIFT;
}

/* One thread: room for a slot's runs. Returns their number; 0 if there is none. */
__device__ __forceinline__ int reserve_runs(const mai_cu_params &p, int slot, int n_tokens)
{
    const mai_cu_runs &r = p.runs;
    const int n_runs = slot < 0 ? 0 : runs_kept(p, n_tokens), need = segments_for(n_runs);
    if (n_runs == 0 || need > r.most) return 0;
    const int have = r.n_segments[slot], wanted = need - have;
    if (wanted <= 0) return n_runs;
    const int at = atomicSub(r.n_free, wanted) - wanted; /* all of them or none */
    if (at < 0) {
        atomicAdd(r.n_free, wanted);
        return 0;
    }
    for (int i = 0; i < wanted; i++)
        r.table[(size_t)slot * r.most + have + i] = r.free[at + i];
    r.n_segments[slot] = need;
    return n_runs;
}

/* ------------------------------------------------------------------------------- as operands -- */

/* A code's sign bit changed makes it a number from 0 on: + 128. */
__device__ __forceinline__ uint32_t bias_codes(uint32_t four)
{
    return four ^ 0x80808080u;
}

/* Codes FIRST and SECOND of four biased ones, as two f16: exact. */
template <int FIRST, int SECOND>
__device__ __forceinline__ uint32_t codes_half(uint32_t biased)
{
    const uint32_t x = __byte_perm(biased, 0x64646464u, 0x4040 | FIRST | SECOND << 8);
    const __half2 y = __hsub2(*(const __half2 *)&x, __half2half2(__ushort_as_half(0x6480)));
    return *(const uint32_t *)&y; /* 1024 + 128 */
}

__device__ __forceinline__ uint32_t multiply_halves(uint32_t x, uint32_t y)
{
    const __half2 z = __hmul2(*(const __half2 *)&x, *(const __half2 *)&y);
    return *(const uint32_t *)&z;
}

/* A operands (transposed) of 16 runs' codes times their scales, of two m-tiles, from one transposed
 * ldmatrix.x4: both m-tiles of runs 0-7, then of runs 8-15. `low`, `high`: the two scales of the
 * lane's runs of these. */
__device__ __forceinline__ void widen_matrices(uint32_t a[2][4], const uint32_t codes[4],
                                               uint32_t low, uint32_t high)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t first = bias_codes(codes[i]), second = bias_codes(codes[2 + i]);
        a[i][0] = multiply_halves(codes_half<0, 2>(first), low);
        a[i][1] = multiply_halves(codes_half<1, 3>(first), low);
        a[i][2] = multiply_halves(codes_half<0, 2>(second), high);
        a[i][3] = multiply_halves(codes_half<1, 3>(second), high);
    }
}

/* ------------------------------------------------------------------------------- making them -- */

/* One KV head's keys, or values, of a row. */
struct Tokens {
    const char *base;
    int64_t pages, page_stride, token_stride;

    /* A lane's V dims of token t. */
    template <int V>
    __device__ __forceinline__ void load(const mai_cu_params &p, int t, float *x) const
    {
        const int mask = p.page_shift < 0 ? -1 : (1 << p.page_shift) - 1;
        const int64_t page =
            p.page_shift < 0 ? pages : (int64_t)__ldg(p.pages + pages + (t >> p.page_shift));
        load_values<V>(p.kv_dtype, base + page * page_stride + (t & mask) * token_stride,
                       (threadIdx.x & 31) * V, x);
    }
};

__device__ __forceinline__ Tokens keys_of(const mai_cu_params &p, int64_t pages, int kv_head)
{
    return Tokens{p.k + kv_head * p.k_head_stride, pages, p.k_page_stride, p.k_token_stride};
}

__device__ __forceinline__ Tokens values_of(const mai_cu_params &p, int64_t pages, int kv_head)
{
    return Tokens{p.v + kv_head * p.v_head_stride, pages, p.v_page_stride, p.v_token_stride};
}

/* A lane's V dims of the mean of a run's rows, added in the order of the tokens. */
template <int V>
__device__ __forceinline__ void mean_of_run(const mai_cu_params &p, const Tokens &tokens, int run,
                                            float *mean)
{
#pragma unroll
    for (int i = 0; i < V; i++) mean[i] = 0;
#pragma unroll 4
    for (int t = run * MAI_CU_RUN; t < (run + 1) * MAI_CU_RUN; t++) {
        float x[V];
        tokens.load<V>(p, t, x);
#pragma unroll
        for (int i = 0; i < V; i++) mean[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < V; i++) mean[i] *= 1.0f / MAI_CU_RUN;
}

/* A warp: whether all of a row is finite. */
template <int V>
__device__ __forceinline__ bool row_finite(const float *x)
{
    bool finite = true;
#pragma unroll
    for (int i = 0; i < V; i++) finite = finite && isfinite(x[i]);
    return __all_sync(ALL, finite);
}

/* A warp: the outlier of a run, the row farthest from their mean; the first of several. What is not
 * finite stays as it is. */
template <int V>
__device__ __forceinline__ void outlier_of_run(const mai_cu_params &p, const Tokens &tokens, int run,
                                               const float *mean, float *outlier)
{
    float most = -1.0f;
#pragma unroll
    for (int i = 0; i < V; i++) outlier[i] = mean[i];
    if (!row_finite<V>(mean)) return;
#pragma unroll 4
    for (int t = run * MAI_CU_RUN; t < (run + 1) * MAI_CU_RUN; t++) {
        float x[V], off2 = 0;
        tokens.load<V>(p, t, x);
#pragma unroll
        for (int i = 0; i < V; i++) off2 += (x[i] - mean[i]) * (x[i] - mean[i]);
        off2 = warp_sum(off2); /* the same in all lanes */
        const bool farther = off2 > most;
        most = farther ? off2 : most;
#pragma unroll
        for (int i = 0; i < V; i++) outlier[i] = farther ? x[i] : outlier[i];
    }
}

/* A warp: the mean key of a slot's first run, to which all others' are relative. */
template <int V>
__device__ __forceinline__ void common_of(const mai_cu_params &p, int64_t pages, int kv_head,
                                          float *common)
{
    mean_of_run<V>(p, keys_of(p, pages, kv_head), 0, common);
    const bool finite = row_finite<V>(common);
#pragma unroll
    for (int i = 0; i < V; i++) common[i] = finite ? common[i] : 0.0f;
}

/* A warp: values to codes and scales, as ggml's q8_0 has them; all 0 if they cannot be had. Returns
 * whether they can, and are of the range of f16 with some to spare. */
template <int V>
__device__ __forceinline__ bool encode_mean(const float *x, int8_t *codes, uint16_t *scales)
{
    constexpr int LANES = 32 / V; /* to one scale */
    const int lane = threadIdx.x & 31;
    bool good = true;
    float top = 0;
#pragma unroll
    for (int i = 0; i < V; i++) good = good && isfinite(x[i]), top = fmaxf(top, fabsf(x[i]));
#pragma unroll
    for (int i = 1; i < LANES; i *= 2) top = fmaxf(top, __shfl_xor_sync(ALL, top, i));
    const __half rounded = __float2half_rn(top / 127.0f);
    const float scale = __half2float(rounded), inverse = scale > 0 ? 1.0f / scale : 0.0f;
    good = __all_sync(ALL, good && scale < INFINITY);
#pragma unroll
    for (int i = 0; i < V; i++) {
        const float y = fminf(fmaxf(rintf(x[i] * inverse), -127.0f), 127.0f);
        codes[code_byte(lane * V + i)] = good ? (int8_t)(int)y : (int8_t)0;
    }
    if (lane % LANES == 0) scales[lane / LANES] = good ? __half_as_ushort(rounded) : (uint16_t)0;
    return __all_sync(ALL, good && scale <= 256.0f);
}

/* A warp: a key's codes and scales, relative to what all runs have in common. */
template <int V>
__device__ __forceinline__ bool encode_key(float *key, const float *common, int8_t *codes,
                                           uint16_t *scales)
{
#pragma unroll
    for (int i = 0; i < V; i++) key[i] -= common[i];
    return encode_mean<V>(key, codes, scales);
}

/* A warp: make a run. `common`: the lane's dims of what keys are relative to. What has no means
 * scores NaN, and so is always read. */
template <int V>
__device__ __forceinline__ void make_run(const mai_cu_params &p, int64_t pages, int kv_head,
                                         int run, size_t row, const float *common)
{
    constexpr int D = 32 * V;
    float mean[V];
    bool good = true;
    mean_of_run<V>(p, keys_of(p, pages, kv_head), run, mean);
    if (p.runs.outlier) {
        float outlier[V];
        outlier_of_run<V>(p, keys_of(p, pages, kv_head), run, mean, outlier);
        good = encode_key<V>(outlier, common, p.runs.outlier + row * D,
                             p.runs.outlier_scale + row * V);
    }
    good = encode_key<V>(mean, common, p.runs.k + row * D, p.runs.k_scale + row * V) && good;
    mean_of_run<V>(p, values_of(p, pages, kv_head), run, mean);
    good = encode_mean<V>(mean, p.runs.v + row * D, p.runs.v_scale + row * V) && good;
    __syncwarp();
    if (!good && (threadIdx.x & 31) == 0) p.runs.k_scale[row * V] = 0x7e00;
}

} // namespace mai

#endif /* MAI_CUDA_RUNS_CUH */
