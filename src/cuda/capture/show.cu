/* SPDX-License-Identifier: Apache-2.0 */
/* What a prompt teaches (core/policy/judge.h): some of its queries, as if they were decoded. */
#include "cuda/device/judge.cuh"
#include "cuda/device/kv.cuh"
#include "cuda/device/state.cuh"
#include "prompt.cuh"

namespace mai {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;

/* An entry that may be used for a sample: of the ring, or of a query of the prompt that is not in
 * it yet. */
struct Candidate {
    double distance2;
    int pos, entry, query; /* entry < 0: a captured query */
};

struct Shared {
    Candidate best[WARPS];
    float lse[WARPS]; /* of the tokens each warp attended to, base 2 */
    float o[WARPS][256];
};

__device__ __forceinline__ bool is_nearer(const Candidate &a, const Candidate &b)
{
    return a.distance2 < b.distance2 || (a.distance2 == b.distance2 && a.pos > b.pos);
}

/* A sample: one head of one query. */
struct Sample {
    int head, i, query; /* i: of the captured ones */
    int n, b;           /* tokens it sees; end of its summary */
    size_t ring;

    __device__ Sample(const mai_cu_params &p, const mai_cu_prompt &x, const Prompt &prompt,
                      int query_)
        : head(blockIdx.y), i(query_ - x.first), query(query_), n(prompt.before + query_ + 1),
          b(prompt.far_end(p, query_)), ring(ring_of(p, prompt.slot, head))
    {
    }
};

template <int V>
__device__ double distance2(const float *q, const float *p)
{
    double sum = 0;
#pragma unroll
    for (int j = 0; j < V; j++) {
        const double off = (double)q[j] - (double)p[j];
        sum += off * off;
    }
    return warp_sum(sum);
}

/* The nearest entry of the ring as it stands before the sample is remembered: `made` entries of
 * this capture have taken the place of as many of the oldest. */
template <int V>
__device__ Candidate search(const mai_cu_params &p, const mai_cu_prompt &x, const Prompt &prompt,
                            const Sample &s)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int place = x.place[(size_t)s.i * p.n_heads + s.head], made = place < 0 ? ~place : place;
    const int begin = p.rings.head[s.ring], count = p.rings.count[s.ring];
    Candidate best = {INFINITY, -1, -1, -1};
    float q[V], other[V];
    load_match<V>(p, x, s.i, s.head, q);
    for (int age = warp; age < min(count, p.ring - made); age += WARPS) {
        const int at = begin - 1 - age + (begin - 1 - age < 0 ? p.ring : 0);
        const size_t entry = s.ring * (size_t)p.ring + (size_t)at;
        if (p.rings.meta[entry].end >= s.b) continue;
        load_values<V>(p.q_dtype, p.rings.q + entry * (size_t)(32 * V * dtype_bytes(p.q_dtype)),
                       lane * V, other);
        const Candidate one = {distance2<V>(q, other), p.rings.pos[entry], at, -1};
        if (is_nearer(one, best)) best = one;
    }
    for (int i = warp; i < s.i; i += WARPS) {
        if (x.place[(size_t)i * p.n_heads + s.head] < 0) continue;
        load_match<V>(p, x, i, s.head, other);
        const Candidate one = {distance2<V>(q, other), prompt.before + x.first + i, -1, i};
        if (is_nearer(one, best)) best = one;
    }
    return best;
}

/* What a candidate offers. */
template <int V>
struct Offer {
    Summary<V> summary;
    mai_cu_judged judged;
    int end;

    __device__ Offer(const mai_cu_params &p, const mai_cu_prompt &x, const Prompt &prompt,
                     const Sample &s, const Candidate &from)
    {
        if (from.entry < 0) {
            summary.load(p, x, from.query, s.head);
            judged = {0.0f, share_of(p, x, from.query, s.head, summary.lse)};
            end = prompt.far_end(p, x.first + from.query);
            return;
        }
        const size_t entry = s.ring * (size_t)p.ring + (size_t)from.entry;
        summary.load_vectors(p, p.rings.summary + entry * (size_t)width_of(p));
        summary.lse0 = p.rings.lse0[entry];
        judged = p.rings.judged[entry];
        end = p.rings.meta[entry].end;
    }
};

