/* SPDX-License-Identifier: Apache-2.0 */
/* The ring of remembered queries: encode one, and find the nearest.
 *
 * The scan works on int8: with q = s i + e (i int8, |e| = residual known), the distance of two queries
 * lies within residual_q + residual_p of the distance of their int8 forms, which byte dot products give
 * exactly. So every row gets a bound from below that holds for certain; rows whose bound is within the
 * radius are looked at again as they came, and the decision is the one full precision would make.
 *
 * Dims come in chunks of MAI_CHUNK. A distance over the first chunks is a bound from below too, so the
 * scan ends as soon as few rows are left. Memory to read: 32 to 128 bytes of int8 and 4 to 16 bytes of
 * norms a row at head_dim 128, 8 bytes of scale and residual. */

typedef struct ring_query {
    float scale, residual;
    float norm2[MAI_MAX_CHUNKS];    /* squared norm of scale * int8, by chunk */
    int32_t sum128[MAI_MAX_CHUNKS]; /* 128 * sum of the int8 */
    int8_t i8[MAI_MAX_CHUNKS * MAI_CHUNK];
} ring_query;

/* `x` has n_chunks * MAI_CHUNK values, zeros past d. Returns whether all are finite. */
static bool ring_encode(const float *x, int n_chunks, ring_query *out)
{
    V top = v_zero(), poison = v_zero();
    for (int i = 0; i < n_chunks * MAI_CHUNK; i += VL) {
        const V v = v_load(x + i);
        top = v_max(top, v_max(v, v_sub(v_zero(), v)));
        poison = v_fma(v, v_zero(), poison); /* NaN if v is not finite */
    }
    if (v_reduce_add(poison) != 0) return false;
    const float largest = v_reduce_max(top);
    out->scale = largest / 127.0f;
    const V inverse = v_set1(out->scale > FLT_MIN ? 127.0f / largest : 0.0f);
    V residual2 = v_zero();
    for (int c = 0; c < n_chunks; c++) {
        float rounded[MAI_CHUNK];
        int32_t sum = 0, sum2 = 0;
        for (int i = 0; i < MAI_CHUNK; i += VL) {
            const V y = v_mul(v_load(x + c * MAI_CHUNK + i), inverse), r = v_round(y),
                    e = v_sub(y, r);
            residual2 = v_fma(e, e, residual2); /* in units of scale: does not underflow */
            v_store(rounded + i, r);
        }
        for (int i = 0; i < MAI_CHUNK; i++) {
            const int32_t v = (int32_t)rounded[i];
            out->i8[c * MAI_CHUNK + i] = (int8_t)v;
            sum += v;
            sum2 += v * v;
        }
        out->sum128[c] = 128 * sum;
        out->norm2[c] = out->scale * out->scale * (float)sum2;
    }
    /* Rounded up: covers the rounding of y, half an ulp in each dim. Queries too small to scale are all
     * residual. */
    const float units = out->scale > FLT_MIN ? sqrtf(v_reduce_add(residual2)) * 1.0001f + 1e-3f
                                             : 128.0f * sqrtf((float)(n_chunks * MAI_CHUNK));
    out->residual = fmaxf(out->scale, 1e-44f) * units;
    return true;
}

