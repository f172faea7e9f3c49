/* SPDX-License-Identifier: Apache-2.0 */
/* macattn_slot_load on damaged and made-up data: a real save with bytes changed as the input
 * says, with and without a checksum that agrees again, and the input itself. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "macattn/macattn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { LAYERS = 2, HEADS = 2, DIM = 32, TOKENS = 12, KINDS = 9 };

/* An object whose slot 0 has seen a few tokens, and what that slot saves. */
typedef struct source {
    macattn *m;
    uint8_t *saved;
    size_t size;
} source;

static void check(int condition)
{
    if (!condition) abort();
}

/* Each type as K, each as V, of different types. */
static macattn_dtype type_at(int kind)
{
    static const macattn_dtype types[KINDS] = {
        MACATTN_DTYPE_F32,  MACATTN_DTYPE_Q4_0, MACATTN_DTYPE_F16,
        MACATTN_DTYPE_Q4_1, MACATTN_DTYPE_BF16, MACATTN_DTYPE_Q5_0,
        MACATTN_DTYPE_Q8_0, MACATTN_DTYPE_Q5_1, MACATTN_DTYPE_IQ4_NL};
    return types[kind % KINDS];
}

static macattn *with_tokens(int kind)
{
    static float q[HEADS * DIM], kv[TOKENS * DIM], out[HEADS * DIM];
    macattn_config c;
    macattn *m;
    macattn_config_init(&c);
    c.n_layers = LAYERS;
    c.n_heads = HEADS;
    c.n_kv_heads = 1;
    c.head_dim = DIM;
    c.k_dtype = type_at(kind);
    c.v_dtype = type_at(kind + 4);
    c.ring = 4;
    c.band = 2;
    c.min_tokens = 0;
    c.n_threads = 1;
    c.max_tokens = 100;
    check(macattn_create(&c, &m, NULL, 0) == MACATTN_OK);
    const int64_t k = (int64_t)macattn_dtype_row_bytes(c.k_dtype, DIM),
                  v = (int64_t)macattn_dtype_row_bytes(c.v_dtype, DIM);
    /* As floats, as halves, and as scales of blocks: about 0 to 1. */
    for (size_t i = 0; i < sizeof kv; i++) ((uint8_t *)kv)[i] = (uint8_t)(i * 37 % 61);
    for (int n = 1; n <= TOKENS; n++) {
        for (int i = 0; i < HEADS * DIM; i++) q[i] = (float)((i + n) % 5);
        macattn_row row = {.n_queries = 1, .n_tokens = n};
        macattn_batch batch = {
            .struct_size = sizeof batch, .n_rows = 1, .rows = &row, .n_pages = 1};
        macattn_io io = {.struct_size = sizeof io, .q = q, .q_match = q, .out = out};
        io.kv = (macattn_kv){kv, kv, 0, k, k, 0, v, v};
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

static source *source_at(int kind)
{
    static source sources[KINDS];
    source *s = &sources[kind];
    if (s->m) return s;
    s->m = with_tokens(kind);
    check(macattn_slot_save(s->m, 0, NULL, &s->size) == MACATTN_OK);
    s->saved = malloc(s->size);
    check(macattn_slot_save(s->m, 0, s->saved, &s->size) == MACATTN_OK);
    check(macattn_slot_load(s->m, 0, s->saved, s->size) == MACATTN_OK);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const int kind = size > 0 ? data[size - 1] % KINDS : 0;
    const source *s = source_at(kind), *other = source_at((kind + 1) % KINDS);
    check(macattn_slot_load(s->m, 0, other->saved, other->size) == MACATTN_E_FORMAT);
    try_load(s->m, data, size);
    uint8_t *damaged = malloc(s->size);
    memcpy(damaged, s->saved, s->size);
    for (size_t i = 0; i + 3 <= size && i < 30; i += 3)
        damaged[(data[i] | (size_t)data[i + 1] << 8) % s->size] = data[i + 2];
    try_load(s->m, damaged, s->size);
    const uint32_t crc = crc32c(damaged, s->size - 4);
    memcpy(damaged + s->size - 4, &crc, 4);
    try_load(s->m, damaged, s->size);
    check(macattn_slot_load(s->m, 0, s->saved, s->size) == MACATTN_OK);
    free(damaged);
    return 0;
}
