/* SPDX-License-Identifier: Apache-2.0 */
/* Causal attention of a block of queries of one kv head, with the far summaries that the ring wants.
 *
 * The (query, head of the group) pairs of the block are rows that share every K and V row. Tiles of SPAN
 * tokens are converted to f32 once for the block; its rows, in panels of LANES, are multiplied by them:
 * matrix.h. Tokens of a tile that a query may not see (the diagonal, the start of a window, the edge
 * of a summary) get the weight 0 for it, and where that is not enough, because they are not finite, they
 * are left out of its sums.
 *
 * Memory to read: K and V of all tokens once per block, the next tile's fetched while this one is
 * computed. Few rows go another way: few.h. */

#include "matrix.h"

/* K and V of a tile's tokens, of the block's kv head. */
typedef struct span_rows {
    const char *k[SPAN], *v[SPAN];
    int n;
} span_rows;

/* Running state of the block's rows; row = (query - q0) * group + head of the group. */
typedef struct prefill_block {
    const mai_prefill_args *a;
    int group, n_queries, n_rows, n_panels;
    int64_t lo[PREFILL_ROWS], hi[PREFILL_ROWS]; /* [query] tokens it sees in this pass */
    bool keys;                                  /* sum up keys in this pass */
    bool few;                                   /* the layout is that of few.h */
    tile_queries prepared;                      /* of few.h */
    float *k, *v;                               /* strips of a tile */
    float *s, *k_weights;                       /* [SPAN][LANES] of a panel */
    float *q, *o, *kbar;                        /* [panel][dim][LANES] */
    float *m, *l, *rescale, *first, *last;      /* [panel][LANES] */
} prefill_block;

/* Tokens that some query, and that all queries see in a pass. */
typedef struct prefill_range {
    int64_t lo, hi, all_lo, all_hi;
} prefill_range;

/* Row `row`'s query, to f32. */
static void prefill_query(const prefill_block *b, int row, float *to)
{
    const mai_prefill_args *a = b->a;
    const int query = a->q0 + row / b->group, head = a->kv_head * b->group + row % b->group;
    load_q(a->shape, a->q + query * a->q_row_stride + head * a->q_head_stride,
           (float)mai_q_factor(a->shape), to);
}

#include "few.h"

static int prefill_queries(const mai_shape *shape)
{
    return shape->group < PREFILL_ROWS ? PREFILL_ROWS / shape->group : 1;
}

static size_t prefill_scratch_bytes(const mai_shape *shape)
{
    const size_t rows = (size_t)prefill_queries(shape) * (size_t)shape->group;
    const size_t lanes = (rows + LANES - 1) / LANES * LANES;
    const size_t per_lane = 2 * (size_t)shape->d + (size_t)shape->dv + 5;
    const size_t floats = strips_floats(shape->d) + strips_floats(shape->dv) + 2 * SPAN * LANES;
    const size_t bytes = sizeof(float) * (floats + lanes * per_lane), few = few_scratch_bytes(shape);
    return bytes > few ? bytes : few;
}

static void prefill_places(prefill_block *b)
{
    const mai_shape *shape = b->a->shape;
    const size_t lanes = (size_t)b->n_panels * LANES;
    b->k = b->a->scratch;
    b->v = b->k + strips_floats(shape->d);
    b->s = b->v + strips_floats(shape->dv);
    b->k_weights = b->s + SPAN * LANES;
    b->q = b->k_weights + SPAN * LANES;
    b->o = b->q + lanes * (size_t)shape->d;
    b->kbar = b->o + lanes * (size_t)shape->dv;
    b->m = b->kbar + lanes * (size_t)shape->d;
    b->l = b->m + lanes;
    b->rescale = b->l + lanes;
    b->first = b->rescale + lanes;
    b->last = b->first + lanes;
}

