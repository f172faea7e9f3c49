/* SPDX-License-Identifier: Apache-2.0 */
/* Select (core/policy/select.h): for each group that may not reuse, and each of its runs, whether
 * it is read or stands in for its tokens; between the search, which says what may be reused, and
 * the kernel that attends.
 *
 * Thread blocks score pieces of MAI_CU_PIECE runs (device/score.cuh), with outliers or without;
 * before that they make those that are missing. The block that scores the last piece of a group knows the estimate of the
 * whole, and lists what is read. Scores of what is read become -inf: what is left stands
 * in. */
#include "device/score.cuh"

namespace mai
{
namespace
{

constexpr int THREADS = SCORE_THREADS, WARPS = SCORE_WARPS;
constexpr int WAVE = 4 * THREADS, WAVES = 8; /* runs that are put to the threshold together */

/* What a block is about: pieces of a group's runs in a row, from `piece` on. */
struct Piece {
    int row, kv_head, piece, n_pieces;
    int n_runs, first, n, b; /* first: mai_cu_row_runs; n, b: tokens, mai_far_end */
    int first_piece;         /* of the row */
    mai_cu_choice choice;    /* so far */
    bool looks, checks;      /* looks: there is something to score */
};

template <int D>
struct Shared {
    ScoreShared<D> score;
    Piece x;
    float least[MAI_CU_MOST_GROUP]; /* before: the shares of the newest summaries */
    uint32_t counts[WARPS][WAVES / 4];
    int is_last;
};

/* A warp: which the i-th piece is. */
__device__ void find_piece(const mai_cu_params &p, int i, Piece *x)
{
    const int lane = threadIdx.x & 31;
    int row = 0;
    for (int r0 = 0; r0 < p.n_rows; r0 += 32) {
        const int r = min(r0 + lane, p.n_rows - 1);
        const unsigned after = __ballot_sync(ALL, (int64_t)p.row_runs[r].pieces * p.n_kv_heads > i);
        row = r0 + __ffs(after) - 1;
        if (after) break;
    }
    const mai_cu_row_runs here = p.row_runs[row];
    const int before = row > 0 ? p.row_runs[row - 1].pieces : 0, in_row = i - before * p.n_kv_heads;
    x->row = row;
    x->n_pieces = here.pieces - before;
    x->kv_head = in_row / x->n_pieces;
    x->piece = in_row % x->n_pieces;
    x->n_runs = here.n_runs, x->first = here.first, x->first_piece = before;
    x->n = row_tokens(p, row);
    x->b = x->n - p.band;
}

/* Warp 0: what the judge says of the group's candidates (judge.h), and whether there may be a
 * selection instead. */
__device__ void choose(const mai_cu_params &p, Piece *x)
{
    const int lane = threadIdx.x;
    const size_t head0 = (size_t)x->row * p.n_heads + x->kv_head * p.group;
    const size_t group = (size_t)p.layer * p.n_kv_heads + x->kv_head;
    const mai_record *records = p.records + (size_t)p.layer * p.n_heads + x->kv_head * p.group;
    const mai_selector selector = p.selectors[group];
    const int n_scored = x->n_runs - mai_select_first(min(p.fresh, max(x->b, 0)), MAI_CU_RUN);
    bool all = true;
    float error2 = 0;
    for (int h0 = 0; h0 < p.group; h0 += 32) {
        const size_t head = head0 + min(h0 + lane, p.group - 1);
        const bool found = __ldcg(&p.found[head].entry) >= 0;
        const float error = __ldcg(&p.judgements[head].error); /* of no account if not found */
        all = __all_sync(ALL, found) && all;
        for (int h = 0; h < min(32, p.group - h0); h++) {
            const float of = __shfl_sync(ALL, error, h);
            error2 += of * of;
        }
    }
    const mai_outcome outcome = !all                       ? MAI_NO_CANDIDATE
                                : error2 <= (float)p.group ? MAI_USED
                                                           : MAI_REFUSED;
    mai_cu_choice choice = {outcome, -1, 0, 0, x->first, x->n_runs, 0.0f, 0, 0};
    x->looks = x->checks = false;
    const bool compares =
        outcome == MAI_REFUSED && mai_is_check(&p.habits[group], x->row, p.n_rows);
    if (n_scored > 0 && selector.rest == 0 && outcome != MAI_USED && !compares &&
        mai_group_remembers(records, p.group)) {
        choice.k = mai_select_threshold(&selector, records, p.group);
        x->looks = choice.k >= 0;
        x->checks = x->looks && mai_select_is_check(&selector, x->row, p.n_rows);
        if (x->looks) choice.error = mai_select_error(&selector, choice.k);
    }
    x->choice = choice;
}

__device__ Scored scored_of(const mai_cu_params &p, const Piece &x)
{
    Scored s;
    s.slot = max(row_slot(p, x.row), 0);
    s.kv_head = x.kv_head;
    s.n_runs = x.n_runs;
    s.first = mai_select_first(min(p.fresh, x.b), MAI_CU_RUN);
    s.pages = row_pages(p, x.row);
    s.q = p.q + x.row * p.q_row_stride + (int64_t)x.kv_head * p.group * p.q_head_stride;
    s.q_head_stride = p.q_head_stride;
    s.stride = segments_for(x.n_runs) * MAI_CU_SEGMENT;
    s.scores = p.scores + (size_t)x.first * p.n_heads + (size_t)x.kv_head * p.group * s.stride;
    s.piece_lse = p.piece_lse + (size_t)x.first_piece * p.n_heads + x.kv_head * p.group;
    return s;
}

/* The share of a head's newest summary in the result it was made for. */
__device__ float newest_share(const mai_cu_params &p, int slot, int head)
{
    const size_t ring = ring_of(p, slot, head);
    if (p.rings.count[ring] == 0) return 1.0f;
    const int next = p.rings.head[ring], newest = next == 0 ? p.ring - 1 : next - 1;
    return p.rings.judged[ring * (size_t)p.ring + (size_t)newest].share;
}

/* All warps but the first, while that one chooses: what will be wanted if the group selects. */
template <int D, bool OUTLIERS>
__device__ void prefetch(const mai_cu_params &p, const Piece &x, float *shares)
{
    const int i = threadIdx.x - 32, slot = max(row_slot(p, x.row), 0);
    for (int h = i; h < p.group; h += THREADS - 32)
        shares[h] = newest_share(p, slot, x.kv_head * p.group + h);
    const int run = x.piece * MAI_CU_PIECE + i;
    if (run >= x.n_runs || i >= 16 * WARPS) return;
    const size_t row = run_row(p, slot, x.kv_head, run);
    for (int at = 0; at < D; at += 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.runs.k + row * D + at));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p.runs.k_scale + row * (D / 32)));
    for (int at = 0; OUTLIERS && at < D; at += 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.runs.outlier + row * D + at));
    if (OUTLIERS)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p.runs.outlier_scale + row * (D / 32)));
    if (i == 0)
        asm volatile(
            "prefetch.global.L2 [%0];" ::"l"(p.runs.common + runs_of(p, slot, x.kv_head) * D));
}