static void MAI_FN(insert)(const mai_ring_dims *dims, const mai_ring_view *ring,
                           macattn_dtype q_dtype, int32_t head, const void *q, int32_t pos,
                           int32_t end, float lse0, const float *summary)
{
    float x[MAI_MAX_CHUNKS * MAI_CHUNK];
    ring_query e;
    const int at = ring->head[head];
    const size_t rows = (size_t)dims->n_blocks * MAI_LANES, K = (size_t)dims->capacity;
    load_padded(q_dtype, q, dims->d, dims->n_chunks * MAI_CHUNK, x);
    ring_encode(x, dims->n_chunks, &e);
    ring->scale[(size_t)head * rows + (size_t)at] = e.scale;
    ring->residual[(size_t)head * rows + (size_t)at] = e.residual;
    for (int c = 0; c < dims->n_chunks; c++) {
        const size_t chunk = (size_t)head * (size_t)dims->n_chunks + (size_t)c;
        uint8_t *block = ring->q8 + (chunk * (size_t)dims->n_blocks + (size_t)(at / MAI_LANES)) *
                                        (MAI_CHUNK * MAI_LANES);
        ring->norm2[chunk * rows + (size_t)at] = e.norm2[c];
        for (int i = 0; i < MAI_CHUNK; i++) {
            block[(size_t)(i / 4) * (4 * MAI_LANES) + (size_t)(at % MAI_LANES) * 4 +
                  (size_t)(i % 4)] = (uint8_t)(e.i8[c * MAI_CHUNK + i] + 128);
        }
    }
    const size_t slot = (size_t)head * K + (size_t)at;
    memcpy(ring->q + slot * dims->q_bytes, q, dims->q_bytes);
    memcpy(ring->out + slot * (size_t)dims->width, summary, sizeof(float) * (size_t)dims->width);
    ring->lse0[slot] = lse0;
    ring->moved[slot] = ring->share[slot] = 0;
    ring->pos[slot] = pos;
    ring->end[slot] = end;
    ring->head[head] = at + 1 == dims->capacity ? 0 : at + 1;
    if (ring->count[head] < dims->capacity) ring->count[head]++;
}

/* Add one chunk's share of the squared int8 distance of every row of the head. */
static void ring_scan_chunk(const mai_match_args *a, int head, const ring_query *q, int c,
                            int n_blocks, float *distance2)
{
    const mai_ring_dims *dims = a->dims;
    const size_t rows = (size_t)dims->n_blocks * MAI_LANES;
    const size_t chunk = (size_t)head * (size_t)dims->n_chunks + (size_t)c;
    const uint8_t *q8 = a->ring->q8 + chunk * rows * MAI_CHUNK;
    const float *norm2 = a->ring->norm2 + chunk * rows,
                *scale = a->ring->scale + (size_t)head * rows;
    const V own = v_set1(q->norm2[c]), factor = v_set1(-2.0f * q->scale);
    for (int b = 0; b < n_blocks; b++) {
        int32_t dot[MAI_LANES];
        v_dot_block(q8 + (size_t)b * MAI_LANES * MAI_CHUNK, q->i8 + c * MAI_CHUNK, dot);
        for (int i = 0; i < MAI_LANES; i += VL) {
            const size_t row = (size_t)b * MAI_LANES + (size_t)i;
            V x = v_sub(v_from_i32(dot + i), v_set1((float)q->sum128[c]));
            x = v_fma(v_mul(x, v_load(scale + row)), factor, v_add(v_load(norm2 + row), own));
            v_store(distance2 + row, v_add(v_load(distance2 + row), x));
        }
    }
}

/* Whether rows whose int8 distance is `distance2` may lie within `radius`, as a bit a row: the int8 forms
 * are off by the two residuals, and the float32 sums by their rounding. The latter is bounded by `own2`,
 * the query's squared norm: a row within reach is no longer than |q| + reach. NaN (overflow) counts as
 * may. */
MAI_INLINE uint32_t ring_may_reach(V distance2, V residual, const ring_query *q, float own2,
                                   float radius)
{
    const V reach = v_add(residual, v_set1(radius + q->residual)), reach2 = v_mul(reach, reach);
    const V limit = v_fma(reach2, v_set1(1.0f + 9e-6f), v_set1(12e-6f * own2 + FLT_MIN));
    return v_not_above(distance2, limit);
}

/* Whether row `at` of the circle holds an entry. */
static bool ring_holds(const mai_match_args *a, int head, int at)
{
    const int K = a->dims->capacity, age = a->ring->head[head] - 1 - at;
    return at < K && (age < 0 ? age + K : age) < a->ring->count[head];
}

/* Rows that hold an entry, may lie within the radius and end early enough; gives up and returns
 * limit + 1 when there are more than `limit`. */
