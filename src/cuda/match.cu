/* SPDX-License-Identifier: Apache-2.0 */
/* Match and decide: for each (row, head), the remembered query nearest to the new one, whether its summary
 * is reused, and the new query's own place in the ring. One thread block each.
 *
 * Reads head_dim + 16 bytes for each of the ring's entries: int8 codes and what bounds their error. Since
 * q = q^ + residual on both sides, the true distance lies within |residual_q| + |residual_p| of the codes'
 * distance, which is computed exactly with byte products. Entries whose lower bound is not above the least
 * upper bound are compared again, in double precision, on the queries as they came: so the decision is the
 * one a plain search would make. There are seldom more than two.
 *
 * The codes are on their way to shared memory before anything else is known: what bounds the time is that
 * each block waits for memory four times in a row, so three blocks a multiprocessor take turns. */
#include "kv.cuh"
#include "ring.cuh"
#include "schedule.h"

namespace mai {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int PIECE_BYTES = 65536; /* codes in shared memory at a time */

struct Nearest {
    double distance2;
    int entry, pos;
};

__device__ __forceinline__ bool is_nearer(const Nearest &a, const Nearest &b)
{
    return a.distance2 < b.distance2 || (a.distance2 == b.distance2 && a.pos > b.pos);
}

/* Entries that are in shared memory at a time. */
template <int D>
__host__ __device__ constexpr int piece_entries()
{
    return PIECE_BYTES / D;
}

template <int D>
struct Shared {
    float q[D];
    int8_t q8[D];
    Nearest best[WARPS];
    float least[WARPS]; /* upper bounds */
    float scale, residual, norm2;
    int finite;

    /* Behind it: the codes [n][D], then mai_cu_meta [n], n = min(ring, piece_entries). */
    __device__ int8_t *codes() { return (int8_t *)(this + 1); }
    __device__ mai_cu_meta *meta(int n) { return (mai_cu_meta *)(codes() + (size_t)n * D); }
};

/* Start copying entries [first, first + n). */
template <int D>
__device__ void copy_piece(const mai_cu_params &p, Shared<D> &sh, size_t ring, int first, int n)
{
    const char *codes = (const char *)(p.rings.q8 + (ring * (size_t)p.ring + first) * D);
    const char *meta = (const char *)(p.rings.meta + ring * (size_t)p.ring + first);
    const uint32_t to = shared_address(sh.codes());
    const uint32_t to_meta = shared_address(sh.meta(min(p.ring, piece_entries<D>())));
    for (int i = threadIdx.x; i < n * (D / 16); i += THREADS) {
        const int row = i / (D / 16), piece = i % (D / 16);
        copy16(to + (row * (D / 16) + piece_at<D / 16>(row, piece)) * 16, codes + i * 16, true);
    }
    for (int i = threadIdx.x; i < n; i += THREADS) copy16(to_meta + i * 16, meta + i * 16, true);
    copy_commit();
}

/* Load and encode the query; warp 0. */
template <int D>
__device__ EncodedQuery<D / 32> take_query(const mai_cu_params &p, Shared<D> &sh, int row, int head,
                                           float *q)
{
    constexpr int V = D / 32;
    const int lane = threadIdx.x & 31;
    load_values<V>(p.q_dtype, p.q_match + row * p.m_row_stride + head * p.m_head_stride, lane * V,
                   q);
    const EncodedQuery<V> e = encode_query<V>(q);
    const bool finite = all_finite<V>(q, e.scale);
#pragma unroll
    for (int i = 0; i < V; i++) sh.q[lane * V + i] = q[i], sh.q8[lane * V + i] = e.q8[i];
    if (lane == 0) sh.scale = e.scale, sh.residual = e.residual, sh.norm2 = e.norm2, sh.finite = finite;
    return e;
}

/* Lower bounds of the piece's entries, left in their meta's `scale`; returns the thread's least upper bound.
 * One entry a lane: pieces are swizzled, so that lanes read different banks. */
template <int D>
__device__ float scan(const mai_cu_params &p, Shared<D> &sh, int first, int n, int newest, int count,
                      int b)
{
    constexpr int PIECES = D / 16;
    const int4 *codes = (const int4 *)sh.codes(), *mine = (const int4 *)sh.q8;
    mai_cu_meta *meta = sh.meta(min(p.ring, piece_entries<D>()));
    float least = INFINITY;
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += THREADS) {
        int even = 0, odd = 0;
#pragma unroll
        for (int j = 0; j < PIECES; j++) {
            const int4 code = codes[i * PIECES + piece_at<PIECES>(i, j)], q = mine[j];
            even = __dp4a(code.x, q.x, even), odd = __dp4a(code.y, q.y, odd);
            even = __dp4a(code.z, q.z, even), odd = __dp4a(code.w, q.w, odd);
        }
        const mai_cu_meta about = meta[i];
        int age = newest - (first + i); /* 0: the newest */
        if (age < 0) age += p.ring;
        const float sum2 = sh.norm2 + about.norm2, slack = 1e-6f * sum2;
        const float distance2 = sum2 - 2.0f * sh.scale * about.scale * (float)(even + odd);
        const float off = sh.residual + about.residual;
        /* Made at an earlier token: end < b. (A summary made at token t ends at t + 1 - band.) */
        const bool usable = age < count && about.end < b;
        meta[i].scale = usable ? sqrtf(fmaxf(distance2 - slack, 0.0f)) * 0.9999f - off : INFINITY;
        if (usable) least = fminf(least, sqrtf(fmaxf(distance2, 0.0f) + slack) * 1.0001f + off);
    }
    return least;
}

