/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the attention kernel share: the shape of an instantiation, a group as one block
 * sees it, and the block's shared memory. */
#ifndef MAI_CUDA_TRAITS_CUH
#define MAI_CUDA_TRAITS_CUH

#include "cuda/device/kv.cuh"
#include "cuda/schedule.h"

namespace mai {

static_assert((int)MAI_RUN_BITS == (int)MAI_CU_RUN_SHIFT, "schedule.h does not know of launch.h");

/* What an instantiation can do beyond exact attention and plain reuse, each with what is before it.
 * Their code would take registers and time from the others. */
enum class Use {
    PLAIN,
    KEEPS, /* means of keys, with summaries */
    JUDGES, /* candidates that may be refused */
    SELECTS /* runs that are read, and means that stand in for the others */
};

/* HEADS: query heads computed together, a multiple of 8. */
template <class Kv_, int D_, int HEADS_, int WARPS_, int STAGES_, Use USE>
struct Traits {
    using Kv = Kv_;
    static constexpr bool KEEPS = USE != Use::PLAIN, SELECTS = USE == Use::SELECTS;
    static constexpr bool JUDGES = USE == Use::JUDGES || SELECTS;
    static constexpr int FIRST_SEGMENT = SELECTS ? MAI_REST : JUDGES ? MAI_OLD : MAI_FAR;
    static constexpr int FIRST_CLASS = FIRST_SEGMENT; /* the first classes are one segment each */
    static constexpr int D = D_, HEADS = HEADS_, WARPS = WARPS_, STAGES = STAGES_;
    static constexpr int THREADS = 32 * WARPS, NT = HEADS / 8, TILE = 16, UNIT = WARPS * TILE;
    static constexpr int PIECES = D * Kv::BYTES / 16; /* 16-byte pieces of a token's K */
    static constexpr int TILE_BYTES = TILE * PIECES * 16;
    static constexpr int O_STRIDE = D + 4; /* floats: neighbouring heads in different banks */
    static constexpr int SLOTS = (HEADS + WARPS - 1) / WARPS; /* heads a warp completes */
    static constexpr int V = D / 32;                          /* dims a lane then holds */
    static constexpr int W = KEEPS ? 2 * V : V; /* of a sum of far tokens: also of its keys */
    static constexpr int MOST_ITEMS = 16;
};

/* A group of which this block computes something. */
struct Item {
    int64_t pages; /* row_pages */
    int row;
    int16_t kv_head, block; /* block: of query heads, within kv_head */
    mai_reads reads;
    int first_unit;
    int8_t place; /* of this block's partial results; -1: it has only the group's cost */
    int8_t outcome; /* mai_outcome; without a judge: used, if anything was found */
    bool keeps;     /* means of keys are wanted */
    int2 part[MAI_SEGMENTS]; /* tokens of each segment that this block computes; y < 0: none */
};

/* A group that several blocks compute. */
struct Parts {
    mai_blocks blocks, of[MAI_CLASSES]; /* that compute it, and each class; last < 0: none */
    int bundle;                         /* mai_bundle */

    /* The first block of the bundle of a block. */
    __device__ int bundle_of(int block) const { return block - (block - blocks.first) % bundle; }
    __device__ int place(int block) const
    {
        return block == blocks.first ? MAI_PLACE_BEGINS : MAI_PLACE_CONTINUES;
    }
};

template <class T>
struct AttendShared {
    unsigned char stage[T::WARPS][T::STAGES][2][T::TILE_BYTES]; /* K, V */
    float o[T::WARPS][T::HEADS][T::O_STRIDE];                   /* of one part, to be joined */
    float top[T::WARPS][T::HEADS], sum[T::WARPS][T::HEADS];
    Item items[T::MOST_ITEMS];
    Parts parts; /* of the item being computed, if its group is shared */
    int begin, end, first_group, last_group, is_last;
    int first_cost; /* of group 0 */
    int listed;     /* the share is within one group, which is in items[0] */
    int completed[T::MOST_ITEMS], n_completed; /* KV heads of groups that this block completed */

    __device__ int *scratch() { return (int *)stage; } /* before the first copy */
};

__device__ __forceinline__ int n_groups(const mai_cu_params &p)
{
    return p.n_rows * p.n_kv_heads * p.blocks_per_kv;
}

__device__ __forceinline__ int heads_of(const mai_cu_params &p, int block)
{
    return min(p.heads_per_block, p.group - block * p.heads_per_block);
}

__device__ __forceinline__ bool selects(const Item &x)
{
    return x.outcome == MAI_SELECTED || x.outcome == MAI_CHECKED;
}

__device__ __forceinline__ const mai_cu_choice *choice_of(const mai_cu_params &p, const Item &x)
{
    return p.choices + (size_t)x.row * p.n_kv_heads + x.kv_head;
}

__device__ __forceinline__ int first_head(const mai_cu_params &p, const Item &x)
{
    return x.kv_head * p.group + x.block * p.heads_per_block;
}

} // namespace mai

#endif /* MAI_CUDA_TRAITS_CUH */