/* Where row `row` of [panel][dim][LANES] begins; its values are LANES apart. */
static size_t row_at(int row, int dim)
{
    return (size_t)(row / LANES) * (size_t)dim * LANES + (size_t)(row % LANES);
}

static void panels_init(prefill_block *b)
{
    const mai_shape *shape = b->a->shape;
    const int d = shape->d;
    b->n_panels = (b->n_rows + LANES - 1) / LANES;
    prefill_places(b);
    const size_t lanes = (size_t)b->n_panels * LANES;
    memset(b->q, 0, sizeof(float) * lanes * (size_t)d); /* lanes without a row stay 0 */
    for (int row = 0; row < b->n_rows; row++) {
        float x[MAI_MAX_DIM], *to = b->q + row_at(row, d);
        prefill_query(b, row, x);
        for (int j = 0; j < d; j++) to[(size_t)j * LANES] = x[j];
    }
    for (size_t i = 0; i < lanes; i++) b->m[i] = -INFINITY;
    memset(b->l, 0, sizeof(float) * lanes);
    memset(b->o, 0, sizeof(float) * lanes * (size_t)shape->dv);
    if (b->keys) memset(b->kbar, 0, sizeof(float) * lanes * (size_t)d);
}

static void prefill_block_init(prefill_block *b, const mai_prefill_args *a)
{
    b->a = a;
    b->group = a->shape->group;
    b->n_queries = a->q1 - a->q0;
    b->n_rows = b->n_queries * b->group;
    b->keys = a->capture0 < a->q1 && a->far_keys;
    b->few = (int64_t)a->n_queries * b->group <= FEW_ROWS;
    if (b->few)
        few_init(b);
    else
        panels_init(b);
}

/* The tile that begins with token t, of tokens before `end`. Tiles end at multiples of SPAN, so that how a
 * query's tokens are cut into tiles does not depend on the queries it is computed with. */
static void span_load(const mai_prefill_args *a, int64_t t, int64_t end, span_rows *rows)
{
    const macattn_kv *kv = a->tokens.kv;
    const int most = SPAN - (int)(t % SPAN);
    rows->n = end - t < most ? (int)(end - t) : most;
    for (int i = 0; i < rows->n; i++) {
        int64_t k, v;
        token_offsets(&a->tokens, t + i, &k, &v);
        rows->k[i] = (const char *)kv->k + k + a->kv_head * kv->k_head_stride;
        rows->v[i] = (const char *)kv->v + v + a->kv_head * kv->v_head_stride;
    }
}

/* Fetching rows of `bytes` bytes in `steps` steps. */
typedef struct span_ahead {
    ahead next;
    int lines; /* of a step */
} span_ahead;

static span_ahead fetch_span(const char *const *rows, int n, size_t bytes, int steps)
{
    if (n <= 0) return (span_ahead){.lines = 0};
    const int lines = n * (int)((bytes + LINE - 1) / LINE);
    return (span_ahead){.next = {.at = rows[0],
                                 .end = rows[0] + bytes,
                                 .rows = rows + 1,
                                 .n_rows = n - 1,
                                 .span = (int64_t)bytes},
                        .lines = (lines + steps - 1) / steps};
}

/* A tile, as one panel after the other needs it. */
typedef struct prefill_tile {
    int n;
    bool all_seen, k_plain, v_plain; /* plain: no value that is not finite is hidden from some row */
    span_ahead k_next, v_next;
} prefill_tile;

