/* SPDX-License-Identifier: Apache-2.0 */
/* Decode attention over a range of tokens, all heads of some kv heads, online softmax per tile.
 *
 *     s[h][t] = q[h] . k[t];   m = max s;   o[h] = sum 2^(s - m) v[t];   lse = (m + log2 sum) ln 2
 *
 * Memory to read: d * bytes(K) + dv * bytes(V) per token and kv head, each byte once: a K row is used
 * by the whole group while it is in the first-level cache, and a tile of tokens is computed for all kv
 * heads before the next tile, because in the usual layout the rows of all kv heads of a token lie side
 * by side.
 *
 * What decides the speed is how the rows are fetched: the compute loops jump by a
 * token's stride, which the hardware prefetcher follows badly, and prefetch instructions that come in
 * bursts are dropped when the core's miss buffers are full. So each step of the inner loops fetches
 * one or two lines of the next tile, in the order in which they lie in memory.
 *
 * Where a summary is to be made, the weights are applied to the K rows of the tile as well, which
 * are still in the cache: kbar[h] = sum 2^(s - m) k[t], with all that is done to o, which is not
 * touched by it.
 *
 * Scores: DOT_ACC dot products (tokens x heads) at a time, each in an accumulator of its own, reduced
 * together by v_hsum. Every dot product and every output element is summed in an order that does not
 * depend on which other heads take part, so a head computed alone gives the same bits. */

#define TILE 16

/* Rows of the tokens of a tile, kv_head 0. Past the last token they repeat it. */
typedef struct tile_rows {
    const char *k[TILE], *v[TILE];
    int n;
} tile_rows;

/* Bytes of VL elements of a row of compile-time type, and the cache lines of `count` such pieces
 * (rounded down, at least one: neighbouring steps overlap otherwise). */
#define VEC_BYTES(type) \
    ((type) == MACATTN_DTYPE_F32 ? VL * 4 : (type) == MACATTN_DTYPE_Q8_0 ? VL * 34 / 32 : VL * 2)
#define VEC_LINES(type, count) ((count)*VEC_BYTES(type) >= 64 ? (count)*VEC_BYTES(type) / 64 : 1)

/* What a block of the loops below fetches of the next tile: from `at` on what lies there side by side, or
 * its own part of `rows`, from `offset` on. Both NULL: nothing. */
typedef struct fetch {
    const char *at;
    const char *const *rows;
    int64_t offset;
} fetch;

/* scores[h * TILE + t] for HB heads and TB = DOT_ACC / HB tokens from `rows` on, TS rows at a time:
 * rows often lie a multiple of 4 KiB apart, where the first-level cache holds only about eight of them. */
