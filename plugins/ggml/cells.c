/* SPDX-License-Identifier: Apache-2.0 */
#include "cells.h"

#if defined(__SSE2__)
#    include <emmintrin.h>
#endif

#define F16_MINUS_INF 0xfc00u

int64_t cells_count(const uint64_t *set, int64_t n_words)
{
    int64_t n = 0;
    for (int64_t w = 0; w < n_words; w++) n += __builtin_popcountll(set[w]);
    return n;
}

bool cells_within(const uint64_t *a, const uint64_t *b, int64_t n_words)
{
    uint64_t missing = 0;
    for (int64_t w = 0; w < n_words; w++) missing |= a[w] & ~b[w];
    return missing == 0;
}

int64_t cells_one_more(const uint64_t *a, const uint64_t *b, int64_t n_words)
{
    int64_t cell = -1;
    for (int64_t w = 0; w < n_words; w++) {
        const uint64_t extra = a[w] ^ b[w];
        if (extra == 0) continue;
        if (cell >= 0 || (extra & (extra - 1)) != 0 || (extra & a[w]) != 0) return -1;
        cell = w * 64 + __builtin_ctzll(extra);
    }
    return cell;
}

int64_t cells_first(const uint64_t *set, int64_t n_words)
{
    int64_t w = 0;
    while (w < n_words - 1 && set[w] == 0) w++;
    return w * 64 + __builtin_ctzll(set[w]);
}

int64_t cells_last(const uint64_t *set, int64_t n_words)
{
    int64_t w = n_words - 1;
    while (w > 0 && set[w] == 0) w--;
    return w * 64 + 63 - __builtin_clzll(set[w]);
}

int64_t cells_list(const uint64_t *set, int64_t n_words, int32_t *list)
{
    int64_t n = 0;
    for (int64_t w = 0; w < n_words; w++) {
        for (uint64_t rest = set[w]; rest; rest &= rest - 1) {
            list[n++] = (int32_t)(w * 64 + __builtin_ctzll(rest));
        }
    }
    return n;
}

/* One bit a cell. `plain` is cleared by a value that is neither 0 nor -inf. */
static uint64_t some_cells(const uint16_t *mask, int n, bool *plain)
{
    uint64_t bits = 0;
    for (int i = 0; i < n; i++) {
        const bool hidden = mask[i] == F16_MINUS_INF;
        if (!hidden && (mask[i] & 0x7fffu) != 0) *plain = false;
        bits |= (uint64_t)!hidden << i;
    }
    return bits;
}

#if defined(__SSE2__)
static uint64_t word_of_cells(const uint16_t *mask, bool *plain)
{
    const __m128i hidden = _mm_set1_epi16((short)F16_MINUS_INF);
    uint64_t bits = 0;
    for (int i = 0; i < 4; i++) {
        const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(mask + 16 * i));
        const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(mask + 16 * i + 8));
        const __m128i a_hidden = _mm_cmpeq_epi16(a, hidden), b_hidden = _mm_cmpeq_epi16(b, hidden);
        const __m128i zero = _mm_setzero_si128();
        const __m128i a_zero = _mm_cmpeq_epi16(_mm_slli_epi16(a, 1), zero);
        const __m128i b_zero = _mm_cmpeq_epi16(_mm_slli_epi16(b, 1), zero);
        const __m128i known =
            _mm_and_si128(_mm_or_si128(a_hidden, a_zero), _mm_or_si128(b_hidden, b_zero));
        if (_mm_movemask_epi8(known) != 0xffff) *plain = false;
        const unsigned off = (unsigned)_mm_movemask_epi8(_mm_packs_epi16(a_hidden, b_hidden));
        bits |= (uint64_t)(~off & 0xffffu) << (16 * i);
    }
    return bits;
}
#else
static uint64_t word_of_cells(const uint16_t *mask, bool *plain)
{
    return some_cells(mask, 64, plain);
}
#endif

bool cells_from_mask(const uint16_t *mask, int64_t n_cells, uint64_t *set)
{
    bool plain = true;
    int64_t i = 0;
    for (; i + 64 <= n_cells; i += 64) set[i / 64] = word_of_cells(mask + i, &plain);
    if (i < n_cells) set[i / 64] = some_cells(mask + i, (int)(n_cells - i), &plain);
    return plain;
}