MAI_INLINE void prefill_panel(const prefill_block *b, prefill_tile *tile, int panel, const int nv)
{
    const mai_shape *shape = b->a->shape;
    const size_t d = (size_t)shape->d, dv = (size_t)shape->dv, at = (size_t)panel * LANES;
    const panel_state state = {b->m + at, b->l + at, b->rescale + at};
    const panel_sight sight = {tile->all_seen ? NULL : b->first + at, b->last + at};
    float *k_weights = b->keys && shape->softcap > 0 ? b->k_weights : NULL;
    ahead nothing = {.end = NULL};
    panel_scores(nv, b->k, b->q + at * d, shape->d, tile->n, b->s, &tile->k_next.next,
                 tile->k_next.lines);
    panel_softmax(nv, b->s, tile->n, shape->softcap, k_weights, &sight, &state);
    if (tile->v_plain) {
        panel_sums(nv, b->v, b->s, shape->dv, tile->n, state.rescale, b->o + at * dv,
                   &tile->v_next.next, tile->v_next.lines);
    } else {
        panel_sums_seen(nv, b->v, b->s, shape->dv, tile->n, state.rescale, b->o + at * dv, &sight);
    }
    if (!b->keys) return;
    const float *w = k_weights ? k_weights : b->s;
    if (tile->k_plain) {
        panel_sums(nv, b->k, w, shape->d, tile->n, state.rescale, b->kbar + at * d, &nothing, 0);
    } else {
        panel_sums_seen(nv, b->k, w, shape->d, tile->n, state.rescale, b->kbar + at * d, &sight);
    }
}

/* Which tokens of the tile of n at t each row sees, in floats. */
static void prefill_sight(const prefill_block *b, int64_t t, int n)
{
    for (int row = 0; row < b->n_panels * LANES; row++) {
        const int query = row / b->group;
        const int64_t lo = row < b->n_rows ? b->lo[query] - t : 0;
        const int64_t hi = row < b->n_rows ? b->hi[query] - t : 0;
        b->first[row] = (float)(lo < 0 ? 0 : lo > n ? n : lo);
        b->last[row] = (float)(hi < 0 ? 0 : hi > n ? n : hi);
    }
}

/* The tile of `rows`, from token t on. */
static void prefill_span(const prefill_block *b, int64_t t, bool all_seen, const span_rows *rows,
                         const span_rows *next)
{
    const mai_shape *shape = b->a->shape;
    const int n = rows->n;
    strip_rows(shape->k_dtype, rows->k, n, shape->d, b->k);
    strip_rows(shape->v_dtype, rows->v, n, shape->dv, b->v);
    prefill_tile tile = {
        .n = n,
        .all_seen = all_seen,
        .k_plain = all_seen || !b->keys || strips_finite(b->k, n, shape->d),
        .v_plain = all_seen || strips_finite(b->v, n, shape->dv),
        .k_next = fetch_span(next->k, next->n, macattn_dtype_row_bytes(shape->k_dtype, shape->d),
                             b->n_panels * ((n + STEP - 1) / STEP)),
        .v_next = fetch_span(next->v, next->n, macattn_dtype_row_bytes(shape->v_dtype, shape->dv),
                             b->n_panels * shape->dv / STEP),
    };
    if (!all_seen) prefill_sight(b, t, n);
    for (int panel = 0; panel < b->n_panels; panel++) {
        const int left = (b->n_rows - panel * LANES + VL - 1) / VL;
        switch (left < ROW_VECS ? left : ROW_VECS) {
        case 1: prefill_panel(b, &tile, panel, 1); break;
        case 2: prefill_panel(b, &tile, panel, 2); break;
        default: prefill_panel(b, &tile, panel, ROW_VECS); break;
        }
    }
}

static void panels_pass(const prefill_block *b, const prefill_range *r)
{
    span_rows rows[2];
    int now = 0;
    if (r->lo < r->hi) span_load(b->a, r->lo, r->hi, &rows[0]);
    for (int64_t t = r->lo, end; t < r->hi; t = end, now ^= 1) {
        end = t + rows[now].n;
        span_load(b->a, end, r->hi, &rows[now ^ 1]);
        prefill_span(b, t, t >= r->all_lo && end <= r->all_hi, &rows[now], &rows[now ^ 1]);
    }
}

