/* SPDX-License-Identifier: Apache-2.0 */
/* What a step teaches a policy that judges (core/judge.h). */
#ifndef MAI_CUDA_LEARN_CUH
#define MAI_CUDA_LEARN_CUH

#include "common.cuh"

namespace mai {

/* One warp: the groups of one KV head in all rows, samples in the order of the rows, as the CPU does it. A lane
 * looks after a head's record. */
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
            const int outcome =
                row < p.n_rows ? __ldcg(&p.outcomes[row * p.n_kv_heads + kv_head]) : MAI_NO_CANDIDATE;
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

} // namespace mai

#endif /* MAI_CUDA_LEARN_CUH */
