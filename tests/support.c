/* SPDX-License-Identifier: Apache-2.0 */
#include "support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ----------------------------------------------------------------------------------- numbers -- */

/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014. */
uint64_t test_random(test_rng *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t test_hash(uint64_t a, uint64_t b)
{
    test_rng rng = {a};
    rng.state = test_random(&rng) ^ b;
    return test_random(&rng);
}

int64_t test_below(test_rng *rng, int64_t n)
{
    return (int64_t)(test_random(rng) % (uint64_t)n);
}

double test_uniform(test_rng *rng)
{
    return (double)(test_random(rng) >> 11) * 0x1p-53;
}

double test_normal(test_rng *rng)
{
    /* Four uniform numbers: close enough to normal, and fast. */
    double sum = 0;
    for (uint64_t bits = test_random(rng), i = 0; i < 4; i++, bits >>= 16) {
        sum += (double)(bits & 0xffff) / 65535.0 - 0.5;
    }
    return sum * 1.7320508075688772;
}

macattn_dtype test_kv_type(test_rng *rng, int32_t dim)
{
    static const macattn_dtype plain[] = {MACATTN_DTYPE_F32, MACATTN_DTYPE_F16, MACATTN_DTYPE_BF16};
    static const macattn_dtype blocks[] = {MACATTN_DTYPE_Q8_0, MACATTN_DTYPE_Q4_0,
                                           MACATTN_DTYPE_Q4_1, MACATTN_DTYPE_Q5_0,
                                           MACATTN_DTYPE_Q5_1, MACATTN_DTYPE_IQ4_NL};
    if (dim % 32 == 0 && test_below(rng, 2)) return blocks[test_below(rng, 6)];
    return plain[test_below(rng, 3)];
}

uint64_t test_env(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static uint16_t f16_bits(float x)
{
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return 0x7e00;
    const double a = fabs((double)x);
    if (a >= 65520) return (uint16_t)(sign | 0x7c00);
    int exponent;
    (void)frexp(a, &exponent);
    if (a == 0 || exponent < -13) return (uint16_t)(sign | (uint16_t)nearbyint(ldexp(a, 24)));
    /* 11 bits of significand; a carry into the exponent is right as it is. */
    const unsigned significand = (unsigned)nearbyint(ldexp(a, 11 - exponent));
    return (uint16_t)(sign | ((((unsigned)exponent + 13u) << 10) + significand));
}

static uint16_t bf16_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x)) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void encode_q8_0(const float *x, char *block)
{
    float top = 0;
    for (int i = 0; i < 32; i++) top = fabsf(x[i]) > top || isnan(x[i]) ? fabsf(x[i]) : top;
    const uint16_t scale = f16_bits(top / 127);
    const double exact = ref_value(MACATTN_DTYPE_F16, &scale, 0);
    memcpy(block, &scale, 2);
    for (int i = 0; i < 32; i++) {
        const double value = exact > 0 && isfinite(exact) ? (double)x[i] / exact : 1;
        block[2 + i] = (char)(int8_t)nearbyint(value > 127 ? 127 : value < -127 ? -127 : value);
    }
}

/* A block of 4 or 5 bits: of the codes of each value that whose value, by the reference, is nearest. A
 * NaN among the values makes the scale NaN. */
static void encode_small(macattn_dtype dtype, const float *x, char *block)
{
    const bool five = dtype == MACATTN_DTYPE_Q5_0 || dtype == MACATTN_DTYPE_Q5_1;
    const bool least = dtype == MACATTN_DTYPE_Q4_1 || dtype == MACATTN_DTYPE_Q5_1;
    float low = x[0], high = x[0];
    for (int i = 0; i < 32; i++) {
        low = x[i] < low || isnan(x[i]) ? x[i] : low;
        high = x[i] > high || isnan(x[i]) ? x[i] : high;
    }
    const float top = fabsf(low) > fabsf(high) || isnan(low) ? fabsf(low) : fabsf(high);
    const uint16_t d = f16_bits(least                           ? (high - low) / (five ? 31 : 15)
                                : dtype == MACATTN_DTYPE_IQ4_NL ? top / 113
                                                                : top / (five ? 15 : 7));
    const uint16_t m = f16_bits(low);
    const size_t head = least ? 4 : 2, bytes = macattn_dtype_row_bytes(dtype, 32);
    memset(block, 0, bytes);
    memcpy(block, &d, 2);
    if (least) memcpy(block + 2, &m, 2);
    for (int i = 0; i < 32; i++) {
        uint8_t *half = (uint8_t *)block + bytes - 16 + i % 16,
                *bit = (uint8_t *)block + head + i / 8;
        const uint8_t half0 = *half, bit0 = five ? *bit : 0;
        double best = INFINITY;
        int best_code = 0;
        for (int code = 0; code <= (five ? 32 : 16); code++) { /* the last time: the best one */
            const int c = code < (five ? 32 : 16) ? code : best_code;
            *half = (uint8_t)(half0 | (c & 15) << (i < 16 ? 0 : 4));
            if (five) *bit = (uint8_t)(bit0 | c >> 4 << i % 8);
            const double error = fabs(ref_value(dtype, block, i) - (double)x[i]);
            if (!(error < best)) continue;
            best = error;
            best_code = c;
        }
    }
}

