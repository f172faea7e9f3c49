/* SPDX-License-Identifier: Apache-2.0 */
/* Decode attention over a range of tokens, all heads of some kv heads, online softmax per tile.
 *
 *     s[h][t] = q[h] . k[t];   m ~ max s;   o[h] = sum 2^(s - m) v[t];   lse = (m + log2 sum) ln 2
 *
 * Memory to read: d * bytes(K) + dv * bytes(V) per token and kv head, each byte once: a K row is used
 * by the whole group while it is in the first-level cache, and a tile of tokens is computed for all kv
 * heads before the next tile, because in the usual layout the rows of all kv heads of a token lie side
 * by side.
 *
 * Where a summary is to be made, the weights are applied to the K rows of the tile as well, which
 * are still in the cache: kbar[h] = sum 2^(s - m) k[t], with all that is done to o, which is not
 * touched by it. How a tile's products are computed: tile.h. */

MAI_INLINE void scale_floats(float *x, int n, float f)
{
    int j = 0;
    for (; j + VL <= n; j += VL) v_store(x + j, v_mul(v_load(x + j), v_set1(f)));
    for (; j < n; j++) x[j] *= f;
}

/* Weights are 2^(s - m) for an m that is at most MOST_ABOVE less than the largest score so far: only a score
 * further above makes m grow to it, and what has been summed up be rescaled, which is then rare: nearly always once
 * for a range. Weights of up to 2^8 are as exact as those of up to 1. */
#define MOST_ABOVE 8.0f

/* What one head has summed up, not yet normalised. */
typedef struct head_sums {
    float *o;     /* [dv] */
    float *kbar;  /* [d] of keys; NULL: not wanted */
    float *m, *l; /* l [VL]: its lanes add up to the sum of weights */
} head_sums;

/* Cap a tile's scores, and leave out those of tokens outside of [t0, t1). `slopes`: the cap's derivatives; NULL:
 * not wanted. */
static void limit_scores(float *s, int t0, int t1, float softcap, float *slopes)
{
    const V none = v_set1(-INFINITY);
    for (int t = 0; t < TILE; t += VL) {
        V x = v_load(s + t);
        if (softcap > 0) x = v_softcap(x, softcap);
        if (t + VL > t1) x = v_first_n(x, none, t1 > t ? t1 - t : 0);
        if (t < t0) x = v_first_n(none, x, t0 - t < VL ? t0 - t : VL);
        v_store(s + t, x);
        if (slopes) v_store(slopes + t, v_softcap_slope(x, softcap));
    }
}

/* Whether one of n heads has a score that makes its m grow; scores [n][TILE]. What is not a number does not. */
MAI_INLINE bool some_above(const float *scores, int n, const float *m)
{
    V above = v_zero();
    for (int h = 0; h < n; h++) {
        const V base = v_set1(m[h]);
        MAI_UNROLL for (int t = 0; t < TILE; t += VL) above =
            v_max(v_sub(v_load(scores + h * TILE + t), base), above);
    }
    return v_any_above(above, v_set1(MOST_ABOVE));
}

/* Let one head's m grow to its largest score, if it has to. */
static void raise_maximum(const float *s, const mai_shape *shape, const head_sums *sums)
{
    if (!some_above(s, 1, sums->m)) return;
    V top = v_load(s);
    for (int t = VL; t < TILE; t += VL) top = v_max(top, v_load(s + t));
    const float tile_max = v_reduce_max(top);
    const float f = *sums->m == -INFINITY ? 0.0f : exp2f(*sums->m - tile_max);
    scale_floats(sums->o, shape->dv, f);
    if (sums->kbar) scale_floats(sums->kbar, shape->d, f);
    v_store(sums->l, v_mul(v_load(sums->l), v_set1(f)));
    *sums->m = tile_max;
}

/* Turn scores [n][TILE] into weights, and add these to l [n][VL]. */
MAI_INLINE void weigh(float *scores, int n, const float *m, float *l)
{
    for (int h = 0; h < n; h++) {
        /* Where all is -inf m is, too, and -inf less -inf would be NaN. */
        const V base = v_max(v_set1(-FLT_MAX), v_set1(m[h]));
        V sum = v_load(l + h * VL);
        MAI_UNROLL for (int t = 0; t < TILE; t += VL)
        {
            const V p = v_exp2(v_sub(v_load(scores + h * TILE + t), base));
            v_store(scores + h * TILE + t, p);
            sum = v_add(sum, p);
        }
        v_store(l + h * VL, sum);
    }
}

