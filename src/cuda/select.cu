/* SPDX-License-Identifier: Apache-2.0 */
/* Select (core/policy/select.h): for each group that may not reuse, and each of its runs, whether it
 * is read or stands in for its tokens; between the search, which says what may be reused, and the
 * kernel that attends.
 *
 * Thread blocks score pieces of MAI_CU_PIECE runs (device/score.cuh); before that they make those
 * that are missing. The block that scores the last piece of a group knows the estimate of the whole,
 * and lists what is read. Scores of what is read become -inf: what is left stands
 * in. */
#include "device/score.cuh"

namespace mai
{
namespace
{

constexpr int THREADS = SCORE_THREADS, WARPS = SCORE_WARPS;

/* What a block is about: pieces of a group's runs in a row, from `piece` on. */
struct Piece {
    int row, kv_head, piece, n_pieces;
    int n_runs, first, n, b; /* first: mai_cu_row_runs; n, b: tokens, mai_far_end */
    int first_piece;         /* of the row */
    mai_cu_choice choice;    /* so far */
    bool looks, checks;      /* looks: there is something to score */
};

template <int D> struct Shared {
    ScoreShared<D> score;
    Piece x;
    float least[MAI_CU_MOST_GROUP];
    int scratch[WARPS];
    int is_last;
};

/* Warp 0: which the i-th piece is. */
__device__ void find_piece(const mai_cu_params &p, int i, Piece *x)
{
    const int lane = threadIdx.x;
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
        const float error = found ? __ldcg(&p.judgements[head].error) : 0.0f;
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

/* A bit for each run: whether it is read. */
template <int D>
__device__ void mark_runs(const mai_cu_params &p, const Scored &s, const Shared<D> &sh,
                          uint32_t *mask)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
#pragma unroll 4
    for (int word = warp; word < s.stride / 32; word += WARPS) {
        const int run = word * 32 + lane;
        bool below = true;
#pragma unroll 4
        for (int h = 0; h < p.group; h++)
            below &= __ldcg(s.scores + (size_t)h * s.stride + run) < sh.least[h];
        const unsigned read = __ballot_sync(ALL, !below && run >= s.first && run < s.n_runs);
        if (lane == 0) mask[word] = read;
    }
}

/* The listed runs, and what does not stand in. `n`: listed before. */
__device__ void list_runs(const mai_cu_params &p, const Scored &s, const uint32_t *mask, int word0,
                          int word1, int n, int32_t *list)
{
    for (int word = word0; word < word1; word++) {
        for (unsigned left = __ldcg(mask + word); left != 0; left &= left - 1) {
            const int run = word * 32 + __ffs(left) - 1;
            list[n++] = run;
            for (int h = 0; h < p.group; h++) s.scores[(size_t)h * s.stride + run] = -INFINITY;
        }
    }
}

/* All pieces of a group are scored: what it reads. */
template <int D> __device__ void pick(const mai_cu_params &p, const Scored &s, Shared<D> &sh)
{
    const Piece &x = sh.x;
    mai_cu_choice choice = x.choice;
    bool finite = true;
    for (int h = threadIdx.x; h < p.group; h += THREADS) {
        const int head = x.kv_head * p.group + h;
        const float total = mai_select_total(all_pieces(p, s, h), newest_share(p, s.slot, head));
        const float least = mai_select_least(total, choice.k) * LOG2E;
        sh.least[h] = p.least[(size_t)x.row * p.n_heads + head] = least;
        finite = finite && isfinite(total);
    }
    finite = __syncthreads_and(finite);
    const size_t row_kv = (size_t)x.row * p.n_kv_heads + x.kv_head;
    int32_t *list = p.lists + (size_t)x.first * p.n_kv_heads + (size_t)x.kv_head * s.stride;
    uint32_t *mask = p.masks + ((size_t)x.first * p.n_kv_heads + (size_t)x.kv_head * s.stride) / 32;
    if (finite) mark_runs<D>(p, s, sh, mask);
    __syncthreads();
    const int words = s.stride / 32, per_thread = (words + THREADS - 1) / THREADS;
    const int word0 = min((int)threadIdx.x * per_thread, words);
    const int word1 = min(word0 + per_thread, words);
    int mine = 0, n_read = 0;
    for (int word = word0; finite && word < word1; word++) mine += __popc(__ldcg(mask + word));
    const int before = block_scan<THREADS>(mine, sh.scratch, &n_read);
    const int fresh_end = min(p.fresh, x.b), n_scored = s.n_runs - s.first;
    const bool always = fresh_end == 0 || fresh_end % MAI_CU_RUN != 0;
    choice.too_much = !finite || mai_select_too_much(n_read, n_scored);
    if (!choice.too_much) {
        const int gap = x.b - s.n_runs * MAI_CU_RUN, n = n_read + always;
        list_runs(p, s, mask, word0, word1, before + always, list);
        if (threadIdx.x == 0) {
            if (always) list[0] = s.first - 1;
            if (gap > 0) list[n] = s.n_runs;
        }
        choice.passed_by = choice.outcome == MAI_REFUSED;
        choice.outcome = x.checks ? MAI_CHECKED : MAI_SELECTED;
        choice.listed = n * MAI_CU_RUN + gap;
        choice.n_rest = n_scored - n_read;
    }
    if (threadIdx.x == 0) {
        p.choices[row_kv] = choice;
        p.runs.made[runs_of(p, s.slot, s.kv_head)] =
            max(p.runs.made[runs_of(p, s.slot, s.kv_head)], s.n_runs);
    }
}

/* Each block takes as many pieces as any, one after the other, those of a group together. */
template <class Kv, int D>
__global__ void __launch_bounds__(THREADS, 2) select_kernel(const __grid_constant__ mai_cu_params p)
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
        if (threadIdx.x < 32) {
            Piece x;
            find_piece(p, i, &x);
            choose(p, &x);
            if (threadIdx.x == 0) sh.x = x;
        }
        __syncthreads();
        const size_t row_kv = (size_t)sh.x.row * p.n_kv_heads + sh.x.kv_head;
        n = min(end - i, sh.x.n_pieces - sh.x.piece);
        if (!sh.x.looks) {
            if (sh.x.piece == 0 && threadIdx.x == 0) p.choices[row_kv] = sh.x.choice;
            continue;
        }
        const Scored s = scored_of(p, sh.x);
        score_pieces<Kv, D>(p, s, sh.x.piece, n, sh.score);
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

/* One set of types and sizes. */
struct Variant {
    macattn_dtype dtype;
    int head_dim;
    void (*kernel)(const mai_cu_params);
};

#define VARIANT(dtype, Kv, D)                          \
    {                                                  \
        MACATTN_DTYPE_##dtype, D, select_kernel<Kv, D> \
    }
const Variant variants[] = {
    VARIANT(F16, Half16, 64),   VARIANT(F16, Half16, 128),   VARIANT(F16, Half16, 256),
    VARIANT(BF16, Brain16, 64), VARIANT(BF16, Brain16, 128), VARIANT(BF16, Brain16, 256),
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

extern "C" int mai_cu_select_prepare(macattn_dtype kv_dtype, int head_dim, int *n_blocks)
{
    const mai::Variant *v = mai::find(kv_dtype, head_dim);
    if (!v) return cudaErrorInvalidValue;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(n_blocks, (const void *)v->kernel,
                                                         mai::THREADS, 0);
}

/* As the kernel that attends, it may be brought in before the search has ended. */
extern "C" int mai_cu_select_launch(const mai_cu_params *p, int n_blocks, void *stream)
{
    const mai::Variant *v = mai::find(p->kv_dtype, p->head_dim);
    if (!v) return cudaErrorInvalidValue;
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
    return cudaLaunchKernelExC(&config, (const void *)v->kernel, args);
}