/* Which of up to WAVES * WAVE runs from `run0` on are read: a thread's four of each wave. */
__device__ uint32_t mark_runs(const mai_cu_params &p, const Scored &s, const float *least, int run0)
{
    uint32_t below = ~0u;
#pragma unroll 2
    for (int h = 0; h < p.group; h++) {
        const float *scores = s.scores + (size_t)h * s.stride;
        float4 four[WAVES];
#pragma unroll
        for (int w = 0; w < WAVES; w++) {
            const int run = run0 + w * WAVE + 4 * (int)threadIdx.x;
            four[w] = make_float4(0, 0, 0, 0);
            if (run < s.stride) four[w] = __ldcg((const float4 *)(scores + run));
        }
#pragma unroll
        for (int w = 0; w < WAVES; w++) {
            const bool is[4] = {four[w].x < least[h], four[w].y < least[h], four[w].z < least[h],
                                four[w].w < least[h]};
#pragma unroll
            for (int i = 0; i < 4; i++) below &= is[i] ? ~0u : ~(1u << (4 * w + i));
        }
    }
#pragma unroll
    for (int w = 0; w < WAVES; w++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int run = run0 + w * WAVE + 4 * (int)threadIdx.x + i;
            if (run < s.first || run >= s.n_runs) below |= 1u << (4 * w + i);
        }
    }
    return ~below;
}