/* The weights of keys under a soft cap: slopes times weights. */
static void weigh_slopes(float *slopes, const float *weights)
{
    for (int t = 0; t < TILE; t += VL)
        v_store(slopes + t, v_mul(v_load(slopes + t), v_load(weights + t)));
}

/* The lse of a maximum m, in units of log 2, and a sum l of weights, and what normalises sums. An empty range
 * gives -inf and 0. */
MAI_INLINE float finish_lse(float m, float l, float *lse)
{
    if (l == 0 && !(m > -INFINITY)) {
        *lse = -INFINITY;
        return 0;
    }
    *lse = (float)(((double)m + log2((double)l)) * MAI_LN2);
    return 1.0f / l;
}

/* Normalise a head's sums; those of an empty range are 0 as they are. */
static void finish_head(const mai_shape *shape, const head_sums *sums, float *lse)
{
    const float factor = finish_lse(*sums->m, v_reduce_add(v_load(sums->l)), lse);
    scale_floats(sums->o, shape->dv, factor);
    if (sums->kbar) scale_floats(sums->kbar, shape->d, factor);
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

/* A kv head's share of the next tile: of one stream of bytes, where all of every row is read; else
 * its own part of each row. */
MAI_INLINE ahead share_of_next(const tile_rows *next, const char *const *rows,
                               const mai_attend_args *a, bool whole, int kv_head,
                               int64_t token_stride, int64_t head_stride, int64_t bytes)
{
    const int n = a->kv1 - a->kv0;
    if (next->n <= 0) return fetch_nothing(a->scratch);
    if (!whole || head_stride != bytes || n * bytes != token_stride)
        return fetch_rows(rows, kv_head * head_stride, bytes, 0);
    return fetch_rows(rows, a->kv0 * bytes, n * bytes, (kv_head - a->kv0) * bytes * TILE);
}

/* Work memory of one item, in the worker's scratch. The heads that take part in the tile are packed to
 * the front of their kv head's place in `active`, `first`, `q`, `o`, `kbar` and the scores, so that
 * they are one block whichever they are. */
typedef struct attend_state {
    void *work;       /* of tile.h */
    tile_queries q;   /* [n_heads] */
    float *sums;      /* [n_heads][dv], then as many [d] of keys: running_o, running_kbar */
    float **o;        /* [n_heads] running output */
    float **kbar;     /* [n_heads] running sum of keys; NULL: not wanted */
    float *scores;    /* [n_heads][TILE] */
    float *k_weights; /* [n_heads][TILE] of keys under a soft cap; else not used */
    float *m, *l;     /* [n_heads], [n_heads][VL] of head_sums, by head */
    int *active;      /* [n_heads] head */
    int *first;       /* [n_heads] first token of the tile in which it takes part */
    int *n_active;    /* [n_kv_heads] */
} attend_state;

static size_t attend_scratch_bytes(const mai_shape *shape)
{
    const size_t floats = (size_t)(2 * shape->d + shape->dv) + 2 * TILE + 1 + VL;
    return (size_t)shape->n_heads * (2 * sizeof(float *) + sizeof(float) * floats +
                                     whole_bytes(shape->d) + 2 * sizeof(int)) +
           (size_t)shape->n_kv_heads * sizeof(int);
}

static attend_state attend_state_in(void *scratch, const mai_shape *shape)
{
    const size_t hq = (size_t)shape->n_heads;
    attend_state s = {.work = scratch};
    s.q.q = (float *)(void *)((char *)scratch + tile_work_bytes(shape));
    s.q.whole = (char *)(s.q.q + hq * (size_t)shape->d);
    s.scores = (float *)(void *)(s.q.whole + hq * whole_bytes(shape->d));
    s.k_weights = s.scores + hq * TILE;
    s.sums = s.k_weights + hq * TILE;
    s.o = (float **)(void *)(s.sums + hq * (size_t)(shape->d + shape->dv));
    s.kbar = s.o + hq;
    s.m = (float *)(s.kbar + hq);
    s.l = s.m + hq;
    s.active = (int *)(s.l + hq * VL);
    s.first = s.active + hq;
    s.n_active = s.first + hq;
    return s;
}

static bool wants_keys(const mai_attend_args *a, int kv_head)
{
    return a->keys && a->keys[kv_head];
}

/* Where head `h` is summed up, the i-th that takes part. */
static head_sums sums_of(const attend_state *s, int i, int h)
{
    return (head_sums){.o = s->o[i], .kbar = s->kbar[i], .m = s->m + h, .l = s->l + h * VL};
}

/* Running sums lie side by side, not where the results go: with room for sums of keys between them (whether or
 * not these are wanted) they fell into half of the first-level cache's sets, which the rows of a tile need as
 * well. A step of 32/8 heads on AVX-512 took 1.35 times as long. */
static float *running_o(const attend_state *s, const mai_shape *shape, int h)
{
    return s->sums + (size_t)h * (size_t)shape->dv;
}

static float *running_kbar(const attend_state *s, const mai_shape *shape, int h)
{
    return running_o(s, shape, shape->n_heads) + (size_t)h * (size_t)shape->d;
}

/* Pack the heads that take part in the tile of n tokens at t. Returns whether all heads do from its
 * first token on: then so it stays. */
static bool pack_active(const mai_attend_args *a, const attend_state *s, int64_t t, int n)
{
    const mai_shape *shape = a->shape;
    const size_t d = (size_t)shape->d;
    bool all = true;
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) {
        int at = kv_head * shape->group;
        for (int h = at; h < (kv_head + 1) * shape->group; h++) {
            const int64_t skip = a->start ? a->start[h] - t : 0;
            if (skip > 0) all = false;
            if (skip >= n) continue;
            if (s->active[at] != h) {
                memcpy(s->q.q + (size_t)at * d, a->q + (size_t)h * d, 4 * d);
                prepare_query(shape->k_dtype, shape->d, &s->q, at);
            }
            s->active[at] = h;
            s->first[at] = skip > 0 ? (int)skip : 0;
            s->o[at] = running_o(s, shape, h);
            s->kbar[at] = wants_keys(a, kv_head) ? running_kbar(s, shape, h) : NULL;
            at++;
        }
        s->n_active[kv_head] = at - kv_head * shape->group;
    }
    return all;
}

