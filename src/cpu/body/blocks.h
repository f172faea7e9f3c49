/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of ggml's block types: blocks of 32 values, each a whole number of 8 bits or less times the
 * block's scale, plus the block's least value where the type has one.
 *
 * A tile of them is unpacked once, to whole numbers of 8 bits side by side and the scales of each block
 * by token, unless its values are converted where they lie (in_place). Vectors become f32 as they are multiplied
 * (again for each block of heads: keeping them in f32 took longer, the stores and the room in the first-level
 * cache being worth more than the conversions).
 */

#define BLOCK 32 /* values */

/* What a block type is made of. Bits of a value: 8, 5 or 4; they come last. */
MAI_INLINE bool is_blocks(macattn_dtype type)
{
    return type == MACATTN_DTYPE_Q8_0 || type == MACATTN_DTYPE_Q4_0 || type == MACATTN_DTYPE_Q4_1 ||
           type == MACATTN_DTYPE_Q5_0 || type == MACATTN_DTYPE_Q5_1 || type == MACATTN_DTYPE_IQ4_NL;
}
MAI_INLINE bool has_least(macattn_dtype type)
{
    return type == MACATTN_DTYPE_Q4_1 || type == MACATTN_DTYPE_Q5_1;
}
MAI_INLINE bool has_high_bits(macattn_dtype type)
{
    return type == MACATTN_DTYPE_Q5_0 || type == MACATTN_DTYPE_Q5_1;
}
MAI_INLINE size_t block_bytes(macattn_dtype type)
{
    if (type == MACATTN_DTYPE_Q8_0) return 2 + BLOCK;
    return 2 + (has_least(type) ? 2 : 0) + (has_high_bits(type) ? 4 : 0) + BLOCK / 2;
}

/* The byte that means 0 where values are unsigned bytes; on Arm, where they may be signed, of the types that have
 * none below 0. */
MAI_INLINE int zero_byte(macattn_dtype type)
{
#if defined(TUNE_NEON)
    if (type == MACATTN_DTYPE_Q8_0 || type == MACATTN_DTYPE_IQ4_NL) return 0;
#endif
    return type == MACATTN_DTYPE_Q8_0 || type == MACATTN_DTYPE_IQ4_NL ? 128
           : type == MACATTN_DTYPE_Q4_0                               ? 8
           : type == MACATTN_DTYPE_Q5_0                               ? 16
                                                                      : 0;
}

/* The 32 whole numbers of a block. Of two values in a byte, the low half belongs to the first 16. */
#if defined(__AVX2__)
typedef __m256i block_vec;
/* As unsigned bytes, of which one means 0: zero_byte. */
MAI_INLINE __m256i block_bytes_of(macattn_dtype type, const char *block)
{
    if (type == MACATTN_DTYPE_Q8_0) {
        return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)(block + 2)),
                                _mm256_set1_epi8(-128));
    }
    const __m128i halves =
        _mm_loadu_si128((const __m128i *)(const void *)(block + block_bytes(type) - BLOCK / 2));
    __m256i x =
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(halves, 4), halves), _mm256_set1_epi8(15));
    if (type == MACATTN_DTYPE_IQ4_NL) {
        const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15));
        x = _mm256_shuffle_epi8(table, x);
    }
    if (has_high_bits(type)) { /* bit i of four bytes to byte i */
        int32_t bits;
        memcpy(&bits, block + block_bytes(type) - BLOCK / 2 - 4, 4);
        const __m256i byte =
            _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i mask = _mm256_set1_epi64x((int64_t)0x8040201008040201);
        const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), byte);
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, mask), mask);
        x = _mm256_or_si256(x, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
    return x;
}

