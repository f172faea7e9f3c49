/* SPDX-License-Identifier: Apache-2.0 */
/* Runs of MAI_RUN_TOKENS tokens by their means and outliers: making them, what they promise to a query,
 * and using them instead of their tokens.
 *
 * Memory to read: k_bytes a run and KV head to score it, twice that with outliers, v_bytes to let it
 * stand in, k_bytes again where a summary is to be made; in q8_0 about a sixtieth each of the run's K
 * and V in f16. The rows are
 * those of a KV cache, so the tiles of decode (attend.h) serve here too, a run in the place of a token. */

#define MAI_LOG_RUN 2.77258872223978123767   /* log MAI_RUN_TOKENS */
#define MAI_LOG2_REST 3.90689059560851852932 /* log2 (MAI_RUN_TOKENS - 1) */

/* Work memory of score and stand_in. */
typedef struct runs_state {
    void *work;                   /* of tile.h */
    tile_queries q;               /* [group] */
    float **o, **kbar;            /* [group]; kbar NULL: not wanted */
    float *tile, *k_weights;      /* [group][TILE] */
    float *m, *l, *base, *slopes; /* [group]; l [group][VL] */
} runs_state;

static size_t runs_scratch_bytes(const mai_shape *shape)
{
    const size_t floats = (size_t)shape->d + 2 * TILE + 3 + VL;
    return (size_t)shape->group *
           (2 * sizeof(float *) + sizeof(float) * floats + whole_bytes(shape->d));
}

static runs_state runs_state_in(void *scratch, const mai_shape *shape)
{
    const size_t group = (size_t)shape->group;
    runs_state s = {.work = scratch};
    s.q.q = (float *)(void *)((char *)scratch + tile_work_bytes(shape));
    s.q.whole = (char *)(s.q.q + group * (size_t)shape->d);
    void *after = s.q.whole + group * whole_bytes(shape->d);
    s.o = after;
    s.kbar = s.o + group;
    s.tile = (float *)(s.kbar + group);
    s.k_weights = s.tile + group * TILE;
    s.m = s.k_weights + group * TILE;
    s.l = s.m + group;
    s.base = s.l + group * VL;
    s.slopes = s.base + group;
    return s;
}

/* ----------------------------------------------------------------------------------- summarise -- */

/* Round to the nearest f16, ties to even; what is too large becomes infinite. */
static uint16_t to_f16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u, a = bits & 0x7fffffffu;
    if (a >= 0x7f800000u) return (uint16_t)(sign | (a > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* below 2^-14: a multiple of 2^-24 */
        float y;
        memcpy(&y, &a, 4);
        return (uint16_t)(sign | (uint32_t)rintf(y * 0x1p24f));
    }
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1u)) >> 13));
}

/* 32 values as a block of q8_0. Returns whether its scale can be had. */
static bool encode_block(const float *x, char *block)
{
    float top = 0;
    for (int i = 0; i < BLOCK; i++) top = fmaxf(top, fabsf(x[i]));
    const uint16_t bits = to_f16(top / 127.0f);
    const float scale = v_f16_scalar(bits), inverse = scale > 0 ? 1.0f / scale : 0.0f;
    memcpy(block, &bits, 2);
    for (int i = 0; i < BLOCK; i++) {
        const float y = rintf(x[i] * inverse);
        block[2 + i] = (char)(int8_t)(y > 127.0f ? 127.0f : y < -127.0f ? -127.0f : y);
    }
    return scale < INFINITY;
}

static bool floats_finite(const float *x, int n)
{
    float poison = 0;
    for (int i = 0; i < n; i++) poison += x[i] * 0.0f;
    return poison == 0.0f;
}

