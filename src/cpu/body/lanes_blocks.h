/* SPDX-License-Identifier: Apache-2.0 */
/* The same as lanes.h for whole numbers: blocks.h's pv_whole. */

/* A token's part of it. */
MAI_INLINE void pv_whole_token(macattn_dtype type, const int hb, const int nv, const char *from,
                               const int k0, const V *w, const int lane, V *acc)
{
    POINTER_IN_REGISTER(from);
    ADD_LANE(hb, nv, whole_vec(type, from, k0 + i), w, lane, acc)
}

/* pv_block for types without a least value: nv vectors, of one block, from the k0-th of the block that begins with
 * vector j; k0 is a constant, too. `weights` [dim / BLOCK][hb][TILE] have the scales in them. */
MAI_INLINE void pv_whole(const whole_rows *v, macattn_dtype type, const int hb, const int nv,
                         int dim, int t0, int t1, const float *weights, float *const *o, int j,
                         const int k0, ahead *next)
{
    V acc[MOST_SUMS], w[MOST_HEADS];
    ahead mine = *next;
    const int every = nv * VL >= 32 ? 2 : 4; /* tokens that a line lasts */
    const float *p = weights + j / BLOCK_VECS * hb * TILE;
    int t = t0;
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        acc[h * nv + i] = v_load(o[h] + (size_t)(j + k0 + i) * VL);
    for (; t + VL <= t1; t += VL) {
        MAI_UNROLL for (int h = 0; h < hb; h++) w[h] = v_load(p + h * TILE + t);
        MAI_UNROLL for (int lane = 0; lane < VL; lane++)
        {
            if (lane % every == 0) fetch_line(&mine);
            pv_whole_token(type, hb, nv, whole_at(v, type, dim, t + lane, j), k0, w, lane, acc);
        }
    }
    for (; t < t1; t++) {
        MAI_UNROLL for (int h = 0; h < hb; h++) w[h] = v_set1(p[h * TILE + t]);
        pv_whole_token(type, hb, nv, whole_at(v, type, dim, t, j), k0, w, 0, acc);
    }
    MAI_UNROLL for (int h = 0; h < hb; h++) MAI_UNROLL for (int i = 0; i < nv; i++)
        v_store(o[h] + (size_t)(j + k0 + i) * VL, acc[h * nv + i]);
    *next = mine;
}
