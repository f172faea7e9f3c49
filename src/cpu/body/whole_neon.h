/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of whole.h's scores for 64-bit Arm: one or two heads by a tile, whose sums of three parts take 24 of 32
 * registers. Keys and parts are signed bytes.
 *
 *   dot products     a lane is a token; a quad of a query is a lane of a vector of four, so nothing is broadcast
 *   matrix products  two tokens by two heads, eight values each; of one head by two parts */

#define TILE_VECS (TILE / VL)

MAI_INLINE int8x16_t whole_part(const int32_t *parts, const int p, const int half)
{
    return vld1q_s8((const int8_t *)(parts + 8 * p + 4 * half));
}

#if !defined(__ARM_FEATURE_MATMUL_INT8)

/* Scores [hb][TILE] of a turned tile by the heads from w's on; hb is a constant. */
MAI_INLINE void whole_block(const bool least, const int hb, const unpacked *u, const whole_query *w,
                            int d, float *scores)
{
    V x[WHOLE_HEADS * TILE_VECS];
    MAI_UNROLL for (int i = 0; i < hb * TILE_VECS; i++) x[i] = v_zero();
    for (int b = 0; b < d / BLOCK; b++) {
        const int8_t *keys = u->values + b * TURNED_BYTES;
        int32x4_t s[3][WHOLE_HEADS * TILE_VECS];
        MAI_UNROLL for (int i = 0; i < hb * TILE_VECS; i++) MAI_UNROLL for (int p = 0; p < 3; p++)
            s[p][i] = vdupq_n_s32(w->start[3 * b + p + (int64_t)(i / TILE_VECS) * d]);
        MAI_UNROLL for (int half = 0; half < 2; half++)
        {
            int8x16_t q[3][WHOLE_HEADS];
            MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int p = 0; p < 3; p++) q[p][h] =
                whole_part(w->parts + b * QUADS * 3 + (int64_t)h * d, p, half);
            MAI_UNROLL for (int i = 0; i < QUADS / 2 * TILE_VECS; i++)
            {
                const int8x16_t k = vld1q_s8(keys + (half * QUADS / 2 * TILE_VECS + i) * 16);
                MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int p = 0; p < 3; p++)
                {
                    int32x4_t *sum = &s[p][h * TILE_VECS + i % TILE_VECS];
                    *sum = v_dot_lane(*sum, k, q[p][h], i / TILE_VECS);
                    IN_REGISTER(*sum);
                }
            }
        }
        MAI_UNROLL for (int i = 0; i < hb * TILE_VECS; i++)
        {
            const int at = b * TILE + i % TILE_VECS * VL;
            x[i] = v_fma(whole_value(s[0][i], s[1][i], s[2][i]), v_load(u->scale + at), x[i]);
            if (!least) continue;
            const float sum = w->sums[b + (int64_t)(i / TILE_VECS) * d];
            x[i] = v_fma(v_set1(sum), v_load(u->least + at), x[i]);
        }
    }
    MAI_UNROLL for (int i = 0; i < hb * TILE_VECS; i++)
    {
        const float factor = w->factor[(int64_t)(i / TILE_VECS) * d];
        v_store(scores + i * VL, v_mul(x[i], v_set1(factor)));
    }
}

#else

#    define EIGHTS (BLOCK / 8)
#    define PAIRS (TILE / 2) /* of tokens */

/* Eight values of two parts, which may be of two queries. */
MAI_INLINE int8x16_t whole_eights(const int32_t *a, const int32_t *b, const int i)
{
    return vcombine_s8(vld1_s8((const int8_t *)a + 8 * i), vld1_s8((const int8_t *)b + 8 * i));
}
/* a's and b's first words, for two tokens. */
MAI_INLINE int32x4_t whole_start(const int32_t *a, const int32_t *b)
{
    return vzip1q_s32(vdupq_n_s32(*a), vdupq_n_s32(*b));
}
/* A value a token for two heads and two tokens, the first or the last two of four. */
MAI_INLINE V v_twice(V x, const bool last)
{
    return last ? vzip2q_f32(x, x) : vzip1q_f32(x, x);
}

