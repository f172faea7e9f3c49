/* SPDX-License-Identifier: Apache-2.0 */
/* macattn_slot_load on damaged and made-up data: a real save with bytes changed as the input
 * says, with and without a checksum that agrees again, and the input itself. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "macattn/macattn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LAYERS = 2, HEADS = 2, DIM = 8, TOKENS = 12 };

static void check(int condition)
{
    if (!condition) abort();
}

/* An object whose slot 0 has seen a few tokens. */
static macattn *with_tokens(void)
{
    static float q[HEADS * DIM], k[TOKENS * DIM], out[HEADS * DIM];
    macattn_config c;
    macattn *m;
    macattn_config_init(&c);
    c.n_layers = LAYERS;
    c.n_heads = HEADS;
    c.n_kv_heads = 1;
    c.head_dim = DIM;
    c.k_dtype = c.v_dtype = MACATTN_DTYPE_F32;
    c.ring = 4;
    c.band = 2;
    c.min_tokens = 0;
    c.n_threads = 1;
    c.max_tokens = 100;
    check(macattn_create(&c, &m, NULL, 0) == MACATTN_OK);
    for (int i = 0; i < TOKENS * DIM; i++) k[i] = (float)(i % 7) - 3;
    for (int n = 1; n <= TOKENS; n++) {
        for (int i = 0; i < HEADS * DIM; i++) q[i] = (float)((i + n) % 5);
        macattn_row row = {.n_queries = 1, .n_tokens = n};
        macattn_batch batch = {
            .struct_size = sizeof batch, .n_rows = 1, .rows = &row, .n_pages = 1};
        macattn_io io = {.struct_size = sizeof io, .q = q, .q_match = q, .out = out};
        io.kv = (macattn_kv){k, k, 0, DIM * 4, DIM * 4, 0, DIM * 4, DIM * 4};
        check(macattn_plan(m, &batch) == MACATTN_OK);
        for (int l = 0; l < LAYERS; l++) check(macattn_decode(m, l, &io) == MACATTN_OK);
    }
    return m;
}

static uint32_t crc32c(const uint8_t *p, size_t n)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    }
    return ~crc;
}

/* Load, and if that fails, the slot must save to what it was. */
static void try_load(macattn *m, const uint8_t *data, size_t size)
{
    size_t before = 0, after = 0;
    check(macattn_slot_save(m, 0, NULL, &before) == MACATTN_OK);
    uint8_t *a = malloc(before), *b = malloc(before);
    check(macattn_slot_save(m, 0, a, &before) == MACATTN_OK);
    if (macattn_slot_load(m, 0, data, size) != MACATTN_OK) {
        check(macattn_last_error(m)[0] != 0);
        after = before;
        check(macattn_slot_save(m, 0, b, &after) == MACATTN_OK && after == before);
        check(memcmp(a, b, before) == 0);
    }
    free(a);
    free(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static macattn *m;
    static uint8_t *saved;
    static size_t saved_size;
    if (!m) {
        m = with_tokens();
        check(macattn_slot_save(m, 0, NULL, &saved_size) == MACATTN_OK);
        saved = malloc(saved_size);
        check(macattn_slot_save(m, 0, saved, &saved_size) == MACATTN_OK);
        check(macattn_slot_load(m, 0, saved, saved_size) == MACATTN_OK);
    }
    try_load(m, data, size);
    uint8_t *damaged = malloc(saved_size);
    memcpy(damaged, saved, saved_size);
    for (size_t i = 0; i + 3 <= size && i < 30; i += 3)
        damaged[(data[i] | (size_t)data[i + 1] << 8) % saved_size] = data[i + 2];
    try_load(m, damaged, saved_size);
    const uint32_t crc = crc32c(damaged, saved_size - 4);
    memcpy(damaged + saved_size - 4, &crc, 4);
    try_load(m, damaged, saved_size);
    check(macattn_slot_load(m, 0, saved, saved_size) == MACATTN_OK);
    free(damaged);
    return 0;
}