/* The code of the nearest value; codes of one sign are in the order of their values. */
static uint8_t f8_e4m3_bits(float x)
{
    const double y = fabs((double)x);
    uint8_t low = 0, high = 126;
    if (isnan(x)) return 127;
    while (high - low > 1) {
        const uint8_t middle = (uint8_t)((low + high) / 2);
        if (ref_value(MACATTN_DTYPE_F8_E4M3, &middle, 0) <= y)
            low = middle;
        else
            high = middle;
    }
    const double below = y - ref_value(MACATTN_DTYPE_F8_E4M3, &low, 0);
    const double above = ref_value(MACATTN_DTYPE_F8_E4M3, &high, 0) - y;
    return (uint8_t)((below <= above ? low : high) | (signbit(x) ? 128 : 0));
}

void test_encode(macattn_dtype dtype, const float *x, int64_t n, void *out)
{
    char *to = out;
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits;
        switch (dtype) {
        case MACATTN_DTYPE_F32: memcpy(to + 4 * i, &x[i], 4); break;
        case MACATTN_DTYPE_F16:
            bits = f16_bits(x[i]);
            memcpy(to + 2 * i, &bits, 2);
            break;
        case MACATTN_DTYPE_BF16:
            bits = bf16_bits(x[i]);
            memcpy(to + 2 * i, &bits, 2);
            break;
        case MACATTN_DTYPE_F8_E4M3: to[i] = (char)f8_e4m3_bits(x[i]); break;
        case MACATTN_DTYPE_Q8_0:
            if (i % 32 == 0) encode_q8_0(x + i, to + i / 32 * 34);
            break;
        case MACATTN_DTYPE_Q4_0:
        case MACATTN_DTYPE_Q4_1:
        case MACATTN_DTYPE_Q5_0:
        case MACATTN_DTYPE_Q5_1:
        case MACATTN_DTYPE_IQ4_NL:
            if (i % 32 == 0) {
                encode_small(dtype, x + i,
                             to + i / 32 * (int64_t)macattn_dtype_row_bytes(dtype, 32));
            }
            break;
        default: fail_msg("no such type: %d", (int)dtype);
        }
    }
}

/* ------------------------------------------------------------------------------------ memory -- */

test_memory test_guarded(size_t bytes, size_t shift)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t room = (bytes + shift + page - 1) / page * page;
    test_memory memory = {.bytes = bytes, .map_bytes = room + page};
    memory.map =
        mmap(NULL, memory.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory.map != MAP_FAILED);
    assert_int_equal(mprotect((char *)memory.map + room, page, PROT_NONE), 0);
    memory.data = (char *)memory.map + room - shift - bytes;
    memset(memory.data, 0xff, bytes);
    return memory;
}

void test_release(test_memory *memory)
{
    if (memory->map) munmap(memory->map, memory->map_bytes);
    memory->map = NULL;
}

typedef struct strides {
    int64_t page, token, head, bytes;
} strides;

static strides layout_strides(macattn_dtype dtype, int32_t dim, int32_t n_heads,
                              const test_kv_layout *layout)
{
    strides s;
    const int64_t bytes = (int64_t)macattn_dtype_row_bytes(dtype, dim), row = bytes + layout->pad;
    s.token = layout->head_major ? row : row * n_heads + layout->pad;
    s.head = layout->head_major ? row * layout->page_tokens + layout->pad : row;
    s.page = layout->head_major ? s.head * n_heads : s.token * layout->page_tokens;
    /* Up to the last byte of the last row, not further. */
    s.bytes = (layout->n_pages - 1) * s.page + (layout->page_tokens - 1) * s.token +
              (n_heads - 1) * s.head + bytes;
    return s;
}