/* A row of q8_0 or f16. Returns whether it says what x says; if not it is all 0. */
static bool encode_mean(macattn_dtype dtype, const float *x, int n, char *row)
{
    bool good = floats_finite(x, n);
    for (int i = 0; good && dtype == MACATTN_DTYPE_Q8_0 && i < n; i += BLOCK)
        good = encode_block(x + i, row + i / BLOCK * block_bytes(MACATTN_DTYPE_Q8_0));
    for (int i = 0; good && dtype == MACATTN_DTYPE_F16 && i < n; i++) {
        const uint16_t bits = to_f16(x[i]);
        memcpy(row + 2 * i, &bits, 2);
        good = (bits & 0x7c00u) != 0x7c00u;
    }
    if (!good) memset(row, 0, macattn_dtype_row_bytes(dtype, n));
    return good;
}

MAI_INLINE void mean_of_rows(macattn_dtype type, const char *const *rows, int64_t offset, int dim,
                             float *out)
{
    const V share = v_set1(1.0f / MAI_RUN_TOKENS);
    const int n_vec = dim / VL, rest = dim % VL;
    for (int j = 0; j < n_vec; j++) {
        V sum = v_zero();
        for (int t = 0; t < MAI_RUN_TOKENS; t++)
            sum = v_add(sum, row_vec(type, rows[t] + offset, j));
        v_store(out + j * VL, v_mul(sum, share));
    }
    if (rest) {
        V sum = v_zero();
        for (int t = 0; t < MAI_RUN_TOKENS; t++)
            sum = v_add(sum, row_tail(type, rows[t] + offset, n_vec, rest));
        v_store_n(out + n_vec * VL, v_mul(sum, share), rest);
    }
}

static void mean_of_blocks(macattn_dtype type, const char *const *rows, int64_t offset, int dim,
                           float *out)
{
    float tile[TILE * MAI_MAX_DIM * 3 / 4];
    const unpacked u = unpacked_in(tile, dim);
    const V share = v_set1(1.0f / MAI_RUN_TOKENS);
    const bool least = has_least(type);
    _Static_assert(MAI_RUN_TOKENS == TILE, "a run is a tile");
    unpack_tile(type, rows, offset, dim, 0, TILE, &u);
    for (int j = 0; j < dim / VL; j++) {
        V sum = v_zero();
        for (int t = 0; t < TILE; t++) sum = v_add(sum, scaled_vec(&u, least, dim, t, j));
        v_store(out + j * VL, v_mul(sum, share));
    }
}

static void mean_row(macattn_dtype dtype, const char *const *rows, int64_t offset, int dim,
                     float *out)
{
    switch (dtype) {
    case MACATTN_DTYPE_F32: mean_of_rows(MACATTN_DTYPE_F32, rows, offset, dim, out); break;
    case MACATTN_DTYPE_F16: mean_of_rows(MACATTN_DTYPE_F16, rows, offset, dim, out); break;
    case MACATTN_DTYPE_BF16: mean_of_rows(MACATTN_DTYPE_BF16, rows, offset, dim, out); break;
    case MACATTN_DTYPE_F8_E4M3: break; /* not on the CPU */
    default: mean_of_blocks(dtype, rows, offset, dim, out); break;
    }
}

/* The one of a run's rows that is farthest from their mean, which has zeros up to a multiple of VL. */
static void farthest_row(macattn_dtype dtype, const char *const *rows, int64_t offset, int dim,
                         const float *mean, float *out)
{
    const int padded = (dim + VL - 1) / VL * VL;
    const bool blocks = is_blocks(dtype), least = has_least(dtype);
    float tile[TILE * MAI_MAX_DIM * 3 / 4], most = -1.0f, row[MAI_MAX_DIM];
    const unpacked u = unpacked_in(tile, dim);
    if (blocks) unpack_tile(dtype, rows, offset, dim, 0, TILE, &u);
    for (int t = 0; t < MAI_RUN_TOKENS; t++) {
        V sum = v_zero();
        if (!blocks) load_padded(dtype, rows[t] + offset, dim, padded, row);
        for (int j = 0; blocks && j < dim / VL; j++)
            v_store(row + j * VL, scaled_vec(&u, least, dim, t, j));
        for (int i = 0; i < padded; i += VL) {
            const V off = v_sub(v_load(row + i), v_load(mean + i));
            sum = v_fma(off, off, sum);
        }
        const float distance2 = v_reduce_add(sum);
        if (!(distance2 > most)) continue;
        most = distance2;
        memcpy(out, row, sizeof(float) * (size_t)dim);
    }
}

