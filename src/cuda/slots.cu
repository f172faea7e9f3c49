/* SPDX-License-Identifier: Apache-2.0 */
/* Ring operations beside decoding: truncation; and budgets. */
#include "device/common.cuh"

namespace mai {
namespace {

/* One thread per ring of the slot: take back the newest entries until one was made below
 * n_tokens. */
__global__ void truncate_kernel(const __grid_constant__ mai_cu_params p, int slot, int64_t n_tokens)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.n_layers * p.n_heads) return;
    const size_t ring = (size_t)slot * (size_t)p.n_layers * (size_t)p.n_heads + (size_t)i;
    int head = p.rings.head[ring], count = p.rings.count[ring];
    while (count > 0) {
        const int newest = head == 0 ? p.ring - 1 : head - 1;
        if (p.rings.pos[ring * (size_t)p.ring + (size_t)newest] < n_tokens) break;
        head = newest;
        count--;
    }
    p.rings.head[ring] = head;
    p.rings.count[ring] = count;
}

__global__ void budget_kernel(const __grid_constant__ mai_cu_params p, int layer0, int layer1,
                              int head0, int head1, float budget)
{
    const int heads = head1 - head0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (layer1 - layer0) * heads;
         i += gridDim.x * blockDim.x) {
        p.records[(size_t)(layer0 + i / heads) * p.n_heads + head0 + i % heads].budget = budget;
    }
}

} // namespace
} // namespace mai

extern "C" int mai_cu_slot_truncate(const mai_cu_params *p, int32_t slot, int64_t n_tokens,
                                    void *stream)
{
    const int rings = p->n_layers * p->n_heads, threads = 128;
    mai::truncate_kernel<<<(rings + threads - 1) / threads, threads, 0, (cudaStream_t)stream>>>(
        *p, slot, n_tokens);
    return cudaGetLastError();
}

extern "C" int mai_cu_set_budget(const mai_cu_params *p, int layer0, int layer1, int head0,
                                 int head1, float budget, void *stream)
{
    mai::budget_kernel<<<8, 128, 0, (cudaStream_t)stream>>>(*p, layer0, layer1, head0, head1,
                                                            budget);
    return cudaGetLastError();
}
