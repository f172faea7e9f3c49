/* SPDX-License-Identifier: Apache-2.0 */
/* Products of prefill: a tile of up to SPAN tokens by a panel of LANES rows, a row being one head of one
 * query.
 *
 *     s[t][row] = k[t] . q[row]
 *     o[c][row] = f[row] o[c][row] + sum over t of w[t][row] v[t][c]
 *
 * Rows lie along the vectors, so that both are outer products: some vectors of rows times a value of K
 * or V that is broadcast, with STEP tokens (or columns of V) by all vectors of the panel in registers.
 * Nothing is ever summed over lanes, maxima and sums of a softmax are those of whole vectors, a row
 * that may not see a token is one lane of a mask, and K and V need no turning: they are converted to f32
 * once for all rows of a block. What binds are the multiply-adds: a step loads ROW_VECS + STEP times for
 * ROW_VECS * STEP of them.
 *
 * Per row, tokens are summed in order within a tile, and the tiles in order: its bits depend on where
 * tiles begin, not on the other rows of a block, nor on tokens of a tile that it does not see, which
 * add 0 (for the sign of a 0: prefill_result).
 *
 * f32 rows of a tile lie in strips of STRIP columns, [strip][token][STRIP], so that the distance
 * from token to token is a constant whatever the dimension. */

#define SPAN 64 /* most tokens of a tile */
#define STRIP 64
#define LANES (ROW_VECS * VL)

static size_t strips_floats(int dim)
{
    return (size_t)((dim + STRIP - 1) / STRIP) * SPAN * STRIP;
}

/* Where column c of token 0 is, within strips. */
MAI_INLINE size_t strip_at(int c)
{
    return (size_t)(c / STRIP) * SPAN * STRIP + (size_t)(c % STRIP);
}

/* -------------------------------------------------------------------------------- conversion -- */

MAI_INLINE void strip_row(macattn_dtype type, const char *row, int dim, float *to)
{
    int j = 0;
    for (; j < dim / VL; j++) v_store(to + strip_at(j * VL), row_vec(type, row, j));
    if (dim % VL) v_store(to + strip_at(j * VL), row_tail(type, row, j, dim % VL));
}

MAI_INLINE void strip_row_blocks(macattn_dtype type, const char *row, int dim, float *to)
{
    for (int b = 0; b < dim / BLOCK; b++, row += block_bytes(type)) {
        uint16_t h[2];
        int8_t x[BLOCK];
        memcpy(h, row, sizeof h);
        unpack_values(type, row, x);
        const V scale = v_set1(v_f16_scalar(h[0]));
        const V least = v_set1(has_least(type) ? v_f16_scalar(h[1]) : 0);
        float *at = to + strip_at(b * BLOCK);
        for (int i = 0; i < BLOCK; i += VL) {
            const V y = v_load_i8(x + i);
            v_store(at + i, has_least(type) ? v_fma(y, scale, least) : v_mul(y, scale));
        }
    }
}

