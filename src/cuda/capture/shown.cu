/* SPDX-License-Identifier: Apache-2.0 */
/* The means of a prompt's runs, and what some of its queries show of selection
 * (core/policy/select.h): for a group and each threshold, by how much its selection would have been
 * off, from the engine's results.
 *
 * The runs fall into buckets, by the largest threshold at which they are read. Of each bucket both
 * is computed, attention to its tokens and what its means make of it; any threshold's selection is
 * then the former of some buckets, and the latter of the others. That reads what one decoded token
 * reads, once for each head. Weights are relative to the query's lse, which is known: no maximum
 * has to be looked for. */
#include "cuda/device/score.cuh"
#include "cuda/device/state.cuh"
#include "prompt.cuh"

namespace mai
{
namespace
{

constexpr int BUCKETS = MAI_THETAS + 1; /* the last one's runs are never read */
constexpr int PARTS = MAI_CU_SHOWN_PARTS, GAP = PARTS - 1;

/* The row's runs, after the reservation. */
struct PromptRuns {
    int slot, n_runs;
    int64_t pages;

    __device__ PromptRuns(const mai_cu_params &p, const mai_cu_prompt &x)
        : slot(max(row_slot(p, x.row), 0)), n_runs(p.row_runs[0].n_runs), pages(row_pages(p, x.row))
    {
    }
};

__global__ void reserve_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    if (threadIdx.x != 0) return;
    const int n = reserve_runs(p, row_slot(p, x.row), row_tokens(p, x.row));
    p.row_runs[0] = mai_cu_row_runs{n, 0, 1};
}

/* Grid: runs, KV heads. A warp makes one run after the other. */
template <int D>
__global__ void __launch_bounds__(SCORE_THREADS)
    make_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    constexpr int V = D / 32;
    const PromptRuns r(p, x);
    const int kv_head = blockIdx.y, lane = threadIdx.x & 31;
    const size_t of = runs_of(p, r.slot, kv_head);
    const int made = p.runs.made[of], warps = gridDim.x * SCORE_WARPS;
    const int first = blockIdx.x * SCORE_WARPS + threadIdx.x / 32;
    if (made + first >= r.n_runs) return;
    float common[V];
    if (made == 0) {
        common_of<V>(p, r.pages, kv_head, common);
        if (first == 0)
            store_values<V>(MACATTN_DTYPE_F32, (char *)(p.runs.common + of * D), lane * V, common);
    } else {
        load_values<V>(MACATTN_DTYPE_F32, (const char *)(p.runs.common + of * D), lane * V, common);
    }
    for (int run = made + first; run < r.n_runs; run += warps)
        make_run<V>(p, r.pages, kv_head, run, run_row(p, r.slot, kv_head, run), common);
}

__global__ void made_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    const PromptRuns r(p, x);
    for (int kv_head = threadIdx.x; kv_head < p.n_kv_heads; kv_head += blockDim.x) {
        int32_t *made = p.runs.made + runs_of(p, r.slot, kv_head);
        *made = max(*made, r.n_runs);
    }
}

/* ----------------------------------------------------------------------------------- queries -- */

/* A query that shows selections. */
struct Shown {
    int query, i, n_runs, first, b; /* i: of the captured ones; < 0: it is none of these */
    int fresh_end;

    __device__ Shown(const mai_cu_params &p, const mai_cu_prompt &x, int sample)
    {
        const Prompt prompt(p, x);
        const int from = prompt.first(p, x), n = x.n_queries - from;
        const int n_samples = prompt.slot < 0 ? 0 : mai_select_samples(x.n_queries, n);
        i = -1;
        if (sample >= n_samples) return;
        query = from + mai_prompt_sample_at(sample, n_samples, n);
        const int seen = prompt.before + query + 1;
        b = prompt.far_end(p, query);
        fresh_end = min(p.fresh, b);
        first = mai_select_first(fresh_end, MAI_CU_RUN);
        n_runs = min(runs_kept(p, seen), p.row_runs[0].n_runs);
        if (n_runs < runs_kept(p, seen)) return; /* there was no room */
        if (n_runs > first && query >= x.first && query < x.first + x.n) i = query - x.first;
    }
};

__device__ Scored scored_of(const mai_cu_params &p, const mai_cu_prompt &x, const Shown &s,
                            int kv_head)
{
    const PromptRuns r(p, x);
    Scored y;
    y.slot = r.slot, y.kv_head = kv_head, y.n_runs = s.n_runs, y.first = s.first;
    y.pages = r.pages;
    y.q = p.q + s.query * p.q_row_stride + (int64_t)kv_head * p.group * p.q_head_stride;
    y.q_head_stride = p.q_head_stride;
    y.stride = segments_for(s.n_runs) * MAI_CU_SEGMENT;
    y.scores = p.scores + (size_t)kv_head * p.group * y.stride;
    y.piece_lse = p.piece_lse + kv_head * p.group;
    return y;
}

