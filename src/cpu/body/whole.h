/* SPDX-License-Identifier: Apache-2.0 */
/* Scores of rows in ggml's block types, by products of whole numbers.
 *
 *     q = factor * w,  w whole;   s[t] = factor * sum over blocks of scale[t] * (w . k[t]) (+ least)
 *
 * 16 bits of a query would be some three too few for the tests' tolerance. So w is cut into three parts
 * that the instruction set multiplies by 8 bits of K and sums up without loss, and each block's sum is
 * exact until it becomes a float:
 *
 *   bytes  w = 65536 a + 256 b + c, all of 8 bits, for instructions that add up four products of
 *          bytes (VNNI)
 *   words  w = 63 a + r, a of 16 bits and |r| <= 31, for AVX2: a is multiplied as words of 16 bits, r
 *          as bytes, 8 products of which still fit into 16 bits, so a block is summed in two halves
 *
 * On Arm the parts of 8 bits are multiplied by signed bytes of K: whole_neon.h.
 *
 * A lane is a token, so nothing is summed across lanes, and a tile has to be turned: quads of a
 * token's values side by side, [QUADS][TILE][4], as unsigned bytes, from which a type's zero is taken away
 * where the sums start. A block is turned once for all heads.
 *
 * What is not finite (a scale, a query) is computed value by value. */

#define QUADS (BLOCK / 4)
#define TURNED_BYTES (TILE * BLOCK) /* of a block */

/* A query in this form has the room of its d floats: its parts, in an order of the instruction set's within
 * a block, where a block's sums start, w's sum over a block (for types with a least value), and the factor, which is NaN if the query
 * is not finite. */
typedef struct whole_query {
    int32_t *parts; /* [d / BLOCK][3 * QUADS] */
    int32_t *start; /* [d / BLOCK][3] */
    float *sums;    /* [d / BLOCK] */
    float *factor;
} whole_query;

MAI_INLINE whole_query whole_query_in(char *whole, int head, int d)
{
    whole_query w = {.parts = (int32_t *)(void *)(whole + (size_t)head * (size_t)d * 4)};
    w.start = w.parts + d / 4 * 3;
    w.sums = (float *)(void *)(w.start + d / BLOCK * 3);
    w.factor = w.sums + d / BLOCK;
    return w;
}

/* Query q [d] for keys of this type, to place `head` of `whole`. */
static void whole_from_query(macattn_dtype type, const float *q, int d, char *whole, int head)
{
    const whole_query to = whole_query_in(whole, head, d);
    V highest = v_zero(), lowest = v_zero(), poison = v_zero();
    for (int i = 0; i < d; i += VL) {
        const V x = v_load(q + i);
        highest = v_max(highest, x);
        lowest = v_min(lowest, x);
        poison = v_fma(x, v_zero(), poison);
    }
    const float top = v_reduce_max(v_max(highest, v_sub(v_zero(), lowest)));
    const bool finite = v_reduce_add(poison) == 0.0f;
    /* One this small gives logits that are 0 in any unit. */
    const float inverse = top > 1e-30f ? MOST_WHOLE / top : 0.0f;
    *to.factor = finite ? top / MOST_WHOLE : NAN;
    for (int b = 0; finite && b < d / BLOCK; b++) {
        float x[BLOCK];
        V sum = v_zero();
        MAI_UNROLL for (int i = 0; i < BLOCK; i += VL)
        {
            const V w = v_round(v_mul(v_load(q + b * BLOCK + i), v_set1(inverse)));
            v_store(x + i, w);
            sum = v_add(sum, w);
        }
        whole_split(x, zero_byte(type), to.parts + b * QUADS * 3, to.start + 3 * b);
        if (has_least(type)) to.sums[b] = v_reduce_add(sum);
    }
}

/* ------------------------------------------------------------------------------ turning a tile -- */

/* Turn a block of a tile's rows; of half bytes before they are told apart. */
MAI_INLINE void turn_block(macattn_dtype type, const char *const *rows, int64_t at, uint8_t *quads)
{
    MAI_UNROLL for (int t = 0; t < TILE; t += TURN_TOKENS)
    {
        if (type != MACATTN_DTYPE_Q8_0 && !has_high_bits(type)) {
            v_turn_nibbles(type, rows + t, at + (int64_t)block_bytes(type) - BLOCK / 2,
                           quads + t * TURN_STEP);
            continue;
        }
        block_vec x[TURN_TOKENS];
        MAI_UNROLL for (int i = 0; i < TURN_TOKENS; i++) x[i] =
            block_bytes_of(type, rows[t + i] + at);
        v_turn(x, quads + t * TURN_STEP);
    }
}

