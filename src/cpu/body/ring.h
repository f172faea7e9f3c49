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
    float norm2[MAI_MAX_CHUNKS];          /* squared norm of scale * int8, by chunk */
    int32_t sum128[MAI_MAX_CHUNKS];       /* 128 * sum of the int8 */
    int8_t i8[MAI_MAX_CHUNKS * MAI_CHUNK];
} ring_query;

/* `x` has n_chunks * MAI_CHUNK values, zeros past d. Returns whether all are finite. */
static bool ring_encode(const float *x, int n_chunks, ring_query *out)
{
    V top = v_zero(), poison = v_zero();
    for (int i = 0; i < n_chunks * MAI_CHUNK; i += VL) {
        const V v = v_load(x + i);
        top = v_max(top, v_max(v, v_sub(v_zero(), v)));
        poison = v_fma(v, v_zero(), poison);   /* NaN if v is not finite */
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
            const V v = v_load(x + c * MAI_CHUNK + i), r = v_round(v_mul(v, inverse));
            const V e = v_sub(v, v_mul(r, v_set1(out->scale)));
            residual2 = v_fma(e, e, residual2);
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
    /* Rounded up: covers the rounding of e itself, half an ulp of x in each dim. */
    out->residual = sqrtf(v_reduce_add(residual2)) * 1.0001f + largest * 1e-6f;
    return true;
}

static void MAI_FN(insert)(const mai_ring_dims *dims, const mai_ring_view *ring,
                           macattn_dtype q_dtype, int32_t head, const void *q, int32_t pos,
                           int32_t end, float lse, const float *out)
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
            block[(size_t)(i / 4) * (4 * MAI_LANES) + (size_t)(at % MAI_LANES) * 4 + (size_t)(i % 4)] =
                (uint8_t)(e.i8[c * MAI_CHUNK + i] + 128);
        }
    }
    const size_t slot = (size_t)head * K + (size_t)at;
    memcpy(ring->q + slot * dims->q_bytes, q, dims->q_bytes);
    memcpy(ring->out + slot * (size_t)dims->dv, out, sizeof(float) * (size_t)dims->dv);
    ring->lse[slot] = lse;
    ring->pos[slot] = pos;
    ring->end[slot] = end;
    ring->head[head] = at + 1 == dims->capacity ? 0 : at + 1;
    if (ring->count[head] < dims->capacity) ring->count[head]++;
}