/* Grid: pieces, KV heads. */
template <int D, bool OUTLIERS>
__global__ void __launch_bounds__(SCORE_THREADS)
    score_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x, int sample)
{
    __shared__ ScoreShared<D> sh;
    const Shown s(p, x, sample);
    if (s.i < 0) return;
    for (int piece = blockIdx.x; piece * MAI_CU_PIECE < s.n_runs; piece += gridDim.x) {
        __syncthreads();
        score_pieces<D, OUTLIERS>(p, scored_of(p, x, s, blockIdx.y), piece, 1, sh);
    }
}

/* Which bucket each run is in, where lists go. One block a KV head. */
__global__ void __launch_bounds__(SCORE_THREADS)
    bucket_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x, int sample)
{
    __shared__ float totals[MAI_CU_MOST_GROUP];
    const Shown s(p, x, sample);
    if (s.i < 0) return;
    const Scored y = scored_of(p, x, s, blockIdx.x);
    /* As in decoding, the share is that of the query before. */
    const int before = s.i > 0 && s.query > Prompt(p, x).first(p, x) ? s.i - 1 : s.i;
    for (int h = threadIdx.x / 32; h < p.group; h += SCORE_WARPS) {
        const int head = y.kv_head * p.group + h;
        const float far = x.lse[(size_t)before * p.n_heads + head];
        totals[h] = mai_select_total(all_pieces(p, y, h), share_of(p, x, before, head, far));
        p.least[head] = totals[h];
    }
    __syncthreads();
    int32_t *buckets = p.lists + (size_t)y.kv_head * y.stride;
    for (int run = s.first + threadIdx.x; run < s.n_runs; run += blockDim.x) {
        int bucket = BUCKETS - 1;
        for (int h = 0; h < p.group; h++) {
            const float score = y.scores[(size_t)h * y.stride + run];
            int k = 0;
            while (k < bucket && score < mai_select_least(totals[h], k) * LOG2E) k++;
            bucket = k;
        }
        buckets[run] = bucket;
    }
}

/* ------------------------------------------------------------------------------------- parts -- */

__host__ __device__ constexpr int part_warps(int head_dim)
{
    return head_dim == 256 ? 2 : 4;
}

template <int D>
struct PartsShared {
    float sum[part_warps(D)][PARTS][D], mass[part_warps(D)][PARTS];
};

/* One head of one query. */
template <int V>
struct Column {
    float q[V], lse; /* lse: in powers of 2 */
    float factor;
};

/* A warp: tokens [t0, t1) added to a part. */
template <int V>
__device__ void add_tokens(const mai_cu_params &p, const Column<V> &c, int64_t pages, int kv_head,
                           int t0, int t1, float *sum, float *mass)
{
    const int mask = p.page_shift < 0 ? -1 : (1 << p.page_shift) - 1, lane = threadIdx.x & 31;
    const char *k0 = p.k + kv_head * p.k_head_stride, *v0 = p.v + kv_head * p.v_head_stride;
    float all[V] = {}, weights = 0;
#pragma unroll 4
    for (int t = t0; t < t1; t++) {
        const int64_t page =
            p.page_shift < 0 ? pages : (int64_t)__ldg(p.pages + pages + (t >> p.page_shift));
        float k[V], v[V], dot = 0;
        load_values<V>(p.kv_dtype, k0 + page * p.k_page_stride + (t & mask) * p.k_token_stride,
                       lane * V, k);
        load_values<V>(p.kv_dtype, v0 + page * p.v_page_stride + (t & mask) * p.v_token_stride,
                       lane * V, v);
#pragma unroll
        for (int i = 0; i < V; i++) dot += c.q[i] * k[i];
        float s = warp_sum(dot) * c.factor;
        if (p.softcap.top > 0) s = mai_softcapped(p.softcap, s);
        const float w = fast_exp2(s - c.lse);
        weights += w;
#pragma unroll
        for (int i = 0; i < V; i++) all[i] += w * v[i];
    }
#pragma unroll
    for (int i = 0; i < V; i++) sum[lane * V + i] += all[i];
    if (lane == 0) *mass += weights;
}

