/* SPDX-License-Identifier: Apache-2.0 */
/* The summaries of a prompt's last queries: attention over [F, b), which ends somewhere else for
 * each of them, with the values, and with the keys in place of the values.
 *
 * A thread block takes neighbouring (query, head) pairs of one KV head as the columns of the
 * products that decoding uses, too (attend/tile.cuh): a warp HEADS of them, all warps the same
 * tokens, which so are read once a block. Values and keys are summed up by different blocks: the
 * logits are computed twice, but a warp's sums of both would not fit its registers. */
#include "cuda/attend/tile.cuh"
#include "prompt.cuh"

namespace mai {
namespace {

constexpr int WARPS = 4, STAGES = 3, STEP_TILES = 2;

template <class Kv, int D>
using Far = Traits<Kv, D, D == 256 ? 8 : 16, WARPS, STAGES, Use::KEEPS>;

template <class T>
struct FarShared {
    unsigned char stage[STAGES][2][STEP_TILES][T::TILE_BYTES]; /* K, V */
};

template <class T>
constexpr int COLUMNS = WARPS *T::HEADS; /* of a block */

/* The columns of a warp. */
template <class T>
struct Columns {
    int first, n; /* of all pairs of this KV head, and how many there are */

    __device__ Columns(const mai_cu_params &p, const mai_cu_prompt &x)
        : first(blockIdx.x * COLUMNS<T> + threadIdx.x / 32 * T::HEADS), n(x.n * p.group)
    {
    }

    __device__ int query(const mai_cu_params &p, int column) const
    {
        return min(first + column, n - 1) / p.group;
    }

    __device__ int head(const mai_cu_params &p, int column) const
    {
        return blockIdx.y * p.group + min(first + column, n - 1) % p.group;
    }

    __device__ void load(const mai_cu_params &p, const mai_cu_prompt &x, Queries<T> &queries) const
    {
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
            const int column = 8 * j + g;
            const char *q = p.q + (x.first + query(p, column)) * p.q_row_stride +
                            head(p, column) * p.q_head_stride;
#pragma unroll
            for (int s = 0; s < T::D / 16; s++) {
                float pair[2];
                load_values<2>(p.q_dtype, q, T::Kv::key_dim(s, c), pair);
                queries.b[s][j][0] = T::Kv::pack(pair[0], pair[1]);
                load_values<2>(p.q_dtype, q, T::Kv::key_dim(s, c) + T::Kv::KEY_SECOND, pair);
                queries.b[s][j][1] = T::Kv::pack(pair[0], pair[1]);
            }
        }
    }

    __device__ void see(const mai_cu_params &p, const mai_cu_prompt &x, const Prompt &prompt,
                        Seen<T> &seen) const
    {
        const int c = threadIdx.x & 3;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int column = 8 * j + 2 * c + h;
                seen.first[j][h] = p.fresh;
                seen.end[j][h] =
                    first + column < n ? prompt.far_end(p, x.first + query(p, column)) : 0;
            }
        }
    }

    /* `half`: of the summary. */
    __device__ void store(const mai_cu_params &p, const mai_cu_prompt &x, const State<T> &state,
                          int half) const
    {
        const int lane = threadIdx.x & 31, g = lane / 4, c = lane % 4;
#pragma unroll
        for (int j = 0; j < T::NT; j++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int column = 8 * j + 2 * c + h;
                float sum = state.sum[j][h];
                for (int i = 4; i < 32; i <<= 1) sum += __shfl_xor_sync(ALL, sum, i);
                if (first + column >= n) continue;
                const size_t at = (size_t)query(p, column) * p.n_heads + head(p, column);
                const float inverse = sum == 0 ? 0.0f : 1.0f / sum;
                float *to = x.summary + at * (size_t)width_of(p) + half * T::D;
#pragma unroll
                for (int m = 0; m < T::D / 16; m++) {
                    to[T::Kv::value_dim(m, g, 0)] = state.o.of[m][j][h] * inverse;
                    to[T::Kv::value_dim(m, g, 1)] = state.o.of[m][j][2 + h] * inverse;
                }
                if (half == 0 && g == 0)
                    x.lse[at] = sum == 0 ? -INFINITY : (state.top[j][h] + log2f(sum)) * LN2;
            }
        }
    }
};

/* Start the copies of tokens [t, t + 16 STEP_TILES) below t1, of V only if it is wanted. */
template <class T>
__device__ __forceinline__ void copy_step(const mai_cu_params &p, FarShared<T> &sh, int stage,
                                          int64_t pages, int t, int t1, bool values)
{
    const int mask = p.page_shift < 0 ? -1 : (1 << p.page_shift) - 1;
    const char *k = p.k + blockIdx.y * p.k_head_stride, *v = p.v + blockIdx.y * p.v_head_stride;
    for (int i = threadIdx.x; t < t1 && i < STEP_TILES * T::TILE * T::PIECES; i += T::THREADS) {
        const int row = i / T::PIECES, piece = i % T::PIECES, token = min(t + row, t1 - 1);
        const int64_t page =
            p.page_shift < 0 ? pages : (int64_t)__ldg(p.pages + pages + (token >> p.page_shift));
        const uint32_t at = (row % T::TILE * T::PIECES + piece_at<T::PIECES>(row, piece)) * 16;
        const int64_t in = token & mask;
        copy16(shared_address(sh.stage[stage][0][row / T::TILE]) + at,
               k + page * p.k_page_stride + in * p.k_token_stride + piece * 16, t + row < t1);
        if (!values) continue;
        copy16(shared_address(sh.stage[stage][1][row / T::TILE]) + at,
               v + page * p.v_page_stride + in * p.v_token_stride + piece * 16, t + row < t1);
    }
    copy_commit();
}

