/* SPDX-License-Identifier: Apache-2.0 */
/* A tile: up to TILE tokens of one kv head, by any number of queries ("heads").
 *
 *     scores[h][t] = q[h] . k[t];     o[h] += sum over t of p[h][t] v[t]
 *
 * Both are small matrix products. A block of heads and tokens (or of heads and vectors of a row) has
 * its accumulators in registers, as many as the instruction set has (tuning.h), so that a converted
 * vector serves every head of the block and a query's vector every token. Up to MOST_HEADS heads are
 * one block; of more, each block converts the rows anew, which takes no longer than loading f32 rows
 * that were kept (and stored before). Rows of ggml's block types go other ways: blocks.h, whole.h.
 *
 * Every dot product and every output element is summed in an order that does not depend on which
 * other heads take part, so a head computed alone gives the same bits.
 *
 * What decides the speed from memory is how the rows are fetched: the compute loops jump by a token's
 * stride, which the hardware prefetcher follows badly, and prefetch instructions that come in bursts
 * are dropped when the core's miss buffers are full. So each step of the inner loops fetches one or
 * two lines of the next tile, in the order in which they lie in memory. */

#define TILE 16

/* Rows of the tokens of a tile, kv_head 0. Past the last token they repeat it. */
typedef struct tile_rows {
    const char *k[TILE], *v[TILE];
    int n;
} tile_rows;

/* ------------------------------------------------------------------------------ fetching ahead -- */

#define LINE 64

/* Bytes of VL elements of a row of compile-time type, rounded down. */
#define VEC_BYTES(type) \
    ((type) == MACATTN_DTYPE_F32 ? VL * 4 : (type) == MACATTN_DTYPE_Q8_0 ? VL * 34 / 32 : VL * 2)

/* Where to go on fetching: the rest of a row, then the rows behind it. */
typedef struct ahead {
    const char *at, *end;    /* of the row; end NULL: nothing to fetch, and `at` is harmless */
    const char *const *rows; /* the next ones, and how many */
    int n_rows;
    int64_t base, span; /* bytes of a row: from where, how many */
} ahead;

/* One line. */
MAI_INLINE void fetch_line(ahead *next)
{
    v_prefetch(next->at);
    if (!next->end) return;
    next->at += LINE;
    if (next->at < next->end) return;
    if (next->n_rows == 0) {
        next->end = NULL;
        return;
    }
    next->at = *next->rows++ + next->base;
    next->end = next->at + next->span;
    next->n_rows--;
}

/* n lines, a constant: as long as a row lasts without a question for each. One line asks as often in its
 * own way, and a row of few lines ends too often to guess. */
MAI_INLINE void fetch_lines(ahead *next, const int n)
{
    if (n > 1 && next->end && next->at + n * LINE < next->end) {
        MAI_UNROLL for (int i = 0; i < n; i++) v_prefetch(next->at + i * LINE);
        next->at += n * LINE;
        return;
    }
    for (int i = 0; i < n && next->end; i++) fetch_line(next);
}

/* n lines between multiply-adds whose sums fill the registers of AVX-512: the compiler is kept from making a copy of
 * the loop for each answer, between which it would move sums to and fro. Past the last row, its last line again
 * and again. (Block types take 1.03 times as long with it.) */
MAI_INLINE void fetch_run(ahead *next, const int n)
{
    if (n > 1 && __builtin_expect(next->at + n * LINE < next->end, 1)) {
        MAI_UNROLL for (int i = 0; i < n; i++) v_prefetch(next->at + i * LINE);
        next->at += n * LINE;
        POINTER_IN_REGISTER(next->at);
        return;
    }
    for (int i = 0; i < n; i++) {
        v_prefetch(next->at);
        next->at += LINE;
        if (__builtin_expect(next->at >= next->end, 0)) {
            if (next->n_rows == 0) {
                next->at -= LINE;
            } else {
                next->at = *next->rows++ + next->base;
                next->end = next->at + next->span;
                next->n_rows--;
            }
        }
        POINTER_IN_REGISTER(next->end);
        POINTER_IN_REGISTER(next->at);
    }
}

/* Nothing: `harmless` may be fetched again and again. */
MAI_INLINE ahead fetch_nothing(const char *harmless)
{
    return (ahead){.at = harmless};
}