/* A warp: what a run's means make of it. */
template <int V>
__device__ void add_mean(const mai_cu_params &p, const Column<V> &c, size_t row, float score,
                         float *sum, float *mass)
{
    constexpr int D = 32 * V;
    const int lane = threadIdx.x & 31;
    const float w = score == -INFINITY ? 0.0f : fast_exp2(score - c.lse);
    const int8_t *codes = p.runs.v + row * D;
    const float scale =
        w == 0 ? 0.0f : __half2float(__ushort_as_half(p.runs.v_scale[row * V + lane * V / 32]));
#pragma unroll
    for (int i = 0; i < V; i++)
        sum[lane * V + i] += w * scale * (float)codes[code_byte(lane * V + i)];
    if (lane == 0) *mass += w;
}

/* Grid: chunks of the runs, heads. */
template <int D>
__global__ void __launch_bounds__(32 * part_warps(D))
    parts_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x, int sample)
{
    constexpr int V = D / 32, WARPS = part_warps(D);
    extern __shared__ __align__(16) unsigned char memory[];
    PartsShared<D> &sh = *(PartsShared<D> *)memory;
    const Shown s(p, x, sample);
    const int head = blockIdx.y, kv_head = head / p.group, chunk = blockIdx.x;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (s.i < 0) return;
    const PromptRuns r(p, x);
    const Scored y = scored_of(p, x, s, kv_head);
    const int32_t *buckets = p.lists + (size_t)kv_head * y.stride;
    const float *scores = y.scores + (size_t)(head % p.group) * y.stride;
    for (int i = threadIdx.x; i < WARPS * PARTS * D; i += 32 * WARPS) ((float *)sh.sum)[i] = 0;
    for (int i = threadIdx.x; i < WARPS * PARTS; i += 32 * WARPS) ((float *)sh.mass)[i] = 0;
    Column<V> c;
    Summary<V>::load_query(p, x, s.i, head, c.q);
    c.lse = p.lse[(size_t)s.query * p.n_heads + head] * LOG2E;
    c.factor = p.scale * LOG2E * p.k_scale;
    __syncthreads();
    const bool always = s.fresh_end == 0 || s.fresh_end % MAI_CU_RUN != 0;
    const int skip = s.fresh_end % MAI_CU_RUN;
    const int n = s.n_runs - s.first, size = (n + MAI_CU_SHOWN_CHUNKS - 1) / MAI_CU_SHOWN_CHUNKS;
    const int run0 = s.first + chunk * size, run1 = min(run0 + size, s.n_runs);
    float *sum = &sh.sum[warp][0][0], *mass = &sh.mass[warp][0];
    for (int run = run0 + warp; run < run1; run += WARPS) {
        const int bucket = buckets[run], mean = BUCKETS + bucket;
        if (bucket < BUCKETS - 1) {
            add_tokens<V>(p, c, r.pages, kv_head, run * MAI_CU_RUN, (run + 1) * MAI_CU_RUN,
                          sum + bucket * D, mass + bucket);
        }
        if (bucket > 0) {
            add_mean<V>(p, c, run_row(p, r.slot, kv_head, run), scores[run], sum + mean * D,
                        mass + mean);
        }
    }
    if (chunk == 0 && warp == 0) {
        if (always) {
            add_tokens<V>(p, c, r.pages, kv_head, (s.first - 1) * MAI_CU_RUN + skip,
                          s.first * MAI_CU_RUN, sum, mass);
        }
        add_tokens<V>(p, c, r.pages, kv_head, s.n_runs * MAI_CU_RUN, s.b, sum + GAP * D,
                      mass + GAP);
    }
    __syncthreads();
    float *to = x.parts + ((size_t)chunk * p.n_heads + head) * (PARTS * (D + 1));
    for (int i = threadIdx.x; i < PARTS * (D + 1); i += 32 * WARPS) {
        const int part = i / (D + 1), dim = i % (D + 1);
        float all = 0;
        for (int w = 0; w < WARPS; w++) all += dim < D ? sh.sum[w][part][dim] : sh.mass[w][part];
        to[i] = all;
    }
    (void)lane;
}

/* ------------------------------------------------------------------------------------ errors -- */