/* A key's row, relative to what all runs have in common. */
static bool encode_key(const mai_runs_dims *dims, float *key, const float *common, char *row)
{
    for (int i = 0; i < dims->d; i++) key[i] -= common[i];
    return encode_mean(dims->k_dtype, key, dims->d, row);
}

static void MAI_FN(summarise)(const mai_summarise_args *a)
{
    const mai_runs_dims *dims = a->dims;
    const macattn_kv *kv = a->tokens.kv;
    const int d = dims->d, dv = dims->dv;
    const uint16_t nan16 = 0x7e00;
    float *common = a->common + (size_t)a->kv_head * (size_t)d;
    float mean[MAI_MAX_DIM], outlier[MAI_MAX_DIM];
    for (int32_t run = a->run0; run < a->run1; run++) {
        const size_t at = (size_t)a->kv_head * MAI_SEGMENT + (size_t)(run & (MAI_SEGMENT - 1));
        char *k = a->to->k + at * dims->k_bytes, *v = a->to->v + at * dims->v_bytes;
        tile_rows rows; /* TILE and MAI_RUN_TOKENS are the same */
        load_rows(&a->tokens, (int64_t)run << MAI_RUN_SHIFT, MAI_RUN_TOKENS, &rows);
        const int64_t k_offset = a->kv_head * kv->k_head_stride;
        memset(mean, 0, sizeof mean);
        mean_row(a->shape->k_dtype, rows.k, k_offset, d, mean);
        const bool finite = floats_finite(mean, d);
        for (int i = 0; run == 0 && i < d; i++) common[i] = finite ? mean[i] : 0.0f;
        bool good = true;
        if (dims->outliers) {
            memcpy(outlier, mean, sizeof(float) * (size_t)d);
            if (finite) farthest_row(a->shape->k_dtype, rows.k, k_offset, d, mean, outlier);
            good = encode_key(dims, outlier, common, a->to->outlier + at * dims->k_bytes);
        }
        good = encode_key(dims, mean, common, k) && good;
        mean_row(a->shape->v_dtype, rows.v, a->kv_head * kv->v_head_stride, dv, mean);
        good = encode_mean(dims->v_dtype, mean, dv, v) && good;
        if (!good) memcpy(k, &nan16, 2); /* a block's scale, or a value */
    }
}

/* --------------------------------------------------------------------------------------- score -- */

/* Rows of up to TILE runs, from run0 on or as listed. Past the last they repeat it. */
static void load_run_rows(const mai_runs_dims *dims, const mai_runs_view *segments, int32_t kv_head,
                          const int32_t *runs, int32_t run0, int32_t n, tile_rows *rows)
{
    rows->n = n <= 0 ? 0 : n < TILE ? (int)n : TILE;
    const int32_t within = run0 & (MAI_SEGMENT - 1);
    if (!runs && rows->n == TILE && within + TILE <= MAI_SEGMENT) { /* one after the other */
        const mai_runs_view *segment = &segments[run0 >> MAI_SEGMENT_SHIFT];
        const size_t at = (size_t)kv_head * MAI_SEGMENT + (size_t)within;
        for (size_t i = 0; i < TILE; i++) {
            rows->k[i] = segment->k + (at + i) * dims->k_bytes;
            rows->v[i] = segment->v + (at + i) * dims->v_bytes;
        }
        return;
    }
    for (int i = 0; i < TILE && rows->n > 0; i++) {
        const int nth = i < rows->n ? i : rows->n - 1;
        const int32_t run = runs ? runs[nth] : run0 + nth;
        const mai_runs_view *segment = &segments[run >> MAI_SEGMENT_SHIFT];
        const size_t at = (size_t)kv_head * MAI_SEGMENT + (size_t)(run & (MAI_SEGMENT - 1));
        rows->k[i] = segment->k + at * dims->k_bytes;
        rows->v[i] = segment->v + at * dims->v_bytes;
    }
}

