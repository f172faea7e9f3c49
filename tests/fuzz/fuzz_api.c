/* SPDX-License-Identifier: Apache-2.0 */
/* A program of API calls drawn from the input: any order, any numbers. Nothing may crash, a
 * failure must leave a sentence, and what succeeds must keep to the length the slots say. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "macattn/macattn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADS = 4, KV_HEADS = 2, DIM = 32, TOKENS = 64, SLOTS = 3, PAGE = 8, PAGES = TOKENS / PAGE };

typedef struct program {
    const uint8_t *data;
    size_t size, at;
    macattn *m;
    float q[8 * HEADS * DIM], out[8 * HEADS * DIM];
    union {
        float align;
        uint8_t bytes[TOKENS * KV_HEADS * DIM * sizeof(float)];
    } kv; /* of whatever types */
    macattn_dtype k_dtype, v_dtype;
    int32_t pages[SLOTS][PAGES];
    uint8_t *saved;
    size_t saved_size;
} program;

static int byte(program *p)
{
    return p->at < p->size ? p->data[p->at++] : 0;
}
/* Mostly a sensible number, sometimes any. */
static int number(program *p, int low, int high)
{
    const int b = byte(p);
    return b >= 250 ? (b - 252) * 1000 - 1 : low + b % (high - low + 1);
}

static void verify(program *p, macattn_status status)
{
    if (status != MACATTN_OK && macattn_last_error(p->m)[0] == 0) abort();
    for (int s = 0; s < SLOTS; s++) {
        int64_t n = -1;
        if (macattn_slot_length(p->m, s, &n) != MACATTN_OK || n < 0 || n > TOKENS) abort();
    }
}

/* Mostly one that the CPU takes. */
static macattn_dtype kv_type(program *p)
{
    const int type = number(p, MACATTN_DTYPE_F32, MACATTN_DTYPE_IQ4_NL);
    return type == MACATTN_DTYPE_F8_E4M3 && byte(p) % 8 ? MACATTN_DTYPE_Q5_1 : (macattn_dtype)type;
}

static macattn *create(program *p)
{
    macattn_config c;
    macattn *m = NULL;
    macattn_config_init(&c);
    c.n_layers = 2;
    c.n_heads = HEADS;
    c.n_kv_heads = KV_HEADS;
    c.head_dim = DIM;
    c.k_dtype = p->k_dtype = kv_type(p);
    c.v_dtype = p->v_dtype = kv_type(p);
    c.max_slots = SLOTS;
    c.max_tokens = TOKENS;
    c.ring = number(p, 1, 9);
    c.band = number(p, 1, 12);
    c.fresh_tokens = number(p, 0, 5);
    c.lse_order = number(p, 0, 1);
    c.min_tokens = number(p, 0, 20);
    c.window = byte(p) % 8 == 0 ? number(p, 0, 20) : 0;
    c.policy = (macattn_policy)number(p, 0, 2);
    c.n_threads = 1;
    char error[100];
    const macattn_status status = macattn_create(&c, &m, error, sizeof error);
    if ((status == MACATTN_OK) != (m != NULL) || (status != MACATTN_OK && !error[0])) abort();
    return m;
}

static macattn_status plan(program *p)
{
    macattn_row rows[2] = {{0}};
    macattn_batch batch = {
        .struct_size = sizeof batch, .n_rows = number(p, 1, 2), .rows = rows, .n_pages = PAGES};
    if (batch.n_rows > 2) batch.n_rows = 2;
    batch.page_size = byte(p) % 2 ? PAGE : 0;
    for (int i = 0; i < 2; i++) {
        int64_t length = 0;
        rows[i].slot = number(p, 0, SLOTS - 1);
        if (rows[i].slot >= 0 && rows[i].slot < SLOTS)
            macattn_slot_length(p->m, rows[i].slot, &length);
        rows[i].n_queries = number(p, 1, 4);
        rows[i].n_tokens = length + number(p, 1, 6);
        if (rows[i].n_queries > 4) rows[i].n_queries = 4;
        rows[i].pages = p->pages[i];
    }
    return macattn_plan(p->m, &batch);
}

static macattn_status attention(program *p, int which)
{
    macattn_io io = {.struct_size = sizeof io, .q = p->q, .q_match = p->q, .out = p->out};
    const int64_t k = (int64_t)macattn_dtype_row_bytes(p->k_dtype, DIM),
                  v = (int64_t)macattn_dtype_row_bytes(p->v_dtype, DIM);
    io.kv = (macattn_kv){.k = p->kv.bytes,
                         .v = p->kv.bytes,
                         .k_page_stride = PAGE * KV_HEADS * k,
                         .k_token_stride = KV_HEADS * k,
                         .k_head_stride = k,
                         .v_page_stride = PAGE * KV_HEADS * v,
                         .v_token_stride = KV_HEADS * v,
                         .v_head_stride = v};
    if (byte(p) % 8 == 0) io.q_match = NULL;
    if (byte(p) % 16 == 0) io.kv.k_token_stride = number(p, 0, 100);
    for (int i = 0; i < HEADS * DIM; i++) p->q[i] = (float)(byte(p) % 4) - 1.5f;
    if (which == 0) return macattn_attend(p->m, &io);
    if (which == 1) return macattn_prefill(p->m, number(p, 0, 1), &io);
    return macattn_decode(p->m, number(p, 0, 1), &io);
}

static macattn_status save(program *p)
{
    size_t size = 0;
    const int slot = number(p, 0, SLOTS - 1);
    const macattn_status status = macattn_slot_save(p->m, slot, NULL, &size);
    if (status != MACATTN_OK) return status;
    free(p->saved);
    p->saved = malloc(size);
    p->saved_size = size;
    return macattn_slot_save(p->m, slot, p->saved, &size);
}

static macattn_status step(program *p)
{
    macattn_stats stats = {.struct_size = sizeof stats};
    switch (byte(p) % 12) {
    case 0: return macattn_slot_reset(p->m, number(p, 0, SLOTS - 1));
    case 1: return macattn_slot_truncate(p->m, number(p, 0, SLOTS - 1), number(p, 0, 40));
    case 2: return macattn_slot_fork(p->m, number(p, 0, SLOTS - 1), number(p, 0, SLOTS - 1));
    case 3: return save(p);
    case 4:
        return p->saved ? macattn_slot_load(p->m, number(p, 0, SLOTS - 1), p->saved, p->saved_size)
                        : MACATTN_OK;
    case 5: return macattn_stats_get(p->m, number(p, -1, 1), number(p, -1, HEADS - 1), &stats);
    case 6: return attention(p, 0);
    case 7: return attention(p, 1);
    case 8:
    case 9: return plan(p);
    default: return attention(p, 2);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static program p;
    p = (program){.data = data, .size = size};
    /* As floats, as halves, and as scales of blocks: about 0 to 1. */
    for (size_t i = 0; i < sizeof p.kv.bytes; i++) p.kv.bytes[i] = (uint8_t)(i * 37 % 61);
    for (int s = 0; s < SLOTS; s++) {
        for (int i = 0; i < PAGES; i++) p.pages[s][i] = (i * 3 + s) % PAGES;
    }
    p.m = create(&p);
    while (p.m && p.at < p.size) verify(&p, step(&p));
    macattn_destroy(p.m);
    free(p.saved);
    return 0;
}
