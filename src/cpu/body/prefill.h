/* SPDX-License-Identifier: Apache-2.0 */
/* Causal attention of a block of queries of one kv head, with the far summaries that the ring wants.
 *
 * The (query, head of the group) pairs of the block are rows that share every K and V row, so the tiles
 * of decode (attend.h) serve here too, with up to PREFILL_ROWS rows instead of one group. Tiles that
 * only some queries see (the diagonal, the start of a window, the edge of a summary) are computed query
 * by query, so that nothing a query may not see ever touches its sums. */

#define PREFILL_ROWS 64
#define PREFILL_MAX_ROWS MAI_MAX_HEADS /* one query of a group of any size */

/* Running state of the block's rows; row = (query - q0) * group + head of the group. */
typedef struct prefill_block {
    const mai_prefill_args *a;
    int group, n_queries;
    int64_t lo[PREFILL_ROWS], hi[PREFILL_ROWS]; /* [query] tokens it sees in this pass */
    bool keys;                                  /* sum up keys in this pass */
    void *work;                                 /* of tile.h */
    tile_queries q;                             /* [row] */
    float *o, *kbar, *m, *l;                    /* [row]; l [row][VL] */
    float *scores, *k_weights;                  /* [row][TILE]; the latter: of head_sums */
    float *o_row[PREFILL_MAX_ROWS], *kbar_row[PREFILL_MAX_ROWS];
} prefill_block;

static int prefill_queries(const mai_shape *shape)
{
    return shape->group < PREFILL_ROWS ? PREFILL_ROWS / shape->group : 1;
}

static size_t prefill_scratch_bytes(const mai_shape *shape)
{
    const size_t rows = (size_t)prefill_queries(shape) * (size_t)shape->group;
    const size_t floats = 2 * (size_t)shape->d + (size_t)shape->dv + 2 * TILE + 1 + VL;
    return rows * (sizeof(float) * floats + whole_bytes(shape->d));
}

static void prefill_block_init(prefill_block *b, const mai_prefill_args *a)
{
    const mai_shape *shape = a->shape;
    b->a = a;
    b->group = shape->group;
    b->n_queries = a->q1 - a->q0;
    b->keys = a->capture0 < a->q1 && a->far_keys;
    const size_t rows = (size_t)b->n_queries * (size_t)b->group;
    b->work = a->scratch;
    b->q.q = (float *)(void *)((char *)a->scratch + tile_work_bytes(shape));
    b->q.whole = (char *)(b->q.q + rows * (size_t)shape->d);
    b->o = (float *)(void *)(b->q.whole + rows * whole_bytes(shape->d));
    b->kbar = b->o + rows * (size_t)shape->dv;
    b->scores = b->kbar + rows * (size_t)shape->d;
    b->k_weights = b->scores + rows * TILE;
    b->m = b->k_weights + rows * TILE;
    b->l = b->m + rows;
    const float factor = (float)mai_q_factor(shape);
    for (size_t i = 0; i < rows; i++) {
        const int query = a->q0 + (int)i / b->group,
                  head = a->kv_head * b->group + (int)i % b->group;
        load_q(shape, a->q + query * a->q_row_stride + head * a->q_head_stride, factor,
               b->q.q + i * (size_t)shape->d);
        prepare_query(shape->k_dtype, shape->d, &b->q, (int)i);
        b->o_row[i] = b->o + i * (size_t)shape->dv;
        b->kbar_row[i] = b->kbar + i * (size_t)shape->d;
        b->m[i] = -INFINITY;
        v_store(b->l + i * VL, v_zero());
    }
    memset(b->o, 0, rows * (size_t)shape->dv * sizeof(float));
    if (b->keys) memset(b->kbar, 0, rows * (size_t)shape->d * sizeof(float));
}

static head_sums prefill_sums(const prefill_block *b, size_t row)
{
    return (head_sums){.o = b->o_row[row],
                       .kbar = b->keys ? b->kbar_row[row] : NULL,
                       .k_weights = b->k_weights + row * TILE,
                       .m = b->m + row,
                       .l = b->l + row * VL};
}

/* Rows of `n_queries` queries from `query` (of the block) on over tokens [t, t + n). */
static void prefill_tile(const prefill_block *b, int query, int n_queries, int64_t t, int n,
                         bool fetch_next)
{
    const mai_prefill_args *a = b->a;
    const mai_shape *shape = a->shape;
    const macattn_kv *kv = a->tokens.kv;
    const size_t row = (size_t)query * (size_t)b->group;
    tile_rows rows[2];
    load_rows(&a->tokens, t, n, &rows[0]);
    load_rows(&a->tokens, t + n, fetch_next ? TILE : 0, &rows[1]);
    const int64_t k_offset = a->kv_head * kv->k_head_stride,
                  v_offset = a->kv_head * kv->v_head_stride;
    ahead nothing = fetch_nothing(a->scratch), k_next = nothing, v_next = nothing;
    if (fetch_next) {
        k_next = fetch_rows(rows[1].k, k_offset,
                            (int64_t)macattn_dtype_row_bytes(shape->k_dtype, shape->d), 0);
        v_next = fetch_rows(rows[1].v, v_offset,
                            (int64_t)macattn_dtype_row_bytes(shape->v_dtype, shape->dv), 0);
    }
    const int n_rows = n_queries * b->group;
    float *scores = b->scores + row * TILE;
    const tile_queries q = queries_from(&b->q, shape->d, row);
    tile_scores(shape, rows[0].k, n, k_offset, &q, n_rows, scores, b->work, &k_next);
    for (int i = 0; i < n_rows; i++) {
        const head_sums sums = prefill_sums(b, row + (size_t)i);
        softmax_tile(scores + (size_t)i * TILE, 0, n, shape, &sums);
    }
    tile_sums(shape->v_dtype, shape->dv, rows[0].v, v_offset, n_rows, 0, n, scores, b->o_row + row,
              b->work, &v_next);
    if (!b->keys) return;
    tile_sums(shape->k_dtype, shape->d, rows[0].k, k_offset, n_rows, 0, n,
              shape->softcap > 0 ? b->k_weights + row * TILE : scores, b->kbar_row + row, b->work,
              &nothing);
}

