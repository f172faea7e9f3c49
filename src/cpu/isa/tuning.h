/* SPDX-License-Identifier: Apache-2.0 */
/* How large the blocks of body/tile.h are, in registers: up to MOST_HEADS query heads, by DOT_TOKENS
 * tokens in a dot product, by SUM_VECS vectors of a row in a sum. One line an instruction set, its
 * measurement beside it. A vocabulary chooses its line by defining TUNE_NAME.
 *
 * The share of the multiply-add peak that f16 rows of 128 in the first-level cache reach, 1 thread of a
 * Zen 5, scores / sums by the heads of a block; in brackets what another number of tokens
 * reached.
 *
 *                   1          2          3          4          5          6          7          8
 *     avx2     .37/.38    .61/.66    .77/.89    .77/.85    .86/.94    .84/1.0        -          -
 *                                                                      (7 by 2, 7 by 1: .61/.70)
 *     avx512   .27/.29    .46/.51    .59/.67    .66/.70    .65/.79    .67/.82    .69/.82    .67/.82
 *                         (4: .38)  (8: .41)   (2: .54)   (4: .55)   (4: .45)
 *
 * What binds on AVX2 are loads: of 16 registers, 12 are sums, so a block of h heads by t tokens loads
 * h + t vectors for h * t multiply-adds, and two loads a cycle are what there is.
 *
 * Rows of block types, the share of the f32 multiply-add peak with K and V in the second-level cache, q8_0,
 * d 128 (7: d 64), by heads; before, products in f32 of unpacked values (AVX2) or of values in place
 * (AVX-512):
 *
 *                     scores 1    4    6    7       sums 1    4    6    7
 *     avx2, before         .22  .55  .63  .50          .23  .62  .73  .55
 *     avx2                 .36  .64  .70  .67          .36  .68  .80  .71
 *     avxvnni              .41  .81  .91  .87          .36  .67  .77  .73
 *     avx512vnni, before   .17  .48  .51  .44          .25  .54  .61  .62
 *     avx512vnni           .24  .60  .69  .64          .27  .63  .66  .65
 *
 * Since, with the next tile's lines fetched as a step does (heads 3 and 7: d 64), before and now:
 *
 *                     scores 3    4    6    7       sums 3    4    6    7
 *     avx2, before         .50  .63  .68  .66          .65  .70  .82  .75
 *     avx2                 .50  .63  .70  .66          .67  .73  .86  .75
 *     avxvnni, before      .57  .73  .83  .76          .65  .71  .80  .74
 *     avxvnni              .59  .78  .89  .83          .67  .74  .84  .77
 *
 * WHOLE_HEADS: scores by products of whole numbers (body/whole.h), so many heads at a time; 0: in f32.
 * A block of AVX2 is two heads by 16 tokens: more heads by 8 tokens would load a part of the query for
 * every product. avx512 has no such products because processors that have nothing better run
 * them on two units, as multiply-adds in f32.
 *
 * Q8_SCALED: scores of q8_0 in f32 take values where they lie. SCALE_VALUES: in sums values are multiplied by
 * their block's scale; else it goes into the weights, once for a block. Sums of q8_0 by 1, 4, 6, 7 heads with
 * the scale in the weights: avx512vnni .23, .51, .59, .58; with the scales of a tile gathered first, as the weights
 * need them, a whole step took 1.11 to 1.16 times as long with 4 and 6 heads.
 *
 * NIBBLES_IN_PLACE: sums of q4_0 and iq4_nl convert half bytes where they lie, by a table of 16 floats. (With it,
 * and keys whose half bytes are told apart after they are turned, a step of q4_0 in cache takes .81 to .90 of its time
 * on avx512vnni.) AVX2 has no such table: there it takes five instructions for eight values, and .98 to 1.15 of the time
 * of unpacked bytes.
 *
 * LANE_WEIGHTS: sums take a token's weight from a lane of a vector (body/lanes.h), which NEON has instructions for.
 *
 * AVX2, 4 heads: 3 tokens or vectors at a time, the rest of 16 by two. Two are 8 sums, just as many as the latency of
 * multiply-adds asks for; a step of 32/8 heads in cache takes .84 to .91 of the time with 12 sums. Block types, whose
 * blocks are of four vectors, keep two: WHOLE_STEP is their tokens in a dot product, and their vectors in a sum.
 *
 * Prefill (body/matrix.h): ROW_VECS vectors of rows by STEP tokens, or columns of V, with 24 sums in registers on
 * AVX-512, 12 on AVX2: 0.84 to 0.9 of the multiply-add peak (512 queries, 32/8 heads, d 128, f16, behind 16384 tokens;
 * AVX2 0.91), the rest being exponentials and conversions. PREFILL_ROWS: with blocks of 96 rows instead of 192 the same takes
 * 1.02 times as long (AVX2 1.04), 14/2 heads of 64, where a block of 96 has 91, 1.07 (1.06). Tiles of 32 or 128 tokens
 * instead of 64: within 2%. FEW_ROWS: so few rows go by the tiles of decode. 8, 16 and 32 rows take 1.00, 1.73 and 3.26 ms
 * there (32/8 heads, 4096 tokens, avx512vnni), as rows of a block 2.02, 2.02 and 2.83.
 *
 * Lines of the next tile are fetched at each step, as many as the step's bytes, and a block's (about nine) at
 * once while a tile is turned. AVX-512, f16 and bf16: kept in registers by ADD_PRODUCT and fetch_run, a step in cache takes
 * .93 (4 heads), .97 to .98 (7, 6) and .99 (3) of the time; with them block types took 1.02 to 1.08. */