/* Where a thread's runs of each wave come in the list: exclusive sums over the block, in the order
 * of the runs, from `n` on. Returns how many are listed then. */
__device__ int place_runs(uint32_t read, int n, uint32_t (*counts)[WAVES / 4], int *at)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    static_assert(4 * 32 < 256, "a warp's counts of four waves are added in the bytes of a word");
#pragma unroll
    for (int four = 0; four < WAVES / 4; four++) {
        uint32_t mine = 0;
#pragma unroll
        for (int w = 0; w < 4; w++)
            mine |= (uint32_t)__popc(read >> (16 * four + 4 * w) & 15u) << (8 * w);
        uint32_t sum = mine;
#pragma unroll
        for (int i = 1; i < 32; i <<= 1) {
            const uint32_t other = __shfl_up_sync(ALL, sum, i);
            if (lane >= i) sum += other;
        }
#pragma unroll
        for (int w = 0; w < 4; w++) at[4 * four + w] = (int)((sum - mine) >> (8 * w) & 255u);
        if (lane == 31) counts[warp][four] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WAVES; w++) {
        at[w] += n;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            const int count = (int)(counts[i][w / 4] >> (8 * (w % 4)) & 255u);
            if (i < warp) at[w] += count;
            n += count;
        }
    }
    __syncthreads();
    return n;
}

/* List what is read, which does not stand in. */
__device__ void list_runs(const mai_cu_params &p, const Scored &s, int run0, uint32_t read,
                          const int *at, int32_t *list)
{
#pragma unroll
    for (int w = 0; w < WAVES; w++) {
        int n = at[w];
        for (uint32_t left = read >> (4 * w) & 15u; left != 0; left &= left - 1) {
            const int run = run0 + w * WAVE + 4 * (int)threadIdx.x + __ffs(left) - 1;
            list[n++] = run;
            for (int h = 0; h < p.group; h++) s.scores[(size_t)h * s.stride + run] = -INFINITY;
        }
    }
}

/* All pieces of a group are scored: the least score that is read, of each head. Whether these are
 * numbers. */
template <int D>
__device__ bool find_least(const mai_cu_params &p, const Scored &s, Shared<D> &sh)
{
    const Piece &x = sh.x;
    bool finite = true;
    for (int h = threadIdx.x / 32; h < p.group; h += WARPS) {
        const int head = x.kv_head * p.group + h;
        const float total = mai_select_total(all_pieces(p, s, h), sh.least[h]);
        const float least = mai_select_least(total, x.choice.k) * LOG2E;
        __syncwarp(); /* all lanes have read it */
        if (threadIdx.x % 32 == 0)
            sh.least[h] = p.least[(size_t)x.row * p.n_heads + head] = least;
        finite = finite && isfinite(total);
    }
    return __syncthreads_and(finite);
}

/* Then what the group reads. */
template <int D>
__device__ __noinline__ void pick(const mai_cu_params &p, const Scored &s, Shared<D> &sh)
{
    const Piece &x = sh.x;
    const int fresh_end = min(p.fresh, x.b), n_scored = s.n_runs - s.first;
    const bool always = fresh_end == 0 || fresh_end % MAI_CU_RUN != 0;
    int32_t *list = p.lists + (size_t)x.first * p.n_kv_heads + (size_t)x.kv_head * s.stride;
    mai_cu_choice choice = x.choice;
    int n = always;
    bool too_much = !find_least<D>(p, s, sh);
    for (int run0 = 0; run0 < s.n_runs && !too_much; run0 += WAVES * WAVE) {
        int at[WAVES];
        const uint32_t read = mark_runs(p, s, sh.least, run0);
        n = place_runs(read, n, sh.counts, at);
        too_much = mai_select_too_much(n - always, n_scored);
        if (!too_much) list_runs(p, s, run0, read, at, list);
    }
    if (threadIdx.x != 0) return;
    choice.too_much = too_much;
    if (!too_much) {
        const int gap = x.b - s.n_runs * MAI_CU_RUN;
        if (always) list[0] = s.first - 1;
        if (gap > 0) list[n] = s.n_runs;
        choice.passed_by = choice.outcome == MAI_REFUSED;
        choice.outcome = x.checks ? MAI_CHECKED : MAI_SELECTED;
        choice.listed = n * MAI_CU_RUN + gap;
        choice.n_rest = n_scored - (n - always);
    }
    int32_t *made = p.runs.made + runs_of(p, s.slot, s.kv_head);
    p.choices[(size_t)x.row * p.n_kv_heads + x.kv_head] = choice;
    *made = max(*made, s.n_runs);
}