/* The nearest of the piece's entries whose lower bound is at most `least`; each is compared by one warp. */
template <int D>
__device__ void compare(const mai_cu_params &p, Shared<D> &sh, size_t ring, int first, int n,
                        float least, Nearest *best)
{
    constexpr int V = D / 32;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const mai_cu_meta *meta = sh.meta(min(p.ring, piece_entries<D>()));
    for (int i0 = warp * 32; i0 < n; i0 += THREADS) {
        unsigned left = __ballot_sync(ALL, i0 + lane < n && meta[min(i0 + lane, n - 1)].scale <= least);
        for (; left != 0; left &= left - 1) {
            const int i = first + i0 + __ffs(left) - 1;
            const size_t entry = ring * (size_t)p.ring + (size_t)i;
            float q[V];
            load_values<V>(p.q_dtype, p.rings.q + entry * (size_t)(D * dtype_bytes(p.q_dtype)),
                           lane * V, q);
            const int pos = p.rings.pos[entry];
            double sum = 0;
#pragma unroll
            for (int j = 0; j < V; j++) {
                const double off = (double)sh.q[lane * V + j] - (double)q[j];
                sum += off * off;
            }
            const Nearest x = {warp_sum(sum), i, pos};
            if (is_nearer(x, *best)) *best = x;
        }
    }
}

/* The nearest entry of a whole ring, known to every warp's lane 0 in sh.best. */
template <int D>
__device__ void search(const mai_cu_params &p, Shared<D> &sh, size_t ring, int newest, int count,
                       int b)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, piece = piece_entries<D>();
    Nearest best = {INFINITY, -1, -1};
    /* What is certainly not within the radius need not be compared. */
    float least = sqrtf(p.radius2) * 1.0001f;
    for (int first = 0; first < p.ring; first += piece) {
        const int n = min(piece, p.ring - first);
        if (first > 0) {
            __syncthreads();
            copy_piece<D>(p, sh, ring, first, n);
        }
        copy_wait<0>();
        __syncthreads();
        float bound = scan<D>(p, sh, first, n, newest, count, b);
        bound = -warp_max(-bound);
        if (lane == 0) sh.least[warp] = bound;
        __syncthreads();
        for (int w = 0; w < WARPS; w++) least = fminf(least, sh.least[w]);
        compare<D>(p, sh, ring, first, n, least, &best);
    }
    if (lane == 0) sh.best[warp] = best;
    __syncthreads();
}

