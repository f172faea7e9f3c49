/* SPDX-License-Identifier: Apache-2.0 */
/* The entries of a prompt's last queries. */
#include "prompt.cuh"

namespace mai {
namespace {

constexpr int THREADS = 512, WARPS = THREADS / 32;

/* Which of a head's queries are remembered: those that are finite, and cover something. */
template <int D>
__global__ void __launch_bounds__(THREADS)
    place_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    constexpr int V = D / 32;
    __shared__ bool kept[MAI_CU_CAPTURED];
    const int head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const Prompt prompt(p, x);
    if (prompt.slot < 0) return;
    const bool keeps = remembers(p, head / p.group);
    for (int i = warp; i < x.n; i += WARPS) {
        float q[V];
        Summary<V> summary;
        bool keep = keeps && x.first + i >= prompt.first(p, x);
        if (keep) {
            load_match<V>(p, x, i, head, q);
            summary.load(p, x, i, head);
            keep = all_finite<V>(q, 0.0f) && summary.is_finite();
        }
        if (lane == 0) kept[i] = keep;
    }
    __syncthreads();
    if (warp != 0) return;
    int before = 0;
    for (int i = lane; i - lane < x.n; i += 32) {
        const unsigned keep = __ballot_sync(ALL, i < x.n && kept[i]);
        const int rank = before + __popc(keep & ((1u << lane) - 1));
        if (i < x.n) x.place[(size_t)i * p.n_heads + head] = keep >> lane & 1 ? rank : ~rank;
        before += __popc(keep);
    }
}

/* One block per head. */
template <int D>
__global__ void __launch_bounds__(THREADS)
    insert_kernel(const __grid_constant__ mai_cu_params p, const mai_cu_prompt x)
{
    constexpr int V = D / 32;
    const int head = blockIdx.x, warp = threadIdx.x / 32;
    const Prompt prompt(p, x);
    if (prompt.slot < 0) return;
    const size_t ring = ring_of(p, prompt.slot, head);
    const int begin = p.rings.head[ring], count = p.rings.count[ring];
    for (int i = warp; i < x.n; i += WARPS) {
        const int place = x.place[(size_t)i * p.n_heads + head];
        if (place < 0) continue;
        const int next = (begin + place) % p.ring;
        const int query = x.first + i;
        float q[V];
        Summary<V> summary;
        load_match<V>(p, x, i, head, q);
        summary.load(p, x, i, head);
        ring_begin<V>(p, ring, next, encode_query<V>(q), q, prompt.before + query,
                      prompt.far_end(p, query));
        ring_summarise<V>(p, ring * (size_t)p.ring + (size_t)next, summary.out, summary.kbar,
                          summary.lse0,
                          mai_cu_judged{0.0f, share_of(p, x, i, head, summary.lse)});
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    const int last = x.place[(size_t)(x.n - 1) * p.n_heads + head];
    const int n = last < 0 ? ~last : last + 1;
    p.rings.head[ring] = (begin + n) % p.ring;
    p.rings.count[ring] = min(count + n, p.ring);
}

} // namespace
} // namespace mai

extern "C" int mai_cu_place_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream)
{
#define PLACE(D) place_kernel<D><<<p->n_heads, mai::THREADS, 0, (cudaStream_t)stream>>>(*p, *x)
    MAI_BY_DIM(p, PLACE);
#undef PLACE
}

extern "C" int mai_cu_insert_launch(const mai_cu_params *p, const mai_cu_prompt *x, void *stream)
{
#define INSERT(D) insert_kernel<D><<<p->n_heads, mai::THREADS, 0, (cudaStream_t)stream>>>(*p, *x)
    MAI_BY_DIM(p, INSERT);
#undef INSERT
}
