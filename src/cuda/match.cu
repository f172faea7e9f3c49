/* SPDX-License-Identifier: Apache-2.0 */
/* Match and decide: for each (row, head), the remembered query nearest to the new one, whether its
 * summary is reused, and the new query's own place in the ring.
 *
 * Reads head_dim + 16 bytes for each of the ring's entries: int8 codes and what bounds their error.
 * Since q = q^ + residual on both sides, the true distance lies within |residual_q| + |residual_p|
 * of the codes' distance, which is computed exactly with byte products. Entries whose lower bound
 * is not above the least upper bound are compared again, in double precision, on the queries as
 * they came: so the decision is the one a plain search would make. There are seldom more than two.
 *
 * A thread block searches one ring after another, three blocks on a multiprocessor. The codes of
 * the next ring are on their way to shared memory as soon as those of this one have been seen;
 * bounds stay in registers. So loads go on while candidates are compared and entries written. */
#include "device/judge.cuh"
#include "device/kv.cuh"
#include "device/ring.cuh"
#include "device/runs.cuh"
#include "schedule.h"

namespace mai {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32, BLOCKS_PER_SM = 3;
constexpr int PIECE_BYTES = 65536; /* codes in shared memory at a time */

struct Nearest {
    double distance2;
    int entry, pos, end;
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
struct alignas(16) Shared {
    float q[D];
    int8_t q8[D];
    Nearest best[WARPS];
    float least[WARPS]; /* upper bounds */
    float scale, residual, norm2;
    int finite, searches, remembers; /* the latter two of the head's group */

    /* Behind it: the codes [n][D], then mai_cu_meta [n], n = min(ring, piece_entries). */
    __device__ int8_t *codes() { return (int8_t *)(this + 1); }
    __device__ mai_cu_meta *meta(int n) { return (mai_cu_meta *)(codes() + (size_t)n * D); }
};

/* One search: a head of a row. */
struct Search {
    int row, head, slot;
    size_t ring;
    int n, b, fresh; /* tokens; mai_far_end; min(p.fresh, b) */
    int next, count; /* of the ring */
    bool keeps;      /* the ring may be used and written */