template <int V>
__device__ __forceinline__ void load_cache(macattn_dtype dtype, const char *row, float *to)
{
    const int lane = threadIdx.x & 31;
    if (dtype != MACATTN_DTYPE_F8_E4M3) return load_values<V>(dtype, row, lane * V, to);
#pragma unroll
    for (int i = 0; i < V; i += 2) {
        const uint16_t two = *(const uint16_t *)(row + lane * V + i);
        const uint32_t wide = Float8::widen(two);
        const float2 x = __half22float2(*(const __half2 *)&wide);
        to[i] = x.x, to[i + 1] = x.y;
    }
}

/* Attention over tokens [t0, t1), a warp's part of them. */
template <int V>
__device__ Sum<V> attend_part(const mai_cu_params &p, const mai_cu_prompt &x, const float *q,
                              int kv_head, int t0, int t1)
{
    const int64_t pages = row_pages(p, x.row);
    const int mask = p.page_shift < 0 ? -1 : (1 << p.page_shift) - 1;
    const float factor = p.scale * LOG2E * p.k_scale;
    Sum<V> sum;
    sum.clear();
#pragma unroll 2
    for (int t = t0 + threadIdx.x / 32; t < t1; t += WARPS) {
        const int64_t page = p.page_shift < 0 ? pages : p.pages[pages + (t >> p.page_shift)];
        const int64_t in = t & mask;
        float k[V], v[V], dot = 0;
        load_cache<V>(p.kv_dtype,
                      p.k + page * p.k_page_stride + in * p.k_token_stride +
                          kv_head * p.k_head_stride,
                      k);
        load_cache<V>(p.kv_dtype,
                      p.v + page * p.v_page_stride + in * p.v_token_stride +
                          kv_head * p.v_head_stride,
                      v);
#pragma unroll
        for (int i = 0; i < V; i++) dot += q[i] * k[i];
        const float s = warp_sum(dot) * factor;
        sum.add(p.softcap.top > 0 ? mai_softcapped(p.softcap, s) : s, v);
    }
    sum.normalise();
    return sum;
}

/* What using the candidate in place of the exact summary would have changed, squared. `o`: of the
 * engine. */
template <int V>
__device__ float used_off2(const mai_cu_params &p, const mai_cu_prompt &x, const Sample &s,
                           const Offer<V> &offer, const float *q, const float *o, Shared &sh)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Sum<V> part = attend_part<V>(p, x, q, s.head / p.group, offer.end, s.b);
#pragma unroll
    for (int i = 0; i < V; i++) sh.o[warp][lane * V + i] = part.o[i];
    if (lane == 0) sh.lse[warp] = part.top;
    __syncthreads();
    Sum<V> used;
    Summary<V> far;
    used.clear();
    used.add((offer.summary.lse0 + key_logit<V>(p, q, offer.summary.kbar)) * LOG2E,
             offer.summary.out);
    for (int w = 0; w < WARPS; w++) used.add(sh.lse[w], sh.o[w] + lane * V);
    used.normalise();
    far.load(p, x, s.i, s.head);
    const float lse = p.lse[(size_t)s.query * p.n_heads + s.head];
    const mai_swap swap = mai_swap_far(far.lse, used.top * LN2, lse);
    float off2 = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        const float off = swap.in * (used.o[i] - o[i]) - swap.out * (far.out[i] - o[i]);
        off2 += off * off;
    }
    return warp_sum(off2);
}

/* Grid: samples, heads. */
template <int D>
__global__ void __launch_bounds__(THREADS)
    show_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    constexpr int V = D / 32;
    __shared__ Shared sh;
    const Prompt prompt(p, x);
    if (prompt.slot < 0) return;
    const int first = prompt.first(p, x), n = x.n_queries - first;
    const int n_samples = mai_prompt_samples(n);
    if ((int)blockIdx.x >= n_samples) return;
    const int query = first + mai_prompt_sample_at(blockIdx.x, n_samples, n);
    if (query < x.first || query >= x.first + x.n) return;
    const Sample s(p, x, prompt, query);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float o[V], q[V];
    load_values<V>(p.out_dtype, p.out + query * p.out_row_stride + s.head * p.out_head_stride,
                   lane * V, o);
    Summary<V>::load_query(p, x, s.i, s.head, q);
    float norm2 = 0;