MAI_INLINE void unpack_values(macattn_dtype type, const char *block, int8_t *out)
{
    const __m256i zero = _mm256_set1_epi8((char)zero_byte(type));
    _mm256_storeu_si256((__m256i *)(void *)out, _mm256_sub_epi8(block_bytes_of(type, block), zero));
}
#elif defined(TUNE_NEON)
typedef int8x16x2_t block_vec;
/* As bytes, of which one means 0: zero_byte. */
MAI_INLINE int8x16x2_t block_bytes_of(macattn_dtype type, const char *block)
{
    static const int8_t iq4_nl[16] = {IQ4_NL_TABLE};
    if (type == MACATTN_DTYPE_Q8_0) {
        const int8_t *values = (const int8_t *)block + 2;
        return (int8x16x2_t){{vld1q_s8(values), vld1q_s8(values + 16)}};
    }
    const uint8_t *from = (const uint8_t *)block + block_bytes(type) - BLOCK / 2;
    const uint8x16_t halves = vld1q_u8(from);
    uint8x16_t x[2] = {vandq_u8(halves, vdupq_n_u8(15)), vshrq_n_u8(halves, 4)};
    for (int i = 0; i < 2 && has_high_bits(type); i++) { /* bit j of two bytes to byte j */
        static const uint8_t mask[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const uint8x16_t spread =
            vcombine_u8(vdup_n_u8(from[2 * i - 4]), vdup_n_u8(from[2 * i - 3]));
        x[i] = vorrq_u8(x[i], vandq_u8(vtstq_u8(spread, vld1q_u8(mask)), vdupq_n_u8(16)));
    }
    if (type == MACATTN_DTYPE_IQ4_NL)
        return (int8x16x2_t){
            {vqtbl1q_s8(vld1q_s8(iq4_nl), x[0]), vqtbl1q_s8(vld1q_s8(iq4_nl), x[1])}};
    return (int8x16x2_t){{vreinterpretq_s8_u8(x[0]), vreinterpretq_s8_u8(x[1])}};
}

MAI_INLINE void unpack_values(macattn_dtype type, const char *block, int8_t *out)
{
    const int8x16_t zero = vdupq_n_s8((int8_t)zero_byte(type));
    const int8x16x2_t x = block_bytes_of(type, block);
    vst1q_s8(out, vsubq_s8(x.val[0], zero));
    vst1q_s8(out + 16, vsubq_s8(x.val[1], zero));
}
#else
MAI_INLINE void unpack_values(macattn_dtype type, const char *block, int8_t *out)
{
    static const int8_t table[16] = {IQ4_NL_TABLE};
    if (type == MACATTN_DTYPE_Q8_0) {
        memcpy(out, block + 2, BLOCK);
        return;
    }
    const uint8_t *halves = (const uint8_t *)block + block_bytes(type) - BLOCK / 2;
    uint32_t bits = 0;
    if (has_high_bits(type)) memcpy(&bits, halves - 4, 4);
    for (int i = 0; i < BLOCK / 2; i++) {
        int low = halves[i] & 15, high = halves[i] >> 4;
        if (has_high_bits(type)) {
            low |= (int)(bits >> i & 1u) << 4;
            high |= (int)(bits >> (i + BLOCK / 2) & 1u) << 4;
        }
        const int zero = type == MACATTN_DTYPE_IQ4_NL ? 0 : zero_byte(type);
        out[i] = (int8_t)(type == MACATTN_DTYPE_IQ4_NL ? table[low] : low - zero);
        out[i + BLOCK / 2] = (int8_t)(type == MACATTN_DTYPE_IQ4_NL ? table[high] : high - zero);
    }
}
#endif

/* A tile's rows as whole numbers, and what they are to be multiplied by. */
typedef struct unpacked {
    int8_t *values;       /* [TILE][dim] */
    float *scale, *least; /* [dim / BLOCK][TILE]; least: where the type has one */
    float *weights;       /* [dim / BLOCK][MOST_HEADS][TILE] of a sum, times the scale */
} unpacked;

static size_t unpacked_bytes(const mai_shape *shape)
{
    const size_t dim = (size_t)(shape->d > shape->dv ? shape->d : shape->dv);
    return dim * TILE + dim / BLOCK * TILE * sizeof(float) * (2 + MOST_HEADS);
}

static unpacked unpacked_in(void *work, int dim)
{
    const size_t n = (size_t)dim / BLOCK * TILE;
    unpacked u = {.values = work};
    u.scale = (float *)(void *)(u.values + (size_t)dim * TILE);
    u.least = u.scale + n;
    u.weights = u.least + n;
    return u;
}

/* Scales, and least values, of all TILE tokens. */
MAI_INLINE void unpack_scales(macattn_dtype type, const char *const *rows, int64_t offset, int dim,
                              const unpacked *u)
{
    for (int b = 0; b < dim / BLOCK; b++, offset += (int64_t)block_bytes(type)) {
        for (int t = 0; t < TILE; t += VL) {
            v_store(u->scale + b * TILE + t, v_f16_of_rows(rows + t, offset));
            if (has_least(type))
                v_store(u->least + b * TILE + t, v_f16_of_rows(rows + t, offset + 2));
        }
    }
}

MAI_INLINE void unpack_rows(macattn_dtype type, const char *const *rows, int64_t offset, int dim,
                            int t0, int t1, const unpacked *u)
{
    for (int t = t0; t < t1; t++) {
        const char *block = rows[t] + offset;
        int8_t *to = u->values + (size_t)t * (size_t)dim;
        for (int b = 0; b < dim / BLOCK; b++, block += block_bytes(type))
            unpack_values(type, block, to + b * BLOCK);
    }
    unpack_scales(type, rows, offset, dim, u);
}

static void unpack_tile(macattn_dtype type, const char *const *rows, int64_t offset, int dim,
                        int t0, int t1, const unpacked *u)
{
#define UNPACK(name)                                                     \
    case MACATTN_DTYPE_##name:                                           \
        unpack_rows(MACATTN_DTYPE_##name, rows, offset, dim, t0, t1, u); \
        break
    switch (type) {
        UNPACK(Q8_0);
        UNPACK(Q4_0);
        UNPACK(Q4_1);
        UNPACK(Q5_0);
        UNPACK(Q5_1);
        UNPACK(IQ4_NL);
    default: break;
    }
}

/* -------------------------------------------------------------------------------------- scores -- */

#define BLOCK_VECS (BLOCK / VL)

/* Token t's vector j of the tile, with its scale. */
MAI_INLINE V scaled_vec(const unpacked *u, const bool least, int dim, int t, int j)
{
    const int at = j / BLOCK_VECS * TILE + t;
    const V x = v_load_i8(u->values + (size_t)t * (size_t)dim + (size_t)j * VL);
    return least ? v_fma(x, v_set1(u->scale[at]), v_set1(u->least[at]))
                 : v_mul(x, v_set1(u->scale[at]));
}

#if WHOLE_HEADS == 0
/* dot_block of tile.h over tokens [t0, t0 + tb). */
MAI_INLINE void dot_unpacked(const unpacked *u, const bool least, const int hb, const int tb,
                             int t0, const float *q, int d, V *sums, ahead *next)
{
    V acc[MOST_SUMS];
    const int lines = (tb + 1) / 2; /* of tb blocks of q8_0; other types have less */
    MAI_UNROLL for (int i = 0; i < hb * tb; i++) acc[i] = v_zero();
    for (int j = 0; j < d / VL; j++) {
        V wait[MOST_SUMS];
        if (j % BLOCK_VECS < lines) fetch_line(next);
        MAI_UNROLL for (int i = BLOCK_VECS; i < lines; i += BLOCK_VECS) fetch_line(next);
        if (hb < tb) {
            MAI_UNROLL for (int h = 0; h < hb; h++)
            {
                wait[h] = v_load(q + (size_t)h * (size_t)d + (size_t)j * VL);
                IN_REGISTER(wait[h]);
            }
        } else {
            MAI_UNROLL for (int t = 0; t < tb; t++) wait[t] = scaled_vec(u, least, d, t0 + t, j);
        }
        MAI_UNROLL for (int i = 0; i < (hb < tb ? tb : hb); i++)
        {
            V x = hb < tb ? scaled_vec(u, least, d, t0 + i, j)
                          : v_load(q + (size_t)i * (size_t)d + (size_t)j * VL);
            if (hb > 1 && tb > 1) IN_REGISTER(x);
            MAI_UNROLL for (int k = 0; k < (hb < tb ? hb : tb); k++)
            {
                const int at = hb < tb ? k * tb + i : i * tb + k;
                acc[at] = v_fma(wait[k], x, acc[at]);
            }
        }
    }
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int t = 0; t < tb; t++)
        sums[h * TILE + t] = acc[h * tb + t];
}

MAI_INLINE void score_unpacked_block(const unpacked *u, const bool least, const int hb,
                                     const float *q, int d, int n, float *scores, ahead *next)
{
    const int tb = WHOLE_STEP(hb);
    V sums[MOST_HEADS * TILE];
    for (int t = 0; t < n; t += tb) dot_unpacked(u, least, hb, tb, t, q, d, sums + t, next);
    MAI_UNROLL for (int h = 0; h < hb; h++) for (int t = 0; t < n; t += HSUM)
        v_hsum(sums + h * TILE + t, scores + h * TILE + t);
}

/* score_tile of tile.h; n a multiple of HSUM. */
MAI_INLINE void score_unpacked(const unpacked *u, const bool least, const float *q, int d,
                               int n_heads, int n, float *scores, ahead *next)
{
    for (int h = 0, block; h < n_heads; h += block) {
        float *s = scores + (size_t)h * TILE;
        const float *x = q + (size_t)h * (size_t)d;
        block = next_block(n_heads - h, MOST_HEADS);
        switch (block) {
#    define SCORE_UNPACKED(hb) \
    case hb: score_unpacked_block(u, least, hb, x, d, n, s, next); break;
            EACH_BLOCK(SCORE_UNPACKED)
#    undef SCORE_UNPACKED
        }
    }
}
#endif

/* ---------------------------------------------------------------------------------------- sums -- */

/* Where a tile's whole numbers are: unpacked, or still in the rows, of a type that is read in place. */
typedef struct whole_rows {
    const unpacked *u;
    const char *const *rows;
    int64_t offset;
} whole_rows;

#define UNPACKED MACATTN_DTYPE_F32 /* in the place of a type: values of any that are unpacked */

/* Whether sums convert values where they lie: of bytes always, of half bytes where that takes no longer than
 * to unpack them first. */
MAI_INLINE bool in_place(macattn_dtype type)
{
    return type == MACATTN_DTYPE_Q8_0 ||
           (NIBBLES_IN_PLACE && (type == MACATTN_DTYPE_Q4_0 || type == MACATTN_DTYPE_IQ4_NL));
}

/* The values of token t from vector j on, which is the first of a block. */
MAI_INLINE const char *whole_at(const whole_rows *v, macattn_dtype type, int dim, int t, int j)
{
    if (type == UNPACKED)
        return (const char *)v->u->values + (size_t)t * (size_t)dim + (size_t)j * VL;
    return v->rows[t] + v->offset + j / BLOCK_VECS * (int64_t)block_bytes(type) + 2;
}

/* The i-th vector from there on, not yet multiplied by its scale; i is a constant. */
MAI_INLINE V whole_vec(macattn_dtype type, const char *from, const int i)
{
#if defined( \
    TUNE_NEON) /* never past a block's end: q8_0 alone is read in place, by at most BLOCK_VECS vectors */
    (void)type;
    return v_i8_at(from, i);
#else
    const int within = i % BLOCK_VECS;
    if (type == UNPACKED) return v_load_i8(from + i * VL);
    from += i / BLOCK_VECS * (int64_t)block_bytes(type);
#    if NIBBLES_IN_PLACE
    const int half = BLOCK_VECS / 2; /* of a block's vectors: the low and the high half bytes */
    if (type != MACATTN_DTYPE_Q8_0)
        return v_load_nibbles(type, from + within % half * VL, within >= half);
#    endif
    return v_load_i8(from + within * VL);
#endif
}