/* Add a tile to the sums of keys of a kv head's heads. */
static void attend_keys(const mai_attend_args *a, const attend_state *s, const tile_rows *rows,
                        int kv_head, int t0, ahead *next)
{
    const mai_shape *shape = a->shape;
    const int h = kv_head * shape->group;
    const float *weights = shape->softcap > 0 ? s->k_weights : s->scores;
    tile_sums(shape->k_dtype, shape->d, rows->k, kv_head * a->tokens.kv->k_head_stride,
              s->n_active[kv_head], t0, rows->n, weights + (size_t)h * TILE, s->kbar + h, s->work,
              next);
}

/* Scores of a kv head's heads to weights, with all that has to do with their maxima. */
static void softmax_tile(const mai_attend_args *a, const attend_state *s, int kv_head, int n)
{
    const mai_shape *shape = a->shape;
    const int h0 = kv_head * shape->group, n_heads = s->n_active[kv_head];
    float *scores = s->scores + (size_t)h0 * TILE, *slopes = s->k_weights + (size_t)h0 * TILE;
    const bool capped_keys = shape->softcap > 0 && wants_keys(a, kv_head);
    for (int i = 0; i < n_heads; i++) {
        const int first = s->first[h0 + i];
        if (shape->softcap > 0 || first > 0 || n < TILE)
            limit_scores(scores + i * TILE, first, n, shape->softcap,
                         capped_keys ? slopes + i * TILE : NULL);
    }
    if (n_heads == shape->group) { /* each is in its place */
        if (some_above(scores, n_heads, s->m + h0)) {
            for (int i = 0; i < n_heads; i++) {
                const head_sums sums = sums_of(s, h0 + i, h0 + i);
                raise_maximum(scores + i * TILE, shape, &sums);
            }
        }
        weigh(scores, n_heads, s->m + h0, s->l + h0 * VL);
    } else {
        for (int i = 0; i < n_heads; i++) {
            const head_sums sums = sums_of(s, h0 + i, s->active[h0 + i]);
            raise_maximum(scores + i * TILE, shape, &sums);
            weigh(scores + i * TILE, 1, sums.m, sums.l);
        }
    }
    for (int i = 0; i < n_heads && capped_keys; i++)
        weigh_slopes(slopes + i * TILE, scores + i * TILE);
}