void test_kv_create(test_kv *kv, const macattn_config *cfg, const test_kv_layout *layout)
{
    const int32_t dv = cfg->v_head_dim ? cfg->v_head_dim : cfg->head_dim;
    const strides k = layout_strides(cfg->k_dtype, cfg->head_dim, cfg->n_kv_heads, layout);
    const strides v = layout_strides(cfg->v_dtype, dv, cfg->n_kv_heads, layout);
    kv->k = test_guarded((size_t)k.bytes, layout->shift);
    kv->v = test_guarded((size_t)v.bytes, layout->shift);
    kv->view = (macattn_kv){.k = kv->k.data,
                            .v = kv->v.data,
                            .k_page_stride = k.page,
                            .k_token_stride = k.token,
                            .k_head_stride = k.head,
                            .v_page_stride = v.page,
                            .v_token_stride = v.token,
                            .v_head_stride = v.head};
}

void test_kv_destroy(test_kv *kv)
{
    test_release(&kv->k);
    test_release(&kv->v);
}

void test_kv_put(test_kv *kv, const macattn_config *cfg, int64_t page, int64_t within, int32_t head,
                 const float *k, const float *v)
{
    const macattn_kv *w = &kv->view;
    const int32_t dv = cfg->v_head_dim ? cfg->v_head_dim : cfg->head_dim;
    test_encode(cfg->k_dtype, k, cfg->head_dim,
                kv->k.data + page * w->k_page_stride + within * w->k_token_stride +
                    head * w->k_head_stride);
    test_encode(cfg->v_dtype, v, dv,
                kv->v.data + page * w->v_page_stride + within * w->v_token_stride +
                    head * w->v_head_stride);
}

/* -------------------------------------------------------------------------------- comparison -- */

double test_tolerance(double logit, int64_t n, double v_max)
{
    return 0x1p-24 * (4 * logit + 4 * sqrt((double)n) + 32) * v_max;
}

static double close_values(const char *what, const float *got, const double *want, int64_t n,
                           double tolerance, bool relative)
{
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        const double g = (double)got[i], w = want[i];
        if (isnan(w) && isnan(g)) continue;
        if (isinf(w) && g == w) continue;
        const double error = fabs(g - w);
        if (!(error <= tolerance + (relative ? 0x1p-22 * fabs(w) : 0))) {
            fail_msg("%s: element %lld is %.9g, the reference %.9g: error %.3g, tolerance %.3g",
                     what, (long long)i, g, w, error, tolerance);
        }
        if (error > worst) worst = error;
    }
    return worst;
}

double test_close(const char *what, const float *got, const double *want, int64_t n,
                  double tolerance)
{
    return close_values(what, got, want, n, tolerance, false);
}

double test_close_lse(const char *what, const float *got, const double *want, int64_t n,
                      double tolerance)
{
    return close_values(what, got, want, n, tolerance, true);
}

void test_same_bits(const char *what, const void *a, const void *b, size_t bytes)
{
    if (memcmp(a, b, bytes) == 0) return;
    for (size_t i = 0; i < bytes / 4; i++) {
        float x, y;
        memcpy(&x, (const char *)a + 4 * i, 4);
        memcpy(&y, (const char *)b + 4 * i, 4);
        if (memcmp(&x, &y, 4) != 0) {
            fail_msg("%s: element %zu is %.9g and %.9g", what, i, (double)x, (double)y);
        }
    }
    fail_msg("%s: differs", what);
}

/* ----------------------------------------------------------------------------------- objects -- */

macattn_config test_config(int32_t n_heads, int32_t n_kv_heads, int32_t head_dim)
{
    macattn_config cfg;
    assert_int_equal(macattn_config_init(&cfg), MACATTN_OK);
    cfg.n_layers = 1;
    cfg.n_heads = n_heads;
    cfg.n_kv_heads = n_kv_heads;
    cfg.head_dim = head_dim;
    cfg.n_threads = 1;
    /* Whether it hits is plain to see; those who mean BUDGET say so. */
    cfg.policy = MACATTN_POLICY_PAPER;
    return cfg;
}

