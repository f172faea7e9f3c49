/* SPDX-License-Identifier: Apache-2.0 */
/* How the tokens of a step are divided over thread blocks. Plain integer arithmetic, the same on
 * host and device, so that it can be tested without a GPU.
 *
 * A *group* is one row and one block of query heads that share a KV head: what reads the same
 * bytes. Its tokens lie in up to five *segments*:
 *
 *     rest               means of the runs that stand in for their tokens: a run counts as a token,
 *                        of which it has half the bytes, but its codes have to be widened
 *     old   [F, e)       what the summaries of refused candidates covered; e = the latest start of
 *                        the group's heads; or the tokens of the runs that a selection reads
 *     far   [s, b)       the summary, or what it lacks; s = the earliest start
 *     fresh [0, F)       attention sinks: in the output, never in the summary
 *     near  [b, n)       band and newest token: in the output, never in the summary
 *
 * and in four *classes*, whose results are kept apart: rest, old, far, and out, which is fresh and
 * near together. Tokens in [s, e) are in two segments, and each head takes part in one of them:
 * those before its start are old to it. There is an old segment only where candidates were refused
 * (judge.h): what they would have given has to be known; and where a group selects (select.h): rest
 * and old are its selection, and take the place of far, or are compared with it. Without reuse
 * there is one segment, near = [0, n) or the window. Each segment is cut into units of equal size,
 * and the blocks take equal shares of all units, in order. So all blocks read the same number of
 * bytes up to one unit, whatever the lengths of the rows: a long sequence is spread over many
 * blocks, and short ones share one. (One chunk size for a whole batch cannot do that.) */
#ifndef MAI_CUDA_SCHEDULE_H
#define MAI_CUDA_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/host_device.h"

enum { MAI_REST, MAI_OLD, MAI_FAR, MAI_FRESH, MAI_NEAR, MAI_SEGMENTS };
enum { MAI_CLASS_REST, MAI_CLASS_OLD, MAI_CLASS_FAR, MAI_CLASS_OUT, MAI_CLASSES };
/* Runs of tokens, and of runs whose means are read together. */
enum { MAI_RUN_BITS = 4, MAI_REST_TILE = 16 };

typedef struct mai_segment {
    int32_t t0, t1; /* tokens */
    int32_t units;
} mai_segment;

typedef struct mai_segments {
    mai_segment of[MAI_SEGMENTS];
    int32_t units; /* of all: at least 1, so that every group has a block that writes its output */
    int32_t cost;  /* units, and what finishing the group costs, in units */
} mai_segments;

/* What was found by timing the shapes of docs/cuda.md on an H200, where a unit is 128 tokens (bf16,
 * head_dim 128: 64 KB). Results do not depend on these numbers, but for the order of sums. */
enum {
    /* Finishing a group takes a block about as long as reading this many units: joining and
     * writing, and with reuse the summary that is merged and the entry that is made. They are
     * counted at the group's end, where nothing is read. */
    MAI_FINISH_EXACT = 1,
    MAI_FINISH_REUSE = 4,
    /* Groups of one cost get as many blocks each from this cost on: exact attention takes 1 to 8%
     * less time. Of smaller ones only the idle blocks would be noticed. */
    MAI_EVEN_COST = 32,
    /* For that at most one of so many blocks stays idle. */
    MAI_BLOCKS_TO_ONE_IDLE = 32,
    /* A group that costs no more is never shared: writing and merging parts takes as long. */
    MAI_WHOLE_UNITS = 7,
    /* A boundary moves by at most this part of a block's share: a quarter of a small one, where
     * sharing a group weighs most; of a large one 1/64, since the slowest block's time grows by as
     * much. */
    MAI_SMALL_SHARE = 24,
    MAI_SNAP_SMALL = 4,
    MAI_SNAP_LARGE = 64,
    /* So many partial results one block merges sooner than two steps would. Above, bundles near the
     * square root of the number (132 blocks at most share a group on an H200), so that both steps
     * are short. */
    MAI_ONE_STEP = 40,
    MAI_FEW_PARTS = 64,
    MAI_SMALL_BUNDLE = 8,
    MAI_LARGE_BUNDLE = 12,
};

MAI_HOST_DEVICE int32_t mai_units_of(int32_t tokens, int32_t unit)
{
    return tokens <= 0 ? 0 : (tokens + unit - 1) / unit;
}

/* The first token that summaries never cover; also the end of new summaries. */
MAI_HOST_DEVICE int32_t mai_far_end(int32_t n, int32_t band, int32_t fresh)
{
    const int32_t b = n - band;
    return b > fresh ? b : fresh < n ? fresh : n;
}