/* Add one chunk's share of the squared int8 distance of every row of the head. */
static void ring_scan_chunk(const mai_match_args *a, const ring_query *q, int c, int n_blocks,
                            float *distance2)
{
    const mai_ring_dims *dims = a->dims;
    const size_t rows = (size_t)dims->n_blocks * MAI_LANES;
    const size_t chunk = (size_t)a->head * (size_t)dims->n_chunks + (size_t)c;
    const uint8_t *q8 = a->ring->q8 + chunk * rows * MAI_CHUNK;
    const float *norm2 = a->ring->norm2 + chunk * rows, *scale = a->ring->scale + (size_t)a->head * rows;
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

/* Whether a row whose int8 distance is `distance2` may lie within `radius`: the int8 forms are off by
 * the two residuals, and the float32 sums by their rounding. The latter is bounded by `own2`, the
 * query's squared norm: a row within reach is no longer than |q| + reach. NaN (overflow) counts as
 * may. */
static bool ring_may_reach(float distance2, float residuals, float own2, double radius)
{
    const float reach = (float)radius + residuals, reach2 = reach * reach;
    return !(distance2 > reach2 * 1.000001f + 4e-6f * (3.0f * own2 + 2.0f * reach2));
}

/* Rows that may lie within the radius and end early enough, newest first; gives up and returns
 * limit + 1 when there are more than `limit`. */
static int ring_survivors(const mai_match_args *a, const ring_query *q, const float *distance2,
                          float own2, int32_t *index, int limit)
{
    const mai_ring_dims *dims = a->dims;
    const float *residual = a->ring->residual + (size_t)a->head * (size_t)dims->n_blocks * MAI_LANES;
    const int32_t *end = a->ring->end + (size_t)a->head * (size_t)dims->capacity;
    int n = 0, at = a->ring->head[a->head];
    for (int i = 0; i < a->ring->count[a->head]; i++) {
        at = at == 0 ? dims->capacity - 1 : at - 1;
        if (ring_may_reach(distance2[at], residual[at] + q->residual, own2, a->radius) &&
            end[at] <= a->max_end) {
            if (n == limit) return limit + 1;
            index[n++] = at;
        }
    }
    return n;
}

/* Squared distance as the queries came, in double; gives up (returns infinity) when a float32 sum says
 * that it is clearly beyond `give_up`. */
static double ring_distance2(const mai_match_args *a, const float *x, int32_t at, double give_up)
{
    const int d = a->dims->d;
    float y[MAI_MAX_CHUNKS * MAI_CHUNK];
    load_padded(a->shape->q_dtype,
                a->ring->q + ((size_t)a->head * (size_t)a->dims->capacity + (size_t)at) * a->dims->q_bytes,
                d, a->dims->n_chunks * MAI_CHUNK, y);
    V sum = v_zero();
    for (int i = 0; i < a->dims->n_chunks * MAI_CHUNK; i += VL) {
        const V e = v_sub(v_load(x + i), v_load(y + i));
        sum = v_fma(e, e, sum);
    }
    if ((double)v_reduce_add(sum) * (1 - 1e-4) > give_up) return HUGE_VAL;
    double d2 = 0;
    for (int i = 0; i < d; i++) {
        const double e = (double)x[i] - (double)y[i];
        d2 += e * e;
    }
    return d2;
}

static size_t match_scratch_bytes(const mai_ring_dims *dims)
{
    return (size_t)dims->n_blocks * MAI_LANES * (sizeof(float) + sizeof(int32_t)) + 64;
}

static void MAI_FN(match)(const mai_match_args *a, mai_match *result)
{
    const mai_ring_dims *dims = a->dims;
    float x[MAI_MAX_CHUNKS * MAI_CHUNK];
    ring_query q = {0};
    result->entry = -1;
    result->distance2 = HUGE_VAL;
    load_padded(a->shape->q_dtype, a->q, dims->d, dims->n_chunks * MAI_CHUNK, x);
    result->finite = ring_encode(x, dims->n_chunks, &q);
    const int count = a->ring->count[a->head];
    if (!result->finite || count == 0 || !(a->radius > 0)) return;

    /* Entries fill the circle from 0; before it is full for the first time, only a part is in use. */
    const bool from_zero = a->ring->head[a->head] == count % dims->capacity;
    const int n_blocks = from_zero ? (count + MAI_LANES - 1) / MAI_LANES : dims->n_blocks;
    float *distance2 = a->scratch;
    int32_t *index = (int32_t *)(distance2 + (size_t)dims->n_blocks * MAI_LANES);
    memset(distance2, 0, (size_t)n_blocks * MAI_LANES * sizeof(float));
    float own2 = 0;
    for (int c = 0; c < dims->n_chunks; c++) own2 += q.norm2[c];
    const int few = count / 16 + 4;   /* cheaper to look at than another chunk of every row */
    int n = 0;
    for (int c = 0; c < dims->n_chunks; c++) {
        ring_scan_chunk(a, &q, c, n_blocks, distance2);
        const bool last = c + 1 == dims->n_chunks;
        n = ring_survivors(a, &q, distance2, own2, index, last ? count : few);
        if (n <= few) break;
    }
    /* The most promising first: it cuts the others short. */
    for (int i = 1; i < n; i++) {
        if (distance2[index[i]] < distance2[index[0]]) {
            const int32_t swap = index[0];
            index[0] = index[i];
            index[i] = swap;
        }
    }
    const float *residual = a->ring->residual + (size_t)a->head * (size_t)dims->n_blocks * MAI_LANES;
    double best = a->radius * a->radius;
    int best_age = 0;
    for (int i = 0; i < n; i++) {
        const int at = index[i];
        if (!ring_may_reach(distance2[at], residual[at] + q.residual, own2, sqrt(best))) continue;
        const double d2 = ring_distance2(a, x, at, best);
        const int age = (a->ring->head[a->head] - 1 - at + dims->capacity) % dims->capacity;
        if (d2 < best || (d2 == best && result->entry >= 0 && age < best_age)) {
            best = d2;
            best_age = age;
            result->entry = at;
            result->distance2 = d2;
        }
    }
}