/* All queries over the tokens [lo, hi) that each of them sees in this pass. */
static void prefill_pass(const prefill_block *b)
{
    int64_t lo = INT64_MAX, hi = 0, all_lo = 0, all_hi = INT64_MAX;
    for (int i = 0; i < b->n_queries; i++) {
        if (b->lo[i] < lo) lo = b->lo[i];
        if (b->hi[i] > hi) hi = b->hi[i];
        if (b->lo[i] > all_lo) all_lo = b->lo[i];
        if (b->hi[i] < all_hi) all_hi = b->hi[i];
    }
    for (int64_t t = lo; t < hi; t += TILE) {
        const int64_t end = t + TILE < hi ? t + TILE : hi;
        if (t >= all_lo && end <= all_hi) {
            prefill_tile(b, 0, b->n_queries, t, (int)(end - t), end + TILE <= all_hi);
            continue;
        }
        for (int i = 0; i < b->n_queries; i++) {
            const int64_t from = t > b->lo[i] ? t : b->lo[i];
            const int64_t to = end < b->hi[i] ? end : b->hi[i];
            if (from < to) prefill_tile(b, i, 1, from, (int)(to - from), false);
        }
    }
}

/* Far summaries of the captured queries: the state after [fresh, b), normalised into the caller's
 * arrays, without disturbing it. */
static void prefill_capture(const prefill_block *b)
{
    const mai_prefill_args *a = b->a;
    const size_t dv = (size_t)a->shape->dv, d = b->keys ? (size_t)a->shape->d : 0;
    for (int i = 0; i < b->n_queries; i++) {
        if (a->q0 + i < a->capture0) continue;
        for (int g = 0; g < b->group; g++) {
            const size_t row = (size_t)i * (size_t)b->group + (size_t)g;
            const size_t at = (size_t)(a->q0 + i - a->capture0) * (size_t)a->shape->n_heads +
                              (size_t)(a->kv_head * b->group + g);
            float *far = a->far_out + at * (dv + d);
            const head_sums sums = {
                .o = far, .kbar = b->keys ? far + dv : NULL, .m = b->m + row, .l = b->l + row * VL};
            memcpy(far, b->o_row[row], sizeof(float) * dv);
            memcpy(far + dv, b->kbar_row[row], sizeof(float) * d);
            finish_head(a->shape, &sums, a->far_lse + at);
        }
    }
}

static void prefill_store(const prefill_block *b)
{
    const mai_prefill_args *a = b->a;
    const int dv = a->shape->dv;
    for (int i = 0; i < b->n_queries; i++) {
        for (int g = 0; g < b->group; g++) {
            const size_t row = (size_t)i * (size_t)b->group + (size_t)g;
            const int query = a->q0 + i, head = a->kv_head * b->group + g;
            const head_sums sums = prefill_sums(b, row);
            float lse;
            finish_head(a->shape, &sums, &lse);
            memcpy((char *)a->out + query * a->out_row_stride + head * a->out_head_stride, sums.o,
                   sizeof(float) * (size_t)dv);
            a->lse[(size_t)query * (size_t)a->shape->n_heads + (size_t)head] = lse;
        }
    }
}

static int64_t clamp64(int64_t x, int64_t lo, int64_t hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

static void MAI_FN(prefill)(const mai_prefill_args *a)
{
    prefill_block b;
    prefill_block_init(&b, a);
    const bool capture = a->capture0 < a->q1;
    for (int i = 0; i < b.n_queries; i++) { /* far: what summaries cover, or all */
        const int64_t n = a->pos0 + a->q0 + i + 1;
        b.lo[i] = capture         ? clamp64(a->fresh, 0, n)
                  : a->window > 0 ? clamp64(n - a->window, 0, n)
                                  : 0;
        b.hi[i] = capture ? clamp64(n - a->band, b.lo[i], n) : n;
    }
    prefill_pass(&b);
    if (capture) {
        prefill_capture(&b);
        b.keys = false;
        for (int i = 0; i < b.n_queries; i++) { /* from the summary's end to the query itself */
            b.lo[i] = b.hi[i];
            b.hi[i] = a->pos0 + a->q0 + i + 1;
        }
        prefill_pass(&b);
        for (int i = 0; i < b.n_queries; i++) { /* the always fresh first tokens */
            b.lo[i] = 0;
            b.hi[i] = clamp64(a->fresh, 0, a->pos0 + a->q0 + i + 1);
        }
        prefill_pass(&b);
    }
    prefill_store(&b);
}