/* Which tokens of a group are read. */
typedef struct mai_reads {
    int32_t n;      /* tokens of the row */
    int32_t b;      /* mai_far_end; < 0: no reuse at all */
    int32_t start;  /* first token of the far segment; without reuse: first token seen */
    int32_t latest; /* end of the old segment; 0: none; < 0: a selection (mai_reads_listed) */
} mai_reads;

/* A selection's `latest`: so many tokens are listed, counted from the begin of the first listed run
 * on. All runs before b may stand in. */
MAI_HOST_DEVICE int32_t mai_reads_listed(int32_t tokens)
{
    return -1 - tokens;
}

MAI_HOST_DEVICE mai_segments mai_segments_of(mai_reads r, int32_t fresh, int32_t unit)
{
    mai_segments s;
    const int32_t n = r.n, b = r.b, start = r.start;
    const int32_t f = b < 0 ? 0 : fresh < b ? fresh : b;
    const bool selects = r.latest < 0;
    s.of[MAI_REST].t0 = 0;
    s.of[MAI_REST].t1 =
        selects ? ((b >> MAI_RUN_BITS) + MAI_REST_TILE - 1) / MAI_REST_TILE * MAI_REST_TILE : 0;
    s.of[MAI_OLD].t0 = selects ? 0 : f;
    s.of[MAI_OLD].t1 = selects ? -1 - r.latest : r.latest;
    s.of[MAI_FRESH].t0 = 0;
    s.of[MAI_FRESH].t1 = f;
    s.of[MAI_FAR].t0 = b < 0 ? 0 : start;
    s.of[MAI_FAR].t1 = b < 0 ? 0 : b;
    s.of[MAI_NEAR].t0 = b < 0 ? start : b;
    s.of[MAI_NEAR].t1 = n;
    s.units = 0;
    for (int i = 0; i < MAI_SEGMENTS; i++) {
        s.of[i].units = mai_units_of(s.of[i].t1 - s.of[i].t0, unit);
        s.units += s.of[i].units;
    }
    if (s.units == 0) {
        s.units = s.of[MAI_NEAR].units = 1;
        s.of[MAI_NEAR].t1 = s.of[MAI_NEAR].t0;
    }
    s.cost = s.units + (b < 0 ? MAI_FINISH_EXACT : MAI_FINISH_REUSE);
    return s;
}

MAI_HOST_DEVICE int32_t mai_class_of(int32_t segment)
{
    return segment < MAI_FRESH ? segment : MAI_CLASS_OUT;
}

/* Units of a class; they follow each other. */
MAI_HOST_DEVICE int32_t mai_class_units(mai_segments s, int32_t which)
{
    return which < MAI_CLASS_OUT ? s.of[which].units : s.of[MAI_FRESH].units + s.of[MAI_NEAR].units;
}

/* All units over the blocks: block i begins at i * units / blocks. So where the groups cost the
 * same, and their number divides that of the blocks or is divided by it, no block shares two
 * groups; for that a few blocks stay idle. Else a boundary that falls near the begin or the end of
 * a group is moved there (by at most `snap` units): sharing a group costs more than an uneven
 * share. */
typedef struct mai_division {
    int32_t units, blocks, per, extra, snap;
} mai_division;

/* Whether the groups seem to cost the same, and so much that it matters where they are cut. */
MAI_HOST_DEVICE bool mai_is_even(int32_t units, int32_t n_groups, int32_t first_cost)
{
    return units == n_groups * first_cost && first_cost >= MAI_EVEN_COST;
}

/* Most blocks that suit groups of one cost; all, if too many would stay idle. */
MAI_HOST_DEVICE int32_t mai_even_blocks(int32_t n_blocks, int32_t n_groups)
{
    for (int32_t n = n_blocks; MAI_BLOCKS_TO_ONE_IDLE * (n_blocks - n) <= n_blocks; n--) {
        if (n % n_groups == 0 || n_groups % n == 0) return n;
    }
    return n_blocks;
}

MAI_HOST_DEVICE mai_division mai_divide(int32_t units, int32_t n_blocks)
{
    mai_division d;
    d.units = units;
    d.blocks = units < n_blocks ? units : n_blocks;
    d.per = units / d.blocks;
    d.extra = units - d.per * d.blocks;
    d.snap = d.per < MAI_SMALL_SHARE ? d.per / MAI_SNAP_SMALL : d.per / MAI_SNAP_LARGE;
    return d;
}