/* Grid: columns, KV heads, halves of the summary. */
template <class T>
__global__ void __launch_bounds__(T::THREADS)
    far_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    extern __shared__ __align__(512) unsigned char memory[]; /* matrix_address */
    FarShared<T> &sh = *(FarShared<T> *)memory;
    constexpr int STEP = STEP_TILES * T::TILE;
    const Prompt prompt(p, x);
    const bool values = blockIdx.z == 0;
    if (prompt.slot < 0 || !remembers(p, blockIdx.y)) return;
    const Columns<T> mine(p, x);
    const int last = min((blockIdx.x + 1) * COLUMNS<T>, mine.n) - 1;
    const int t1 = prompt.far_end(p, x.first + last / p.group);
    const int64_t pages = row_pages(p, x.row);
    const float factor = p.scale * LOG2E * p.k_scale;
    Queries<T> queries;
    Seen<T> seen;
    State<T> state;
    mine.load(p, x, queries);
    mine.see(p, x, prompt, seen);
    state.clear();
    int stage = 0;
#pragma unroll 1
    for (int i = 0; i < STAGES - 1; i++)
        copy_step<T>(p, sh, i, pages, p.fresh + i * STEP, t1, values);
#pragma unroll 1
    for (int t = p.fresh; t < t1; t += STEP) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        copy_step<T>(p, sh, stage == 0 ? STAGES - 1 : stage - 1, pages, t + (STAGES - 1) * STEP, t1,
                     values);
#pragma unroll 1
        for (int i = 0; i < STEP_TILES; i++) {
            float s[T::NT][4];
            KeyWeights<T> key_weights;
            Weights<T> weights;
            const uint32_t k_tile = shared_address(sh.stage[stage][0][i]);
            scores<T>(s, queries, k_tile);
            softmax<T>(p, factor, s, state, seen, t + i * T::TILE, key_weights);
            if (!values) weigh_keys<T>(p, s, key_weights);
            weights.take(s);
            add_rows<T>(weights, state.o,
                        values ? shared_address(sh.stage[stage][1][i]) : k_tile);
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    copy_wait<0>();
    mine.store(p, x, state, blockIdx.z);
}

template <class Kv, int D>
cudaError_t launch(const mai_cu_params *p, const mai_cu_prompt *x, cudaStream_t stream)
{
    using T = Far<Kv, D>;
    const int n = x->n * p->group;
    const dim3 grid((unsigned)((n + COLUMNS<T> - 1) / COLUMNS<T>), (unsigned)p->n_kv_heads,
                    p->keys ? 2 : 1);
    far_kernel<T><<<grid, T::THREADS, sizeof(FarShared<T>), stream>>>(*p, *x);
    return cudaGetLastError();
}

template <class Kv, int D>
cudaError_t prepare()
{
    using T = Far<Kv, D>;
    return cudaFuncSetAttribute(far_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)sizeof(FarShared<T>));
}

/* One set of types and sizes. */
struct Variant {
    macattn_dtype dtype;
    int head_dim;
    cudaError_t (*launch)(const mai_cu_params *, const mai_cu_prompt *, cudaStream_t);
    cudaError_t (*prepare)();
};

#define VARIANT(dtype, Kv, D) {MACATTN_DTYPE_##dtype, D, launch<Kv, D>, prepare<Kv, D>}
const Variant variants[] = {
    VARIANT(F16, Half16, 64),     VARIANT(F16, Half16, 128),     VARIANT(F16, Half16, 256),
    VARIANT(BF16, Brain16, 64),   VARIANT(BF16, Brain16, 128),   VARIANT(BF16, Brain16, 256),
    VARIANT(F8_E4M3, Float8, 64), VARIANT(F8_E4M3, Float8, 128), VARIANT(F8_E4M3, Float8, 256),
};
#undef VARIANT

const Variant *find(macattn_dtype dtype, int head_dim)
{
    for (const Variant &v : variants) {
        if (v.dtype == dtype && v.head_dim == head_dim) return &v;
    }
    return nullptr;
}

} // namespace
} // namespace mai

extern "C" int mai_cu_far_prepare(macattn_dtype kv_dtype, int head_dim)
{
    const mai::Variant *v = mai::find(kv_dtype, head_dim);
    return v ? v->prepare() : cudaErrorInvalidValue;
}

extern "C" int mai_cu_far_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream)
{
    const mai::Variant *v = mai::find(p->kv_dtype, p->head_dim);
    return v ? v->launch(p, x, (cudaStream_t)stream) : cudaErrorInvalidValue;
}
