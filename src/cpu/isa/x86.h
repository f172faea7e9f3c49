/* SPDX-License-Identifier: Apache-2.0 */
/* What the vocabularies of AVX2 and AVX-512 share: vectors of 128 bits. */
#ifndef MAI_X86_H
#define MAI_X86_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

/* The two bytes at `at` of each of 8 rows. Not by way of memory: a load from what was stored in pieces waits
 * until all before it is done. */
MAI_INLINE __m128i v_words_of_rows(const char *const *rows, int64_t at)
{
    __m128i x = _mm_setzero_si128();
#define WORD_OF_ROW(i)                             \
    do {                                           \
        uint16_t word;                             \
        memcpy(&word, rows[i] + at, 2);            \
        x = _mm_insert_epi16(x, (short)word, (i)); \
    } while (0)
    WORD_OF_ROW(0);
    WORD_OF_ROW(1);
    WORD_OF_ROW(2);
    WORD_OF_ROW(3);
    WORD_OF_ROW(4);
    WORD_OF_ROW(5);
    WORD_OF_ROW(6);
    WORD_OF_ROW(7);
#undef WORD_OF_ROW
    return x;
}

#endif