/* Halves [from, to) of a tile's rows, of `bytes` each. They mostly lie one after the other: then no
 * line is fetched twice, and the lines are as many as the loops over a tile have steps for. */
#define HALVES 2
MAI_INLINE ahead fetch_halves(const char *const *rows, int n, size_t bytes, int from, int to,
                              const char *harmless)
{
    const int64_t half = (int64_t)bytes * TILE / HALVES;
    if (n <= 0) return fetch_nothing(harmless);
    if (rows[TILE - 1] == rows[0] + (TILE - 1) * bytes)
        return (ahead){.at = rows[0] + from * half, .end = rows[0] + to * half};
    ahead next = fetch_rows(rows, 0, (int64_t)bytes, from * half);
    next.n_rows -= (HALVES - to) * (TILE / HALVES);
    return next;
}

/* log2(2^a + 2^b); not a number if a is none. With z the smaller over the larger, log2(1 + z) as
 * 2 / log 2 artanh(z / (2 + z)), whose argument is at most 1/3: what the series leaves out is below
 * 2e-7. */
MAI_INLINE V add_log2(V a, V b)
{
    const float c = (float)(2 * MAI_LOG2E);
    const V off = v_sub(a, b), less = v_min(off, v_sub(v_zero(), off));
    const V z = v_exp2(less), t = v_div(z, v_add(z, v_set1(2.0f))), t2 = v_mul(t, t);
    V p = v_set1(c / 11);
    p = v_fma(p, t2, v_set1(c / 9));
    p = v_fma(p, t2, v_set1(c / 7));
    p = v_fma(p, t2, v_set1(c / 5));
    p = v_fma(p, t2, v_set1(c / 3));
    p = v_fma(p, t2, v_set1(c));
    return v_add(v_fma(p, t, v_max(a, b)), v_mul(off, v_zero()));
}

/* Of runs, in units of log 2 and less log2 MAI_RUN_TOKENS: `logit` of their means, `outlier` of these. */
MAI_INLINE V with_outlier(V logit, V outlier, float softcap)
{
    const float n = MAI_RUN_TOKENS;
    V rest = v_fma(v_sub(logit, outlier), v_set1(1 / (n - 1)), logit);
    if (softcap > 0) {
        rest = v_softcap(rest, softcap);
        outlier = v_softcap(outlier, softcap);
    }
    return v_sub(add_log2(v_add(rest, v_set1((float)MAI_LOG2_REST)), outlier),
                 v_set1((float)(MAI_LOG_RUN * MAI_LOG2E)));
}

/* A head's products of a tile of n runs to scores at `out`, and these to its running sum: m the
 * maximum, in units of log 2 as l [VL], whose lanes add up to the sum. What is not a number stays
 * out of that. `outliers` NULL: there are none. x is overwritten where n is less than a tile. */