#pragma unroll
    for (int i = 0; i < V; i++) o[i] /= p.v_scale, norm2 += o[i] * o[i];
    mai_prompt_sample shown = {-1.0, 0.0f, 0.0f, 0.0f, warp_sum(norm2)};
    Candidate best = {INFINITY, -1, -1, -1};
    if (remembers(p, s.head / p.group) && s.n >= p.min_tokens) best = search<V>(p, x, prompt, s);
    if (lane == 0) sh.best[warp] = best;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) {
        if (is_nearer(sh.best[w], best)) best = sh.best[w];
    }
    if (best.pos >= 0 && best.distance2 < (double)p.radius2) {
        const Offer<V> offer(p, x, prompt, s, best);
        shown.distance2 = best.distance2;
        shown.weight = offer.judged.share;
        shown.before = offer.judged.moved;
        shown.off2 = used_off2<V>(p, x, s, offer, q, o, sh);
    }
    if (threadIdx.x == 0) x.samples[(size_t)blockIdx.x * p.n_heads + s.head] = shown;
}

/* One block, a thread for each head, then for each group: the samples in the order of the
 * queries, as the CPU does it. */
__global__ void __launch_bounds__(1024)
    learn_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    __shared__ float unit2;
    mai_record *const records = p.records + (size_t)p.layer * p.n_heads;
    const Prompt prompt(p, x);
    const int n_remembered = x.n_queries - prompt.first(p, x);
    const int n_samples = mai_prompt_samples(n_remembered);
    const int n_shown = p.selects ? mai_select_samples(x.n_queries, n_remembered) : 0;
    if (prompt.slot < 0 || (n_samples == 0 && n_shown == 0)) return;
    for (int h = threadIdx.x; h < p.n_heads; h += blockDim.x) {
        for (int i = 0; i < n_samples; i++)
            mai_note_output(&records[h], x.samples[(size_t)i * p.n_heads + h].norm2);
        for (int i = 0; n_samples == 0 && i < n_shown; i++)
            mai_note_output(&records[h], x.norms[(size_t)i * p.n_heads + h]);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const float of_layer = layer_unit2(records, p.n_heads);
        if (threadIdx.x == 0) unit2 = of_layer;
    }
    __syncthreads();
    for (int kv_head = threadIdx.x; kv_head < p.n_kv_heads; kv_head += blockDim.x) {
        float error2 = 0;
        int n = 0;
        for (int i = 0; i < n_samples; i++) {
            for (int h = kv_head * p.group; h < (kv_head + 1) * p.group; h++) {
                const mai_prompt_sample s = x.samples[(size_t)i * p.n_heads + h];
                if (s.distance2 < 0) continue;
                error2 += mai_record_prompt(&records[h], &s, unit2);
                n++;
            }
        }
        mai_habit_prompt(&p.habits[(size_t)p.layer * p.n_kv_heads + kv_head], error2, n);
        for (int i = 0; i < n_shown; i++) {
            float shown[MAI_THETAS];
            for (int k = 0; k < MAI_THETAS; k++)
                shown[k] = x.shown[((size_t)i * p.n_kv_heads + kv_head) * MAI_THETAS + k] / unit2;
            mai_select_sample(&p.selectors[(size_t)p.layer * p.n_kv_heads + kv_head], shown);
        }
    }
}

} // namespace
} // namespace mai

extern "C" int mai_cu_show_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream)
{
    const dim3 grid(MAI_PROMPT_SAMPLES, (unsigned)p->n_heads);
#define SHOW(D) show_kernel<D><<<grid, mai::THREADS, 0, (cudaStream_t)stream>>>(*p, *x)
    MAI_BY_DIM(p, SHOW);
#undef SHOW
}

extern "C" int mai_cu_learn_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream)
{
    const int threads = p->n_heads < 1024 ? (p->n_heads + 31) / 32 * 32 : 1024;
    mai::learn_kernel<<<1, threads, 0, (cudaStream_t)stream>>>(*p, *x);
    return cudaGetLastError();
}