    __device__ Search(const mai_cu_params &p, int i)
        : row(i / p.n_heads), head(i % p.n_heads), slot(row_slot(p, row)),
          ring(ring_of(p, max(slot, 0), head))
    {
        n = row_tokens(p, row);
        next = slot >= 0 ? p.rings.head[ring] : 0;
        count = slot >= 0 ? p.rings.count[ring] : 0;
        b = mai_far_end(n, p.band, p.fresh);
        fresh = min(p.fresh, b);
        keeps = slot >= 0 && n > 1 && b > fresh;
    }
};

/* Start copying entries [first, first + n) of a ring. */
template <int D>
__device__ void copy_piece(const mai_cu_params &p, Shared<D> &sh, size_t ring, int first, int n)
{
    const char *codes = (const char *)(p.rings.q8 + (ring * (size_t)p.ring + first) * D);
    const char *meta = (const char *)(p.rings.meta + ring * (size_t)p.ring + first);
    const uint32_t to = shared_address(sh.codes());
    const uint32_t to_meta = shared_address(sh.meta(min(p.ring, piece_entries<D>())));
    for (int i = threadIdx.x; i < n; i += THREADS) copy16(to_meta + i * 16, meta + i * 16, true);
    for (int i = threadIdx.x; i < n * (D / 16); i += THREADS) {
        const int row = i / (D / 16), piece = i % (D / 16);
        copy16(to + (row * (D / 16) + piece_at<D / 16>(row, piece)) * 16, codes + i * 16, true);
    }
    copy_commit();
}

/* Whether the group of a head waits in this step (core/policy/judge.h). */
__device__ __forceinline__ bool rests(const mai_cu_params &p, int head)
{
    return p.judges && p.habits[p.layer * p.n_kv_heads + head / p.group].rest > 0;
}

/* The first piece of search i's ring, if there is such a search. */
template <int D>
__device__ void copy_first(const mai_cu_params &p, Shared<D> &sh, int i)
{
    if (i >= p.n_rows * p.n_heads) return;
    const int row = i / p.n_heads, head = i % p.n_heads, slot = row_slot(p, row);
    if (slot >= 0 && row_tokens(p, row) >= p.min_tokens && !rests(p, head))
        copy_piece<D>(p, sh, ring_of(p, slot, head), 0, min(p.ring, piece_entries<D>()));
}

/* Warp 0: what the judge says before the search, as mai_group_searches and
 * mai_group_remembers_step do, a lane for each head. Returns whether there is anything to do. */
template <int D>
__device__ bool ask_group(const mai_cu_params &p, Shared<D> &sh, int head)
{
    const int kv_head = head / p.group, lane = threadIdx.x;
    const mai_record *records = p.records + (size_t)p.layer * p.n_heads + kv_head * p.group;
    const int rest = p.judges ? p.habits[p.layer * p.n_kv_heads + kv_head].rest : 0;
    bool has_budget = true;
    for (int h = lane; p.judges && h < p.group; h += 32)
        has_budget = has_budget && records[h].budget > 0;
    has_budget = __all_sync(ALL, has_budget);
    const bool remembers = has_budget && rest <= MAI_WAKE;
    if (lane == 0) sh.remembers = remembers, sh.searches = has_budget && rest == 0;
    return remembers;
}

/* Encode the query; warp 0. */
template <int D>
__device__ EncodedQuery<D / 32> take_query(Shared<D> &sh, const float *q)
{
    constexpr int V = D / 32;
    const int lane = threadIdx.x & 31;
    const EncodedQuery<V> e = encode_query<V>(q);
    const bool finite = all_finite<V>(q, e.scale);
#pragma unroll
    for (int i = 0; i < V; i++) sh.q[lane * V + i] = q[i], sh.q8[lane * V + i] = e.q8[i];
    if (lane == 0)
        sh.scale = e.scale, sh.residual = e.residual, sh.norm2 = e.norm2, sh.finite = finite;
    return e;
}

/* What a thread knows of its entries of a piece, threadIdx.x + k * THREADS: lower bounds of the
 * distance, infinite where the entry must not be used, and the end of what the summary covers. */
template <int D>
struct Bounds {
    static constexpr int N = piece_entries<D>() / THREADS;
    float low[N];
    int end[N];

    /* One entry a lane: pieces are swizzled, so that lanes read different banks. Returns the
     * thread's least upper bound. */
    __device__ float scan(const mai_cu_params &p, Shared<D> &sh, const Search &x, int first, int n)
    {
        constexpr int PIECES = D / 16;
        const int4 *codes = (const int4 *)sh.codes(), *mine = (const int4 *)sh.q8;
        const mai_cu_meta *meta = sh.meta(min(p.ring, piece_entries<D>()));
        const int newest = x.next == 0 ? p.ring - 1 : x.next - 1;
        float least = INFINITY;
#pragma unroll
        for (int k = 0; k < N; k++) {
            const int i = min((int)threadIdx.x + k * THREADS, n - 1);
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
            /* Made at an earlier token, of which `end` tells: it is t + 1 - band there. */
            const bool usable =
                (int)threadIdx.x + k * THREADS < n && age < x.count && about.end < x.b;
            low[k] = usable ? sqrtf(fmaxf(distance2 - slack, 0.0f)) * 0.9999f - off : INFINITY;
            end[k] = about.end;
            if (usable) least = fminf(least, sqrtf(fmaxf(distance2, 0.0f) + slack) * 1.0001f + off);
        }
        return least;
    }