macattn *test_create(const macattn_config *cfg)
{
    macattn *m = NULL;
    char error[256] = "";
    const macattn_status status = macattn_create(cfg, &m, error, sizeof error);
    if (status != MACATTN_OK) fail_msg("create: %s: %s", macattn_status_string(status), error);
    assert_non_null(m);
    return m;
}

macattn_config test_resolved(macattn *m)
{
    macattn_config cfg;
    assert_ok(m, macattn_get_config(m, &cfg));
    return cfg;
}

test_saved test_save(macattn *m, int32_t slot)
{
    test_saved saved = {NULL, 0};
    assert_ok(m, macattn_slot_save(m, slot, NULL, &saved.size));
    assert_true(saved.size > 0);
    saved.data = malloc(saved.size);
    assert_non_null(saved.data);
    size_t size = saved.size;
    assert_ok(m, macattn_slot_save(m, slot, saved.data, &size));
    assert_int_equal(size, saved.size);
    return saved;
}

void test_slot_holds(macattn *m, int32_t slot, const test_saved *saved)
{
    test_saved now = test_save(m, slot);
    assert_int_equal(now.size, saved->size);
    assert_memory_equal(now.data, saved->data, now.size);
    free(now.data);
}

/* --------------------------------------------------------------------------------- sequences -- */

void test_token(const test_sequence *s, const macattn_config *cfg, int64_t pos, int32_t kv_head,
                float *k, float *v)
{
    test_rng rng = {test_hash(s->seed, (uint64_t)pos * 1024 + (uint64_t)kv_head)};
    const int32_t dv = cfg->v_head_dim ? cfg->v_head_dim : cfg->head_dim;
    for (int32_t i = 0; i < cfg->head_dim; i++) k[i] = (float)test_normal(&rng);
    for (int32_t i = 0; i < dv; i++) v[i] = (float)test_normal(&rng);
}

void test_query(const test_sequence *s, const macattn_config *cfg, int64_t pos, int32_t layer,
                int32_t head, float *q, float *q_match)
{
    const uint64_t where = (uint64_t)layer * 2048 + (uint64_t)head;
    const uint64_t which = test_hash(s->seed ^ where, (uint64_t)(pos / 5));
    test_rng theme = {test_hash(s->seed ^ where, which % (uint64_t)s->n_themes)};
    test_rng rng = {test_hash(s->seed + 1, (uint64_t)pos * 65536 + where)};
    const double noise = s->noise * test_uniform(&rng);
    for (int32_t i = 0; i < cfg->head_dim; i++) {
        q_match[i] = (float)(test_normal(&theme) + noise * test_normal(&rng));
    }
    /* After RoPE: some rotation by the position. */
    for (int32_t i = 0; i < cfg->head_dim; i += 2) {
        const double angle = (double)pos * pow(0.5, (double)i / 4);
        const double x = (double)q_match[i], y = (double)q_match[i + 1];
        q[i] = (float)(x * cos(angle) - y * sin(angle));
        q[i + 1] = (float)(x * sin(angle) + y * cos(angle));
    }
}

static void *zeroed(size_t n, size_t size)
{
    void *memory = calloc(n ? n : 1, size);
    assert_non_null(memory);
    return memory;
}

void test_bench_create(test_bench *b, const macattn_config *cfg, int32_t max_rows, int64_t capacity,
                       int32_t max_queries)
{
    *b = (test_bench){.cfg = *cfg, .max_rows = max_rows, .capacity = capacity};
    const test_kv_layout layout = {.n_pages = max_rows, .page_tokens = capacity};
    test_kv_create(&b->kv, cfg, &layout);
    const size_t heads = (size_t)max_rows * (size_t)max_queries * (size_t)cfg->n_heads;
    b->most_heads = heads;
    b->rows = zeroed((size_t)max_rows, sizeof *b->rows);
    b->q = zeroed(heads, (size_t)cfg->head_dim * 4);
    b->q_match = zeroed(heads, (size_t)cfg->head_dim * 4);
    b->out = zeroed(heads, sizeof *b->out * (size_t)cfg->v_head_dim);
    b->lse = zeroed(heads, sizeof *b->lse);
    b->want = zeroed(heads, sizeof *b->want * (size_t)cfg->v_head_dim);
    b->want_lse = zeroed(heads, sizeof *b->want_lse);
    b->batch =
        (macattn_batch){.struct_size = sizeof b->batch, .rows = b->rows, .n_pages = max_rows};
    b->io = (macattn_io){.struct_size = sizeof b->io,
                         .q = b->q,
                         .q_match = b->q_match,
                         .kv = b->kv.view,
                         .out = b->out,
                         .lse = b->lse};
    test_bench_poison(b);
}