/* The scale of token t's b-th block from the one on that begins with vector j and at `from`. Where rows are read
 * in place it is converted from them: gathering a tile's takes longer. */
MAI_INLINE V block_scale(macattn_dtype type, const unpacked *u, const char *from, int j,
                         const int b, int t)
{
    uint16_t h;
    if (type == UNPACKED) return v_set1(u->scale[(j / BLOCK_VECS + b) * TILE + t]);
    memcpy(&h, from + b * (int64_t)block_bytes(type) - 2, 2);
    return v_set1(v_f16_scalar(h));
}

MAI_INLINE V whole_scaled(macattn_dtype type, const char *from, const int i, V factor)
{
    const V x = whole_vec(type, from, i);
    return SCALE_VALUES ? v_mul(x, factor) : x;
}

#if LANE_WEIGHTS
#    include "lanes_blocks.h"
#else
/* pv_block of tile.h for types without a least value: nv vectors from the k0-th of the block that begins with
 * vector j; k0 is a constant, too. `w`: weights [dim / BLOCK][hb][TILE], which have the scales in them; or
 * [hb][TILE], and the values are multiplied by theirs. */
MAI_INLINE void pv_whole(const whole_rows *v, macattn_dtype type, const int hb, const int nv,
                         int dim, int t0, int t1, const float *w, float *const *o, int j,
                         const int k0, ahead *next)
{
    V acc[MOST_SUMS];
    ahead mine = *next;
    const int lines = nv * VL / LINE, every = nv * VL >= 32 ? 2 : 4; /* tokens that a line lasts */
    const int same = nv < BLOCK_VECS ? nv : BLOCK_VECS; /* vectors that share a weight */
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        acc[h * nv + i] = v_load(o[h] + (size_t)(j + k0 + i) * VL);
    for (int t = t0; t < t1; t++) {
        const char *from = whole_at(v, type, dim, t, j);
        POINTER_IN_REGISTER(from);
        if (lines > 0) fetch_lines(&mine, lines);
        if (lines == 0 && t % every == 0) fetch_line(&mine);
        MAI_UNROLL for (int i = 0; i < nv; i += same)
        {
            const int b = (k0 + i) / BLOCK_VECS; /* block, from j's on */
            const float *weight = SCALE_VALUES ? w + t : w + (j / BLOCK_VECS + b) * hb * TILE + t;
            const V factor = SCALE_VALUES ? block_scale(type, v->u, from, j, b, t) : v_zero();
            V wait[MOST_SUMS];
            MAI_UNROLL for (int k = 0; k < (hb < same ? hb : same); k++)
            {
                wait[k] = hb < same ? v_set1(weight[k * TILE])
                                    : whole_scaled(type, from, k0 + i + k, factor);
                IN_REGISTER(wait[k]);
            }
            MAI_UNROLL for (int k = 0; k < (hb < same ? same : hb); k++)
            {
                V x = hb < same ? whole_scaled(type, from, k0 + i + k, factor)
                                : v_set1(weight[k * TILE]);
                if (hb > 1 && same > 1) IN_REGISTER(x);
                MAI_UNROLL for (int m = 0; m < (hb < same ? hb : same); m++)
                {
                    const int at = hb < same ? m * nv + i + k : k * nv + i + m;
                    acc[at] = v_fma(wait[m], x, acc[at]);
                }
            }
        }
    }
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        v_store(o[h] + (size_t)(j + k0 + i) * VL, acc[h * nv + i]);
    *next = mine;
}
#endif