/* First unit of block i before boundaries are moved; that of the next is its end. i may be
 * d.blocks. */
MAI_HOST_DEVICE int32_t mai_block_begin(mai_division d, int32_t i)
{
    return d.per * i + d.extra * i / d.blocks;
}

/* The block that a unit falls to before boundaries are moved. */
MAI_HOST_DEVICE int32_t mai_block_of(mai_division d, int32_t unit)
{
    return (int32_t)((((int64_t)unit + 1) * d.blocks - 1) / d.units);
}

MAI_HOST_DEVICE int32_t mai_snap_of(mai_division d, int32_t cost)
{
    return cost <= MAI_WHOLE_UNITS ? cost : d.snap;
}

/* Where the boundary at unit u, in a group that costs units [begin, end), is moved. */
MAI_HOST_DEVICE int32_t mai_snapped(mai_division d, int32_t u, int32_t begin, int32_t end)
{
    const int32_t snap = mai_snap_of(d, end - begin);
    return u - begin <= snap ? begin : end - u <= snap ? end : u;
}

/* The blocks that compute a group: the last whose moved begin is not after the group's, and the
 * last whose moved begin is before the end of what is read. They are those that these units fall
 * to. */
typedef struct mai_blocks {
    int32_t first, last;
} mai_blocks;

MAI_HOST_DEVICE int32_t mai_first_at(mai_division d, int32_t begin, mai_segments s)
{
    const int32_t snap = mai_snap_of(d, s.cost);
    return begin + (snap < s.cost - 1 ? snap : s.cost - 1);
}

MAI_HOST_DEVICE int32_t mai_last_at(mai_division d, int32_t begin, mai_segments s)
{
    const int32_t moved = s.cost - mai_snap_of(d, s.cost);
    const int32_t inside = begin + (moved < s.units ? moved : s.units) - 1;
    const int32_t first = mai_first_at(d, begin, s);
    return first > inside ? first : inside;
}

MAI_HOST_DEVICE mai_blocks mai_blocks_of(mai_division d, int32_t begin, mai_segments s)
{
    mai_blocks b;
    b.first = mai_block_of(d, mai_first_at(d, begin, s));
    b.last = mai_block_of(d, mai_last_at(d, begin, s));
    return b;
}

/* The block that computes a unit of a group that `b` compute. */
MAI_HOST_DEVICE int32_t mai_block_in(mai_division d, mai_blocks b, int32_t unit)
{
    const int32_t i = mai_block_of(d, unit);
    return i < b.first ? b.first : i > b.last ? b.last : i;
}

/* Merging many partial results takes one block long, so it is done in two steps: of every
 * `mai_bundle` consecutive blocks of a group the last to arrive merges their results into the place
 * of the first. */
MAI_HOST_DEVICE int32_t mai_bundle(mai_blocks b)
{
    const int32_t n = b.last - b.first + 1;
    return n <= MAI_ONE_STEP ? n : n <= MAI_FEW_PARTS ? MAI_SMALL_BUNDLE : MAI_LARGE_BUNDLE;
}

/* The part of a segment that lies in units [begin, end), the segment's first unit being `first`. */
MAI_HOST_DEVICE mai_segment mai_segment_part(mai_segment s, int32_t first, int32_t begin,
                                             int32_t end, int32_t unit)
{
    const int32_t u0 = (begin > first ? begin : first) - first;
    const int32_t u1 = (end < first + s.units ? end : first + s.units) - first;
    mai_segment part = {s.t0, s.t0, 0};
    if (u1 <= u0) return part;
    part.t0 = s.t0 + u0 * unit;
    part.t1 = u1 == s.units ? s.t1 : s.t0 + u1 * unit;
    part.units = u1 - u0;
    return part;
}

/* Where a block puts the partial result of a group that it shares with others: groups that began in
 * an earlier block come first in a block, groups that go on in a later one last, so two places
 * suffice. What a block computes whole needs none. */
enum { MAI_PLACE_CONTINUES = 0, MAI_PLACE_BEGINS = 1, MAI_PLACES = 2, MAI_PLACE_WHOLE = 2 };

MAI_HOST_DEVICE int32_t mai_place(int32_t block_begin, int32_t block_end, int32_t group_begin,
                                  int32_t group_end)
{
    if (group_begin < block_begin) return MAI_PLACE_CONTINUES;
    return group_end > block_end ? MAI_PLACE_BEGINS : MAI_PLACE_WHOLE;
}

#endif /* MAI_CUDA_SCHEDULE_H */