template <int D>
__global__ void __launch_bounds__(THREADS, 3) match_kernel(const __grid_constant__ mai_cu_params p)
{
    constexpr int V = D / 32;
    extern __shared__ __align__(16) unsigned char memory[];
    Shared<D> &sh = *(Shared<D> *)memory;
    const int head = blockIdx.x, row = blockIdx.y, slot = row_slot(p, row);
    macattn_cuda_decision *decision = p.decisions + (size_t)row * p.n_heads + head;
    let_next_start();
    const size_t ring = ring_of(p, max(slot, 0), head);
    if (slot >= 0) copy_piece<D>(p, sh, ring, 0, min(p.ring, piece_entries<D>()));
    const int n = row_tokens(p, row);
    const int b = mai_far_end(n, p.band, p.fresh), fresh = min(p.fresh, b);
    const bool keeps = slot >= 0 && n > 1 && b > fresh;
    const int next = slot >= 0 ? p.rings.head[ring] : 0;
    const int count = slot >= 0 ? p.rings.count[ring] : 0;
    float q[V];
    EncodedQuery<V> e;
    if (threadIdx.x < 32) e = take_query<D>(p, sh, row, head, q);
    __syncthreads();
    const bool searches = keeps && sh.finite && n >= p.min_tokens && p.radius2 > 0;
    if (searches) search<D>(p, sh, ring, next == 0 ? p.ring - 1 : next - 1, count, b);
    else copy_wait<0>();
    if (threadIdx.x >= 32) return;
    Nearest best = {INFINITY, -1, -1};
    for (int w = 0; searches && w < WARPS; w++) {
        if (is_nearer(sh.best[w], best)) best = sh.best[w];
    }
    const bool hit = best.entry >= 0 && best.distance2 < (double)p.radius2;
    const int start = hit ? p.rings.meta[ring * (size_t)p.ring + best.entry].end : fresh;
    const bool remembers = keeps && sh.finite;
    if (threadIdx.x == 0) {
        *decision = macattn_cuda_decision{start, hit ? best.entry : -1,
                                          best.entry >= 0 ? (float)best.distance2 : INFINITY,
                                          remembers ? next : -1};
    }
    /* The summary is wanted next, by one of the blocks that attend. */
    if (hit) {
        const char *summary =
            (const char *)(p.rings.out + (ring * (size_t)p.ring + best.entry) * D + 4 * threadIdx.x);
        if (4 * threadIdx.x < D && threadIdx.x % 8 == 0)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(summary));
    }
    /* After the entry that it may replace was read. */
    __syncwarp();
    if (remembers) ring_begin<V>(p, ring, next, e, q, n - 1, b);
}

template <int D>
cudaError_t launch(const mai_cu_params *p, cudaStream_t stream)
{
    const int entries = p->ring < piece_entries<D>() ? p->ring : piece_entries<D>();
    const size_t bytes = sizeof(Shared<D>) + (size_t)entries * (D + sizeof(mai_cu_meta));
    match_kernel<D><<<dim3(p->n_heads, p->n_rows), THREADS, bytes, stream>>>(*p);
    return cudaGetLastError();
}

template <int D>
cudaError_t prepare()
{
    return cudaFuncSetAttribute(
        match_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
        (int)(sizeof(Shared<D>) + (size_t)piece_entries<D>() * (D + sizeof(mai_cu_meta))));
}

} // namespace
} // namespace mai

extern "C" int mai_cu_match_prepare(int head_dim)
{
    switch (head_dim) {
    case 64: return mai::prepare<64>();
    case 128: return mai::prepare<128>();
    case 256: return mai::prepare<256>();
    default: return cudaErrorInvalidValue;
    }
}

extern "C" int mai_cu_match_launch(const mai_cu_params *p, void *stream)
{
    const cudaStream_t s = (cudaStream_t)stream;
    switch (p->head_dim) {
    case 64: return mai::launch<64>(p, s);
    case 128: return mai::launch<128>(p, s);
    case 256: return mai::launch<256>(p, s);
    default: return cudaErrorInvalidValue;
    }
}
