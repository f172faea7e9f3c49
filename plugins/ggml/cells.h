/* SPDX-License-Identifier: Apache-2.0 */
/* Sets of KV cells, as bitmaps; and reading them out of an attention mask. */
#ifndef MACATTN_PLUGIN_CELLS_H
#define MACATTN_PLUGIN_CELLS_H

#include <stdbool.h>
#include <stdint.h>

/*! cells_words() : 64-bit words of a set over `n_cells` cells. */
static inline int64_t cells_words(int64_t n_cells)
{
    return (n_cells + 63) / 64;
}

static inline bool cells_has(const uint64_t *set, int64_t cell)
{
    return set[cell / 64] >> (cell % 64) & 1;
}

static inline void cells_add(uint64_t *set, int64_t cell)
{
    set[cell / 64] |= (uint64_t)1 << (cell % 64);
}

static inline void cells_remove(uint64_t *set, int64_t cell)
{
    set[cell / 64] &= ~((uint64_t)1 << (cell % 64));
}

/*! cells_count() : how many cells the set holds. */
int64_t cells_count(const uint64_t *set, int64_t n_words);

/*! cells_within() : whether every cell of `a` is in `b`. */
bool cells_within(const uint64_t *a, const uint64_t *b, int64_t n_words);

/*! cells_one_more() : the cell by which `b` exceeds `a`, if `b` is `a` and one more; else -1. */
int64_t cells_one_more(const uint64_t *a, const uint64_t *b, int64_t n_words);

/*! cells_first(), cells_last() : the lowest and the highest cell of a set that holds one. */
int64_t cells_first(const uint64_t *set, int64_t n_words);
int64_t cells_last(const uint64_t *set, int64_t n_words);

/*! cells_list() : write the cells in rising order to `list`, which has room for all. Returns how
 *  many. */
int64_t cells_list(const uint64_t *set, int64_t n_words, int32_t *list);

/*! cells_from_mask() : the cells that a mask row [n_cells] of f16 lets through.
 * @return : false if the mask holds anything but 0 and -inf: it does more than let through. */
bool cells_from_mask(const uint16_t *mask, int64_t n_cells, uint64_t *set);

#endif