/* Bytes [base, base + span) of each of TILE rows, from the `done`-th of all these bytes on. */
MAI_INLINE ahead fetch_rows(const char *const *rows, int64_t base, int64_t span, int64_t done)
{
    const uint32_t row = (uint32_t)done / (uint32_t)span, within = (uint32_t)done % (uint32_t)span;
    const char *start = rows[row] + base;
    return (ahead){.at = start + within,
                   .end = start + span,
                   .rows = rows + row + 1,
                   .n_rows = TILE - 1 - (int)row,
                   .base = base,
                   .span = span};
}

/* -------------------------------------------------------------------------------------- scores -- */

/* Steps of the loop over a row's vectors that a line lasts, at most 4; constants, as all of these. */
#define LINE_STEPS(type) (VEC_BYTES(type) * 4 <= LINE ? 4 : VEC_BYTES(type) * 2 <= LINE ? 2 : 1)

/* One vector of hb queries and tb rows. The fewer of the two wait in registers. */
MAI_INLINE void dot_step(macattn_dtype type, const int hb, const int tb, const char *const *row,
                         const float *q, int d, int j, V *acc)
{
    V wait[MOST_SUMS];
    if (hb < tb) {
        MAI_UNROLL for (int h = 0; h < hb; h++)
        {
            wait[h] = v_load(q + (size_t)h * (size_t)d + (size_t)j * VL);
            IN_REGISTER(wait[h]);
        }
    } else {
        MAI_UNROLL for (int t = 0; t < tb; t++) wait[t] = row_vec(type, row[t], j);
    }
    MAI_UNROLL for (int i = 0; i < (hb < tb ? tb : hb); i++)
    {
        V x =
            hb < tb ? row_vec(type, row[i], j) : v_load(q + (size_t)i * (size_t)d + (size_t)j * VL);
        if (hb > 1 && tb > 1) IN_REGISTER(x);
        MAI_UNROLL for (int k = 0; k < (hb < tb ? hb : tb); k++)
        {
            const int at = hb < tb ? k * tb + i : i * tb + k;
            ADD_PRODUCT(acc[at], wait[k], x);
        }
    }
}

/* sums[h * TILE + t] for hb heads and tb tokens from `rows` on: the lanes of their dot products, not yet
 * added up. hb, tb and the type are constants. */
MAI_INLINE void dot_block(macattn_dtype type, const int hb, const int tb, const char *const *rows,
                          int64_t offset, const float *q, int d, V *sums, ahead *next)
{
    V acc[MOST_SUMS];
    ahead mine = *next;
    const int n_vec = d / VL, rest = d % VL, steps = LINE_STEPS(type);
    const char *row[MOST_SUMS];
    MAI_UNROLL for (int i = 0; i < hb * tb; i++) acc[i] = v_zero();
    MAI_UNROLL for (int t = 0; t < tb; t++) row[t] = rows[t] + offset;
    int j = 0;
    for (; tb % steps == 0 && VL == 16 && j < n_vec; j++) {
        fetch_run(&mine, tb / steps);
        dot_step(type, hb, tb, row, q, d, j, acc);
    }
    for (; j + steps <= n_vec; j += steps) {
        MAI_UNROLL for (int u = 0; u < steps; u++)
        {
            MAI_UNROLL for (int t = 0; t < tb; t++)
            {
                if (t * steps / tb == u) fetch_line(&mine);
            }
            dot_step(type, hb, tb, row, q, d, j + u, acc);
        }
    }
    for (; steps > 1 && j < n_vec; j++) dot_step(type, hb, tb, row, q, d, j, acc);
    if (rest) {
        MAI_UNROLL for (int h = 0; h < hb; h++)
        {
            const V x = v_load_n(q + (size_t)h * (size_t)d + (size_t)n_vec * VL, rest);
            MAI_UNROLL for (int t = 0; t < tb; t++) acc[h * tb + t] =
                v_fma(x, row_tail(type, row[t], n_vec, rest), acc[h * tb + t]);
        }
    }
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int t = 0; t < tb; t++)
        sums[h * TILE + t] = acc[h * tb + t];
    *next = mine;
}

/* Whether `step` more are to be done together of the `left` ones; of three, not if that left one alone where
 * it could be two and two. */
MAI_INLINE bool threes(const int step, int left)
{
    return step == 3 ? left == 3 || left > 4 : left >= step;
}

