/* SPDX-License-Identifier: Apache-2.0 */
/* What a step teaches a policy that judges (core/policy/judge.h). */
#ifndef MAI_CUDA_LEARN_CUH
#define MAI_CUDA_LEARN_CUH

#include "share.cuh"

namespace mai {

/* The square of an error of off2, in some unit, for the statistics. */
static __device__ __forceinline__ double error2_in(float off2, float unit2)
{
    const float most = MAI_WORST_ERROR * MAI_WORST_ERROR;
    return off2 > 0 ? (double)fminf(off2 / unit2, most) : 0;
}

/* A head's refused candidate in a row. */
static __device__ void learn_sample(const mai_cu_params &p, int row, int head, float unit2,
                                    mai_record *record, mai_cu_counters *counters)
{
    const size_t i = (size_t)row * p.n_heads + head;
    const mai_judgement j = p.judgements[i];
    const mai_cu_seen seen = {__ldcg(&p.seen[i].norm2), __ldcg(&p.seen[i].off2)};
    mai_record_sample(record, &j, (double)p.found[i].distance2, sqrtf(seen.off2 / unit2));
    if (!(unit2 > 0)) return;
    counters->samples++;
    counters->error2_layer += error2_in(seen.off2, unit2);
    counters->error2_head += error2_in(seen.off2, seen.norm2);
}

/* The output that is noted is of one row, or of the next that has tokens. */
static __device__ void learn_output(const mai_cu_params &p, int row, int head, mai_record *record)
{
    for (int i = 0; i < p.n_rows; i++) {
        const float norm2 = __ldcg(&p.seen[(size_t)row * p.n_heads + head].norm2);
        if (!(norm2 < 0)) return mai_note_output(record, norm2);
        row = row + 1 == p.n_rows ? 0 : row + 1;
    }
}

/* What is learnt of a group's selections. One warp, one after the other. */
static __device__ __forceinline__ int learn_selections(const mai_cu_params &p, int kv_head,
                                                       float unit2)
{
    const int lane = threadIdx.x & 31;
    mai_selector *const at = p.selectors + (size_t)p.layer * p.n_kv_heads + kv_head;
    mai_cu_group_counters *counters =
        p.group_counters + (size_t)p.layer * p.n_kv_heads + kv_head;
    mai_selector selector = *at;
    int n_selected = 0, n_checked = 0, n_passed_by = 0;
    bool too_much = false;
    for (int r0 = 0; r0 < p.n_rows; r0 += 32) {
        const int row = min(r0 + lane, p.n_rows - 1);
        const mai_cu_choice *choice = p.choices + (size_t)row * p.n_kv_heads + kv_head;
        const int outcome = r0 + lane < p.n_rows ? choice->outcome : MAI_NO_CANDIDATE;
        const bool is_row = r0 + lane < p.n_rows;
        const unsigned checked = __ballot_sync(ALL, outcome == MAI_CHECKED);
        n_selected += __popc(__ballot_sync(ALL, outcome == MAI_SELECTED));
        n_passed_by += __popc(__ballot_sync(ALL, is_row && choice->passed_by));
        too_much = __any_sync(ALL, is_row && choice->too_much) || too_much;
        n_checked += __popc(checked);
        for (unsigned left = checked; left != 0; left &= left - 1) {
            const int r = r0 + __ffs(left) - 1;
            const mai_cu_seen *seen = p.seen + (size_t)r * p.n_heads + kv_head * p.group;
            float error2 = 0;
            for (int h = lane; h < p.group; h += 32) error2 += __ldcg(&seen[h].off2) / unit2;
            error2 = warp_sum(error2) / (float)p.group;
            mai_select_checked(&selector, p.choices[(size_t)r * p.n_kv_heads + kv_head].k, error2);
            if (lane == 0 && unit2 > 0) {
                counters->checks++;
                counters->error2_selected += (double)error2;
            }
        }
    }
    mai_select_note(&selector, n_selected, n_checked, too_much);
    if (lane == 0) *at = selector;
    return n_passed_by;
}

/* One warp: the groups of one KV head in all rows, samples in the order of the rows, as the CPU
 * does it. A lane looks after a head's record. */
static __device__ __noinline__ void learn_group(const mai_cu_params &p, int kv_head)
{
    const int lane = threadIdx.x & 31;
    mai_habit *const at = p.habits + (size_t)p.layer * p.n_kv_heads + kv_head;
    mai_habit habit = *at;
    const float unit2 = __ldcg(p.unit2);
    int n_used = 0, n_refused = 0;
    const int n_passed_by = p.selects ? learn_selections(p, kv_head, unit2) : 0;
    for (int h0 = 0; h0 < p.group; h0 += 32) {
        const bool is_head = h0 + lane < p.group;
        const int head = kv_head * p.group + min(h0 + lane, p.group - 1);
        mai_record record = p.records[(size_t)p.layer * p.n_heads + head];
        mai_cu_counters *counters = p.counters + (size_t)p.layer * p.n_heads + head;
        for (int r0 = 0; r0 < p.n_rows; r0 += 32) {
            const int row = r0 + lane;
            const int outcome = row < p.n_rows ? __ldcg(&p.outcomes[row * p.n_kv_heads + kv_head])
                                               : MAI_NO_CANDIDATE;
            const unsigned refused = __ballot_sync(ALL, outcome == MAI_REFUSED);
            if (h0 == 0) {
                n_used += __popc(__ballot_sync(ALL, outcome == MAI_USED));
                n_refused += __popc(refused);
            }
            for (unsigned left = refused; left != 0; left &= left - 1) {
                if (is_head) learn_sample(p, r0 + __ffs(left) - 1, head, unit2, &record, counters);
            }
        }
        if (!is_head) continue;
        learn_output(p, mai_noted_row(&habit, p.n_rows), head, &record);
        p.records[(size_t)p.layer * p.n_heads + head] = record;
    }
    mai_habit_note_step(&habit, n_used, n_refused + n_passed_by, n_refused);
    if (lane == 0) *at = habit;
}

/* How a KV head's heads came to their results, and what they read for that: what they need of K and
 * V, and of the means. */
template <class T>
__device__ __forceinline__ void count_group(const mai_cu_params &p, const Item &x)
{
    const int n = x.reads.n, fresh = min(p.fresh, max(x.reads.b, 0));
    const unsigned long long row = 2 * (p.head_dim * T::Kv::BYTES);
    const unsigned long long mean = p.head_dim + p.head_dim / 16;
    int way = x.outcome == MAI_USED && x.reads.b >= 0 ? MACATTN_REUSED : MACATTN_EXACT, tokens = n;
    if (way == MACATTN_REUSED) tokens = n - (x.reads.start - fresh);
    unsigned long long means = 0;
    if (T::SELECTS) {
        const mai_cu_choice choice = load_choice(choice_of(p, x));
        const int first = mai_select_first(fresh, MAI_CU_RUN);
        if (choice.k >= 0)
            means = mean * (choice.n_runs - first) * (p.runs.outlier != nullptr ? 2 : 1);
        if (selects(x)) means += mean * choice.n_rest * (x.keeps ? 2 : 1);
        if (x.outcome == MAI_SELECTED) {
            way = MACATTN_SELECTED;
            tokens = fresh + choice.listed - fresh % MAI_CU_RUN + n - x.reads.b;
        }
    }
    mai_cu_group_counters *c = p.group_counters + (size_t)p.layer * p.n_kv_heads + x.kv_head;
    atomicAdd(&c->groups[way], 1ull);
    atomicAdd(&c->kv_bytes[way], row * tokens);
    if (means > 0) atomicAdd(&c->run_bytes[way], means);
}

/* All of a group is computed and written. */
template <class T>
__device__ void note_complete(const mai_cu_params &p, AttendShared<T> &sh, const Item &x)
{
    if (threadIdx.x != 0) return;
    if (x.block == 0 && x.reads.n > 0) count_group<T>(p, x);
    p.outcomes[x.row * p.n_kv_heads + x.kv_head] = x.outcome;
    sh.completed[sh.n_completed++] = x.kv_head;
}

/* Learn from the groups that this block completed: if a KV head's are all complete, by whichever
 * block saw the last of them. */
template <class T>
__device__ void learn(const mai_cu_params &p, AttendShared<T> &sh)
{
    __syncthreads();
    const int n = sh.n_completed;
    if (threadIdx.x < n) {
        const int kv_head = sh.completed[threadIdx.x];
        const unsigned all = p.n_rows * p.blocks_per_kv;
        __threadfence();
        const bool is_last = atomicAdd(&p.learnt[kv_head], 1u) == all - 1;
        if (is_last) p.learnt[kv_head] = 0;
        else sh.completed[threadIdx.x] = -1;
        __threadfence();
    }
    __syncthreads();
    for (int i = threadIdx.x / 32; i < n; i += T::WARPS) {
        if (sh.completed[i] >= 0) learn_group(p, sh.completed[i]);
    }
    if (threadIdx.x == 0) sh.n_completed = 0;
}

} // namespace mai

#endif /* MAI_CUDA_LEARN_CUH */