    /* The nearest of those whose lower bound is at most `least`; each is compared by one warp. */
    __device__ void compare(const mai_cu_params &p, const Shared<D> &sh, const Search &x, int first,
                            float least, Nearest *best) const
    {
        constexpr int V = D / 32;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < N; k++) {
            unsigned left = __ballot_sync(ALL, low[k] <= least && low[k] < INFINITY);
#pragma unroll 1
            for (; left != 0; left &= left - 1) {
                const int from = __ffs(left) - 1, i = first + k * THREADS + warp * 32 + from;
                const size_t entry = x.ring * (size_t)p.ring + (size_t)i;
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
                const Nearest one = {warp_sum(sum), i, pos, __shfl_sync(ALL, end[k], from)};
                if (is_nearer(one, *best)) *best = one;
            }
        }
    }
};

/* The nearest entry that each warp found, in sh.best. Its codes are in shared memory or on their
 * way there; afterwards the next search's are. */
template <int D>
__device__ void search(const mai_cu_params &p, Shared<D> &sh, const Search &x, bool wanted,
                       int next)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, piece = piece_entries<D>();
    Nearest best = {INFINITY, -1, -1, 0};
    /* What is certainly not within the radius need not be compared. */
    float least = sqrtf(p.radius2) * 1.0001f;
#pragma unroll 1
    for (int first = 0; wanted && first < p.ring; first += piece) {
        const int n = min(piece, p.ring - first);
        copy_wait<0>();
        __syncthreads();
        Bounds<D> bounds;
        float bound = bounds.scan(p, sh, x, first, n);
        bound = -warp_max(-bound);
        if (lane == 0) sh.least[warp] = bound;
        __syncthreads();
        if (first + piece < p.ring) {
            copy_piece<D>(p, sh, x.ring, first + piece, min(piece, p.ring - first - piece));
        } else {
            copy_first<D>(p, sh, next);
        }
        for (int w = 0; w < WARPS; w++) least = fminf(least, sh.least[w]);
        bounds.compare(p, sh, x, first, least, &best);
    }
    if (!wanted) {
        copy_wait<0>();
        __syncthreads();
        copy_first<D>(p, sh, next);
    }
    if (lane == 0) sh.best[warp] = best;
    __syncthreads();
}

/* What the judge expects of the nearest; an infinite error if it must not be used. */
__device__ mai_judgement judge(const mai_cu_params &p, const Search &x, const Nearest &best)
{
    const mai_record record = p.records[(size_t)p.layer * p.n_heads + x.head];
    const mai_habit habit = p.habits[(size_t)p.layer * p.n_kv_heads + x.head / p.group];
    const mai_cu_judged judged = p.rings.judged[x.ring * (size_t)p.ring + (size_t)best.entry];
    mai_judgement j = mai_expect(&record, best.distance2, judged.share, judged.moved);
    if (record.n_samples < MAI_MIN_SAMPLES || mai_is_check(&habit, x.row, p.n_rows))
        j.error = INFINITY;
    return j;
}

/* Warp 0: write the decision, and begin the new entry. */
template <int D>
__device__ void decide(const mai_cu_params &p, const Shared<D> &sh, const Search &x,
                       const EncodedQuery<D / 32> &e, const float *q)
{
    const int lane = threadIdx.x;
    Nearest best = sh.best[0];
    for (int w = 1; w < WARPS; w++) {
        if (is_nearer(sh.best[w], best)) best = sh.best[w];
    }
    const bool hit = best.entry >= 0 && best.distance2 < (double)p.radius2;
    const bool remembers = x.keeps && sh.remembers && sh.finite;
    if (lane == 0) {
        const size_t at = (size_t)x.row * p.n_heads + x.head;
        p.found[at] = macattn_cuda_decision{hit ? best.end : x.fresh, hit ? best.entry : -1,
                                            best.entry >= 0 ? (float)best.distance2 : INFINITY,
                                            remembers ? x.next : -1};
        if (p.judges && hit) p.judgements[at] = judge(p, x, best);
    }
    /* The summary is wanted next, by one of the blocks that attend. */
    if (hit && 32 * lane < width_of(p)) {
        const size_t entry = x.ring * (size_t)p.ring + (size_t)best.entry;
        const float *summary = p.rings.summary + entry * (size_t)width_of(p) + 32 * lane;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(summary));
    }
    if (remembers) ring_begin<D / 32>(p, x.ring, x.next, e, q, x.n - 1, x.b);
}