#define DEFINE_DOT(name, HB, TS)                                                                   \
    MAI_INLINE void name(macattn_dtype type, const char *const *rows, int64_t offset,              \
                         const float *const *q, int d, float *scores, const fetch *next)           \
    {                                                                                              \
        enum { TB = DOT_ACC / (HB) };                                                              \
        V acc[DOT_ACC];                                                                            \
        const int n_vec = d / VL, rest = d % VL;                                                   \
        MAI_UNROLL for (int i = 0; i < DOT_ACC; i++) acc[i] = v_zero();                            \
        MAI_UNROLL for (int u = 0; u < TB; u += (TS))                                              \
        {                                                                                          \
            const char *row[TS];                                                                   \
            MAI_UNROLL for (int t = 0; t < (TS); t++) row[t] = rows[u + t] + offset;               \
            for (int j = 0; j < n_vec; j++) {                                                      \
                V k[TS];                                                                           \
                for (int i = 0; next->at && i < VEC_LINES(type, TS); i++)                          \
                    v_prefetch(next->at +                                                          \
                               ((size_t)u * n_vec + (size_t)j * (TS)) * VEC_BYTES(type) + i * 64); \
                for (int i = j * VEC_LINES(type, TS);                                              \
                     next->rows && i < (j + 1) * VEC_LINES(type, TS); i++)                         \
                    v_prefetch(next->rows[u + i % (TS)] + next->offset + i / (TS)*64);             \
                MAI_UNROLL for (int t = 0; t < (TS); t++) k[t] = row_vec(type, row[t], j);         \
                MAI_UNROLL for (int h = 0; h < (HB); h++)                                          \
                {                                                                                  \
                    V x = v_load(q[h] + (size_t)j * VL);                                           \
                    MAI_UNROLL for (int t = 0; t < (TS); t++) acc[h * TB + u + t] =                \
                        v_fma(x, k[t], acc[h * TB + u + t]);                                       \
                }                                                                                  \
            }                                                                                      \
            if (rest) {                                                                            \
                MAI_UNROLL for (int h = 0; h < (HB); h++)                                          \
                {                                                                                  \
                    V x = v_load_n(q[h] + (size_t)n_vec * VL, rest);                               \
                    MAI_UNROLL for (int t = 0; t < (TS); t++) acc[h * TB + u + t] =                \
                        v_fma(x, row_tail(type, row[t], n_vec, rest), acc[h * TB + u + t]);        \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        float sum[DOT_ACC];                                                                        \
        v_hsum(acc, sum);                                                                          \
        MAI_UNROLL for (int h = 0; h < (HB); h++)                                                  \
            memcpy(scores + (size_t)h * TILE, sum + h * TB, sizeof(float) * TB);                   \
    }

DEFINE_DOT(dot_heads4, 4, DOT_ACC / 4)
DEFINE_DOT(dot_heads2, 2, DOT_ACC / 2)
DEFINE_DOT(dot_heads1, 1, 8)

/* o[h][..] += sum over t in [t0, t1) of p[h * TILE + t] * v[t][..], for HB heads, NV vectors from j */
#define DEFINE_PV(name, HB, NV)                                                                  \
    MAI_INLINE void name(macattn_dtype type, const char *const *rows, int64_t offset, int t0,    \
                         int t1, const float *p, float *const *o, int j, const fetch *next)      \
    {                                                                                            \
        V acc[(HB) * (NV)];                                                                      \
        MAI_UNROLL for (int h = 0; h < (HB); h++) MAI_UNROLL for (int i = 0; i < (NV); i++)      \
            acc[h * (NV) + i] = v_load(o[h] + (size_t)(j + i) * VL);                             \
        for (int t = t0; t < t1; t++) {                                                          \
            V v[NV];                                                                             \
            for (int i = 0; next->at && i < VEC_LINES(type, NV); i++)                            \
                v_prefetch(next->at + (size_t)t * (NV)*VEC_BYTES(type) + i * 64);                \
            for (int i = 0; next->rows && i < VEC_LINES(type, NV); i++)                          \
                v_prefetch(next->rows[t] + next->offset + (size_t)j * VEC_BYTES(type) + i * 64); \
            MAI_UNROLL for (int i = 0; i < (NV); i++) v[i] =                                     \
                row_vec(type, rows[t] + offset, j + i);                                          \
            MAI_UNROLL for (int h = 0; h < (HB); h++)                                            \
            {                                                                                    \
                V w = v_set1(p[h * TILE + t]);                                                   \
                MAI_UNROLL for (int i = 0; i < (NV); i++) acc[h * (NV) + i] =                    \
                    v_fma(w, v[i], acc[h * (NV) + i]);                                           \
            }                                                                                    \
        }                                                                                        \
        MAI_UNROLL for (int h = 0; h < (HB); h++) MAI_UNROLL for (int i = 0; i < (NV); i++)      \
            v_store(o[h] + (size_t)(j + i) * VL, acc[h * (NV) + i]);                             \
    }

enum { PV_NV = PV_ACC / 4 };
DEFINE_PV(pv_heads4, 4, PV_NV)
DEFINE_PV(pv_heads2, 2, PV_NV)
DEFINE_PV(pv_heads1, 1, PV_NV)
DEFINE_PV(pv_one, 1, 1)

/* The part of a row that is no whole vector. */
MAI_INLINE void pv_tail(macattn_dtype type, const char *const *rows, int64_t offset, int t0, int t1,
                        const float *p, float *o, int dv)
{
    const int j = dv / VL, rest = dv % VL;
    V acc = v_load_n(o + (size_t)j * VL, rest);
    for (int t = t0; t < t1; t++) {
        acc = v_fma(v_set1(p[t]), row_tail(type, rows[t] + offset, j, rest), acc);
    }
    v_store_n(o + (size_t)j * VL, acc, rest);
}

/* The next tile's K or V rows. `stream`: one stream of bytes, of which every kv head fetches its share;
 * else each fetches its own part of each row. */
typedef struct ahead {
    const char *const *rows; /* NULL: nothing to fetch */
    bool stream;
    int64_t base; /* byte offset into a row: of the stream, or of the kv head */
    int64_t span; /* bytes of a row that belong to it */
    int64_t done; /* bytes of the stream that earlier kv heads fetch */
} ahead;

/* Where to fetch from when a kv head is `bytes` into its share of a stream. Beyond the end of that row the
 * caller goes on into what follows it in memory: the next row, or something harmless. */
MAI_INLINE const char *ahead_at(const ahead *next, int64_t bytes)
{
    const uint32_t at = (uint32_t)(next->done + bytes), span = (uint32_t)next->span;
    const uint32_t row = at / span;
    return next->rows[row < TILE ? row : TILE - 1] + next->base + at % span;
}

/* For the block that computes rows from t on, `bytes` into its share. */
MAI_INLINE fetch fetch_next(const ahead *next, int t, int64_t bytes)
{
    if (!next->rows) return (fetch){NULL, NULL, 0};
    if (next->stream) return (fetch){ahead_at(next, bytes), NULL, 0};
    return (fetch){NULL, next->rows + t, next->base};
}

/* Scores of n_heads heads over the tile: q[h] are their queries, scores is [n_heads][TILE]. */
MAI_INLINE void score_tile(macattn_dtype type, const tile_rows *rows, int64_t offset,
                           const float *const *q, int d, int n_heads, float *scores,
                           const ahead *next)
{
    const int n = rows->n;
    const int64_t bytes = (int64_t)row_bytes(type, d);
    for (int h = 0; h < n_heads;) {
        const int block = n_heads - h >= 4 ? 4 : n_heads - h >= 2 ? 2 : 1;
        const int step = DOT_ACC / block;
        for (int t = 0; t < n; t += step) {
            float *s = scores + (size_t)h * TILE + t;
            const fetch f = h == 0 ? fetch_next(next, t, t * bytes) : (fetch){NULL, NULL, 0};
            if (block == 4)
                dot_heads4(type, rows->k + t, offset, q + h, d, s, &f);
            else if (block == 2)
                dot_heads2(type, rows->k + t, offset, q + h, d, s, &f);
            else
                dot_heads1(type, rows->k + t, offset, q + h, d, s, &f);
        }
        h += block;
    }
}

/* o[h] [dim] += `rows` [t0, t1), weighted by p [n_heads][TILE]. */
MAI_INLINE void add_tile(macattn_dtype type, const char *const *rows, int64_t offset, int dim,
                         int n_heads, int t0, int t1, const float *p, float *const *o,
                         const ahead *next)
{
    const int n_vec = dim / VL;
    const fetch none = {NULL, NULL, 0};
    for (int h = 0; h < n_heads;) {
        const int block = n_heads - h >= 4 ? 4 : n_heads - h >= 2 ? 2 : 1;
        const float *w = p + (size_t)h * TILE;
        int j = 0;
        for (; j + PV_NV <= n_vec; j += PV_NV) {
            const fetch f = h == 0 ? fetch_next(next, 0, (int64_t)j * TILE * VEC_BYTES(type))
                                   : (fetch){NULL, NULL, 0};
            if (block == 4)
                pv_heads4(type, rows, offset, t0, t1, w, o + h, j, &f);
            else if (block == 2)
                pv_heads2(type, rows, offset, t0, t1, w, o + h, j, &f);
            else
                pv_heads1(type, rows, offset, t0, t1, w, o + h, j, &f);
        }
        for (int i = 0; i < block; i++) {
            for (int jj = j; jj < n_vec; jj++)
                pv_one(type, rows, offset, t0, t1, w + i * TILE, o + h + i, jj, &none);
            if (dim % VL) pv_tail(type, rows, offset, t0, t1, w + i * TILE, o[h + i], dim);
        }
        h += block;
    }
}

MAI_INLINE void scale_floats(float *x, int n, float f)
{
    int j = 0;
    for (; j + VL <= n; j += VL) v_store(x + j, v_mul(v_load(x + j), v_set1(f)));
    for (; j < n; j++) x[j] *= f;
}

/* What one head has summed up, not yet normalised. */
typedef struct head_sums {
    float *o;         /* [dv] */
    float *kbar;      /* [d] of keys; NULL: not wanted */
    float *k_weights; /* [TILE] with kbar and a soft cap: the weights of the keys; else not used */
    float *m, *l;
} head_sums;

/* Turn one head's scores of tokens [t0, t1) of a tile into weights 2^(s - m), those of the others
 * into 0; update m and l, and rescale the sums if the maximum grew. */
MAI_INLINE void softmax_tile(float *s, int t0, int t1, const mai_shape *shape,
                             const head_sums *sums)
{
    const V none = v_set1(-INFINITY);
    const float softcap = shape->softcap;
    float *const m = sums->m;
    V x[TILE / VL], top = none, sum = v_zero();
    MAI_UNROLL for (int i = 0; i < TILE / VL; i++)
    {
        const int t = i * VL;
        x[i] = v_load(s + t);
        if (softcap > 0) x[i] = v_softcap(x[i], softcap);
        if (t + VL > t1) x[i] = v_first_n(x[i], none, t1 > t ? t1 - t : 0);
        if (t < t0) x[i] = v_first_n(none, x[i], t0 - t < VL ? t0 - t : VL);
        top = v_max(top, x[i]);
    }
    const float tile_max = v_reduce_max(top);
    if (tile_max > *m) {
        const float f = *m == -INFINITY ? 0.0f : exp2f(*m - tile_max);
        scale_floats(sums->o, shape->dv, f);
        if (sums->kbar) scale_floats(sums->kbar, shape->d, f);
        *sums->l *= f;
        *m = tile_max;
    }
    const V base = v_set1(*m == -INFINITY ? 0.0f : *m);
    MAI_UNROLL for (int i = 0; i < TILE / VL; i++)
    {
        const V capped = x[i];
        x[i] = v_exp2(v_sub(x[i], base));
        v_store(s + i * VL, x[i]);
        sum = v_add(sum, x[i]);
        if (sums->kbar && softcap > 0)
            v_store(sums->k_weights + i * VL, v_mul(x[i], v_softcap_slope(capped, softcap)));
    }
    *sums->l += v_reduce_add(sum);
}

/* Normalise a head's sums; an empty range gives 0 and -inf. */
static void finish_head(const mai_shape *shape, const head_sums *sums, float *lse)
{
    const float m = *sums->m, l = *sums->l;
    if (l == 0 && !(m > -INFINITY)) {
        *lse = -INFINITY;
        return;
    }
    scale_floats(sums->o, shape->dv, 1.0f / l);
    if (sums->kbar) scale_floats(sums->kbar, shape->d, 1.0f / l);
    *lse = (float)(((double)m + log2((double)l)) * MAI_LN2);
}

/* Tokens [t, t + n), n <= TILE; n <= 0 gives no rows. */
static void load_rows(const mai_tokens *tokens, int64_t t, int64_t n, tile_rows *rows)
{
    rows->n = n <= 0 ? 0 : n < TILE ? (int)n : TILE;
    for (int i = 0; i < TILE && rows->n > 0; i++) {
        int64_t k, v;
        token_offsets(tokens, t + (i < rows->n ? i : rows->n - 1), &k, &v);
        rows->k[i] = (const char *)tokens->kv->k + k;
        rows->v[i] = (const char *)tokens->kv->v + v;
    }
}

/* One kv head's own rows of the next tile; a stream where they follow each other in memory. */
MAI_INLINE ahead own_rows(const char *const *rows, int64_t base, int64_t token_stride,
                          int64_t bytes)
{
    return (ahead){rows, token_stride == bytes, base, bytes, 0};
}

/* A kv head's share of the next tile: of one stream, where all of every row is read. */
MAI_INLINE ahead share_of_next(const char *const *rows, const mai_attend_args *a, bool whole,
                               int kv_head, int64_t token_stride, int64_t head_stride,
                               int64_t bytes)
{
    const int n = a->kv1 - a->kv0;
    if (!whole || head_stride != bytes || n * bytes != token_stride) {
        return own_rows(rows, kv_head * head_stride, token_stride, bytes);
    }
    return (ahead){rows, true, a->kv0 * bytes, n * bytes, (kv_head - a->kv0) * bytes * TILE};
}

/* score_tile and add_tile for the configured types; with the two most common head dims as constants
 * their loops unroll, which is worth a few percent. */
#define FOR_DIM(dim, call)          \
    do {                            \
        switch (dim) {              \
        case 64: call(64); break;   \
        case 128: call(128); break; \
        default: call(dim); break;  \
        }                           \
    } while (0)

static void tile_scores(const mai_shape *shape, const tile_rows *rows, int64_t offset,
                        const float *const *q, int n_heads, float *scores, const ahead *next)
{
#define SCORES(type, dim) score_tile(type, rows, offset, q, dim, n_heads, scores, next)
#define SCORES_F32(dim) SCORES(MACATTN_DTYPE_F32, dim)
#define SCORES_F16(dim) SCORES(MACATTN_DTYPE_F16, dim)
#define SCORES_BF16(dim) SCORES(MACATTN_DTYPE_BF16, dim)
#define SCORES_Q8_0(dim) SCORES(MACATTN_DTYPE_Q8_0, dim)
    switch (shape->k_dtype) {
    case MACATTN_DTYPE_F32: FOR_DIM(shape->d, SCORES_F32); break;
    case MACATTN_DTYPE_F16: FOR_DIM(shape->d, SCORES_F16); break;
    case MACATTN_DTYPE_BF16: FOR_DIM(shape->d, SCORES_BF16); break;
    case MACATTN_DTYPE_Q8_0: FOR_DIM(shape->d, SCORES_Q8_0); break;
    case MACATTN_DTYPE_F8_E4M3: break; /* not on the CPU */
    }
}

/* o[h] [dim] += rows [t0, n) of a tile's K or V, weighted by p. */
static void tile_sums(macattn_dtype dtype, int dim, const char *const *rows, int64_t offset,
                      int n_heads, int t0, int n, const float *p, float *const *o,
                      const ahead *next)
{
#define SUMS(type, dim) add_tile(type, rows, offset, dim, n_heads, t0, n, p, o, next)
#define SUMS_F32(dim) SUMS(MACATTN_DTYPE_F32, dim)
#define SUMS_F16(dim) SUMS(MACATTN_DTYPE_F16, dim)
#define SUMS_BF16(dim) SUMS(MACATTN_DTYPE_BF16, dim)
#define SUMS_Q8_0(dim) SUMS(MACATTN_DTYPE_Q8_0, dim)
    switch (dtype) {
    case MACATTN_DTYPE_F32: FOR_DIM(dim, SUMS_F32); break;
    case MACATTN_DTYPE_F16: FOR_DIM(dim, SUMS_F16); break;
    case MACATTN_DTYPE_BF16: FOR_DIM(dim, SUMS_BF16); break;
    case MACATTN_DTYPE_Q8_0: FOR_DIM(dim, SUMS_Q8_0); break;
    case MACATTN_DTYPE_F8_E4M3: break; /* not on the CPU */
    }
}

/* Work memory of one item, in the worker's scratch. The heads that take part in the tile are packed to
 * the front of their kv head's place in `active`, `first`, `q`, `o`, `kbar` and the scores, so that
 * they fill blocks of four whichever they are. */
typedef struct attend_state {
    const float **q; /* [n_heads] query */
    float **o;       /* [n_heads] running output */
    float **kbar;    /* [n_heads] running sum of keys; NULL: not wanted */
    float *scores;   /* [n_heads][TILE] */
    float *k_weights; /* [n_heads][TILE] of head_sums */
    float *m, *l;    /* [n_heads] running maximum and sum, by head */
    int *active;     /* [n_heads] head */
    int *first;      /* [n_heads] first token of the tile in which it takes part */
    int *n_active;   /* [n_kv_heads] */
    int *n_computed; /* [n_kv_heads] n_active, or one more: see fill_block */
    float *unused;   /* [dv] and [d]: sums of the head that only fills a block */
} attend_state;

static size_t attend_scratch_bytes(const mai_shape *shape)
{
    return (size_t)shape->n_heads *
               (3 * sizeof(float *) + sizeof(float) * (2 * TILE + 2) + 2 * sizeof(int)) +
           (size_t)shape->n_kv_heads * 2 * sizeof(int) +
           (size_t)(shape->dv + shape->d) * sizeof(float);
}

static attend_state attend_state_in(void *scratch, const mai_shape *shape)
{
    const size_t hq = (size_t)shape->n_heads;
    attend_state s = {.q = scratch};
    s.o = (float **)scratch + hq;
    s.kbar = s.o + hq;
    s.scores = (float *)(s.kbar + hq);
    s.k_weights = s.scores + hq * TILE;
    s.m = s.k_weights + hq * TILE;
    s.l = s.m + hq;
    s.active = (int *)(s.l + hq);
    s.first = s.active + hq;
    s.n_active = s.first + hq;
    s.n_computed = s.n_active + shape->n_heads / shape->group;
    s.unused = (float *)(s.n_computed + shape->n_heads / shape->group);
    return s;
}

/* Three heads cost more as two and one than as four, since every block converts the rows anew: where
 * the fourth has its place in the arrays, repeat the last one, to no effect. */
static int fill_block(const mai_shape *shape, const attend_state *s, int h, int n)
{
    if (n % 4 != 3 || n == shape->group) return n;
    s->q[h + n] = s->q[h + n - 1];
    s->o[h + n] = s->unused;
    s->kbar[h + n] = s->unused + shape->dv;
    return n + 1;
}

static bool wants_keys(const mai_attend_args *a, int kv_head)
{
    return a->keys && a->keys[kv_head];
}

/* Where head `h` is summed up, the i-th that takes part. */
static head_sums sums_of(const attend_state *s, int i, int h)
{
    return (head_sums){.o = s->o[i],
                       .kbar = s->kbar[i],
                       .k_weights = s->k_weights + (size_t)i * TILE,
                       .m = s->m + h,
                       .l = s->l + h};
}

/* Pack the heads that take part in the tile of n tokens at t. Returns whether all heads do from its
 * first token on: then so it stays. */
static bool pack_active(const mai_attend_args *a, const attend_state *s, int64_t t, int n)
{
    const mai_shape *shape = a->shape;
    bool all = true;
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) {
        int at = kv_head * shape->group;
        for (int h = at; h < (kv_head + 1) * shape->group; h++) {
            const int64_t skip = a->start ? a->start[h] - t : 0;
            if (skip > 0) all = false;
            if (skip >= n) continue;
            s->active[at] = h;
            s->first[at] = skip > 0 ? (int)skip : 0;
            s->q[at] = a->q + (size_t)h * shape->d;
            s->o[at] = a->out + h * a->out_stride;
            s->kbar[at] = wants_keys(a, kv_head) ? s->o[at] + shape->dv : NULL;
            at++;
        }
        const int n_active = at - kv_head * shape->group;
        s->n_active[kv_head] = n_active;
        s->n_computed[kv_head] = fill_block(shape, s, kv_head * shape->group, n_active);
    }
    return all;
}

/* Add a tile to the sums of keys of a kv head's heads. With a soft cap the place of the head that
 * fills a block has no weights of its own: it is left out. */
static void attend_keys(const mai_attend_args *a, const attend_state *s, const tile_rows *rows,
                        int kv_head, int t0)
{
    const mai_shape *shape = a->shape;
    const int h = kv_head * shape->group;
    const bool capped = shape->softcap > 0;
    const ahead nothing = {NULL, false, 0, 0, 0};
    tile_sums(shape->k_dtype, shape->d, rows->k, kv_head * a->tokens.kv->k_head_stride,
              capped ? s->n_active[kv_head] : s->n_computed[kv_head], t0, rows->n,
              (capped ? s->k_weights : s->scores) + (size_t)h * TILE, s->kbar + h, &nothing);
}

/* One tile: scores of all heads, then their softmax, then the values. In this order the heads are
 * independent in each step, and no step waits for the end of a chain of the step before. */
static void attend_tile(const mai_attend_args *a, const attend_state *s, const tile_rows *rows,
                        const tile_rows *next)
{
    const mai_shape *shape = a->shape;
    const macattn_kv *kv = a->tokens.kv;
    const int group = shape->group, n = rows->n;
    const int64_t k_bytes = (int64_t)row_bytes(shape->k_dtype, shape->d);
    const int64_t v_bytes = (int64_t)row_bytes(shape->v_dtype, shape->dv);
    bool whole = true; /* all kv heads take part */
    for (int i = a->kv0; i < a->kv1; i++) whole = whole && s->n_active[i] > 0;
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) {
        const int h = kv_head * group;
        if (s->n_active[kv_head] == 0) continue;
        const ahead share = share_of_next(next->n > 0 ? next->k : NULL, a, whole, kv_head,
                                          kv->k_token_stride, kv->k_head_stride, k_bytes);
        tile_scores(shape, rows, kv_head * kv->k_head_stride, s->q + h, s->n_computed[kv_head],
                    s->scores + (size_t)h * TILE, &share);
    }
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) {
        for (int i = kv_head * group; i < kv_head * group + s->n_active[kv_head]; i++) {
            const head_sums sums = sums_of(s, i, s->active[i]);
            softmax_tile(s->scores + (size_t)i * TILE, s->first[i], n, shape, &sums);
        }
    }
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) {
        const int h = kv_head * group;
        if (s->n_active[kv_head] == 0) continue;
        const ahead share = share_of_next(next->n > 0 ? next->v : NULL, a, whole, kv_head,
                                          kv->v_token_stride, kv->v_head_stride, v_bytes);
        int t0 = n;
        for (int i = h; i < h + s->n_active[kv_head]; i++) t0 = s->first[i] < t0 ? s->first[i] : t0;
        tile_sums(shape->v_dtype, shape->dv, rows->v, kv_head * kv->v_head_stride,
                  s->n_computed[kv_head], t0, n, s->scores + (size_t)h * TILE, s->o + h, &share);
        if (wants_keys(a, kv_head)) attend_keys(a, s, rows, kv_head, t0);
    }
}

