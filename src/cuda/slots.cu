/* SPDX-License-Identifier: Apache-2.0 */
/* Operations on slots beside decoding: truncation, the runs of forks; and budgets. */
#include "device/runs.cuh"

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

/* Give a slot's segments from the n-th on back to the pool. One thread. */
__device__ void release_segments(const mai_cu_params &p, int slot, int n)
{
    const mai_cu_runs &r = p.runs;
    for (int i = n; i < r.n_segments[slot]; i++)
        r.free[atomicAdd(r.n_free, 1)] = r.table[(size_t)slot * r.most + i];
    r.n_segments[slot] = min(r.n_segments[slot], n);
}

/* One block: whole runs of the slot below n_tokens stay. */
__global__ void truncate_runs_kernel(const __grid_constant__ mai_cu_params p, int slot,
                                     int64_t n_tokens)
{
    const int64_t most = (int64_t)p.runs.most * MAI_CU_SEGMENT;
    const int n_runs = (int)min(n_tokens >> MAI_CU_RUN_SHIFT, most), n = p.n_layers * p.n_kv_heads;
    int32_t *made = p.runs.made + (size_t)slot * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x) made[i] = min(made[i], n_runs);
    if (threadIdx.x == 0) release_segments(p, slot, segments_for(n_runs));
}

/* One block: as many segments as the other slot has, if the pool has them. */
__global__ void fork_segments_kernel(const __grid_constant__ mai_cu_params p, int from, int to)
{
    const mai_cu_runs &r = p.runs;
    const int n = p.n_layers * p.n_kv_heads;
    __shared__ int have;
    if (threadIdx.x == 0) {
        release_segments(p, to, r.n_segments[from]);
        have = r.n_segments[to];
        while (have < r.n_segments[from] && *r.n_free > 0)
            r.table[(size_t)to * r.most + have++] = r.free[--*r.n_free];
        r.n_segments[to] = have;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        r.made[(size_t)to * n + i] = min(r.made[(size_t)from * n + i], have * MAI_CU_SEGMENT);
    }
    for (int i = threadIdx.x; i < n * p.head_dim; i += blockDim.x)
        r.common[(size_t)to * n * p.head_dim + i] = r.common[(size_t)from * n * p.head_dim + i];
}

__device__ void copy_bytes(void *to, const void *from, size_t bytes)
{
    for (size_t i = threadIdx.x; i < bytes / 16; i += blockDim.x)
        ((uint4 *)to)[i] = ((const uint4 *)from)[i];
}

/* A block copies one segment after the other. */
__global__ void fork_runs_kernel(const __grid_constant__ mai_cu_params p, int from, int to)
{
    const mai_cu_runs &r = p.runs;
    const size_t rows = (size_t)p.n_layers * p.n_kv_heads * MAI_CU_SEGMENT, d = p.head_dim;
    for (int i = blockIdx.x; i < r.n_segments[to]; i += gridDim.x) {
        const size_t x = r.table[(size_t)from * r.most + i] * rows;
        const size_t y = r.table[(size_t)to * r.most + i] * rows;
        copy_bytes(r.k + y * d, r.k + x * d, rows * d);
        copy_bytes(r.v + y * d, r.v + x * d, rows * d);
        copy_bytes(r.k_scale + y * (d / 32), r.k_scale + x * (d / 32), rows * (d / 16));
        copy_bytes(r.v_scale + y * (d / 32), r.v_scale + x * (d / 32), rows * (d / 16));
        if (!r.outlier) continue;
        copy_bytes(r.outlier + y * d, r.outlier + x * d, rows * d);
        copy_bytes(r.outlier_scale + y * (d / 32), r.outlier_scale + x * (d / 32),
                   rows * (d / 16));
    }
}

__global__ void begin_kernel(const __grid_constant__ mai_cu_params p, int n_segments,
                             int n_selectors)
{
    for (int i = threadIdx.x; i < n_segments; i += blockDim.x)
        p.runs.free[i] = n_segments - 1 - i;
    for (int i = threadIdx.x; i < n_selectors; i += blockDim.x) mai_selector_init(&p.selectors[i]);
    if (threadIdx.x == 0) *p.runs.n_free = n_segments;
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
    if (p->runs.most > 0) {
        mai::truncate_runs_kernel<<<1, threads, 0, (cudaStream_t)stream>>>(*p, slot, n_tokens);
    }
    return cudaGetLastError();
}

extern "C" int mai_cu_runs_fork(const mai_cu_params *p, int32_t from, int32_t to, void *stream)
{
    mai::fork_segments_kernel<<<1, 256, 0, (cudaStream_t)stream>>>(*p, from, to);
    mai::fork_runs_kernel<<<p->n_sms, 512, 0, (cudaStream_t)stream>>>(*p, from, to);
    return cudaGetLastError();
}

extern "C" int mai_cu_runs_begin(const mai_cu_params *p, int n_segments, int n_selectors,
                                 void *stream)
{
    mai::begin_kernel<<<1, 1024, 0, (cudaStream_t)stream>>>(*p, n_segments, n_selectors);
    return cudaGetLastError();
}

extern "C" int mai_cu_set_budget(const mai_cu_params *p, int layer0, int layer1, int head0,
                                 int head1, float budget, void *stream)
{
    mai::budget_kernel<<<8, 128, 0, (cudaStream_t)stream>>>(*p, layer0, layer1, head0, head1,
                                                            budget);
    return cudaGetLastError();
}
