/* SPDX-License-Identifier: Apache-2.0 */
/* How the GPU divides a step over thread blocks (src/cuda/schedule.h): the same integer
 * arithmetic as in the kernels, without a GPU. Every unit has one block; the blocks that each
 * group is said to have are those that compute some of it; every token is in one part; merging
 * covers every part once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/schedule.h"
#include "support.h"

#define MAX_GROUPS 64
#define MAX_BLOCKS 264

typedef struct division {
    int32_t n_groups, unit;
    mai_segments groups[MAX_GROUPS];
    int32_t begin[MAX_GROUPS + 1]; /* first unit of each group */
    mai_division all;
    int32_t boundary[MAX_BLOCKS + 1]; /* first unit of each block, moved */
} division;

static int32_t group_at(const division *x, int32_t unit)
{
    int32_t g = 0;
    while (unit >= x->begin[g + 1]) g++;
    return g;
}

static void divide(division *x, int32_t n_blocks)
{
    for (int32_t g = 0; g < x->n_groups; g++) x->begin[g + 1] = x->begin[g] + x->groups[g].cost;
    const int32_t total = x->begin[x->n_groups];
    const bool is_even = mai_is_even(total, x->n_groups, x->groups[0].cost);
    x->all = mai_divide(total, is_even ? mai_even_blocks(n_blocks, x->n_groups) : n_blocks);
    for (int32_t j = 0; j <= x->all.blocks; j++) {
        const int32_t u = mai_block_begin(x->all, j);
        const int32_t g = u < total ? group_at(x, u) : 0;
        x->boundary[j] = u < total ? mai_snapped(x->all, u, x->begin[g], x->begin[g + 1]) : total;
    }
}

static mai_segments random_group(test_rng *rng, int32_t unit, int32_t kind)
{
    static const int32_t longest[] = {3, 700, 9000, 140000};
    int32_t n = (int32_t)test_below(rng, longest[kind] + 1);
    if (kind == 3 && test_below(rng, 4) > 0) n %= 600; /* one long row among short ones */
    const int32_t fresh = (int32_t)test_below(rng, 9);
    mai_reads r = {.n = n, .b = -1};
    if (test_below(rng, 2)) {
        r.b = mai_far_end(n, 1 + (int32_t)test_below(rng, 300), fresh);
        const int32_t least = fresh < r.b ? fresh : r.b;
        r.start = least + (int32_t)test_below(rng, r.b - least + 1);
        /* Candidates were refused: what they cover is read as well. */
        if (test_below(rng, 2)) r.latest = r.start + (int32_t)test_below(rng, r.b - r.start + 1);
        /* Or the group reads a selection, which is compared with all or takes its place. */
        if (test_below(rng, 3) == 0) {
            r.latest = mai_reads_listed((int32_t)test_below(rng, r.b + 1));
            r.start = test_below(rng, 2) ? r.b : least;
        }
    }
    return mai_segments_of(r, fresh, unit);
}

static void random_division(division *x, test_rng *rng)
{
    const int32_t kind = (int32_t)test_below(rng, 4);
    x->n_groups = 1 + (int32_t)test_below(rng, MAX_GROUPS);
    x->unit = 16 << test_below(rng, 4);
    x->begin[0] = 0;
    for (int32_t g = 0; g < x->n_groups; g++) x->groups[g] = random_group(rng, x->unit, kind);
    divide(x, 1 + (int32_t)test_below(rng, MAX_BLOCKS));
}

static int32_t owner(const division *x, int32_t unit)
{
    int32_t j = 0;
    while (unit >= x->boundary[j + 1]) j++;
    return j;
}

static void check_boundaries(const division *x)
{
    assert_int_equal(x->boundary[0], 0);
    assert_int_equal(x->boundary[x->all.blocks], x->begin[x->n_groups]);
    for (int32_t j = 0; j < x->all.blocks; j++) {
        assert_true(x->boundary[j] <= x->boundary[j + 1]);
        assert_true(mai_block_begin(x->all, j) < mai_block_begin(x->all, j + 1));
    }
}