/* n rows to strips. */
static void strip_rows(macattn_dtype type, const char *const *rows, int n, int dim, float *to)
{
#define STRIP_ROWS(name, row)                                                         \
    case MACATTN_DTYPE_##name:                                                        \
        for (int t = 0; t < n; t++) row(MACATTN_DTYPE_##name, rows[t], dim, to + t * STRIP); \
        break
    switch (type) {
        STRIP_ROWS(F32, strip_row);
        STRIP_ROWS(F16, strip_row);
        STRIP_ROWS(BF16, strip_row);
        STRIP_ROWS(Q8_0, strip_row_blocks);
        STRIP_ROWS(Q4_0, strip_row_blocks);
        STRIP_ROWS(Q4_1, strip_row_blocks);
        STRIP_ROWS(Q5_0, strip_row_blocks);
        STRIP_ROWS(Q5_1, strip_row_blocks);
        STRIP_ROWS(IQ4_NL, strip_row_blocks);
    default: break; /* not on the CPU */
    }
}

/* Whether all values of n rows are finite: then 0 times each of them is 0. */
static bool strips_finite(const float *strips, int n, int dim)
{
    V sum = v_zero();
    for (int c = 0; c + VL <= dim; c += VL) {
        const float *at = strips + strip_at(c);
        for (int t = 0; t < n; t++) sum = v_fma(v_load(at + t * STRIP), v_zero(), sum);
    }
    float all = v_reduce_add(sum);
    for (int c = dim / VL * VL; c < dim; c++) {
        for (int t = 0; t < n; t++) all += 0 * strips[strip_at(c) + (size_t)t * STRIP];
    }
    return all == 0;
}

/* ------------------------------------------------------------------------------------ products -- */

/* STEP tokens: s [STEP][LANES], q [d][LANES]. nv, the vectors of rows, is a constant. */
MAI_INLINE void score_step(const int nv, const float *k, const float *q, int d, float *s)
{
    V acc[STEP * ROW_VECS];
    MAI_UNROLL for (int i = 0; i < STEP * nv; i++) acc[i] = v_zero();
    for (int c = 0; c < d; c += STRIP, k += SPAN * STRIP) {
        const int n = d - c < STRIP ? d - c : STRIP;
        for (int j = 0; j < n; j++, q += LANES) {
            V x[ROW_VECS];
            MAI_UNROLL for (int v = 0; v < nv; v++)
            {
                x[v] = v_load(q + v * VL);
                IN_REGISTER(x[v]);
            }
            MAI_UNROLL for (int i = 0; i < STEP; i++)
            {
                V y = v_set1(k[i * STRIP + j]);
                if (nv > 1) IN_REGISTER(y);
                MAI_UNROLL for (int v = 0; v < nv; v++) acc[i * nv + v] =
                    v_fma(x[v], y, acc[i * nv + v]);
            }
        }
    }
    MAI_UNROLL for (int i = 0; i < STEP; i++) MAI_UNROLL for (int v = 0; v < nv; v++)
        v_store(s + i * LANES + v * VL, acc[i * nv + v]);
}

/* STEP columns, v being the first token's: o [STEP][LANES], w [n][LANES], f [LANES]. */
MAI_INLINE void sum_step(const int nv, const float *v, const float *w, int n, const float *f,
                         float *o)
{
    V acc[STEP * ROW_VECS];
    MAI_UNROLL for (int i = 0; i < STEP * nv; i++) acc[i] = v_zero();
    for (int t = 0; t < n; t++, v += STRIP, w += LANES) {
        V x[ROW_VECS];
        MAI_UNROLL for (int k = 0; k < nv; k++)
        {
            x[k] = v_load(w + k * VL);
            IN_REGISTER(x[k]);
        }
        MAI_UNROLL for (int i = 0; i < STEP; i++)
        {
            V y = v_set1(v[i]);
            if (nv > 1) IN_REGISTER(y);
            MAI_UNROLL for (int k = 0; k < nv; k++) acc[i * nv + k] =
                v_fma(x[k], y, acc[i * nv + k]);
        }
    }
    MAI_UNROLL for (int i = 0; i < STEP; i++) MAI_UNROLL for (int k = 0; k < nv; k++)
    {
        float *at = o + i * LANES + k * VL;
        v_store(at, v_fma(v_load(at), v_load(f + k * VL), acc[i * nv + k]));
    }
}

/* Some lines of the next tile. */
MAI_INLINE void fetch_some(ahead *next, int lines)
{
    for (int i = 0; i < lines && next->end; i++) fetch_line(next);
}

MAI_INLINE void panel_scores(const int nv, const float *k, const float *q, int d, int n, float *s,
                             ahead *next, int lines)
{
    for (int t = 0; t < n; t += STEP) {
        fetch_some(next, lines);
        score_step(nv, k + t * STRIP, q, d, s + t * LANES);
    }
}

MAI_INLINE void panel_sums(const int nv, const float *v, const float *w, int dim, int n,
                           const float *f, float *o, ahead *next, int lines)
{
    for (int c = 0; c < dim; c += STEP) {
        fetch_some(next, lines);
        sum_step(nv, v + strip_at(c), w, n, f, o + c * LANES);
    }
}

/* Which tokens of a tile each row of a panel sees, [first, last); first NULL: all. */
typedef struct panel_sight {
    const float *first, *last; /* [LANES] */
} panel_sight;

/* x where the row sees token t, y elsewhere. */
MAI_INLINE V where_seen(const panel_sight *sight, int v, int t, V x, V y)
{
    const V at = v_set1((float)t), next = v_set1((float)t + 1);
    x = v_where_above(next, v_load(sight->first + v * VL), x, y);
    return v_where_above(v_load(sight->last + v * VL), at, x, y);
}

/* panel_sums where values that some rows do not see are not finite, so that not even 0 times such a
 * value may be added. Rare, and slow. */
static void panel_sums_seen(int nv, const float *values, const float *w, int dim, int n,
                            const float *f, float *o, const panel_sight *sight)
{
    for (int c = 0; c < dim; c++, o += LANES) {
        for (int v = 0; v < nv; v++) {
            V sum = v_zero();
            for (int t = 0; t < n; t++) {
                const V y = v_set1(values[strip_at(c) + (size_t)t * STRIP]);
                const V with = v_fma(v_load(w + t * LANES + v * VL), y, sum);
                sum = where_seen(sight, v, t, with, sum);
            }
            v_store(o + v * VL, v_fma(v_load(o + v * VL), v_load(f + v * VL), sum));
        }
    }
}

/* ------------------------------------------------------------------------------------ softmax -- */

/* What a panel's rows have seen so far, each [LANES]. */
typedef struct panel_state {
    float *m, *l;   /* maximum, sum of weights */
    float *rescale; /* what sums are to be multiplied by after this tile */
} panel_state;

/* Scores s [n][LANES] to weights 2^(s - m); m and l updated. k_weights not NULL: the weights of keys
 * under a soft cap. */
MAI_INLINE void panel_softmax(const int nv, float *s, int n, float softcap, float *k_weights,
                              const panel_sight *sight, const panel_state *state)
{
    const V none = v_set1(-INFINITY);
    V base[ROW_VECS], sum[ROW_VECS];
    MAI_UNROLL for (int v = 0; v < nv; v++) base[v] = none;
    for (int t = 0; t < n; t++) {
        MAI_UNROLL for (int v = 0; v < nv; v++)
        {
            float *at = s + t * LANES + v * VL;
            V x = v_load(at);
            if (softcap > 0) x = v_softcap(x, softcap);
            if (sight->first) x = where_seen(sight, v, t, x, none);
            if (softcap > 0 || sight->first) v_store(at, x);
            base[v] = v_max(base[v], x);
        }
    }
    MAI_UNROLL for (int v = 0; v < nv; v++)
    {
        const V before = v_load(state->m + v * VL), top = v_max(base[v], before);
        base[v] = v_where_above(top, none, top, v_zero());
        v_store(state->m + v * VL, top);
        v_store(state->rescale + v * VL, v_exp2(v_sub(before, base[v])));
        sum[v] = v_zero();
    }
    for (int t = 0; t < n; t++) {
        MAI_UNROLL for (int v = 0; v < nv; v++)
        {
            const int at = t * LANES + v * VL;
            const V x = v_load(s + at), p = v_exp2(v_sub(x, base[v]));
            v_store(s + at, p);
            sum[v] = v_add(sum[v], p);
            if (k_weights) v_store(k_weights + at, v_mul(p, v_softcap_slope(x, softcap)));
        }
    }
    MAI_UNROLL for (int v = 0; v < nv; v++)
    {
        float *l = state->l + v * VL;
        v_store(l, v_fma(v_load(l), v_load(state->rescale + v * VL), sum[v]));
    }
}