/* scores[h][..] of hb heads, a constant, for the first n tokens, a multiple of HSUM. */
MAI_INLINE void score_block(macattn_dtype type, const int hb, const char *const *rows,
                            int64_t offset, const float *q, int d, int n, float *scores,
                            ahead *next)
{
    const int tb = DOT_TOKENS(hb);
    V sums[MOST_HEADS * TILE];
    int t = 0;
    for (; VL < 16 ? threes(tb, n - t) : t < n; t += tb) /* the same; each is faster where it is */
        dot_block(type, hb, tb, rows + t, offset, q, d, sums + t, next);
    for (; tb == 3 && t < n; t += 2) dot_block(type, hb, 2, rows + t, offset, q, d, sums + t, next);
    MAI_UNROLL for (int h = 0; h < hb; h++) for (int i = 0; i < n; i += HSUM)
        v_hsum(sums + h * TILE + i, scores + h * TILE + i);
}

/* How many of `left` heads the next block takes: all blocks about the same. */
MAI_INLINE int next_block(int left, int most)
{
    const int blocks = (left + most - 1) / most;
    return (left + blocks - 1) / blocks;
}

/* Scores of n_heads heads over the tile: q is [n_heads][d], scores [n_heads][TILE]. */
MAI_INLINE void score_tile(macattn_dtype type, const char *const *rows, int64_t offset,
                           const float *q, int d, int n_heads, int n, float *scores, ahead *next)
{
    for (int h = 0, block; h < n_heads; h += block) {
        float *s = scores + (size_t)h * TILE;
        block = next_block(n_heads - h, MOST_HEADS);
        switch (block) {
#define SCORE_BLOCK(hb) \
    case hb: score_block(type, hb, rows, offset, q + (size_t)h * (size_t)d, d, n, s, next); break;
            EACH_BLOCK(SCORE_BLOCK)
#undef SCORE_BLOCK
        }
    }
}

/* ---------------------------------------------------------------------------------------- sums -- */

#if LANE_WEIGHTS
#    include "lanes.h"
#else
/* o[h][..] += sum over t in [t0, t1) of p[h * TILE + t] * v[t][..], for hb heads, nv vectors from j; hb,
 * nv and the type are constants. */
MAI_INLINE void pv_block(macattn_dtype type, const int hb, const int nv, const char *const *rows,
                         int64_t offset, int t0, int t1, const float *p, float *const *o, int j,
                         ahead *next)
{
    V acc[MOST_SUMS];
    ahead mine = *next; /* in registers: what is stored is loaded again by the next step */
    const int lines = nv * VEC_BYTES(type) / LINE, every = lines > 0 ? 1 : LINE_STEPS(type) / nv;
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        acc[h * nv + i] = v_load(o[h] + (size_t)(j + i) * VL);
    for (int t = t0; t < t1; t++) {
        V wait[MOST_SUMS];
        const char *from = rows[t] + offset + vecs_bytes(type, j);
        POINTER_IN_REGISTER(from);
        if (lines > 0) VL == 16 ? fetch_run(&mine, lines) : fetch_lines(&mine, lines);
        if (lines == 0 && t % every == 0) fetch_line(&mine);
        if (hb < nv) {
            MAI_UNROLL for (int h = 0; h < hb; h++) wait[h] = v_set1(p[h * TILE + t]);
        } else {
            MAI_UNROLL for (int i = 0; i < nv; i++)
            {
                wait[i] = row_vec(type, from, i);
                IN_REGISTER(wait[i]);
            }
        }
        MAI_UNROLL for (int i = 0; i < (hb < nv ? nv : hb); i++)
        {
            V x = hb < nv ? row_vec(type, from, i) : v_set1(p[i * TILE + t]);
            if (hb > 1 && nv > 1) IN_REGISTER(x);
            MAI_UNROLL for (int k = 0; k < (hb < nv ? hb : nv); k++)
            {
                const int at = hb < nv ? k * nv + i : i * nv + k;
                ADD_PRODUCT(acc[at], wait[k], x);
            }
        }
    }
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        v_store(o[h] + (size_t)(j + i) * VL, acc[h * nv + i]);
    *next = mine;
}
#endif

/* The part of a row that is no whole vector. */
MAI_INLINE void pv_tail(macattn_dtype type, const char *const *rows, int64_t offset, int t0, int t1,
                        const float *p, float *o, int dv)
{
    const int j = dv / VL, rest = dv % VL;
    V acc = v_load_n(o + (size_t)j * VL, rest);
    for (int t = t0; t < t1; t++) {
        acc = v_fma(v_set1(p[t]), row_tail(type, rows[t] + offset, j, rest), acc);
    }
    v_store_n(o + (size_t)j * VL, acc, rest);
}

