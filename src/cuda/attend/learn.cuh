/* SPDX-License-Identifier: Apache-2.0 */
/* What a step teaches a policy that judges (core/policy/judge.h). */
#ifndef MAI_CUDA_LEARN_CUH
#define MAI_CUDA_LEARN_CUH

#include "traits.cuh"

namespace mai {

/* One warp: the groups of one KV head in all rows, samples in the order of the rows, as the CPU
 * does it. A lane looks after a head's record. */
static __device__ __noinline__ void learn_group(const mai_cu_params &p, int kv_head)
{
    const int lane = threadIdx.x & 31;
    mai_habit *const at = p.habits + (size_t)p.layer * p.n_kv_heads + kv_head;
    mai_habit habit = *at;
    int n_used = 0, n_refused = 0;
    for (int h0 = 0; h0 < p.group; h0 += 32) {
        const int head = kv_head * p.group + min(h0 + lane, p.group - 1);
        mai_record record = p.records[(size_t)p.layer * p.n_heads + head];
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
                const size_t i = (size_t)(r0 + __ffs(left) - 1) * p.n_heads + head;
                const mai_judgement j = p.judgements[i];
                mai_record_sample(&record, &j, (double)p.found[i].distance2, __ldcg(&p.errors[i]));
            }
        }
        if (h0 + lane < p.group) p.records[(size_t)p.layer * p.n_heads + head] = record;
    }
    mai_habit_note(&habit, n_used, n_refused);
    if (lane == 0) *at = habit;
}

/* All of a group is computed and written. */
template <class T>
__device__ void note_complete(const mai_cu_params &p, AttendShared<T> &sh, const Item &x)
{
    if (!decides(p) || threadIdx.x != 0) return;
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