MAI_INLINE void finish_scores(const mai_shape *shape, float *x, const float *outliers, float base,
                              int n, float *m, float *l, float *out)
{
    const V none = v_set1(-INFINITY);
    float *to = n < TILE ? x : out;
    V y[TILE / VL], top = none, sum = v_load(l);
    MAI_UNROLL for (int i = 0; i < TILE / VL; i++)
    {
        y[i] = v_add(v_load(x + i * VL), v_set1(base));
        if (outliers) {
            const V outlier = v_add(v_load(outliers + i * VL), v_set1(base));
            y[i] = with_outlier(y[i], outlier, shape->softcap);
        } else if (shape->softcap > 0) {
            y[i] = v_softcap(y[i], shape->softcap);
        }
        v_store(to + i * VL, v_fma(y[i], v_set1((float)MAI_LN2), v_set1((float)MAI_LOG_RUN)));
        y[i] = v_max(y[i], none);
        if ((i + 1) * VL > n) y[i] = v_first_n(y[i], none, n > i * VL ? n - i * VL : 0);
        top = v_max(top, y[i]);
    }
    if (v_any_above(top, v_set1(*m))) {
        const float tile_max = v_reduce_max(top);
        sum = v_mul(sum, v_set1(*m == -INFINITY ? 0.0f : exp2f(*m - tile_max)));
        *m = tile_max;
    }
    const V most = v_set1(*m == -INFINITY ? 0.0f : *m);
    MAI_UNROLL for (int i = 0; i < TILE / VL; i++) sum = v_add(sum, v_exp2(v_sub(y[i], most)));
    v_store(l, sum);
    if (n < TILE) memcpy(out, x, sizeof(float) * (size_t)n);
}

/* q.common, in double: what runs have in common is large, and cancels. */
static float dot_common(const float *q, const float *common, int d)
{
    enum { SUMS = 8 }; /* d is a multiple of it; none waits for another */
    double sum[SUMS] = {0}, all = 0;
    for (int i = 0; i < d; i += SUMS) {
        for (int j = 0; j < SUMS; j++) sum[j] += (double)q[i + j] * (double)common[i + j];
    }
    for (int j = 0; j < SUMS; j++) all += sum[j];
    return (float)all;
}

/* Rows of up to TILE runs from `run` on, their outliers in the place of their values. */
static void load_score_rows(const mai_score_args *a, int32_t run, tile_rows *rows)
{
    const mai_runs_dims *dims = a->dims;
    load_run_rows(dims, a->segments, a->kv_head, NULL, run, a->run1 - run, rows);
    for (int i = 0; i < TILE && dims->outliers && rows->n > 0; i++) {
        const int32_t nth = run + (i < rows->n ? i : rows->n - 1);
        const size_t at = (size_t)a->kv_head * MAI_SEGMENT + (size_t)(nth & (MAI_SEGMENT - 1));
        rows->v[i] = a->segments[nth >> MAI_SEGMENT_SHIFT].outlier + at * dims->k_bytes;
    }
}

/* The queries, and sums of nothing. `shape`: of the means' keys. */
static void begin_scores(const mai_score_args *a, const mai_shape *shape, const runs_state *s)
{
    const size_t d = (size_t)shape->d;
    const float *common = a->segments[0].common + (size_t)a->kv_head * d;
    for (int h = 0; h < shape->group; h++) {
        const float *q = a->q + (size_t)h * d;
        s->base[h] = dot_common(q, common, shape->d);
        s->m[h] = -INFINITY;
        v_store(s->l + h * VL, v_zero());
        memcpy(s->q.q + (size_t)h * d, q, sizeof(float) * d);
        prepare_query(shape->k_dtype, shape->d, &s->q, h);
    }
}