/* Two heads: of a vector lanes 0, 1 are the first token's. */
MAI_INLINE void whole_two(const bool least, const unpacked *u, const whole_query *w, int d,
                          float *scores)
{
    V x[PAIRS];
    MAI_UNROLL for (int i = 0; i < PAIRS; i++) x[i] = v_zero();
    for (int b = 0; b < d / BLOCK; b++) {
        const int8_t *keys = u->values + b * TURNED_BYTES;
        const int32_t *parts = w->parts + b * QUADS * 3, *start = w->start + 3 * b;
        int32x4_t s[3][PAIRS];
        MAI_UNROLL for (int p = 0; p < 3; p++) MAI_UNROLL for (int i = 0; i < PAIRS; i++) s[p][i] =
            whole_start(start + p, start + p + d);
        MAI_UNROLL for (int e = 0; e < EIGHTS; e++)
        {
            int8x16_t q[3];
            MAI_UNROLL for (int p = 0; p < 3; p++) q[p] =
                whole_eights(parts + 8 * p, parts + 8 * p + d, e);
            MAI_UNROLL for (int i = 0; i < PAIRS; i++)
            {
                const int8x16_t k = vld1q_s8(keys + (e * PAIRS + i) * 16);
                MAI_UNROLL for (int p = 0; p < 3; p++)
                {
                    s[p][i] = vmmlaq_s32(s[p][i], k, q[p]);
                    IN_REGISTER(s[p][i]);
                }
            }
        }
        const V sums = vcombine_f32(vset_lane_f32(w->sums[b + d], vdup_n_f32(w->sums[b]), 1),
                                    vset_lane_f32(w->sums[b + d], vdup_n_f32(w->sums[b]), 1));
        MAI_UNROLL for (int i = 0; i < PAIRS; i++)
        {
            const int at = b * TILE + i / 2 * VL;
            const V scale = v_twice(v_load(u->scale + at), i % 2);
            x[i] = v_fma(whole_value(s[0][i], s[1][i], s[2][i]), scale, x[i]);
            if (least) x[i] = v_fma(sums, v_twice(v_load(u->least + at), i % 2), x[i]);
        }
    }
    MAI_UNROLL for (int i = 0; i < PAIRS; i += 2)
    {
        const V first = vuzp1q_f32(x[i], x[i + 1]), second = vuzp2q_f32(x[i], x[i + 1]);
        v_store(scores + i * 2, v_mul(first, v_set1(w->factor[0])));
        v_store(scores + TILE + i * 2, v_mul(second, v_set1(w->factor[d])));
    }
}

/* One head: the first two parts are what two heads are there, the third is computed twice. */
MAI_INLINE void whole_one(const bool least, const unpacked *u, const whole_query *w, int d,
                          float *scores)
{
    V x[TILE_VECS];
    MAI_UNROLL for (int i = 0; i < TILE_VECS; i++) x[i] = v_zero();
    for (int b = 0; b < d / BLOCK; b++) {
        const int8_t *keys = u->values + b * TURNED_BYTES;
        const int32_t *parts = w->parts + b * QUADS * 3, *start = w->start + 3 * b;
        int32x4_t s[2][PAIRS];
        MAI_UNROLL for (int i = 0; i < PAIRS; i++)
        {
            s[0][i] = whole_start(start, start + 1);
            s[1][i] = vdupq_n_s32(start[2]);
        }
        MAI_UNROLL for (int e = 0; e < EIGHTS; e++)
        {
            const int8x16_t q[2] = {whole_eights(parts, parts + 8, e),
                                    whole_eights(parts + 16, parts + 16, e)};
            MAI_UNROLL for (int i = 0; i < PAIRS; i++)
            {
                const int8x16_t k = vld1q_s8(keys + (e * PAIRS + i) * 16);
                s[0][i] = vmmlaq_s32(s[0][i], k, q[0]);
                s[1][i] = vmmlaq_s32(s[1][i], k, q[1]);
            }
        }
        MAI_UNROLL for (int i = 0; i < TILE_VECS; i++)
        {
            const int at = b * TILE + i * VL;
            const V value = whole_value(vuzp1q_s32(s[0][2 * i], s[0][2 * i + 1]),
                                        vuzp2q_s32(s[0][2 * i], s[0][2 * i + 1]),
                                        vuzp1q_s32(s[1][2 * i], s[1][2 * i + 1]));
            x[i] = v_fma(value, v_load(u->scale + at), x[i]);
            if (least) x[i] = v_fma(v_set1(w->sums[b]), v_load(u->least + at), x[i]);
        }
    }
    MAI_UNROLL for (int i = 0; i < TILE_VECS; i++)
        v_store(scores + i * VL, v_mul(x[i], v_set1(*w->factor)));
}

/* Scores [hb][TILE] of a turned tile by the heads from w's on; hb is a constant. */
MAI_INLINE void whole_block(const bool least, const int hb, const unpacked *u, const whole_query *w,
                            int d, float *scores)
{
    if (hb == 2)
        whole_two(least, u, w, d, scores);
    else
        whole_one(least, u, w, d, scores);
}

#endif