static int ring_survivors(const mai_match_args *a, int head, const ring_query *q,
                          const float *distance2, float own2, float radius, int n_blocks,
                          int32_t *index, int limit)
{
    const mai_ring_dims *dims = a->dims;
    const float *residual = a->ring->residual + (size_t)head * (size_t)dims->n_blocks * MAI_LANES;
    const int32_t *end = a->ring->end + (size_t)head * (size_t)dims->capacity;
    int n = 0;
    for (int row = 0; row < n_blocks * MAI_LANES; row += VL) {
        uint32_t bits =
            ring_may_reach(v_load(distance2 + row), v_load(residual + row), q, own2, radius);
        for (; bits; bits &= bits - 1) {
            const int at = row + __builtin_ctz(bits);
            if (!ring_holds(a, head, at) || end[at] > a->max_end) continue;
            if (n == limit) return limit + 1;
            index[n++] = at;
        }
    }
    return n;
}

static const char *ring_row(const mai_match_args *a, int head, int at)
{
    return a->ring->q + ((size_t)head * (size_t)a->dims->capacity + (size_t)at) * a->dims->q_bytes;
}

/* Squared distance as the queries came, in double; gives up (returns infinity) when a float32 sum says
 * that it is clearly beyond `give_up`. */
static double ring_distance2(const mai_match_args *a, int head, const float *x, int at,
                             double give_up)
{
    const int n = a->dims->n_chunks * MAI_CHUNK;
    float y[MAI_MAX_CHUNKS * MAI_CHUNK];
    load_padded(a->shape->q_dtype, ring_row(a, head, at), a->dims->d, n, y);
    V sum = v_zero();
    for (int i = 0; i < n; i += VL) {
        const V e = v_sub(v_load(x + i), v_load(y + i));
        sum = v_fma(e, e, sum);
    }
    if ((double)v_reduce_add(sum) * (1 - 1e-4) - (double)FLT_MIN > give_up) return HUGE_VAL;
    double d2 = 0;
    for (int i = 0; i < a->dims->d; i++) {
        const double e = (double)x[i] - (double)y[i];
        d2 += e * e;
    }
    return d2;
}

/* Take row `at` if it is nearer than what was found so far; of equally near ones, the newer. */
static void ring_consider(const mai_match_args *a, int head, const float *x, int at, double *best,
                          mai_match *result)
{
    if (at == result->entry) return;
    const double d2 = ring_distance2(a, head, x, at, *best);
    const int next = a->ring->head[head], K = a->dims->capacity;
    const bool newer =
        result->entry >= 0 && (next - 1 - at + K) % K < (next - 1 - result->entry + K) % K;
    if (d2 < *best || (d2 == *best && newer)) {
        *best = result->distance2 = d2;
        result->entry = at;
    }
}

/* The row that is nearest after the first chunk, if it promises to be a hit: its distance cuts the
 * search short. -1: none. */
static int ring_promising(const mai_match_args *a, const float *distance2, int n_blocks)
{
    V least = v_load(distance2);
    for (int row = VL; row < n_blocks * MAI_LANES; row += VL)
        least = v_min(v_load(distance2 + row), least);
    float lanes[VL], smallest = INFINITY;
    v_store(lanes, least);
    for (int i = 0; i < VL; i++) smallest = lanes[i] < smallest ? lanes[i] : smallest;
    if (!((double)smallest * a->dims->n_chunks < a->radius * a->radius)) return -1;
    for (int row = 0; row < n_blocks * MAI_LANES; row += VL) {
        const uint32_t bits = v_not_above(v_load(distance2 + row), v_set1(smallest));
        if (bits) return row + __builtin_ctz(bits);
    }
    return -1;
}

/* The search of one head. */
typedef struct ring_search {
    float x[MAI_MAX_CHUNKS * MAI_CHUNK]; /* the query */
    ring_query q;
    float own2;       /* its squared norm, as int8 */
    int n_blocks;     /* blocks of rows to scan; 0: there is nothing to find */
    int promising;    /* row, or -1 */
    float *distance2; /* [n_blocks * MAI_LANES] over the chunks scanned so far */
    int32_t *index;   /* [the same] */
} ring_search;

static size_t match_scratch_bytes(const mai_ring_dims *dims)
{
    return MAI_MATCH_HEADS * (sizeof(ring_search) + (size_t)dims->n_blocks * MAI_LANES *
                                                        (sizeof(float) + sizeof(int32_t)));
}