MAI_INLINE void sum_block(macattn_dtype type, const int hb, const char *const *rows, int64_t offset,
                          int dim, int t0, int t1, const float *p, float *const *o, ahead *next)
{
    const int nv = SUM_VECS(hb), n_vec = dim / VL;
    int j = 0;
    for (; threes(nv, n_vec - j); j += nv)
        pv_block(type, hb, nv, rows, offset, t0, t1, p, o, j, next);
    for (; nv == 3 && j + 2 <= n_vec; j += 2)
        pv_block(type, hb, 2, rows, offset, t0, t1, p, o, j, next);
    for (; nv > 1 && j < n_vec; j++) pv_block(type, hb, 1, rows, offset, t0, t1, p, o, j, next);
    if (dim % VL == 0) return;
    for (int h = 0; h < hb; h++) pv_tail(type, rows, offset, t0, t1, p + h * TILE, o[h], dim);
}

/* o[h] [dim] += `rows` [t0, t1), weighted by p [n_heads][TILE]. */
MAI_INLINE void sum_tile(macattn_dtype type, const char *const *rows, int64_t offset, int dim,
                         int n_heads, int t0, int t1, const float *p, float *const *o, ahead *next)
{
    for (int h = 0, block; h < n_heads; h += block) {
        const float *w = p + (size_t)h * TILE;
        block = next_block(n_heads - h, MOST_HEADS);
        switch (block) {
#define SUM_BLOCK(hb) \
    case hb: sum_block(type, hb, rows, offset, dim, t0, t1, w, o + h, next); break;
            EACH_BLOCK(SUM_BLOCK)
#undef SUM_BLOCK
        }
    }
}

/* ------------------------------------------------------------------------------------- dispatch -- */

#include "blocks.h"

#if WHOLE_HEADS > 0
#    include "whole.h"
#endif

/* What tile_scores and tile_sums work in. */
static size_t tile_work_bytes(const mai_shape *shape)
{
    return (unpacked_bytes(shape) + 63) / 64 * 64;
}

/* The two most common head dims as constants: their loops unroll, which is worth a few percent. */
#define FOR_DIM(dim, call)          \
    do {                            \
        switch (dim) {              \
        case 64: call(64); break;   \
        case 128: call(128); break; \
        default: call(dim); break;  \
        }                           \
    } while (0)

/* Queries as tile_scores wants them. `whole`: the place of whole_bytes for each. */
typedef struct tile_queries {
    float *q; /* [n_heads][d] */
    char *whole;
} tile_queries;

/* Bytes of a query beside its floats. */
static size_t whole_bytes(int d)
{
    return WHOLE_HEADS > 0 ? sizeof(float) * (size_t)d : 0;
}

/* Call when query `head` is in its place, for keys of this type. */
static void prepare_query(macattn_dtype type, int d, const tile_queries *q, int head)
{
#if WHOLE_HEADS > 0
    if (is_blocks(type)) whole_from_query(type, q->q + (size_t)head * (size_t)d, d, q->whole, head);
#else
    (void)type, (void)d, (void)q, (void)head;
#endif
}

/* The queries from `head` on. */
static tile_queries queries_from(const tile_queries *q, int d, size_t head)
{
    return (tile_queries){q->q + head * (size_t)d, q->whole + head * whole_bytes(d)};
}