/* One tile: scores of all heads, then their softmax, then the values. In this order the heads are
 * independent in each step, and no step waits for the end of a chain of the step before. Of listed
 * runs the next tile's values are fetched in two halves, the second while keys are summed up, which
 * reads nothing new: how many misses are under way at a time is what binds there. */
static void attend_tile(const mai_attend_args *a, const attend_state *s, const tile_rows *rows,
                        const tile_rows *next)
{
    const mai_shape *shape = a->shape;
    const macattn_kv *kv = a->tokens.kv;
    const int group = shape->group, n = rows->n;
    const int64_t k_bytes = (int64_t)macattn_dtype_row_bytes(shape->k_dtype, shape->d);
    const int64_t v_bytes = (int64_t)macattn_dtype_row_bytes(shape->v_dtype, shape->dv);
    bool whole = true; /* all kv heads take part */
    for (int i = a->kv0; i < a->kv1; i++) whole = whole && s->n_active[i] > 0;
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) {
        const int h = kv_head * group;
        if (s->n_active[kv_head] == 0) continue;
        ahead share = share_of_next(next, next->k, a, whole, kv_head, kv->k_token_stride,
                                    kv->k_head_stride, k_bytes);
        const tile_queries q = queries_from(&s->q, shape->d, (size_t)h);
        tile_scores(shape, rows->k, n, kv_head * kv->k_head_stride, &q, s->n_active[kv_head],
                    s->scores + (size_t)h * TILE, s->work, &share);
    }
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) softmax_tile(a, s, kv_head, n);
    for (int kv_head = a->kv0; kv_head < a->kv1; kv_head++) {
        const int h = kv_head * group;
        if (s->n_active[kv_head] == 0) continue;
        ahead share = share_of_next(next, next->v, a, whole, kv_head, kv->v_token_stride,
                                    kv->v_head_stride, v_bytes);
        ahead rest = fetch_nothing(a->scratch);
        if (a->tokens.runs && wants_keys(a, kv_head) && next->n > 0) {
            share.n_rows = TILE / 2 - 1;
            rest = fetch_rows(next->v, kv_head * kv->v_head_stride, v_bytes, TILE / 2 * v_bytes);
        }
        int t0 = n;
        for (int i = h; i < h + s->n_active[kv_head]; i++) t0 = s->first[i] < t0 ? s->first[i] : t0;
        tile_sums(shape->v_dtype, shape->dv, rows->v, kv_head * kv->v_head_stride,
                  s->n_active[kv_head], t0, n, s->scores + (size_t)h * TILE, s->o + h, s->work,
                  &share);
        if (wants_keys(a, kv_head)) attend_keys(a, s, rows, kv_head, t0, &rest);
    }
}

/* Results of heads that do not are left as they are. */
static bool takes_part(const mai_attend_args *a, int h)
{
    return !a->start || a->start[h] < a->t1;
}

static void MAI_FN(attend)(const mai_attend_args *a)
{
    const mai_shape *shape = a->shape;
    const int h0 = a->kv0 * shape->group, h1 = a->kv1 * shape->group;
    const attend_state s = attend_state_in(a->scratch, shape);
    for (int h = h0; h < h1; h++) {
        s.active[h] = -1;
        if (!takes_part(a, h)) continue;
        s.m[h] = -INFINITY;
        v_store(s.l + h * VL, v_zero());
        memset(running_o(&s, shape, h), 0, sizeof(float) * (size_t)shape->dv);
        if (wants_keys(a, h / shape->group))
            memset(running_kbar(&s, shape, h), 0, sizeof(float) * (size_t)shape->d);
    }
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
        const bool keys = wants_keys(a, h / shape->group);
        const head_sums sums = {.o = running_o(&s, shape, h),
                                .kbar = keys ? running_kbar(&s, shape, h) : NULL,
                                .m = s.m + h,
                                .l = s.l + h * VL};
        float *out = a->out + h * a->out_stride;
        finish_head(shape, &sums, a->lse + h);
        memcpy(out, sums.o, sizeof(float) * (size_t)shape->dv);
        if (keys) memcpy(out + shape->dv, sums.kbar, sizeof(float) * (size_t)shape->d);
    }
}