#ifndef MAI_TUNING_H
#define MAI_TUNING_H

#define PER_HEADS(n, a, b, c, d, e, f, g, h) \
    ((n) == 1   ? (a)                        \
     : (n) == 2 ? (b)                        \
     : (n) == 3 ? (c)                        \
     : (n) == 4 ? (d)                        \
     : (n) == 5 ? (e)                        \
     : (n) == 6 ? (f)                        \
     : (n) == 7 ? (g)                        \
                : (h))

#if defined(TUNE_AVX2)
#    define ROW_VECS 3
#    define STEP 4
#    define WHOLE_HEADS 2
#    define Q8_SCALED 0
#    define MOST_HEADS 6
#    define SCALE_VALUES 0
#    define NIBBLES_IN_PLACE 0
#    define LANE_WEIGHTS 0
#    define DOT_TOKENS(heads) PER_HEADS(heads, 8, 4, 4, 3, 2, 2, 0, 0)
#    define SUM_VECS(heads) PER_HEADS(heads, 8, 4, 4, 3, 2, 2, 0, 0)
#    define WHOLE_STEP(heads) PER_HEADS(heads, 8, 4, 4, 2, 2, 2, 0, 0)
#elif defined(TUNE_AVX512)
#    define ROW_VECS 3
#    define STEP 8
#    if defined(__AVX512VNNI__)
#        define WHOLE_HEADS 8
#    else
#        define WHOLE_HEADS 0
#    endif
#    define Q8_SCALED 1
#    define SCALE_VALUES 1
#    define NIBBLES_IN_PLACE 1
#    define LANE_WEIGHTS 0
#    define MOST_HEADS 8
#    define DOT_TOKENS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#    define SUM_VECS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#    define WHOLE_STEP SUM_VECS
#elif defined(TUNE_NEON) /* 32 registers, as AVX-512 has; counted (bench/arm.sh), not timed */
#    define ROW_VECS 3
#    define STEP 8
#    if defined(__ARM_FEATURE_DOTPROD)
#        define WHOLE_HEADS 2
#    else
#        define WHOLE_HEADS 0
#    endif
#    define Q8_SCALED 0
#    define SCALE_VALUES 0
#    define NIBBLES_IN_PLACE 0
#    define LANE_WEIGHTS 1
#    define MOST_HEADS 8
#    define DOT_TOKENS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#    define SUM_VECS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#    define WHOLE_STEP SUM_VECS
#elif defined(TUNE_SCALAR)
#    define ROW_VECS 3
#    define STEP 4
#    define WHOLE_HEADS 0
#    define Q8_SCALED 0
#    define SCALE_VALUES 0
#    define NIBBLES_IN_PLACE 0
#    define LANE_WEIGHTS 0
#    define MOST_HEADS 4
#    define DOT_TOKENS(heads) PER_HEADS(heads, 4, 4, 2, 2, 0, 0, 0, 0)
#    define SUM_VECS(heads) PER_HEADS(heads, 4, 4, 2, 2, 0, 0, 0, 0)
#    define WHOLE_STEP SUM_VECS
#endif

#define PREFILL_ROWS 192 /* most rows of a block */
#define FEW_ROWS 16

#define MOST_SUMS 16 /* accumulators of a block */

#if MOST_HEADS == 4
#    define EACH_BLOCK(XX) XX(1) XX(2) XX(3) XX(4)
#elif MOST_HEADS == 6
#    define EACH_BLOCK(XX) XX(1) XX(2) XX(3) XX(4) XX(5) XX(6)
#else
#    define EACH_BLOCK(XX) XX(1) XX(2) XX(3) XX(4) XX(5) XX(6) XX(7) XX(8)
#endif

#if WHOLE_HEADS == 2
#    define EACH_WHOLE_BLOCK(XX) XX(1) XX(2)
#elif WHOLE_HEADS == 8
#    define EACH_WHOLE_BLOCK(XX) XX(1) XX(2) XX(3) XX(4) XX(5) XX(6) XX(7) XX(8)
#endif

#endif