/* A tile's rows to u: turned values, scales, least values. */
MAI_INLINE void turn_rows(macattn_dtype type, const char *const *rows, int64_t offset, int d,
                          const unpacked *u, ahead *next)
{
    const int lines = (TILE * (int)block_bytes(type) + LINE - 1) / LINE;
    unpack_scales(type, rows, offset, d, u);
    for (int b = 0; b < d / BLOCK; b++) {
        fetch_lines(next, lines);
        turn_block(type, rows, offset + b * (int64_t)block_bytes(type),
                   (uint8_t *)u->values + b * TURNED_BYTES);
    }
}

static void turn_tile(macattn_dtype type, const char *const *rows, int64_t offset, int d,
                      const unpacked *u, ahead *next)
{
    switch (type) {
    case MACATTN_DTYPE_Q4_0: turn_rows(MACATTN_DTYPE_Q4_0, rows, offset, d, u, next); break;
    case MACATTN_DTYPE_Q4_1: turn_rows(MACATTN_DTYPE_Q4_1, rows, offset, d, u, next); break;
    case MACATTN_DTYPE_Q5_0: turn_rows(MACATTN_DTYPE_Q5_0, rows, offset, d, u, next); break;
    case MACATTN_DTYPE_Q5_1: turn_rows(MACATTN_DTYPE_Q5_1, rows, offset, d, u, next); break;
    case MACATTN_DTYPE_IQ4_NL: turn_rows(MACATTN_DTYPE_IQ4_NL, rows, offset, d, u, next); break;
    default: turn_rows(MACATTN_DTYPE_Q8_0, rows, offset, d, u, next); break;
    }
}

/* -------------------------------------------------------------------------------------- scores -- */

#if defined(TUNE_NEON)
#    include "whole_neon.h"
#else
#    define TILE_VECS (TILE / VL)

/* Scores [hb][TILE] of a turned tile by the heads from w's on; hb is a constant. */
MAI_INLINE void whole_block(const bool least, const int hb, const unpacked *u, const whole_query *w,
                            int d, float *scores)
{
    V x[WHOLE_HEADS * TILE_VECS];
    MAI_UNROLL for (int i = 0; i < hb * TILE_VECS; i++) x[i] = v_zero();
    for (int b = 0; b < d / BLOCK; b++) {
        const uint8_t *quads = (const uint8_t *)u->values + b * TURNED_BYTES;
        const int32_t *part[WHOLE_HEADS];
        whole_sums sums[WHOLE_HEADS * TILE_VECS];
        MAI_UNROLL for (int h = 0; h < hb; h++)
        {
            part[h] = w->parts + b * QUADS * 3 + (int64_t)h * d;
            MAI_UNROLL for (int t = 0; t < TILE_VECS; t++) sums[h * TILE_VECS + t] =
                whole_start(w->start + 3 * b + (int64_t)h * d);
        }
        MAI_UNROLL for (int i = 0; i < QUADS; i++)
        {
            whole_keys k[TILE_VECS];
            if (i == QUADS / 2) {
                MAI_UNROLL for (int s = 0; s < hb * TILE_VECS; s++)
                    whole_half(&sums[s], w->start + 3 * b + (int64_t)(s / TILE_VECS) * d);
            }
            MAI_UNROLL for (int t = 0; t < TILE_VECS; t++) k[t] =
                whole_load(quads + (i * TILE + t * VL) * 4);
            MAI_UNROLL for (int h = 0; h < hb; h++)
            {
                whole_add(sums + h * TILE_VECS, k, TILE_VECS, part[h], i);
            }
        }
        MAI_UNROLL for (int i = 0; i < hb * TILE_VECS; i++)
        {
            const int at = b * TILE + i % TILE_VECS * VL;
            x[i] = v_fma(whole_value(&sums[i], WHOLE_BASE), v_load(u->scale + at), x[i]);
            if (!least) continue;
            const float sum = w->sums[b + (int64_t)(i / TILE_VECS) * d];
            x[i] = v_fma(v_set1(sum), v_load(u->least + at), x[i]);
        }
    }
    MAI_UNROLL for (int i = 0; i < hb * TILE_VECS; i++)
    {
        const float factor = w->factor[(int64_t)(i / TILE_VECS) * d];
        v_store(scores + i * VL, v_mul(x[i], v_set1(factor)));
    }
}
#endif