static void prefetch_bytes(const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64) v_prefetch((const char *)data + i);
}

/* Encode the query, scan the first chunk, and fetch what the second step is likely to want. */
static void ring_search_begin(const mai_match_args *a, int head, const char *query, ring_search *s,
                              mai_match *result)
{
    const mai_ring_dims *dims = a->dims;
    const int count = a->ring->count[head];
    *result = (mai_match){.entry = -1, .distance2 = HUGE_VAL};
    load_padded(a->shape->q_dtype, query, dims->d, dims->n_chunks * MAI_CHUNK, s->x);
    result->finite = ring_encode(s->x, dims->n_chunks, &s->q);
    s->n_blocks = 0;
    s->promising = -1;
    if (!result->finite || count == 0 || !(a->radius > 0)) return;
    if (a->asleep >> (head - a->head0) & 1) return;
    /* Entries fill the circle from 0; before it is full for the first time, only a part is in use. */
    const bool from_zero = a->ring->head[head] == count % dims->capacity;
    s->n_blocks = from_zero ? (count + MAI_LANES - 1) / MAI_LANES : dims->n_blocks;
    memset(s->distance2, 0, (size_t)s->n_blocks * MAI_LANES * sizeof(float));
    s->own2 = 0;
    for (int c = 0; c < dims->n_chunks; c++) s->own2 += s->q.norm2[c];
    ring_scan_chunk(a, head, &s->q, 0, s->n_blocks, s->distance2);
    const int at = ring_promising(a, s->distance2, s->n_blocks);
    const int32_t *end = a->ring->end + (size_t)head * (size_t)dims->capacity;
    if (at < 0 || !ring_holds(a, head, at) || end[at] > a->max_end) return;
    s->promising = at;
    prefetch_bytes(ring_row(a, head, at), dims->q_bytes);
    prefetch_bytes(a->ring->out +
                       ((size_t)head * (size_t)dims->capacity + (size_t)at) * (size_t)dims->width,
                   sizeof(float) * (size_t)dims->width);
}

/* Scan on until few rows are left, and look at those. */
static void ring_search_end(const mai_match_args *a, int head, const ring_search *s,
                            mai_match *result)
{
    const mai_ring_dims *dims = a->dims;
    const float *residual = a->ring->residual + (size_t)head * (size_t)dims->n_blocks * MAI_LANES;
    const int few = 2; /* cheaper to look at than another chunk of every row */
    double best = a->radius * a->radius;
    if (s->n_blocks == 0) return;
    if (s->promising >= 0) ring_consider(a, head, s->x, s->promising, &best, result);
    int n = 0;
    for (int c = 0; c < dims->n_chunks; c++) {
        if (c > 0) ring_scan_chunk(a, head, &s->q, c, s->n_blocks, s->distance2);
        const bool last = c + 1 == dims->n_chunks;
        n = ring_survivors(a, head, &s->q, s->distance2, s->own2, (float)sqrt(best), s->n_blocks,
                           s->index, last ? dims->capacity : few);
        if (n <= few) break;
    }
    for (int i = 0; i < n; i++) prefetch_bytes(ring_row(a, head, s->index[i]), dims->q_bytes);
    for (int i = 0; i < n; i++) {
        const int at = s->index[i];
        if (ring_may_reach(v_set1(s->distance2[at]), v_set1(residual[at]), &s->q, s->own2,
                           (float)sqrt(best)) &
            1) {
            ring_consider(a, head, s->x, at, &best, result);
        }
    }
}

static void MAI_FN(match)(const mai_match_args *a, mai_match *results)
{
    const size_t rows = (size_t)a->dims->n_blocks * MAI_LANES;
    ring_search *s = a->scratch;
    float *at = (float *)(void *)(s + MAI_MATCH_HEADS);
    for (int i = 0; i < a->n_heads; i++, at += 2 * rows) {
        s[i].distance2 = at;
        s[i].index = (int32_t *)(void *)(at + rows);
        ring_search_begin(a, a->head0 + i, a->q + i * a->q_head_stride, &s[i], &results[i]);
    }
    for (int i = 0; i < a->n_heads; i++) ring_search_end(a, a->head0 + i, &s[i], &results[i]);
}