static void MAI_FN(score)(const mai_score_args *a)
{
    const mai_runs_dims *dims = a->dims;
    const int group = a->shape->group;
    mai_shape shape = *a->shape; /* whose keys are means */
    shape.k_dtype = dims->k_dtype;
    const runs_state s = runs_state_in(a->scratch, a->shape);
    begin_scores(a, &shape, &s);
    /* The next tile's outliers are fetched while the scores of this one are finished, a share for
     * each head. */
    const int tile_lines = (TILE * (int)dims->k_bytes + LINE - 1) / LINE;
    const int lines = (tile_lines + group - 1) / group;
    tile_rows rows[2];
    int now = 0;
    load_score_rows(a, a->run0, &rows[0]);
    for (int32_t run = a->run0; run < a->run1; run += TILE, now ^= 1) {
        const int n = rows[now].n;
        const tile_rows *next = &rows[now ^ 1];
        load_score_rows(a, run + TILE, &rows[now ^ 1]);
        ahead fetch = fetch_halves(next->k, next->n, dims->k_bytes, 0, dims->outliers ? 1 : HALVES,
                                   a->scratch);
        tile_scores(&shape, rows[now].k, n, 0, &s.q, group, s.tile, s.work, &fetch);
        if (dims->outliers) {
            fetch = fetch_halves(next->k, next->n, dims->k_bytes, 1, HALVES, a->scratch);
            tile_scores(&shape, rows[now].v, n, 0, &s.q, group, s.k_weights, s.work, &fetch);
            fetch = fetch_halves(next->v, next->n, dims->k_bytes, 0, HALVES, a->scratch);
        }
        for (int h = 0; h < group; h++) {
            float *x = s.tile + (size_t)h * TILE;
            const float *outliers = dims->outliers ? s.k_weights + (size_t)h * TILE : NULL;
            finish_scores(&shape, x, outliers, s.base[h], n, &s.m[h], s.l + h * VL,
                          a->scores + h * a->stride + run);
            fetch_lines(&fetch, lines);
        }
    }
    for (int h = 0; h < group; h++) {
        const float l = v_reduce_add(v_load(s.l + h * VL));
        const double sum = ((double)s.m[h] + log2((double)l)) * MAI_LN2;
        a->lse[h] = l == 0 ? -INFINITY : (float)(sum + MAI_LOG_RUN);
    }
}

/* ------------------------------------------------------------------------------------ stand_in -- */

/* A head's scores of the tile's n runs, from `i` on in the list, in units of log 2 and capped already; -inf past
 * them. */
MAI_INLINE void gather_scores(const mai_stand_in_args *a, int h, int i, int n, float *out)
{
    const float *scores = a->scores + h * a->stride, *from = scores + a->run0 + i;
    float x[TILE];
    if (a->runs || n < TILE) {
        for (int t = 0; t < TILE; t++)
            x[t] = t >= n ? -INFINITY : a->runs ? scores[a->runs[i + t]] : from[t];
        from = x;
    }
    MAI_UNROLL for (int t = 0; t < TILE; t += VL)
        v_store(out + t, v_mul(v_load(from + t), v_set1((float)MAI_LOG2E)));
}

/* With a soft cap the means' keys count by its derivative. */
static void weigh_keys(const mai_stand_in_args *a, const runs_state *s, int h, int i, int n)
{
    const float *scores = a->scores + h * a->stride, *w = s->tile + (size_t)h * TILE;
    float *k_weights = s->k_weights + (size_t)h * TILE;
    for (int t = 0; t < n; t++) {
        const float score = scores[a->runs ? a->runs[i + t] : a->run0 + i + t];
        const float x = (score - (float)MAI_LOG_RUN) / a->shape->softcap;
        k_weights[t] = score == -INFINITY ? 0.0f : w[t] * (1.0f - x * x);
        s->slopes[h] += k_weights[t];
    }
}

/* The scores of a tile of runs to weights 2^(s - m). Returns whether any is above 0. The rows of
 * runs that have none become another's: what they hold must not matter. */
static bool weigh_runs(const mai_stand_in_args *a, const runs_state *s, int i, tile_rows *rows)
{
    const uint32_t all = (uint32_t)(((uint64_t)1 << TILE) - 1);
    V sum[TILE / VL];
    uint32_t without = 0; /* runs, by bits */
    MAI_UNROLL for (int t = 0; t < TILE / VL; t++) sum[t] = v_zero();
    for (int h = 0; h < a->shape->group; h++) {
        float *w = s->tile + (size_t)h * TILE;
        const head_sums sums = {
            .o = s->o[h], .kbar = s->kbar[h], .m = &s->m[h], .l = s->l + h * VL};
        gather_scores(a, h, i, rows->n, w);
        raise_maximum(w, a->shape, &sums);
        weigh(w, 1, sums.m, sums.l);
        if (a->keys && a->shape->softcap > 0) weigh_keys(a, s, h, i, rows->n);
        MAI_UNROLL for (int t = 0; t < TILE / VL; t++) sum[t] = v_add(sum[t], v_load(w + t * VL));
    }
    MAI_UNROLL for (int t = 0; t < TILE / VL; t++) without |= v_not_above(sum[t], v_zero())
                                                              << (t * VL);
    if (without == all) return false;
    if (without == 0) return true;
    const int some = __builtin_ctz(~without);
    for (int t = 0; t < rows->n; t++) {
        if (without >> t & 1u) rows->k[t] = rows->k[some];
    }
    return true;
}