/* Not inlined: registers are scarce in each. */
#define DEFINE_WHOLE_BLOCK(hb)                                                     \
    static __attribute__((noinline)) void whole_block_##hb(                        \
        bool least, const unpacked *u, const whole_query *w, int d, float *scores) \
    {                                                                              \
        if (least)                                                                 \
            whole_block(true, hb, u, w, d, scores);                                \
        else                                                                       \
            whole_block(false, hb, u, w, d, scores);                               \
    }
EACH_WHOLE_BLOCK(DEFINE_WHOLE_BLOCK)
#undef DEFINE_WHOLE_BLOCK

/* One score, value by value. */
static float score_by_value(macattn_dtype type, const char *row, const float *q, int d)
{
    float sum = 0;
    for (int b = 0; b < d / BLOCK; b++, row += block_bytes(type)) {
        int8_t x[BLOCK];
        uint16_t scale, least = 0;
        memcpy(&scale, row, 2);
        if (has_least(type)) memcpy(&least, row + 2, 2);
        unpack_values(type, row, x);
        for (int i = 0; i < BLOCK; i++) {
            const float k = (float)x[i] * v_f16_scalar(scale);
            sum += q[b * BLOCK + i] * (has_least(type) ? k + v_f16_scalar(least) : k);
        }
    }
    return sum;
}

/* What is not finite: all tokens of a query, all queries of a token. */
static void score_rest(macattn_dtype type, const char *const *rows, int64_t offset, const float *q,
                       char *whole, int d, int n_heads, uint32_t tokens, float *scores)
{
    for (int h = 0; h < n_heads; h++) {
        const float factor = *whole_query_in(whole, h, d).factor;
        for (int t = 0; t < TILE; t++) {
            if (factor == factor && !(tokens >> t & 1u)) continue;
            scores[h * TILE + t] =
                score_by_value(type, rows[t] + offset, q + (size_t)h * (size_t)d, d);
        }
    }
}

/* Which tokens have a scale or least value that is not finite; u has those of `blocks` blocks. */
static uint32_t tokens_not_finite(const unpacked *u, bool least, int blocks)
{
    uint32_t tokens = 0;
    for (int t = 0; t < TILE; t += VL) {
        V poison = v_zero();
        for (int b = 0; b < blocks; b++) {
            poison = v_fma(v_load(u->scale + b * TILE + t), v_zero(), poison);
            if (least) poison = v_fma(v_load(u->least + b * TILE + t), v_zero(), poison);
        }
        tokens |= v_not_above(poison, v_set1(-1.0f)) << t;
    }
    return tokens;
}

/* score_tile of tile.h; `whole` has the same queries as q. */
static void score_whole(macattn_dtype type, const char *const *rows, int64_t offset, const float *q,
                        char *whole, int d, int n_heads, float *scores, void *work, ahead *next)
{
    const unpacked u = unpacked_in(work, d);
    const bool least = has_least(type);
    bool rest = false;
    turn_tile(type, rows, offset, d, &u, next);
    for (int h = 0, block; h < n_heads; h += block) {
        float *s = scores + (size_t)h * TILE;
        const whole_query w = whole_query_in(whole, h, d);
        block = next_block(n_heads - h, WHOLE_HEADS);
        switch (block) {
#define WHOLE_BLOCK(hb) \
    case hb: whole_block_##hb(least, &u, &w, d, s); break;
            EACH_WHOLE_BLOCK(WHOLE_BLOCK)
#undef WHOLE_BLOCK
        }
        for (int i = 0; i < block; i++) rest = rest || isnan(w.factor[(int64_t)i * d]);
    }
    const uint32_t tokens = tokens_not_finite(&u, least, d / BLOCK);
    if (rest || tokens) score_rest(type, rows, offset, q, whole, d, n_heads, tokens, scores);
}