/* One block a KV head, a warp for each threshold. NaN teaches nothing. */
template <int D>
__global__ void __launch_bounds__(32 * MAI_THETAS)
    error_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x, int sample)
{
    constexpr int V = D / 32;
    const Shown s(p, x, sample);
    const int kv_head = blockIdx.x, k = threadIdx.x / 32, lane = threadIdx.x & 31;
    float error2 = 0;
    if (s.i < 0) return;
    const bool wanted = remembers(p, kv_head);
    for (int head = kv_head * p.group; head < (kv_head + 1) * p.group; head++) {
        float used[V] = {}, mass = 0, o[V], norm2 = 0;
        for (int part = 0; part < PARTS; part++) {
            const int bucket = part < BUCKETS ? part : part - BUCKETS;
            const bool is_in = part == GAP || (part < BUCKETS ? bucket <= k : bucket > k);
            for (int chunk = 0; is_in && chunk < MAI_CU_SHOWN_CHUNKS; chunk++) {
                const float *from =
                    x.parts + (((size_t)chunk * p.n_heads + head) * PARTS + part) * (D + 1);
#pragma unroll
                for (int i = 0; i < V; i++) used[i] += from[lane * V + i];
                mass += from[D];
            }
        }
        const float lse = p.lse[(size_t)s.query * p.n_heads + head];
        Summary<V> far;
        far.load(p, x, s.i, head);
        const mai_swap swap = mai_swap_far(far.lse, lse + logf(mass), lse);
        load_values<V>(p.out_dtype, p.out + s.query * p.out_row_stride + head * p.out_head_stride,
                       lane * V, o);
        float off2 = 0;
#pragma unroll
        for (int i = 0; i < V; i++) {
            o[i] /= p.v_scale;
            norm2 += o[i] * o[i];
            const float off = swap.in * (used[i] / mass - o[i]) - swap.out * (far.out[i] - o[i]);
            off2 += off * off;
        }
        norm2 = warp_sum(norm2);
        error2 += warp_sum(off2) / (float)p.group;
        if (!isfinite(p.least[head])) error2 = NAN;
        if (k == 0 && lane == 0) x.norms[(size_t)sample * p.n_heads + head] = norm2;
    }
    if (lane == 0)
        x.shown[((size_t)sample * p.n_kv_heads + kv_head) * MAI_THETAS + k] = wanted ? error2 : NAN;
}

/* Before the first: nothing is shown. */
__global__ void forget_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    for (int i = threadIdx.x; i < MAI_SELECT_SAMPLES * p.n_kv_heads * MAI_THETAS; i += blockDim.x)
        x.shown[i] = NAN;
    for (int i = threadIdx.x; i < MAI_SELECT_SAMPLES * p.n_heads; i += blockDim.x) x.norms[i] = NAN;
}

template <int D>
cudaError_t launch(const mai_cu_params *p, const mai_cu_prompt *x, int sample, cudaStream_t stream)
{
    const dim3 pieces(32, (unsigned)p->n_kv_heads);
    const dim3 chunks(MAI_CU_SHOWN_CHUNKS, (unsigned)p->n_heads);
    if (p->runs.outlier)
        score_kernel<D, true><<<pieces, SCORE_THREADS, 0, stream>>>(*p, *x, sample);
    else
        score_kernel<D, false><<<pieces, SCORE_THREADS, 0, stream>>>(*p, *x, sample);
    bucket_kernel<<<p->n_kv_heads, SCORE_THREADS, 0, stream>>>(*p, *x, sample);
    parts_kernel<D><<<chunks, 32 * part_warps(D), sizeof(PartsShared<D>), stream>>>(*p, *x, sample);
    error_kernel<D><<<p->n_kv_heads, 32 * MAI_THETAS, 0, stream>>>(*p, *x, sample);
    return cudaGetLastError();
}

template <int D>
cudaError_t make(const mai_cu_params *p, const mai_cu_prompt *x, cudaStream_t stream)
{
    reserve_kernel<<<1, 32, 0, stream>>>(*p, *x);
    make_kernel<D><<<dim3(128, (unsigned)p->n_kv_heads), SCORE_THREADS, 0, stream>>>(*p, *x);
    made_kernel<<<1, 128, 0, stream>>>(*p, *x);
    forget_kernel<<<1, 256, 0, stream>>>(*p, *x);
    return cudaGetLastError();
}

template <int D>
cudaError_t prepare()
{
    return cudaFuncSetAttribute(parts_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)sizeof(PartsShared<D>));
}

} // namespace
} // namespace mai

#define BY_DIM(head_dim, call)             \
    switch (head_dim) {                    \
    case 64: return mai::call(64);         \
    case 128: return mai::call(128);       \
    case 256: return mai::call(256);       \
    default: return cudaErrorInvalidValue; \
    }

extern "C" int mai_cu_make_runs_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream)
{
#define MAKE(D) make<D>(p, x, (cudaStream_t)stream)
    BY_DIM(p->head_dim, MAKE)
#undef MAKE
}

extern "C" int mai_cu_shown_prepare(int head_dim)
{
#define PREPARE(D) prepare<D>()
    BY_DIM(head_dim, PREPARE)
#undef PREPARE
}

extern "C" int mai_cu_shown_launch(const mai_cu_params *p, const mai_cu_prompt *x, int sample,
                                   void *stream)
{
#define SHOWN(D) launch<D>(p, x, sample, (cudaStream_t)stream)
    BY_DIM(p->head_dim, SHOWN)
#undef SHOWN
}