/* All queries over the tokens [lo, hi) that each of them sees in this pass. */
static void prefill_pass(const prefill_block *b)
{
    prefill_range r = {.lo = INT64_MAX, .all_hi = INT64_MAX};
    for (int i = 0; i < b->n_queries; i++) {
        if (b->lo[i] < r.lo) r.lo = b->lo[i];
        if (b->hi[i] > r.hi) r.hi = b->hi[i];
        if (b->lo[i] > r.all_lo) r.all_lo = b->lo[i];
        if (b->hi[i] < r.all_hi) r.all_hi = b->hi[i];
    }
    if (b->few)
        few_pass(b, &r);
    else
        panels_pass(b, &r);
}

/* A row's sums, normalised, without disturbing them; kbar NULL: not wanted. An empty range gives 0 and
 * -inf. A 0 is never negative: such a one becomes positive by a tile of which the row sees nothing, so that its
 * sign would tell whether the block has queries that do. */
static void prefill_result(const prefill_block *b, int row, float *o, float *kbar, float *lse)
{
    if (b->few) {
        few_result(b, row, o, kbar, lse);
        return;
    }
    const mai_shape *shape = b->a->shape;
    const float factor = finish_lse(b->m[row], b->l[row], lse);
    const float *from = b->o + row_at(row, shape->dv);
    for (int j = 0; j < shape->dv; j++) o[j] = from[(size_t)j * LANES] * factor + 0.0f;
    from = b->kbar + row_at(row, shape->d);
    for (int j = 0; kbar && j < shape->d; j++) kbar[j] = from[(size_t)j * LANES] * factor + 0.0f;
}

/* Far summaries of the captured queries: the state after [fresh, b). */
static void prefill_capture(const prefill_block *b)
{
    const mai_prefill_args *a = b->a;
    const size_t dv = (size_t)a->shape->dv, d = b->keys ? (size_t)a->shape->d : 0;
    for (int row = 0; row < b->n_rows; row++) {
        const int query = a->q0 + row / b->group;
        if (query < a->capture0) continue;
        const size_t at = (size_t)(query - a->capture0) * (size_t)a->shape->n_heads +
                          (size_t)(a->kv_head * b->group + row % b->group);
        float *far = a->far_out + at * (dv + d);
        prefill_result(b, row, far, b->keys ? far + dv : NULL, a->far_lse + at);
    }
}

static void prefill_store(const prefill_block *b)
{
    const mai_prefill_args *a = b->a;
    for (int row = 0; row < b->n_rows; row++) {
        const int query = a->q0 + row / b->group, head = a->kv_head * b->group + row % b->group;
        char *out = (char *)a->out + query * a->out_row_stride + head * a->out_head_stride;
        prefill_result(b, row, (float *)(void *)out, NULL,
                       &a->lse[(size_t)query * (size_t)a->shape->n_heads + (size_t)head]);
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
    for (int i = 0; i < b.n_queries; i++) { /* far: what summaries cover, or all */
        const int64_t n = a->pos0 + a->q0 + i + 1;
        const bool capture = a->q0 + i >= a->capture0;
        b.lo[i] = capture         ? clamp64(a->fresh, 0, n)
                  : a->window > 0 ? clamp64(n - a->window, 0, n)
                                  : 0;
        b.hi[i] = capture ? clamp64(n - a->band, b.lo[i], n) : n;
    }
    prefill_pass(&b);
    if (a->capture0 < a->q1) {
        prefill_capture(&b);
        b.keys = false;
        for (int i = 0; i < b.n_queries; i++) { /* from the summary's end to the query itself */
            b.lo[i] = b.hi[i];
            b.hi[i] = a->pos0 + a->q0 + i + 1;
        }
        prefill_pass(&b);
        for (int i = 0; i < b.n_queries; i++) { /* the always fresh first tokens */
            const bool capture = a->q0 + i >= a->capture0;
            b.lo[i] = 0;
            b.hi[i] = capture ? clamp64(a->fresh, 0, a->pos0 + a->q0 + i + 1) : 0;
        }
        prefill_pass(&b);
    }
    prefill_store(&b);
}