/* Results of heads that do not are left as they are. */
static bool takes_part(const mai_attend_args *a, int h)
{
    return !a->start || a->start[h] < a->t1;
}

/* How many values a head's result has. */
static int result_width(const mai_attend_args *a, int h)
{
    return a->shape->dv + (wants_keys(a, h / a->shape->group) ? a->shape->d : 0);
}

static void MAI_FN(attend)(const mai_attend_args *a)
{
    const mai_shape *shape = a->shape;
    const int h0 = a->kv0 * shape->group, h1 = a->kv1 * shape->group;
    const attend_state s = attend_state_in(a->scratch, shape);
    for (int h = h0; h < h1; h++) {
        if (!takes_part(a, h)) continue;
        s.m[h] = -INFINITY;
        s.l[h] = 0;
        memset(a->out + h * a->out_stride, 0, sizeof(float) * (size_t)result_width(a, h));
    }
    memset(s.unused, 0, sizeof(float) * (size_t)(shape->dv + shape->d));
    tile_rows rows[2];
    int now = 0;
    bool settled = false;
    load_rows(&a->tokens, a->t0, a->t1 - a->t0, &rows[0]);
    for (int64_t t = a->t0; t < a->t1; t += TILE, now ^= 1) {
        if (!settled) settled = pack_active(a, &s, t, rows[now].n);
        load_rows(&a->tokens, t + TILE, a->t1 - t - TILE, &rows[now ^ 1]);
        attend_tile(a, &s, &rows[now], &rows[now ^ 1]);
    }
    for (int h = h0; h < h1; h++) {
        if (!takes_part(a, h)) continue;
        float *o = a->out + h * a->out_stride;
        const head_sums sums = {.o = o,
                                .kbar = wants_keys(a, h / shape->group) ? o + shape->dv : NULL,
                                .m = s.m + h,
                                .l = s.l + h};
        finish_head(shape, &sums, a->lse + h);
    }
}
