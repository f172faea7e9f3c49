/* SPDX-License-Identifier: Apache-2.0 */
#include "tensors.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/say.h"

#define ROW_STEP 256 /* llama.cpp pads a cache's length to this */
#define BLOCK 32     /* values of a block of ggml's types */

uint16_t tensors_f16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    float size = fabsf(value);
    if (!(size < 65520.0f)) { /* also NaN */
        return (uint16_t)(sign | (isnan(value) ? 0x7e00u : 0x7c00u));
    }
    if (size < 0x1p-14f) { /* subnormal: a multiple of 2^-24, rounded by the addition */
        return (uint16_t)(sign | (uint16_t)lrintf(size * 0x1p24f));
    }
    bits &= 0x7fffffffu;
    bits += 0x0fffu + (bits >> 13 & 1u); /* to nearest, ties to even */
    return (uint16_t)(sign | (uint16_t)((bits - 0x38000000u) >> 13));
}

uint16_t tensors_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, so what is too large becomes
 * 448. */
static uint8_t encode_f8_e4m3(float value)
{
    const float size = fminf(fabsf(value), 448.0f);
    const int sign = signbit(value) ? 0x80 : 0;
    if (isnan(value)) {
        return 0x7f;
    }
    int exponent = size >= 0x1p-6f ? ilogbf(size) : -6;
    int eighths = (int)lrintf(ldexpf(size, 3 - exponent));
    if (eighths == 16) { /* rounded up to the next power of two */
        eighths = 8;
        exponent++;
    }
    return (uint8_t)(sign | (eighths < 8 ? eighths : (exponent + 7) << 3 | (eighths - 8)));
}

static void encode_q8_block(const float *values, char *out)
{
    float largest = 0.0f;
    for (int i = 0; i < BLOCK; i++) {
        largest = fmaxf(largest, fabsf(values[i]));
    }
    float scale = largest / 127.0f;
    uint16_t half = tensors_f16(scale);
    memcpy(out, &half, sizeof half);
    for (int i = 0; i < BLOCK; i++) {
        out[2 + i] = (char)lrintf(scale > 0.0f ? values[i] / scale : 0.0f);
    }
}

static int nearest_level(float value)
{
    static const int table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
    int best = 0;
    for (int i = 1; i < 16; i++) {
        best = fabsf(value - (float)table[i]) < fabsf(value - (float)table[best]) ? i : best;
    }
    return best;
}

/* A block of 4 or 5 bits a value: see macattn_dtype. */
static void encode_small_block(macattn_dtype dtype, const float *values, char *out)
{
    bool five = dtype == MACATTN_DTYPE_Q5_0 || dtype == MACATTN_DTYPE_Q5_1;
    bool from_least = dtype == MACATTN_DTYPE_Q4_1 || dtype == MACATTN_DTYPE_Q5_1;
    int levels = five ? 32 : 16;
    float least = values[0], most = values[0];
    for (int i = 1; i < BLOCK; i++) {
        least = fminf(least, values[i]);
        most = fmaxf(most, values[i]);
    }
    float largest = fmaxf(-least, most);
    float scale = from_least                      ? (most - least) / (float)(levels - 1)
                  : dtype == MACATTN_DTYPE_IQ4_NL ? largest / 113.0f
                                                  : largest / (float)(levels / 2 - 1);
    float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    uint16_t half = tensors_f16(scale), first = tensors_f16(least);
    uint8_t bytes[BLOCK / 2] = {0};
    uint32_t high_bits = 0;
    for (int i = 0; i < BLOCK; i++) {
        int x = from_least                      ? (int)lrintf((values[i] - least) * inverse)
                : dtype == MACATTN_DTYPE_IQ4_NL ? nearest_level(values[i] * inverse)
                                                : (int)lrintf(values[i] * inverse) + levels / 2;
        bytes[i % (BLOCK / 2)] |= (uint8_t)((x & 15) << (i < BLOCK / 2 ? 0 : 4));
        high_bits |= (uint32_t)(x >> 4 & 1) << i;
    }
    memcpy(out, &half, sizeof half);
    out += sizeof half;
    if (from_least) {
        memcpy(out, &first, sizeof first);
        out += sizeof first;
    }
    if (five) {
        memcpy(out, &high_bits, sizeof high_bits);
        out += sizeof high_bits;
    }
    memcpy(out, bytes, sizeof bytes);
}

void tensors_encode(macattn_dtype dtype, const float *values, size_t n, void *out)
{
    uint16_t *halves = out;
    size_t block_bytes = macattn_dtype_row_bytes(dtype, BLOCK);
    switch (dtype) {
    case MACATTN_DTYPE_F32: memcpy(out, values, n * sizeof *values); break;
    case MACATTN_DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            halves[i] = tensors_f16(values[i]);
        }
        break;
    case MACATTN_DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            halves[i] = tensors_bf16(values[i]);
        }
        break;
    case MACATTN_DTYPE_Q8_0:
        for (size_t i = 0; i < n / BLOCK; i++) {
            encode_q8_block(values + i * BLOCK, (char *)out + i * block_bytes);
        }
        break;
    case MACATTN_DTYPE_Q4_0:
    case MACATTN_DTYPE_Q4_1:
    case MACATTN_DTYPE_Q5_0:
    case MACATTN_DTYPE_Q5_1:
    case MACATTN_DTYPE_IQ4_NL:
        for (size_t i = 0; i < n / BLOCK; i++) {
            encode_small_block(dtype, values + i * BLOCK, (char *)out + i * block_bytes);
        }
        break;
    case MACATTN_DTYPE_F8_E4M3:
        for (size_t i = 0; i < n; i++) {
            ((uint8_t *)out)[i] = encode_f8_e4m3(values[i]);
        }
        break;
    }
}