/* Scores of n_heads heads, prepared, for n tokens. */
static void tile_scores(const mai_shape *shape, const char *const *rows, int n, int64_t offset,
                        const tile_queries *queries, int n_heads, float *scores, void *work,
                        ahead *next)
{
    const macattn_dtype type = shape->k_dtype;
    const int n_up = (n + HSUM - 1) / HSUM * HSUM;
    const float *q = queries->q;
#if WHOLE_HEADS > 0
    if (is_blocks(type)) {
        score_whole(type, rows, offset, q, queries->whole, shape->d, n_heads, scores, work, next);
        return;
    }
#else
    if (is_blocks(type) && !(Q8_SCALED && type == MACATTN_DTYPE_Q8_0)) {
        const unpacked u = unpacked_in(work, shape->d);
        unpack_tile(type, rows, offset, shape->d, 0, n_up, &u);
#    define SCORES_LEAST(dim) score_unpacked(&u, true, q, dim, n_heads, n_up, scores, next)
#    define SCORES_BLOCKS(dim) score_unpacked(&u, false, q, dim, n_heads, n_up, scores, next)
        if (has_least(type))
            FOR_DIM(shape->d, SCORES_LEAST);
        else
            FOR_DIM(shape->d, SCORES_BLOCKS);
        return;
    }
#endif
#define SCORES(type, dim) score_tile(type, rows, offset, q, dim, n_heads, n_up, scores, next)
#define SCORES_F32(dim) SCORES(MACATTN_DTYPE_F32, dim)
#define SCORES_F16(dim) SCORES(MACATTN_DTYPE_F16, dim)
#define SCORES_BF16(dim) SCORES(MACATTN_DTYPE_BF16, dim)
#define SCORES_Q8_0(dim) SCORES(MACATTN_DTYPE_Q8_0, dim)
    switch (type) {
    case MACATTN_DTYPE_F32: FOR_DIM(shape->d, SCORES_F32); break;
    case MACATTN_DTYPE_F16: FOR_DIM(shape->d, SCORES_F16); break;
    case MACATTN_DTYPE_BF16: FOR_DIM(shape->d, SCORES_BF16); break;
#if Q8_SCALED && WHOLE_HEADS == 0
    case MACATTN_DTYPE_Q8_0: FOR_DIM(shape->d, SCORES_Q8_0); break;
#endif
    default: break; /* not on the CPU */
    }
}

/* tile_sums of block types. */
static void sum_blocks(macattn_dtype type, int dim, const char *const *rows, int64_t offset,
                       int n_heads, int t0, int t1, const float *p, float *const *o, void *work,
                       ahead *next)
{
    const unpacked u = unpacked_in(work, dim);
    const whole_rows v = {&u, rows, offset};
#define SUMS_WHOLE(type, dim) sum_whole(&v, type, dim, n_heads, t0, t1, p, o, next)
#define SUMS_Q8_0(dim) SUMS_WHOLE(MACATTN_DTYPE_Q8_0, dim)
#define SUMS_Q4_0(dim) SUMS_WHOLE(MACATTN_DTYPE_Q4_0, dim)
#define SUMS_IQ4_NL(dim) SUMS_WHOLE(MACATTN_DTYPE_IQ4_NL, dim)
#define SUMS_UNPACKED(dim) SUMS_WHOLE(UNPACKED, dim)
#define SUMS_LEAST(dim) sum_least(&u, dim, n_heads, t0, t1, p, o, next)
    if (in_place(type)) {
        if (!SCALE_VALUES) unpack_scales(type, rows, offset, dim, &u);
        if (type == MACATTN_DTYPE_Q8_0) FOR_DIM(dim, SUMS_Q8_0);
#if NIBBLES_IN_PLACE
        else if (type == MACATTN_DTYPE_Q4_0)
            FOR_DIM(dim, SUMS_Q4_0);
        else
            FOR_DIM(dim, SUMS_IQ4_NL);
#endif
        return;
    }
    unpack_tile(type, rows, offset, dim, t0, t1, &u);
    if (has_least(type))
        FOR_DIM(dim, SUMS_LEAST);
    else
        FOR_DIM(dim, SUMS_UNPACKED);
}

/* o[h] [dim] += rows [t0, t1) of a tile's K or V, weighted by p. */
static void tile_sums(macattn_dtype type, int dim, const char *const *rows, int64_t offset,
                      int n_heads, int t0, int t1, const float *p, float *const *o, void *work,
                      ahead *next)
{
#define SUMS(type, dim) sum_tile(type, rows, offset, dim, n_heads, t0, t1, p, o, next)
#define SUMS_F32(dim) SUMS(MACATTN_DTYPE_F32, dim)
#define SUMS_F16(dim) SUMS(MACATTN_DTYPE_F16, dim)
#define SUMS_BF16(dim) SUMS(MACATTN_DTYPE_BF16, dim)
    if (is_blocks(type)) {
        sum_blocks(type, dim, rows, offset, n_heads, t0, t1, p, o, work, next);
        return;
    }
    switch (type) {
    case MACATTN_DTYPE_F32: FOR_DIM(dim, SUMS_F32); break;
    case MACATTN_DTYPE_F16: FOR_DIM(dim, SUMS_F16); break;
    case MACATTN_DTYPE_BF16: FOR_DIM(dim, SUMS_BF16); break;
    default: break; /* not on the CPU */
    }
}