/* The same for types with a least value; w [hb][TILE]. */
MAI_INLINE void pv_least(const unpacked *u, const int hb, const int nv, int dim, int t0, int t1,
                         const float *w, float *const *o, int j, ahead *next)
{
    V acc[MOST_SUMS];
    const int every = nv * VL >= 64 ? 1 : nv * VL >= 32 ? 2 : 4;
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        acc[h * nv + i] = v_load(o[h] + (size_t)(j + i) * VL);
    for (int t = t0; t < t1; t++) {
        V wait[MOST_SUMS];
        if (t % every == 0) fetch_line(next);
        MAI_UNROLL for (int i = 0; i < nv; i++) wait[i] = scaled_vec(u, true, dim, t, j + i);
        MAI_UNROLL for (int h = 0; h < hb; h++)
        {
            V x = v_set1(w[h * TILE + t]);
            if (nv > 1) IN_REGISTER(x);
            MAI_UNROLL for (int i = 0; i < nv; i++) acc[h * nv + i] =
                v_fma(x, wait[i], acc[h * nv + i]);
        }
    }
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        v_store(o[h] + (size_t)(j + i) * VL, acc[h * nv + i]);
}

MAI_INLINE void sum_whole_block(const whole_rows *v, macattn_dtype type, const int hb, int dim,
                                int t0, int t1, const float *p, float *const *o, ahead *next)
{
    const int nv = WHOLE_STEP(hb), n_vec = dim / VL;
    const unpacked *u = v->u;
    for (int b = 0; !SCALE_VALUES && b < dim / BLOCK; b++) {
        MAI_UNROLL for (int t = 0; t < TILE; t += VL)
        {
            const V scale = v_load(u->scale + b * TILE + t);
            MAI_UNROLL for (int h = 0; h < hb; h++) v_store(u->weights + (b * hb + h) * TILE + t,
                                                            v_mul(v_load(p + h * TILE + t), scale));
        }
    }
    const float *w = SCALE_VALUES ? p : u->weights;
    int j = 0;
    for (; nv > BLOCK_VECS && j + nv <= n_vec; j += nv)
        pv_whole(v, type, hb, nv, dim, t0, t1, w, o, j, 0, next);
    const int step = nv < BLOCK_VECS ? nv : BLOCK_VECS;
    for (; j < n_vec; j += BLOCK_VECS) {
        MAI_UNROLL for (int k = 0; k < BLOCK_VECS; k += step)
            pv_whole(v, type, hb, step, dim, t0, t1, w, o, j, k, next);
    }
}

