/* SPDX-License-Identifier: Apache-2.0 */
/* Prefill of few rows: a draft to be verified, a short turn. Not enough rows to fill vectors with, and
 * converting K and V would take longer than multiplying them: so the tiles of decode (attend.h) serve, with
 * all rows in the place of one group. Tiles that only some queries see are computed query by query. */

static size_t few_scratch_bytes(const mai_shape *shape)
{
    const size_t floats = 2 * (size_t)shape->d + (size_t)shape->dv + 2 * TILE + 1 + VL;
    return FEW_ROWS * (sizeof(float) * floats + whole_bytes(shape->d));
}

/* Everything is [row], l [row][VL]. */
static void few_init(prefill_block *b)
{
    const mai_shape *shape = b->a->shape;
    const size_t rows = (size_t)b->n_rows, d = (size_t)shape->d, dv = (size_t)shape->dv;
    b->prepared.q = (float *)(void *)((char *)b->a->scratch + tile_work_bytes(shape));
    b->prepared.whole = (char *)(b->prepared.q + rows * d);
    b->o = (float *)(void *)(b->prepared.whole + rows * whole_bytes(shape->d));
    b->kbar = b->o + rows * dv;
    b->s = b->kbar + rows * d;
    b->k_weights = b->s + rows * TILE;
    b->m = b->k_weights + rows * TILE;
    b->l = b->m + rows;
    for (int row = 0; row < b->n_rows; row++) {
        prefill_query(b, row, b->prepared.q + (size_t)row * d);
        prepare_query(shape->k_dtype, shape->d, &b->prepared, row);
        b->m[row] = -INFINITY;
        v_store(b->l + row * VL, v_zero());
    }
    memset(b->o, 0, sizeof(float) * rows * (dv + d));
}

/* Rows of `n_queries` queries from `query` (of the block) on over tokens [t, t + n). */
static void few_tile(const prefill_block *b, int query, int n_queries, int64_t t, int n,
                     bool fetch_next)
{
    const mai_prefill_args *a = b->a;
    const mai_shape *shape = a->shape;
    const macattn_kv *kv = a->tokens.kv;
    const int row = query * b->group, n_rows = n_queries * b->group;
    const int64_t k_offset = a->kv_head * kv->k_head_stride,
                  v_offset = a->kv_head * kv->v_head_stride;
    float *o[FEW_ROWS], *kbar[FEW_ROWS];
    tile_rows rows[2];
    load_rows(&a->tokens, t, n, &rows[0]);
    load_rows(&a->tokens, t + n, fetch_next ? TILE : 0, &rows[1]);
    ahead nothing = fetch_nothing(a->scratch), k_next = nothing, v_next = nothing;
    if (fetch_next) {
        k_next = fetch_rows(rows[1].k, k_offset,
                            (int64_t)macattn_dtype_row_bytes(shape->k_dtype, shape->d), 0);
        v_next = fetch_rows(rows[1].v, v_offset,
                            (int64_t)macattn_dtype_row_bytes(shape->v_dtype, shape->dv), 0);
    }
    float *scores = b->s + row * TILE, *k_weights = b->k_weights + row * TILE;
    const bool capped_keys = shape->softcap > 0 && b->keys;
    const tile_queries q = queries_from(&b->prepared, shape->d, (size_t)row);
    tile_scores(shape, rows[0].k, n, k_offset, &q, n_rows, scores, a->scratch, &k_next);
    for (int i = 0; i < n_rows; i++) {
        o[i] = b->o + (size_t)(row + i) * (size_t)shape->dv;
        kbar[i] = b->kbar + (size_t)(row + i) * (size_t)shape->d;
        const head_sums sums = {.o = o[i],
                                .kbar = b->keys ? kbar[i] : NULL,
                                .m = b->m + row + i,
                                .l = b->l + (row + i) * VL};
        if (shape->softcap > 0 || n < TILE)
            limit_scores(scores + i * TILE, 0, n, shape->softcap,
                         capped_keys ? k_weights + i * TILE : NULL);
        raise_maximum(scores + i * TILE, shape, &sums);
    }
    weigh(scores, n_rows, b->m + row, b->l + row * VL);
    for (int i = 0; i < n_rows && capped_keys; i++)
        weigh_slopes(k_weights + i * TILE, scores + i * TILE);
    tile_sums(shape->v_dtype, shape->dv, rows[0].v, v_offset, n_rows, 0, n, scores, o, a->scratch,
              &v_next);
    if (!b->keys) return;
    tile_sums(shape->k_dtype, shape->d, rows[0].k, k_offset, n_rows, 0, n,
              capped_keys ? k_weights : scores, kbar, a->scratch, &nothing);
}

static void few_pass(const prefill_block *b, const prefill_range *r)
{
    for (int64_t t = r->lo, end; t < r->hi; t = end) {
        end = t / TILE * TILE + TILE;
        if (end > r->hi) end = r->hi;
        if (t >= r->all_lo && end <= r->all_hi) {
            few_tile(b, 0, b->n_queries, t, (int)(end - t), end + TILE <= r->all_hi);
            continue;
        }
        for (int i = 0; i < b->n_queries; i++) {
            const int64_t from = t > b->lo[i] ? t : b->lo[i];
            const int64_t to = end < b->hi[i] ? end : b->hi[i];
            if (from < to) few_tile(b, i, 1, from, (int)(to - from), false);
        }
    }
}

/* prefill_result of prefill.h. */
static void few_result(const prefill_block *b, int row, float *o, float *kbar, float *lse)
{
    const mai_shape *shape = b->a->shape;
    const size_t d = (size_t)shape->d, dv = (size_t)shape->dv;
    const head_sums sums = {.o = o, .kbar = kbar, .m = b->m + row, .l = b->l + row * VL};
    memcpy(o, b->o + (size_t)row * dv, sizeof(float) * dv);
    if (kbar) memcpy(kbar, b->kbar + (size_t)row * d, sizeof(float) * d);
    finish_head(shape, &sums, lse);
}