/* One warp of one block: before any block that attends learns anything. */
__device__ void note_unit(const mai_cu_params &p)
{
    if (!p.judges || blockIdx.x != 0 || threadIdx.x / 32 != WARPS - 1) return;
    const float unit2 = layer_unit2(p.records + (size_t)p.layer * p.n_heads, p.n_heads);
    if (threadIdx.x % 32 == 0) *p.unit2 = unit2;
}

/* One warp of one block: which runs each row has, and where what is worked out of them goes. */
__device__ void plan_runs(const mai_cu_params &p)
{
    const int lane = threadIdx.x & 31;
    if (!p.selects || blockIdx.x != 0 || threadIdx.x / 32 != WARPS - 2) return;
    int segments = 0, pieces = 0; /* of the rows before */
    for (int r0 = 0; r0 < p.n_rows; r0 += 32) {
        const int row = r0 + lane;
        const bool is_row = row < p.n_rows;
        const int n = is_row ? reserve_runs(p, row_slot(p, row), row_tokens(p, row)) : 0;
        const int mine = segments_for(n);
        int s = mine, k = is_row ? max(1, (n + MAI_CU_PIECE - 1) / MAI_CU_PIECE) : 0;
        for (int i = 1; i < 32; i <<= 1) {
            const int s_below = __shfl_up_sync(ALL, s, i), k_below = __shfl_up_sync(ALL, k, i);
            if (lane >= i) s += s_below, k += k_below;
        }
        if (is_row) {
            p.row_runs[row] =
                mai_cu_row_runs{n, (segments + s - mine) * MAI_CU_SEGMENT, pieces + k};
        }
        segments += __shfl_sync(ALL, s, 31), pieces += __shfl_sync(ALL, k, 31);
    }
}

template <int D>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    match_kernel(const __grid_constant__ mai_cu_params p)
{
    extern __shared__ __align__(16) unsigned char memory[];
    Shared<D> &sh = *(Shared<D> *)memory;
    const int n_searches = p.n_rows * p.n_heads;
    let_next_start();
    note_unit(p);
    plan_runs(p);
#pragma unroll 1
    for (int i = blockIdx.x; i < n_searches; i += gridDim.x) {
        const Search x(p, i);
        float q[D / 32];
        EncodedQuery<D / 32> e;
        if (threadIdx.x < 32) {
            load_values<D / 32>(p.q_dtype,
                                p.q_match + x.row * p.m_row_stride + x.head * p.m_head_stride,
                                threadIdx.x * (D / 32), q);
        }
        if (i == blockIdx.x) copy_first<D>(p, sh, i);
        if (threadIdx.x < 32 && ask_group<D>(p, sh, x.head)) e = take_query<D>(sh, q);
        __syncthreads();
        const bool wanted =
            x.keeps && sh.searches && sh.finite && x.n >= p.min_tokens && p.radius2 > 0;
        search<D>(p, sh, x, wanted, i + gridDim.x);
        if (threadIdx.x < 32) decide<D>(p, sh, x, e, q);
        __syncthreads();
    }
}

template <int D>
cudaError_t launch(const mai_cu_params *p, cudaStream_t stream)
{
    const int entries = p->ring < piece_entries<D>() ? p->ring : piece_entries<D>();
    const size_t bytes = sizeof(Shared<D>) + (size_t)entries * (D + sizeof(mai_cu_meta));
    const int searches = p->n_heads * p->n_rows, room = p->n_sms * BLOCKS_PER_SM;
    const int blocks = searches < room ? searches : room;
    match_kernel<D><<<blocks, THREADS, bytes, stream>>>(*p);
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