/* Each block takes as many pieces as any, one after the other, those of a group together. */
template <int D, bool OUTLIERS>
__global__ void __launch_bounds__(THREADS, D == 256 ? 1 : 2)
    select_kernel(const __grid_constant__ mai_cu_params p)
{
    __shared__ Shared<D> sh;
    wait_for_previous();
    let_next_start();
    const int64_t all = (int64_t)p.row_runs[p.n_rows - 1].pieces * p.n_kv_heads;
    const int end = (int)(all * (blockIdx.x + 1) / gridDim.x);
    int n;
#pragma unroll 1
    for (int i = (int)(all * blockIdx.x / gridDim.x); i < end; i += n) {
        __syncthreads();
        Piece x;
        find_piece(p, i, &x);
        if (threadIdx.x < 32) {
            choose(p, &x);
            if (threadIdx.x == 0) sh.x = x;
        } else {
            prefetch<D, OUTLIERS>(p, x, sh.least);
        }
        __syncthreads();
        const size_t row_kv = (size_t)sh.x.row * p.n_kv_heads + sh.x.kv_head;
        n = min(end - i, sh.x.n_pieces - sh.x.piece);
        if (!sh.x.looks) {
            if (sh.x.piece == 0 && threadIdx.x == 0) p.choices[row_kv] = sh.x.choice;
            continue;
        }
        const Scored s = scored_of(p, sh.x);
        score_pieces<D, OUTLIERS>(p, s, sh.x.piece, n, sh.score);
        if (threadIdx.x == 0) {
            __threadfence();
            const int before = (int)atomicAdd(&p.scored[row_kv], (unsigned)n);
            sh.is_last = before + n == sh.x.n_pieces;
            if (sh.is_last) p.scored[row_kv] = 0;
            __threadfence();
        }
        __syncthreads();
        if (sh.is_last) pick<D>(p, s, sh);
    }
}

template <bool OUTLIERS>
const void *kernel_with(int head_dim)
{
    switch (head_dim) {
    case 64: return (const void *)select_kernel<64, OUTLIERS>;
    case 128: return (const void *)select_kernel<128, OUTLIERS>;
    case 256: return (const void *)select_kernel<256, OUTLIERS>;
    default: return nullptr;
    }
}

const void *kernel_of(int head_dim, bool outliers)
{
    return outliers ? kernel_with<true>(head_dim) : kernel_with<false>(head_dim);
}

} // namespace
} // namespace mai

extern "C" int mai_cu_select_prepare(int head_dim, int outliers, int *n_blocks)
{
    const void *kernel = mai::kernel_of(head_dim, outliers != 0);
    if (!kernel) return cudaErrorInvalidValue;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(n_blocks, kernel, mai::THREADS, 0);
}

/* As the kernel that attends, it may be brought in before the search has ended. */
extern "C" int mai_cu_select_launch(const mai_cu_params *p, int n_blocks, void *stream)
{
    const void *kernel = mai::kernel_of(p->head_dim, p->runs.outlier != nullptr);
    if (!kernel) return cudaErrorInvalidValue;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_blocks);
    config.blockDim = dim3(mai::THREADS);
    config.stream = (cudaStream_t)stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    void *args[] = {(void *)p};
    return cudaLaunchKernelExC(&config, kernel, args);
}