/* A group's blocks, and that each of them has some of it. */
static void check_blocks(const division *x, int32_t g)
{
    const int32_t begin = x->begin[g], end = begin + x->groups[g].units;
    const mai_blocks b = mai_blocks_of(x->all, begin, x->groups[g]);
    assert_int_equal(b.first, owner(x, begin));
    assert_int_equal(b.last, owner(x, end - 1));
    for (int32_t j = b.first; j <= b.last; j++) {
        assert_true(x->boundary[j] < end && x->boundary[j + 1] > begin);
    }
    for (int32_t u = begin; u < end; u++) {
        assert_int_equal(mai_block_in(x->all, b, u), owner(x, u));
    }
    if (x->groups[g].cost <= MAI_WHOLE_UNITS) assert_int_equal(b.first, b.last);
}

/* Every token of every segment is in the part of exactly one block, in order. */
static void check_parts(const division *x, int32_t g)
{
    const mai_blocks b = mai_blocks_of(x->all, x->begin[g], x->groups[g]);
    int32_t first = x->begin[g];
    for (int i = 0; i < MAI_SEGMENTS; i++) {
        const mai_segment s = x->groups[g].of[i];
        int32_t at = s.t0, units = 0;
        for (int32_t j = b.first; j <= b.last; j++) {
            const mai_segment part =
                mai_segment_part(s, first, x->boundary[j], x->boundary[j + 1], x->unit);
            units += part.units;
            if (part.units == 0) continue;
            assert_int_equal(part.t0, at);
            at = part.t1;
        }
        assert_int_equal(units, s.units);
        if (s.units > 0) assert_int_equal(at, s.t1);
        first += s.units;
    }
}

/* A block shares at most one group with the blocks before it, and one with those after. */
static void check_places(const division *x)
{
    for (int32_t j = 0; j < x->all.blocks; j++) {
        int32_t n[3] = {0, 0, 0};
        for (int32_t g = 0; g < x->n_groups; g++) {
            const int32_t begin = x->begin[g], end = begin + x->groups[g].units;
            if (begin >= x->boundary[j + 1] || end <= x->boundary[j]) continue;
            const mai_blocks b = mai_blocks_of(x->all, begin, x->groups[g]);
            const int32_t place = mai_place(x->boundary[j], x->boundary[j + 1], begin, end);
            assert_int_equal(place == MAI_PLACE_WHOLE, b.first == b.last);
            if (b.first < b.last) assert_int_equal(place == MAI_PLACE_BEGINS, j == b.first);
            n[place]++;
        }
        assert_true(n[MAI_PLACE_CONTINUES] <= 1 && n[MAI_PLACE_BEGINS] <= 1);
    }
}

static void test_random_divisions(void **state)
{
    (void)state;
    test_rng rng = {test_env("MACATTN_TEST_SEED", 1)};
    for (int i = 0; i < (TEST_LIGHT ? 200 : 4000); i++) {
        division x;
        random_division(&x, &rng);
        check_boundaries(&x);
        check_places(&x);
        for (int32_t g = 0; g < x.n_groups; g++) {
            check_blocks(&x, g);
            check_parts(&x, g);
        }
    }
}

/* One long row among short ones: its units are spread over nearly all blocks, and no block has
 * more than its share and what boundaries were moved by. */
static void test_balance(void **state)
{
    (void)state;
    division x = {.n_groups = 33, .unit = 128};
    for (int32_t g = 0; g < 33; g++) {
        x.groups[g] = mai_segments_of((mai_reads){g == 7 ? 131072 : 200, -1, 0, 0}, 0, 128);
    }
    divide(&x, 132);
    const mai_blocks b = mai_blocks_of(x.all, x.begin[7], x.groups[7]);
    assert_true(b.last - b.first + 1 >= 110);
    for (int32_t j = 0; j < x.all.blocks; j++) {
        assert_true(x.boundary[j + 1] - x.boundary[j] <= x.all.per + 1 + MAI_WHOLE_UNITS);
    }
}