test_bench test_bench_of(macattn *m, int32_t max_rows, int64_t capacity, int32_t max_queries)
{
    const macattn_config resolved = test_resolved(m);
    test_bench b;
    test_bench_create(&b, &resolved, max_rows, capacity, max_queries);
    return b;
}

void test_bench_destroy(test_bench *b)
{
    test_kv_destroy(&b->kv);
    free(b->rows);
    free(b->q);
    free(b->q_match);
    free(b->out);
    free(b->lse);
    free(b->want);
    free(b->want_lse);
}

void test_bench_row(test_bench *b, int32_t r, int32_t slot, int32_t page, const test_sequence *s,
                    int64_t n_tokens, int32_t n_queries)
{
    float k[MAI_MAX_DIM], v[MAI_MAX_DIM];
    b->rows[r] =
        (macattn_row){.slot = slot, .n_queries = n_queries, .n_tokens = n_tokens, .page = page};
    for (int64_t t = n_tokens - n_queries; t < n_tokens; t++) {
        for (int32_t h = 0; h < b->cfg.n_kv_heads; h++) {
            test_token(s, &b->cfg, t, h, k, v);
            test_kv_put(&b->kv, &b->cfg, page, t, h, k, v);
        }
    }
}

void test_bench_set_query(test_bench *b, int64_t query, int32_t head, const float *q,
                          const float *q_match)
{
    const size_t bytes = macattn_dtype_row_bytes(b->cfg.q_dtype, b->cfg.head_dim);
    const size_t at = ((size_t)query * (size_t)b->cfg.n_heads + (size_t)head) * bytes;
    test_encode(b->cfg.q_dtype, q, b->cfg.head_dim, b->q + at);
    test_encode(b->cfg.q_dtype, q_match, b->cfg.head_dim, b->q_match + at);
}

void test_bench_queries(test_bench *b, int32_t n_rows, const test_sequence *s, int32_t layer)
{
    float q[MAI_MAX_DIM], q_match[MAI_MAX_DIM];
    int64_t query = 0;
    for (int32_t r = 0; r < n_rows; r++) {
        const macattn_row *row = &b->rows[r];
        for (int32_t i = 0; i < row->n_queries; i++, query++) {
            for (int32_t h = 0; h < b->cfg.n_heads; h++) {
                test_query(&s[r], &b->cfg, row->n_tokens - row->n_queries + i, layer, h, q,
                           q_match);
                test_bench_set_query(b, query, h, q, q_match);
            }
        }
    }
    b->batch.n_rows = n_rows;
    b->n_queries = query;
    test_bench_poison(b);
}

void test_bench_poison(test_bench *b)
{
    test_poison(b->out, b->most_heads * sizeof *b->out * (size_t)b->cfg.v_head_dim);
    test_poison(b->lse, b->most_heads * sizeof *b->lse);
}

void test_bench_run(test_bench *b, macattn *m, int32_t n_rows, const test_sequence *s)
{
    for (int32_t l = 0; l < b->cfg.n_layers; l++) {
        test_bench_queries(b, n_rows, s, l);
        if (l == 0) assert_ok(m, macattn_plan(m, &b->batch));
        assert_ok(m, b->n_queries == n_rows ? macattn_decode(m, l, &b->io)
                                            : macattn_prefill(m, l, &b->io));
    }
}

void test_bench_step(test_bench *b, macattn *m, int32_t slot, const test_sequence *s,
                     int64_t n_tokens, int32_t n_queries)
{
    test_bench_row(b, 0, slot, slot, s, n_tokens, n_queries);
    test_bench_run(b, m, 1, s);
}

size_t test_bench_out_bytes(const test_bench *b)
{
    return (size_t)b->n_queries * (size_t)b->cfg.n_heads * (size_t)b->cfg.v_head_dim *
           sizeof(float);
}

const mai_decision *test_decision(const macattn *m, int32_t row, int32_t head)
{
    return (const mai_decision *)m->work.decisions.ptr + (size_t)row * (size_t)m->cfg.n_heads +
           (size_t)head;
}