MAI_INLINE void sum_least_block(const unpacked *u, const int hb, int dim, int t0, int t1,
                                const float *p, float *const *o, ahead *next)
{
    const int nv = WHOLE_STEP(hb), n_vec = dim / VL;
    int j = 0;
    for (; j + nv <= n_vec; j += nv) pv_least(u, hb, nv, dim, t0, t1, p, o, j, next);
    for (; nv > 1 && j < n_vec; j++) pv_least(u, hb, 1, dim, t0, t1, p, o, j, next);
}

/* sum_tile of tile.h. */
MAI_INLINE void sum_whole(const whole_rows *v, macattn_dtype type, int dim, int n_heads, int t0,
                          int t1, const float *p, float *const *o, ahead *next)
{
    for (int h = 0, block; h < n_heads; h += block) {
        const float *w = p + (size_t)h * TILE;
        block = next_block(n_heads - h, MOST_HEADS);
        switch (block) {
#define SUM_WHOLE(hb) \
    case hb: sum_whole_block(v, type, hb, dim, t0, t1, w, o + h, next); break;
            EACH_BLOCK(SUM_WHOLE)
#undef SUM_WHOLE
        }
    }
}

MAI_INLINE void sum_least(const unpacked *u, int dim, int n_heads, int t0, int t1, const float *p,
                          float *const *o, ahead *next)
{
    for (int h = 0, block; h < n_heads; h += block) {
        const float *w = p + (size_t)h * TILE;
        block = next_block(n_heads - h, MOST_HEADS);
        switch (block) {
#define SUM_LEAST(hb) \
    case hb: sum_least_block(u, hb, dim, t0, t1, w, o + h, next); break;
            EACH_BLOCK(SUM_LEAST)
#undef SUM_LEAST
        }
    }
}