/* Groups that cost the same: as many blocks for each, or as many groups for each block. */
static void test_equal_groups(void **state)
{
    (void)state;
    assert_int_equal(mai_even_blocks(132, 4), 132);
    assert_int_equal(mai_even_blocks(132, 8), 128);
    assert_int_equal(mai_even_blocks(132, 512), 128);
    assert_int_equal(mai_even_blocks(132, 100), 132);
    for (int32_t n_groups = 1; n_groups <= MAX_GROUPS; n_groups++) {
        division x = {.n_groups = n_groups, .unit = 128};
        for (int32_t g = 0; g < n_groups; g++) {
            x.groups[g] = mai_segments_of((mai_reads){32768, -1, 0, 0}, 0, 128);
        }
        const int32_t even = mai_even_blocks(33, n_groups);
        divide(&x, 33);
        assert_int_equal(x.all.blocks, even);
        if (even % n_groups != 0 && n_groups % even != 0) {
            assert_int_equal(even, 33);
            continue;
        }
        for (int32_t g = 0; g < n_groups; g++) {
            const mai_blocks b = mai_blocks_of(x.all, x.begin[g], x.groups[g]);
            const int32_t each = even / n_groups;
            assert_int_equal(b.first, g * even / n_groups);
            assert_int_equal(b.last - b.first + 1, each > 0 ? each : 1);
            if (each > 0) assert_int_equal(x.boundary[b.first], x.begin[g]);
        }
    }
}

/* A full hit of 64 rows, 4 KV heads: 256 small groups, none of them cut, at most two a block. */
static void test_small_groups(void **state)
{
    (void)state;
    static division x;
    x.n_groups = MAX_GROUPS;
    x.unit = 128;
    for (int32_t g = 0; g < x.n_groups; g++) {
        x.groups[g] = mai_segments_of((mai_reads){131072, 131072 - 256, 131072 - 290, 0}, 0, 128);
    }
    divide(&x, 33);
    for (int32_t j = 0; j < x.all.blocks; j++) {
        const int32_t cost = x.boundary[j + 1] - x.boundary[j];
        assert_int_equal(cost % x.groups[0].cost, 0);
        assert_true(cost <= 2 * x.groups[0].cost);
    }
}

static void test_far_end(void **state)
{
    (void)state;
    assert_int_equal(mai_far_end(1000, 256, 0), 744);
    assert_int_equal(mai_far_end(100, 256, 0), 0);
    assert_int_equal(mai_far_end(100, 256, 4), 4);
    assert_int_equal(mai_far_end(3, 256, 4), 3);
    /* A row without tokens still has a block that writes its output. */
    const mai_segments empty = mai_segments_of((mai_reads){0, -1, 0, 0}, 0, 128);
    assert_int_equal(empty.units, 1);
    assert_int_equal(empty.of[MAI_NEAR].t0, empty.of[MAI_NEAR].t1);
}

/* What refused candidates cover lies before their starts, up to the latest of them; the units of
 * the classes are those of their segments, in order. */
static void test_classes(void **state)
{
    (void)state;
    const mai_segments s = mai_segments_of((mai_reads){5000, 4000, 3000, 3300}, 4, 128);
    assert_int_equal(s.of[MAI_OLD].t0, 4);
    assert_int_equal(s.of[MAI_OLD].t1, 3300);
    assert_int_equal(s.of[MAI_FAR].t0, 3000);
    assert_int_equal(s.of[MAI_FAR].t1, 4000);
    assert_int_equal(mai_class_units(s, MAI_CLASS_OLD), 26);
    assert_int_equal(mai_class_units(s, MAI_CLASS_FAR), 8);
    assert_int_equal(mai_class_units(s, MAI_CLASS_OUT), 1 + 8);
    assert_int_equal(s.units, 26 + 8 + 9);
    for (int i = 1; i < MAI_SEGMENTS; i++) assert_true(mai_class_of(i) >= mai_class_of(i - 1));
    assert_int_equal(mai_class_of(MAI_FRESH), mai_class_of(MAI_NEAR));
    const mai_segments used = mai_segments_of((mai_reads){5000, 4000, 3000, 0}, 4, 128);
    assert_int_equal(mai_class_units(used, MAI_CLASS_OLD), 0);
}

/* Merging in one step takes up to 40 results; in two, neither step has more than a dozen. */
static void test_bundles(void **state)
{
    (void)state;
    for (int32_t n = 1; n <= 132; n++) {
        const int32_t bundle = mai_bundle((mai_blocks){10, 10 + n - 1});
        assert_in_range(bundle, 1, 40);
        const int32_t bundles = (n + bundle - 1) / bundle;
        assert_true(bundles == 1 || (bundles <= 11 && bundle <= 12));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_divisions), cmocka_unit_test(test_balance),
        cmocka_unit_test(test_small_groups),     cmocka_unit_test(test_far_end),
        cmocka_unit_test(test_classes),          cmocka_unit_test(test_bundles),
        cmocka_unit_test(test_equal_groups),
    };
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