/* Weights are relative to `top`, which may be that of other runs: a sum this small is of no account
 * there, and its inverse would be infinite before long. */
#define LEAST_WEIGHT 1e-30f

/* Normalise; the keys get what all runs have in common. */
static void finish_stand_in(const mai_stand_in_args *a, const runs_state *s, int h)
{
    const int d = a->shape->d;
    const float *common = a->segments[0].common + (size_t)a->kv_head * (size_t)d;
    const float l = v_reduce_add(v_load(s->l + h * VL));
    const float slopes = a->shape->softcap > 0 ? s->slopes[h] : l;
    const head_sums sums = {.o = s->o[h], .kbar = s->kbar[h], .m = &s->m[h], .l = s->l + h * VL};
    if (l < LEAST_WEIGHT) { /* none */
        memset(s->o[h], 0, sizeof(float) * (size_t)a->shape->dv);
        if (a->keys) memset(s->kbar[h], 0, sizeof(float) * (size_t)d);
        a->lse[h] = -INFINITY;
        return;
    }
    for (int i = 0; a->keys && i < d; i++) s->kbar[h][i] += slopes * common[i];
    finish_head(a->shape, &sums, a->lse + h);
}

/* Rows of up to TILE of the runs, from the i-th on. */
static void load_stand_in_rows(const mai_stand_in_args *a, int32_t i, tile_rows *rows)
{
    load_run_rows(a->dims, a->segments, a->kv_head, a->runs && i < a->n ? a->runs + i : NULL,
                  a->run0 + i, a->n - i, rows);
}

static void MAI_FN(stand_in)(const mai_stand_in_args *a)
{
    const mai_runs_dims *dims = a->dims;
    const mai_shape *shape = a->shape;
    const int group = shape->group;
    const size_t width = (size_t)shape->dv + (a->keys ? (size_t)shape->d : 0);
    const runs_state s = runs_state_in(a->scratch, shape);
    for (int h = 0; h < group; h++) {
        s.o[h] = a->out + h * a->out_stride;
        s.kbar[h] = a->keys ? s.o[h] + shape->dv : NULL;
        s.m[h] = a->top[h] * (float)MAI_LOG2E;
        s.slopes[h] = 0;
        v_store(s.l + h * VL, v_zero());
        memset(s.o[h], 0, sizeof(float) * width);
    }
    const bool capped = shape->softcap > 0;
    tile_rows rows[2];
    int now = 0;
    load_stand_in_rows(a, 0, &rows[0]);
    for (int32_t i = 0; i < a->n; i += TILE, now ^= 1) {
        const tile_rows *next = &rows[now ^ 1];
        load_stand_in_rows(a, i + TILE, &rows[now ^ 1]);
        if (!weigh_runs(a, &s, i, &rows[now])) continue;
        ahead fetch = fetch_halves(next->v, next->n, dims->v_bytes, 0, HALVES, a->scratch);
        tile_sums(dims->v_dtype, shape->dv, rows[now].v, 0, group, 0, rows[now].n, s.tile, s.o,
                  s.work, &fetch);
        if (a->keys) {
            fetch = fetch_halves(next->k, next->n, dims->k_bytes, 0, HALVES, a->scratch);
            tile_sums(dims->k_dtype, shape->d, rows[now].k, 0, group, 0, rows[now].n,
                      capped ? s.k_weights : s.tile, s.kbar, s.work, &fetch);
        }
    }
    for (int h = 0; h < group; h++) finish_stand_in(a, &s, h);
}