void tensors_fill_normal(float *values, size_t n, random_state *rng)
{
    for (size_t i = 0; i < n; i++) {
        values[i] = random_normal(rng);
    }
}

/* Gigabytes have to be filled: pieces of 8 values (or a block of 32) are drawn from a table of them. */
#define TABLE_PIECES 8192

static void fill_random(macattn_dtype dtype, char *out, size_t bytes, random_state *rng)
{
    size_t piece = macattn_dtype_row_bytes(dtype, 8) > 0 ? 8 : BLOCK;
    size_t piece_bytes = macattn_dtype_row_bytes(dtype, (int64_t)piece);
    float *values = memory_alloc(TABLE_PIECES * piece * sizeof *values);
    char *table = memory_alloc(TABLE_PIECES * piece_bytes);
    tensors_fill_normal(values, TABLE_PIECES * piece, rng);
    tensors_encode(dtype, values, TABLE_PIECES * piece, table);
    for (size_t at = 0; at + piece_bytes <= bytes; at += piece_bytes) {
        size_t pick = (size_t)(random_next(rng) % TABLE_PIECES);
        memcpy(out + at, table + pick * piece_bytes, piece_bytes);
    }
    free(values);
    free(table);
}

size_t tensors_kv_bytes(kv_types types, int32_t n_kv_heads, int32_t head_dim, int32_t v_head_dim,
                        int64_t n_tokens)
{
    return (size_t)n_tokens * (size_t)n_kv_heads *
           (macattn_dtype_row_bytes(types.k, head_dim) +
            macattn_dtype_row_bytes(types.v, v_head_dim));
}

void tensors_kv_create(tensors_kv *kv, kv_types types, int32_t n_kv_heads, int32_t head_dim,
                       int32_t v_head_dim, int32_t n_sequences, int64_t n_tokens, int32_t n_layers,
                       bool huge, bool first_only, random_state *rng)
{
    *kv = (tensors_kv){.n_kv_heads = n_kv_heads,
                       .head_dim = head_dim,
                       .v_head_dim = v_head_dim,
                       .types = types,
                       .n_layers = n_layers,
                       .n_sequences = n_sequences,
                       .n_rows = (n_tokens + ROW_STEP - 1) / ROW_STEP * ROW_STEP};
    kv->k_row = macattn_dtype_row_bytes(types.k, head_dim) * (size_t)n_kv_heads;
    kv->v_row = macattn_dtype_row_bytes(types.v, v_head_dim) * (size_t)n_kv_heads;
    if (kv->k_row == 0 || kv->v_row == 0) {
        die(EXIT_USAGE, "a head of %d and %d values cannot be stored as %s and %s", head_dim,
            v_head_dim, macattn_dtype_name(types.k), macattn_dtype_name(types.v));
    }
    size_t k_sequence = kv->k_row * (size_t)kv->n_rows, v_sequence = kv->v_row * (size_t)kv->n_rows;
    kv->k_bytes = k_sequence * (size_t)n_sequences;
    kv->v_bytes = v_sequence * (size_t)n_sequences;
    kv->k = memory_alloc((size_t)n_layers * sizeof *kv->k);
    kv->v = memory_alloc((size_t)n_layers * sizeof *kv->v);
    for (int32_t layer = 0; layer < n_layers; layer++) {
        kv->k[layer] = memory_map(kv->k_bytes, huge);
        kv->v[layer] = memory_map(kv->v_bytes, huge);
        fill_random(types.k, kv->k[layer], first_only ? k_sequence : kv->k_bytes, rng);
        fill_random(types.v, kv->v[layer], first_only ? v_sequence : kv->v_bytes, rng);
    }
}

void tensors_kv_destroy(tensors_kv *kv)
{
    for (int32_t layer = 0; layer < kv->n_layers; layer++) {
        memory_unmap(kv->k[layer], kv->k_bytes);
        memory_unmap(kv->v[layer], kv->v_bytes);
    }
    free(kv->k);
    free(kv->v);
    *kv = (tensors_kv){0};
}

void tensors_kv_copy_first(tensors_kv *kv)
{
    size_t k_sequence = kv->k_row * (size_t)kv->n_rows, v_sequence = kv->v_row * (size_t)kv->n_rows;
    for (int32_t layer = 0; layer < kv->n_layers; layer++) {
        for (int32_t s = 1; s < kv->n_sequences; s++) {
            memcpy(kv->k[layer] + (size_t)s * k_sequence, kv->k[layer], k_sequence);
            memcpy(kv->v[layer] + (size_t)s * v_sequence, kv->v[layer], v_sequence);
        }
    }
}

macattn_kv tensors_kv_view(const tensors_kv *kv, int32_t layer, int32_t page_size)
{
    int64_t rows = page_size > 0 ? page_size : kv->n_rows;
    return (macattn_kv){
        .k = kv->k[layer],
        .v = kv->v[layer],
        .k_page_stride = rows * (int64_t)kv->k_row,
        .k_token_stride = (int64_t)kv->k_row,
        .k_head_stride = (int64_t)macattn_dtype_row_bytes(kv->types.k, kv->head_dim),
        .v_page_stride = rows * (int64_t)kv->v_row,
        .v_token_stride = (int64_t)kv->v_row,
        .v_head_stride = (int64_t)macattn_dtype_row_bytes(kv->types.v, kv->v_head_dim),
    };
}
