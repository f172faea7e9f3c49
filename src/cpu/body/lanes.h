/* SPDX-License-Identifier: Apache-2.0 */
/* tile.h's sums where a multiply-add takes a factor from a lane of a vector: a head's weights of four tokens are
 * loaded at once, and none is broadcast. Still one token is added after the other, so the bits are the same. */

/* acc[hb][nv] += weight `lane` of each head's w times a token's vectors, of which `vec` is number i. */
#define ADD_LANE(hb, nv, vec, w, lane, acc)                         \
    MAI_UNROLL for (int i = 0; i < (nv); i++)                       \
    {                                                               \
        const V x = (vec);                                          \
        MAI_UNROLL for (int h = 0; h < (hb); h++)                   \
            ADD_PRODUCT_LANE((acc)[h * (nv) + i], x, (w)[h], lane); \
    }

/* A token's part of pv_block. */
MAI_INLINE void pv_token(macattn_dtype type, const int hb, const int nv, const char *from,
                         const V *w, const int lane, V *acc)
{
    POINTER_IN_REGISTER(from);
    ADD_LANE(hb, nv, row_vec(type, from, i), w, lane, acc)
}

/* o[h][..] += sum over t in [t0, t1) of p[h * TILE + t] * v[t][..], for hb heads, nv vectors from j; hb,
 * nv and the type are constants. */
MAI_INLINE void pv_block(macattn_dtype type, const int hb, const int nv, const char *const *rows,
                         int64_t offset, int t0, int t1, const float *p, float *const *o, int j,
                         ahead *next)
{
    V acc[MOST_SUMS], w[MOST_HEADS];
    ahead mine = *next; /* in registers: what is stored is loaded again by the next step */
    const int bytes = nv * VEC_BYTES(type), lines = bytes / LINE;
    const int every = bytes * VL <= LINE ? VL : bytes * 2 <= LINE ? 2 : 1; /* tokens a line lasts */
    const int64_t at = offset + vecs_bytes(type, j);
    int t = t0;
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        acc[h * nv + i] = v_load(o[h] + (size_t)(j + i) * VL);
    for (; t + VL <= t1; t += VL) {
        MAI_UNROLL for (int h = 0; h < hb; h++) w[h] = v_load(p + h * TILE + t);
        MAI_UNROLL for (int lane = 0; lane < VL; lane++)
        {
            if (lines > 0) fetch_lines(&mine, lines);
            if (lines == 0 && lane % every == 0) fetch_line(&mine);
            pv_token(type, hb, nv, rows[t + lane] + at, w, lane, acc);
        }
    }
    for (; t < t1; t++) {
        MAI_UNROLL for (int h = 0; h < hb; h++) w[h] = v_set1(p[h * TILE + t]);
        pv_token(type, hb, nv, rows[t] + at, w, 0, acc);
    }
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        v_store(o[h] + (size_t)(j + i) * VL, acc[h * nv + i]);
    *next = mine;
}
