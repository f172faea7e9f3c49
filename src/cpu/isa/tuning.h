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
 * Q8_IN_PLACE: q8_0 is converted where it lies and not unpacked (body/blocks.h). The share of the
 * instruction set's peak with K and V in the second-level cache, 32/8 and 12/2 heads of 128, in place
 * and unpacked: avx2 .46 and .52, .48 and .58; avx512 .42 and .45, .33 and .41. */
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
#    define Q8_IN_PLACE 0
#    define MOST_HEADS 6
#    define DOT_TOKENS(heads) PER_HEADS(heads, 8, 4, 4, 2, 2, 2, 0, 0)
#    define SUM_VECS(heads) PER_HEADS(heads, 8, 4, 4, 2, 2, 2, 0, 0)
#elif defined(TUNE_AVX512)
#    define Q8_IN_PLACE 1
#    define MOST_HEADS 8
#    define DOT_TOKENS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#    define SUM_VECS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#elif defined(TUNE_NEON) /* not measured: 32 registers, as AVX-512 has */
#    define Q8_IN_PLACE 0
#    define MOST_HEADS 8
#    define DOT_TOKENS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#    define SUM_VECS(heads) PER_HEADS(heads, 8, 8, 4, 4, 2, 2, 2, 2)
#elif defined(TUNE_SCALAR)
#    define Q8_IN_PLACE 0
#    define MOST_HEADS 4
#    define DOT_TOKENS(heads) PER_HEADS(heads, 4, 4, 2, 2, 0, 0, 0, 0)
#    define SUM_VECS(heads) PER_HEADS(heads, 4, 4, 2, 2, 0, 0, 0, 0)
#endif
#define MOST_SUMS 16 /* accumulators of a block */

#if MOST_HEADS == 4
#    define EACH_BLOCK(XX) XX(1) XX(2) XX(3) XX(4)
#elif MOST_HEADS == 6
#    define EACH_BLOCK(XX) XX(1) XX(2) XX(3) XX(4) XX(5) XX(6)
#else
#    define EACH_BLOCK(XX) XX(1) XX(2) XX(3) XX(4) XX(5) XX(6) XX(7) XX(8)
#endif

#endif
