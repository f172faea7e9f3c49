/* SPDX-License-Identifier: Apache-2.0 */
/* Selection: what a group reads is what the reference would read, what comes of it stays within the
 * budget, prompts teach what the reference says they should, what does not pay is exact to the bit and
 * rests, runs are those of the tokens the slot holds, and none of it depends on threads. */
#include "core/policy/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { THEMES = 10 };

/* Made tokens. Every run is of a theme; a query is of one, too, and sees the runs of its theme far above
 * the others. What a query matches with has nothing to do with that. */
typedef struct world {
    macattn *m;
    test_bench b;
    uint64_t seed;
    double noise; /* of keys */
    double asks;  /* how strongly queries ask for their theme, 1 */
    int64_t needle,
        needle_query; /* four tokens like no others, and the query that asks for them; or
                                     negative */
} world;

static void fill(uint64_t seed, int32_t n, double factor, float *x)
{
    test_rng rng = {seed};
    for (int32_t i = 0; i < n; i++) x[i] += (float)(factor * test_normal(&rng));
}

static void theme(const world *w, int64_t which, int32_t kv_head, double factor, float *x)
{
    fill(test_hash(w->seed, (uint64_t)(which * 64 + kv_head)), w->b.cfg.head_dim, factor, x);
}

static void make_token(const world *w, int64_t t, int32_t kv_head, float *k, float *v)
{
    const uint64_t own = test_hash(w->seed + 1, (uint64_t)(t * 64 + kv_head));
    const int64_t which = (int64_t)(test_hash(w->seed + 2, (uint64_t)(t / 16)) % THEMES);
    memset(k, 0, sizeof *k * (size_t)w->b.cfg.head_dim);
    memset(v, 0, sizeof *v * (size_t)w->b.cfg.v_head_dim);
    const bool needle = t >= w->needle && t < w->needle + 4;
    theme(w, needle ? THEMES : which, kv_head, needle ? 2 : 1, k);
    for (int32_t i = 0; i < w->b.cfg.head_dim; i++) k[i] += (float)(4 * (i % 3)); /* in common */
    fill(own, w->b.cfg.head_dim, w->noise, k);
    fill(own + 1, w->b.cfg.v_head_dim, needle ? 4 : 1, v);
}

static void make_query(const world *w, int64_t pos, int32_t head, float *q, float *q_match)
{
    const int32_t kv_head = head / (w->b.cfg.n_heads / w->b.cfg.n_kv_heads), d = w->b.cfg.head_dim;
    const int64_t which = (int64_t)(test_hash(w->seed + 3, (uint64_t)pos) % THEMES);
    const uint64_t match = test_hash(w->seed + 4, (uint64_t)(pos / 3)) % 4;
    memset(q, 0, sizeof *q * (size_t)d);
    memset(q_match, 0, sizeof *q * (size_t)d);
    theme(w, pos == w->needle_query ? THEMES : which, kv_head, w->asks, q);
    fill(test_hash(w->seed + 5, (uint64_t)(pos * 64 + head)), d, 0.3 * w->asks, q);
    fill(test_hash(w->seed + 6, match * 64 + (uint64_t)head), d, 1, q_match);
    fill(test_hash(w->seed + 7, (uint64_t)(pos * 64 + head)), d, 0.02, q_match);
}

static world open_world(const macattn_config *cfg, int32_t max_rows, int64_t capacity,
                        int32_t max_queries)
{
    world w = {.m = test_create(cfg),
               .seed = 17,
               .noise = 0.5,
               .asks = 1,
               .needle = -9,
               .needle_query = -1};
    w.b = test_bench_of(w.m, max_rows, capacity, max_queries);
    return w;
}

static void close_world(world *w)
{
    macattn_destroy(w->m);
    test_bench_destroy(&w->b);
}

/* Tokens [from, n) of row r's sequence are in the cache. */
static void put_tokens(world *w, int32_t page, int64_t from, int64_t n)
{
    float k[MAI_MAX_DIM], v[MAI_MAX_DIM];
    for (int64_t t = from; t < n; t++) {
        for (int32_t h = 0; h < w->b.cfg.n_kv_heads; h++) {
            make_token(w, t, h, k, v);
            test_kv_put(&w->b.kv, &w->b.cfg, page, t, h, k, v);
        }
    }
}

static void put_queries(world *w)
{
    float q[MAI_MAX_DIM], q_match[MAI_MAX_DIM];
    int64_t query = 0;
    for (int32_t r = 0; r < w->b.batch.n_rows; r++) {
        const macattn_row *row = &w->b.rows[r];
        for (int32_t i = 0; i < row->n_queries; i++, query++) {
            for (int32_t h = 0; h < w->b.cfg.n_heads; h++) {
                make_query(w, row->n_tokens - row->n_queries + i, h, q, q_match);
                test_bench_set_query(&w->b, query, h, q, q_match);
            }
        }
    }
    w->b.n_queries = query;
    test_bench_poison(&w->b);
}

/* One row: tokens [n - n_queries, n) into a slot, and its KV sequence of the same number. */
static void step(world *w, int32_t slot, int64_t n, int32_t n_queries)
{
    w->b.rows[0] = (macattn_row){.slot = slot, .n_queries = n_queries, .n_tokens = n, .page = slot};
    w->b.batch.n_rows = 1;
    put_tokens(w, slot, n - n_queries, n);
    put_queries(w);
    assert_ok(w->m, macattn_plan(w->m, &w->b.batch));
    assert_ok(w->m, n_queries == 1 ? macattn_decode(w->m, 0, &w->b.io)
                                   : macattn_prefill(w->m, 0, &w->b.io));
}

static void prompt(world *w, int32_t slot, int64_t n, int32_t at_a_time)
{
    for (int64_t t = 0; t < n; t += at_a_time)
        step(w, slot, t + at_a_time < n ? t + at_a_time : n,
             (int32_t)(t + at_a_time < n ? at_a_time : n - t));
}

static const mai_choice *choice_of(const macattn *m, int32_t r, int32_t kv_head)
{
    return (const mai_choice *)m->work.choices.ptr + r * m->cfg.n_kv_heads + kv_head;
}

static bool selected(const macattn *m, int32_t r, int32_t kv_head)
{
    return choice_of(m, r, kv_head)->selects && !choice_of(m, r, kv_head)->checks;
}

enum { HEADS = 8, KV = 2, DIM = 64, PROMPT = 1536, CAPACITY = 2048 };

static macattn_config select_config(float budget)
{
    macattn_config cfg = test_config(HEADS, KV, DIM);
    cfg.policy = MACATTN_POLICY_BUDGET;
    cfg.budget = budget;
    cfg.ring = 64;
    cfg.band = 32;
    cfg.fresh_tokens = 4;
    cfg.min_tokens = 0;
    return cfg;
}

static macattn_stats stats_of(macattn *m)
{
    macattn_stats stats = {.struct_size = sizeof stats};
    assert_ok(m, macattn_stats_get(m, -1, -1, &stats));
    return stats;
}

/* ---------------------------------------------------------------------------- what it is for -- */

typedef struct tally {
    int64_t selected, others, reused;
    double error2; /* sum over selected groups of the mean of their heads' squares */
} tally;

static double off2(const float *x, const float *y, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
    return sum;
}

/* The newest decode against exact attention; what neither selects nor reuses is the same to the
 * bit. */
static void compare(world *w, double unit2, tally *t)
{
    static float out[HEADS * DIM];
    bool hit[HEADS];
    bool selects[KV];
    const int32_t group = HEADS / KV;
    memcpy(out, w->b.out, sizeof out);
    for (int32_t h = 0; h < HEADS; h++) hit[h] = test_decision(w->m, 0, h)->hit;
    for (int32_t h = 0; h < KV; h++) selects[h] = selected(w->m, 0, h);
    test_bench_poison(&w->b);
    assert_ok(w->m, macattn_attend(w->m, &w->b.io));
    for (int32_t kv_head = 0; kv_head < KV; kv_head++) {
        const float *got = out + kv_head * group * DIM, *want = w->b.out + kv_head * group * DIM;
        if (selects[kv_head]) {
            t->selected++;
            t->error2 += off2(got, want, group * DIM) / group / unit2;
        } else if (hit[kv_head * group]) {
            t->reused++;
        } else {
            t->others++;
            test_same_bits("what is read in full", got, want,
                           sizeof(float) * (size_t)(group * DIM));
        }
    }
}

/* A tenth of the runs carry the mass: little more is read, and the error is the one allowed. */
static void tenth(float budget, float softcap, bool with_sinks)
{
    const float sinks[HEADS] = {0.5f, 1, 2, 0, 1, 3, 0.25f, 2};
    macattn_config cfg = select_config(budget);
    cfg.softcap = softcap;
    world w = open_world(&cfg, 1, CAPACITY, 128);
    tally t = {0};
    w.b.io.sinks = with_sinks ? sinks : NULL;
    prompt(&w, 0, PROMPT, 128);
    assert_ok(w.m, macattn_stats_reset(w.m));
    for (int64_t n = PROMPT + 1; n <= CAPACITY; n++) {
        const double unit2 = (double)mai_layer_unit2(w.m->records, HEADS);
        step(&w, 0, n, 1);
        compare(&w, unit2, &t);
    }
    const macattn_stats s = stats_of(w.m);
    const double rms = sqrt(t.error2 / (double)(t.selected > 0 ? t.selected : 1));
    const double row = 2 * DIM * 2, mean = (PROMPT + 1 + CAPACITY) / 2.0;
    const double read =
        ((double)s.kv_bytes[MACATTN_SELECTED] + (double)s.run_bytes[MACATTN_SELECTED]) /
        ((double)s.groups[MACATTN_SELECTED] * row * mean);
    print_message("budget %g, cap %g: %lld selected, %lld reused, %lld in full; error %.4f, read "
                  "%.3f; checks %lld: %.4f\n",
                  (double)budget, (double)softcap, (long long)t.selected, (long long)t.reused,
                  (long long)t.others, rms, read, (long long)s.checks,
                  sqrt(s.error2_selected / (double)(s.checks > 0 ? s.checks : 1)));
    assert_int_equal((int64_t)s.groups[MACATTN_SELECTED], t.selected);
    assert_int_equal((int64_t)s.groups[MACATTN_REUSED], t.reused);
    assert_int_equal((int64_t)s.groups[MACATTN_EXACT], t.others);
    assert_true(s.checks > 0 && s.run_bytes[MACATTN_REUSED] == 0);
    assert_true(t.selected > 9 * t.others);
    assert_true(rms <= (double)budget);
    assert_true(read <= 0.2);
    close_world(&w);
}

static void test_tenth(void **state)
{
    (void)state;
    tenth(0.05f, 0, false);
    if (!TEST_LIGHT) {
        tenth(0.02f, 0, true);
        tenth(0.05f, 20, false);
    }
}

/* A few tokens far back that a query asks for. A summary of an older query knows nothing of it;
 * the mean of its run still tells. */
static void test_needle(void **state)
{
    (void)state;
    enum { AT = PROMPT + 100 };
    const int policies[] = {MACATTN_POLICY_PAPER, MACATTN_POLICY_BUDGET};
    double errors[2];
    for (int i = 0; i < 2; i++) {
        macattn_config cfg = select_config(0.05f);
        cfg.policy = (macattn_policy)policies[i];
        cfg.tau = 0.45f;
        world w = open_world(&cfg, 1, CAPACITY, 128);
        float out[HEADS * DIM];
        w.needle = 777;
        w.needle_query = AT - 1;
        prompt(&w, 0, PROMPT, 128);
        for (int64_t n = PROMPT + 1; n <= AT; n++) step(&w, 0, n, 1);
        memcpy(out, w.b.out, sizeof out);
        if (i == 0) assert_true(test_decision(w.m, 0, 0)->hit);
        if (i == 1) assert_true(selected(w.m, 0, 0) && selected(w.m, 0, 1));
        assert_ok(w.m, macattn_attend(w.m, &w.b.io));
        errors[i] = sqrt(off2(out, w.b.out, HEADS * DIM) /
                         off2(w.b.out, (const float[HEADS * DIM]){0}, HEADS * DIM));
        close_world(&w);
    }
    print_message("the needle: off by %.3f with reuse, %.4f with selection\n", errors[0],
                  errors[1]);
    assert_true(errors[0] > 0.5 && errors[1] < 0.05);
}

/* Where means say nothing no threshold will do, or nearly all would be read: exact, to the bit, and
 * looked at no more than once in 64 steps. */
static void test_flat(void **state)
{
    (void)state;
    const macattn_config cfg = select_config(0.0002f);
    world w = open_world(&cfg, 1, CAPACITY, 128);
    tally t = {0};
    int64_t looked = 0, n_steps = 0;
    w.noise = 3;
    prompt(&w, 0, PROMPT, 128);
    for (int64_t n = PROMPT + 1; n <= PROMPT + 200; n++, n_steps++) {
        step(&w, 0, n, 1);
        for (int32_t h = 0; h < KV; h++) looked += choice_of(w.m, 0, h)->k >= 0;
        compare(&w, 1, &t);
    }
    print_message("%lld looks in %lld steps\n", (long long)looked, (long long)(KV * n_steps));
    assert_int_equal(t.selected, 0);
    assert_true(looked <= KV * (n_steps / 64 + 1));
    /* The smallest threshold reads all: then it rests. */
    looked = 0;
    w.asks = 0.1;
    for (int32_t h = 0; h < KV; h++) {
        mai_selector_init(&w.m->selectors[h]);
        w.m->selectors[h].n_samples = 64;
        for (int k = 0; k < MAI_THETAS - 1; k++) w.m->selectors[h].e2[k] = 1;
    }
    for (int64_t n = PROMPT + 201; n <= PROMPT + 400; n++) {
        step(&w, 0, n, 1);
        for (int32_t h = 0; h < KV; h++) looked += choice_of(w.m, 0, h)->k >= 0;
        compare(&w, 1, &t);
    }
    assert_int_equal(t.selected, 0);
    assert_int_equal(looked, KV * 4);
    close_world(&w);
}

/* No budget, or next to none: nothing is selected, and all is exact. */
static void test_nothing_allowed(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const macattn_config cfg = select_config(i ? 1e-30f : 0);
        world w = open_world(&cfg, 1, CAPACITY, 128);
        tally t = {0};
        prompt(&w, 0, 640, 128);
        for (int64_t n = 641; n <= 700; n++) {
            step(&w, 0, n, 1);
            compare(&w, 1, &t);
        }
        assert_int_equal(t.selected + t.reused, 0);
        close_world(&w);
    }
}

/* -------------------------------------------------------------------------- against reference -- */

/* Make every group use threshold k, as if that had been learnt. */
static void force(macattn *m, int k)
{
    for (int32_t h = 0; h < m->cfg.n_layers * m->cfg.n_kv_heads; h++) {
        mai_selector_init(&m->selectors[h]);
        m->selectors[h].n_samples = 64;
        for (int i = 0; i < k; i++) m->selectors[h].e2[i] = 100;
    }
    /* And as if reuse knew nothing. */
    for (int32_t h = 0; h < m->cfg.n_layers * m->cfg.n_heads; h++) m->records[h].n_samples = 0;
}

/* Runs of a slot as they are kept, in doubles. */
typedef struct kept {
    double *k, *v;   /* [n_runs][d], [n_runs][dv] */
    double *outlier; /* [n_runs][d], NULL where they are not kept */
} kept;

static void *room(size_t n, size_t size)
{
    void *memory = calloc(n + 1, size);
    assert_non_null(memory);
    return memory;
}

static kept kept_of(const macattn *m, int32_t slot, int32_t kv_head)
{
    const mai_slot *s = &m->slots[slot];
    const mai_runs_dims *dims = &m->runs_dims;
    const int n_runs = s->n_runs[0], d = dims->d, dv = dims->dv;
    kept x = {room((size_t)(n_runs * d), sizeof *x.k), room((size_t)(n_runs * dv), sizeof *x.v),
              dims->outliers ? room((size_t)(n_runs * d), sizeof *x.outlier) : NULL};
    mai_runs_view *views = room((size_t)mai_n_segments(n_runs), sizeof *views);
    mai_runs_segments(s, 0, mai_n_segments(n_runs), views);
    for (int i = 0; i < n_runs; i++) {
        const mai_runs_view *view = &views[i / MAI_SEGMENT];
        const size_t at = (size_t)kv_head * MAI_SEGMENT + (size_t)(i % MAI_SEGMENT);
        for (int j = 0; j < d; j++)
            x.k[i * d + j] = ref_value(dims->k_dtype, view->k + at * dims->k_bytes, j) +
                             (double)views[0].common[kv_head * d + j];
        for (int j = 0; j < dv; j++)
            x.v[i * dv + j] = ref_value(dims->v_dtype, view->v + at * dims->v_bytes, j);
        for (int j = 0; x.outlier && j < d; j++)
            x.outlier[i * d + j] = ref_value(dims->k_dtype, view->outlier + at * dims->k_bytes, j) +
                                   (double)views[0].common[kv_head * d + j];
    }
    free(views);
    return x;
}

static void free_kept(kept *x)
{
    free(x->k);
    free(x->v);
    free(x->outlier);
}

/* A group's queries of the n-th query row, in doubles. */
static void load_queries(const world *w, int64_t query, int32_t kv_head, double *q)
{
    const macattn_config *c = &w->b.cfg;
    const int32_t group = c->n_heads / c->n_kv_heads;
    const size_t bytes = macattn_dtype_row_bytes(c->q_dtype, c->head_dim);
    for (int32_t h = 0; h < group; h++) {
        const char *row =
            w->b.q + ((size_t)query * (size_t)c->n_heads + (size_t)(kv_head * group + h)) * bytes;
        for (int32_t i = 0; i < c->head_dim; i++)
            q[h * c->head_dim + i] = ref_value(c->q_dtype, row, i);
    }
}

/* The share that the newest summary of each head has, before a step. */
static void newest_shares(const macattn *m, int32_t slot, int32_t kv_head, double *share)
{
    const int32_t group = m->shape.group, K = m->ring_dims.capacity;
    const mai_ring_view *ring = m->slots[slot].rings[0] ? &m->slots[slot].rings[0]->view : NULL;
    for (int32_t h = 0; h < group; h++) {
        const int32_t head = kv_head * group + h;
        share[h] = ring && ring->count[head] > 0
                       ? (double)ring->share[head * K + (ring->head[head] + K - 1) % K]
                       : 1;
    }
}

static const int32_t *list_of(const macattn *m, const mai_row_plan *p, int32_t kv_head)
{
    return (const int32_t *)m->work.list.ptr + p->first_run * m->cfg.n_kv_heads +
           kv_head * p->n_runs;
}

/* What the library read of row r becomes what the reference reads, but only where it may differ. */
static void take_decisions(const world *w, int32_t r, int32_t kv_head, ref_selection *selection)
{
    const mai_row_plan *p = &w->m->plan->rows[r];
    const mai_choice *choice = choice_of(w->m, r, kv_head);
    const int32_t *list = list_of(w->m, p, kv_head);
    int64_t next = 0;
    const int32_t first = p->n_runs - p->n_scored;
    const int64_t fresh = w->m->cfg.fresh_tokens;
    if (fresh == 0 || fresh % 16 != 0) assert_int_equal(list[next++], first - 1);
    for (int32_t i = first; i < p->n_runs; i++) {
        const bool read = next < choice->n_read && list[next] == i;
        if (fabs(selection->ratio[i] - 1) > 1e-4 && read != (selection->ratio[i] >= 1))
            fail_msg("run %d, whose ratio is %.6f, is%s read", i, selection->ratio[i],
                     read ? "" : " not");
        selection->ratio[i] = read ? 1 : 0;
        next += read;
    }
    assert_int_equal(next, choice->n_read);
}

/* Where the library read all. */
static void all_read(ref_selection *selection, int32_t first, int32_t n_runs)
{
    int32_t n = 0;
    for (int32_t i = first; i < n_runs; i++) {
        n += selection->ratio[i] >= 1 - 1e-4;
        selection->ratio[i] = 1;
    }
    assert_true(4 * n > 3 * (n_runs - first));
}

/* Decide and compute row r in the reference, and compare. Returns how many groups selected. */
static int check_row(world *w, int32_t r, int k, double share[KV][HEADS])
{
    const macattn_config *c = &w->b.cfg;
    const macattn_row *row = &w->b.rows[r];
    const int32_t group = c->n_heads / c->n_kv_heads, n_runs = w->m->plan->rows[r].n_runs;
    const int32_t first = mai_select_first(c->fresh_tokens, 16);
    double q[HEADS * DIM], out[DIM], zero[DIM] = {0};
    int n_selected = 0;
    assert_int_equal(n_runs, (row->n_tokens - c->band) / 16);
    for (int32_t kv_head = 0; kv_head < c->n_kv_heads; kv_head++) {
        ref_selection s = {room((size_t)(group * n_runs), sizeof(double)),
                           room((size_t)n_runs, sizeof(double))};
        kept x = kept_of(w->m, row->slot, kv_head);
        load_queries(w, r, kv_head, q);
        ref_select(c, q, share[kv_head], x.k, x.outlier, first, n_runs, ldexp(1, -5 - k), &s);
        if (selected(w->m, r, kv_head)) {
            take_decisions(w, r, kv_head, &s);
            n_selected++;
        } else {
            all_read(&s, first, n_runs);
        }
        for (int32_t h = 0; h < group; h++) {
            const int32_t head = kv_head * group + h;
            double lse = ref_selected(c, &w->b.batch, row, &w->b.kv.view, head, q + h * c->head_dim,
                                      &s, x.v, n_runs, out);
            if (w->b.io.sinks)
                ref_merge(c->v_head_dim, out, &lse, zero, (double)w->b.io.sinks[head]);
            test_close("a selection", w->b.out + (r * c->n_heads + head) * c->v_head_dim, out,
                       c->v_head_dim, 2e-4);
            test_close_lse("its lse", w->b.lse + r * c->n_heads + head, &lse, 1, 2e-4);
        }
        free_kept(&x);
        free(s.scores);
        free(s.ratio);
    }
    return n_selected;
}

typedef struct case_of {
    int32_t n_heads, n_kv_heads, d, dv, fresh, page_size;
    macattn_dtype dtype;
    float softcap;
    bool sinks;
    int32_t lse_order;
} case_of;

/* The cache in pages, in no order. */
static void use_pages(world *w, int32_t page_size, int32_t **pages)
{
    const int32_t per_row = (int32_t)((w->b.capacity + page_size - 1) / page_size),
                  n = per_row * w->b.max_rows;
    const test_kv_layout layout = {.n_pages = n, .page_tokens = page_size, .head_major = true};
    test_kv_destroy(&w->b.kv);
    test_kv_create(&w->b.kv, &w->b.cfg, &layout);
    w->b.io.kv = w->b.kv.view;
    w->b.batch.page_size = page_size;
    w->b.batch.n_pages = n;
    *pages = room((size_t)n, sizeof **pages);
    for (int32_t i = 0; i < n; i++) (*pages)[i] = (int32_t)((int64_t)i * 7919 % n);
}

/* Rows of different lengths, step after step. Returns how many groups selected. */
static int decisions(const case_of *x, int k)
{
    enum { ROWS = 3, LONGEST = 820 };
    static const int64_t lengths[ROWS] = {500, 355, 805};
    int n_selected = 0;
    const float sinks[HEADS] = {0.5f, 1, 2, 0, 1, 3, 0.25f, 2};
    macattn_config cfg = select_config(0.5f);
    cfg.n_heads = x->n_heads;
    cfg.n_kv_heads = x->n_kv_heads;
    cfg.head_dim = x->d;
    cfg.v_head_dim = x->dv;
    cfg.fresh_tokens = x->fresh;
    cfg.k_dtype = cfg.v_dtype = x->dtype;
    cfg.softcap = x->softcap;
    cfg.lse_order = x->lse_order;
    cfg.max_slots = ROWS;
    cfg.n_threads = 2;
    world w = open_world(&cfg, ROWS, LONGEST, 1);
    int32_t *pages = NULL;
    if (x->page_size > 0) use_pages(&w, x->page_size, &pages);
    const int32_t per_row = x->page_size > 0 ? (LONGEST + x->page_size - 1) / x->page_size : 0;
    w.b.io.sinks = x->sinks ? sinks : NULL;
    w.b.batch.n_rows = ROWS;
    for (int i = 0; i < 12; i++) {
        double share[ROWS][KV][HEADS];
        float key[MAI_MAX_DIM], value[MAI_MAX_DIM];
        for (int32_t r = 0; r < ROWS; r++) {
            const int64_t n = lengths[r] + i;
            w.b.rows[r] = (macattn_row){.slot = r, .n_queries = 1, .n_tokens = n, .page = r};
            w.b.rows[r].pages = pages ? pages + r * per_row : NULL;
            for (int64_t t = i == 0 ? 0 : n - 1; t < n; t++) {
                for (int32_t h = 0; h < cfg.n_kv_heads; h++) {
                    make_token(&w, t, h, key, value);
                    const int32_t page = pages ? w.b.rows[r].pages[t / x->page_size] : r;
                    test_kv_put(&w.b.kv, &w.b.cfg, page, pages ? t % x->page_size : t, h, key,
                                value);
                }
            }
        }
        put_queries(&w);
        assert_ok(w.m, macattn_plan(w.m, &w.b.batch));
        force(w.m, k);
        for (int32_t r = 0; r < ROWS; r++) {
            for (int32_t h = 0; h < cfg.n_kv_heads; h++) newest_shares(w.m, r, h, share[r][h]);
        }
        assert_ok(w.m, macattn_decode(w.m, 0, &w.b.io));
        for (int32_t r = 0; r < ROWS; r++) n_selected += check_row(&w, r, k, share[r]);
    }
    free(pages);
    close_world(&w);
    return n_selected;
}

static void test_decisions(void **state)
{
    (void)state;
    static const case_of cases[] = {
        {8, 2, 64, 64, 4, 0, MACATTN_DTYPE_F16, 0, false, 1},
        {6, 2, 32, 64, 0, 32, MACATTN_DTYPE_BF16, 0, true, 1},
        {2, 2, 40, 24, 16, 8, MACATTN_DTYPE_F32, 0, false, 1},
        {5, 1, 64, 32, 20, 16, MACATTN_DTYPE_Q8_0, 0, false, 0},
        {4, 2, 64, 64, 4, 1, MACATTN_DTYPE_F16, 25, true, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int n_selected = 0;
        for (int k = 0; k < 6; k += TEST_LIGHT ? 3 : 1) n_selected += decisions(&cases[i], k);
        print_message("case %zu: %d selections\n", i, n_selected);
        assert_true(n_selected > (TEST_LIGHT ? 30 : 100));
    }
}

/* --------------------------------------------------------------------------------- a prompt -- */

/* One query of a prompt shows of each threshold what the reference says. */
static void prompt_shows(int32_t fresh, float softcap, bool with_sinks)
{
    enum { N = 420, QUERIES = 100 };
    const float sinks[HEADS] = {0.5f, 1, 2, 0, 1, 3, 0.25f, 2};
    macattn_config cfg = select_config(0.05f);
    cfg.fresh_tokens = fresh;
    cfg.softcap = softcap;
    world w = open_world(&cfg, 1, N, N);
    const int32_t group = HEADS / KV, n_runs = (N - cfg.band) / 16;
    const int32_t first = mai_select_first(fresh, 16);
    double q[HEADS * DIM], before[HEADS * DIM], share[HEADS], out[DIM], far[DIM], zero[DIM] = {0};
    w.b.io.sinks = with_sinks ? sinks : NULL;
    put_tokens(&w, 0, 0, N - QUERIES);
    step(&w, 0, N, QUERIES);
    const macattn_config *c = &w.b.cfg;
    for (int32_t kv_head = 0; kv_head < KV; kv_head++) {
        const mai_selector *selector = &w.m->selectors[kv_head];
        const double unit2 = (double)mai_layer_unit2(w.m->records, HEADS);
        ref_selection s = {room((size_t)(group * n_runs), sizeof(double)),
                           room((size_t)n_runs, sizeof(double))};
        kept x = kept_of(w.m, 0, kv_head);
        assert_int_equal(selector->n_samples, 1);
        load_queries(&w, QUERIES - 1, kv_head, q);
        load_queries(&w, QUERIES - 2, kv_head, before);
        for (int32_t h = 0; h < group; h++) {
            const int32_t head = kv_head * group + h;
            const double *p = before + h * DIM;
            double lse = ref_range(c, &w.b.batch, w.b.rows, &w.b.kv.view, head, p, 0, N - 1, out);
            const double l = ref_range(c, &w.b.batch, w.b.rows, &w.b.kv.view, head, p, fresh,
                                       N - 1 - cfg.band, far);
            if (with_sinks) ref_merge(DIM, out, &lse, zero, (double)sinks[head]);
            share[h] = exp(l - lse);
        }
        for (int k = 0; k < MAI_THETAS; k++) {
            double error2 = 0;
            ref_select(c, q, share, x.k, x.outlier, first, n_runs, ldexp(1, -5 - k), &s);
            for (int32_t h = 0; h < group; h++) {
                const int32_t head = kv_head * group + h;
                double exact[DIM];
                double lse = ref_range(c, &w.b.batch, w.b.rows, &w.b.kv.view, head, q + h * DIM, 0,
                                       N, exact);
                double l = ref_selected(c, &w.b.batch, w.b.rows, &w.b.kv.view, head, q + h * DIM,
                                        &s, x.v, n_runs, out);
                if (with_sinks) {
                    ref_merge(DIM, exact, &lse, zero, (double)sinks[head]);
                    ref_merge(DIM, out, &l, zero, (double)sinks[head]);
                }
                for (int i = 0; i < DIM; i++)
                    error2 += (out[i] - exact[i]) * (out[i] - exact[i]) / group;
            }
            const double got = sqrt((double)selector->e2[k]), want = sqrt(error2 / unit2);
            if (!(fabs(got - want) < 1e-5 + 1e-3 * want))
                fail_msg("threshold %d: shown %.6g, reference %.6g", k, got, want);
        }
        free_kept(&x);
        free(s.scores);
        free(s.ratio);
    }
    close_world(&w);
}

static void test_prompt_shows(void **state)
{
    (void)state;
    prompt_shows(4, 0, false);
    prompt_shows(0, 0, true);
    prompt_shows(16, 20, false);
}

/* How many samples a call gives, and that a group without a budget learns nothing. */
static void test_samples(void **state)
{
    (void)state;
    assert_int_equal(mai_select_samples(1, 1), 0);
    assert_int_equal(mai_select_samples(2, 2), 1);
    assert_int_equal(mai_select_samples(512, 256), 4);
    assert_int_equal(mai_select_samples(512, 3), 3);
    assert_int_equal(mai_select_samples(100000, 256), 8);
    assert_int_equal(mai_select_samples(100, 0), 0);
    const macattn_config cfg = select_config(0.05f);
    world w = open_world(&cfg, 1, 700, 256);
    assert_ok(w.m, macattn_set_head_budget(w.m, 0, 5, 0));
    prompt(&w, 0, 700, 256);
    assert_int_equal(w.m->selectors[0].n_samples, 2 + 2 + 1);
    assert_int_equal(w.m->selectors[1].n_samples, 0);
    close_world(&w);
}

/* ----------------------------------------------------------------------------------- the rule -- */

static void test_rule(void **state)
{
    (void)state;
    const mai_record records[2] = {{.budget = 0.1f}, {.budget = 0.05f}};
    float error2[MAI_THETAS];
    mai_selector s;
    mai_selector_init(&s);
    /* 1 / budget^2 is 250 in the mean: up to 0.004; of 8 samples up to half of that, for they say
     * little. */
    for (int k = 0; k < MAI_THETAS; k++) error2[k] = k < 4 ? 0.01f : 0.0019f;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(mai_select_threshold(&s, records, 2), -1);
        mai_select_sample(&s, error2);
    }
    assert_int_equal(mai_select_threshold(&s, records, 2), 4);
    s.e2[4] = 0.0021f;
    assert_int_equal(mai_select_threshold(&s, records, 2), 5);
    s.n_samples = 64; /* of 64 up to 8/9 */
    s.e2[4] = 0.0035f;
    assert_int_equal(mai_select_threshold(&s, records, 2), 4);
    s.e2[4] = 0.0036f;
    assert_int_equal(mai_select_threshold(&s, records, 2), 5);
    s.e2[4] = 0.0019f;
    s.e2[7] = 0.0041f; /* and of all smaller ones */
    assert_int_equal(mai_select_threshold(&s, records, 2), 8);
    s.e2[11] = 0.0041f;
    assert_int_equal(mai_select_threshold(&s, records, 2), -1);
    s.e2[11] = s.e2[7] = 0.0019f;
    s.f2 = 1.9f;
    assert_int_equal(mai_select_threshold(&s, records, 2), -1);
    const mai_record none[2] = {{.budget = 0.1f}, {.budget = 0}};
    s.f2 = 1;
    assert_int_equal(mai_select_threshold(&s, none, 2), -1);
    const mai_selector before = s;
    error2[3] = NAN; /* teaches nothing */
    mai_select_sample(&s, error2);
    mai_select_checked(&s, 4, NAN);
    test_same_bits("the selector", &s, &before, sizeof s);
    /* Seen to be off by twice as much, it expects that; no glitch shuts it for ever. */
    for (int i = 0; i < 300; i++) mai_select_checked(&s, 4, 4 * s.e2[4]);
    assert_true(fabsf(s.f2 - 4) < 0.1f);
    assert_true(fabsf(mai_select_error(&s, 4) - 2 * sqrtf(s.e2[4])) < 1e-3f);
    mai_select_checked(&s, 4, 1e9f);
    assert_true(s.f2 < 4.5f);
    error2[3] = 0.01f;
    for (int i = 0; i < 300; i++) mai_select_sample(&s, error2); /* prompts know better */
    assert_true(s.f2 < 1.1f);
    /* What is selected is expected to be off by just that when it is reused where it was made. */
    const mai_record record = {
        .budget = 0.1f, .error2 = 0.04f, .predicted2 = 0.25f, .weight = 0.5f, .distance = 0};
    const float moved = mai_select_moved(&record, 0.03f, 0.7f);
    assert_true(fabsf(mai_expect(&record, 0, 0.7f, moved).error * record.budget - 0.03f) < 1e-6f);
    assert_true(mai_select_moved(&records[0], 0.03f, 0.7f) == 0);
    /* Checks, and rests. */
    mai_selector_init(&s);
    for (int i = 0; i < 64; i++) {
        assert_false(mai_select_is_check(&s, 0, 1));
        mai_select_note(&s, 1, 0, false);
    }
    for (int turn = 0; turn < 6; turn++) {
        int checks = 0;
        for (int row = 0; row < 3; row++) checks += mai_select_is_check(&s, row, 3);
        assert_int_equal(checks, 1);
        mai_select_note(&s, 2, 0, false);
    }
    mai_select_note(&s, 0, 1, true);
    assert_false(mai_select_is_check(&s, 0, 1));
    assert_int_equal(s.rest, 64);
    assert_true(mai_select_too_much(76, 100) && !mai_select_too_much(75, 100));
}

static void test_threads(void **state)
{
    (void)state;
    macattn_config cfg = select_config(0.05f);
    world one = open_world(&cfg, 1, CAPACITY, 256);
    cfg.n_threads = 3;
    world three = open_world(&cfg, 1, CAPACITY, 256);
    int64_t n_selected = 0;
    prompt(&one, 0, PROMPT, 256);
    prompt(&three, 0, PROMPT, 256);
    for (int64_t n = PROMPT + 1; n < PROMPT + 100; n++) {
        step(&one, 0, n, 1);
        step(&three, 0, n, 1);
        n_selected += selected(one.m, 0, 0);
        test_same_bits("a step", one.b.out, three.b.out, sizeof(float) * HEADS * DIM);
    }
    assert_true(n_selected > 50);
    test_same_bits("what was learnt", one.m->selectors, three.m->selectors,
                   KV * sizeof *one.m->selectors);
    test_same_bits("what was learnt", one.m->records, three.m->records,
                   HEADS * sizeof *one.m->records);
    close_world(&one);
    close_world(&three);
}

/* ------------------------------------------------------------------------------------- state -- */

/* Fails unless two slots keep the same runs, to the bit. */
static void same_runs(const macattn *a, int32_t slot_a, const macattn *b, int32_t slot_b)
{
    const int32_t n = a->slots[slot_a].n_runs[0];
    assert_int_equal(n, b->slots[slot_b].n_runs[0]);
    for (int32_t h = 0; h < a->cfg.n_kv_heads; h++) {
        kept x = kept_of(a, slot_a, h), y = kept_of(b, slot_b, h);
        assert_memory_equal(x.k, y.k, sizeof *x.k * (size_t)(n * a->runs_dims.d));
        assert_memory_equal(x.v, y.v, sizeof *x.v * (size_t)(n * a->runs_dims.dv));
        assert_int_equal(x.outlier != NULL, y.outlier != NULL);
        if (x.outlier)
            assert_memory_equal(x.outlier, y.outlier, sizeof *x.k * (size_t)(n * a->runs_dims.d));
        free_kept(&x);
        free_kept(&y);
    }
}

static macattn_config state_config(void)
{
    macattn_config cfg = select_config(0.05f);
    cfg.n_heads = cfg.n_kv_heads = 2;
    cfg.head_dim = 8;
    cfg.band = 20;
    cfg.max_slots = 4;
    return cfg;
}

/* Slots with more than a segment of runs: cut, forked, saved and loaded, they hold what a slot holds
 * that has seen just their tokens. */
static void state_of(const macattn_config *cfg)
{
    enum { SEGMENT_TOKENS = MAI_SEGMENT * MAI_RUN_TOKENS, LONG = SEGMENT_TOKENS + 700 };
    static const int64_t cuts[] = {SEGMENT_TOKENS + 300,
                                   SEGMENT_TOKENS + 20,
                                   SEGMENT_TOKENS + 19,
                                   SEGMENT_TOKENS - 500,
                                   100,
                                   19};
    world w = open_world(cfg, 4, LONG, 1), fresh = open_world(cfg, 4, LONG, 1);
    put_tokens(&w, 0, 0, LONG);
    put_tokens(&w, 1, 0, LONG);
    put_tokens(&fresh, 0, 0, LONG);
    step(&w, 0, LONG, 1);
    assert_int_equal(w.m->slots[0].n_runs[0], (LONG - 20) / 16);
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        const int64_t n = cuts[i];
        assert_ok(w.m, macattn_slot_fork(w.m, 0, 1));
        same_runs(w.m, 0, w.m, 1);
        assert_ok(w.m, macattn_slot_truncate(w.m, 1, n));
        assert_ok(fresh.m, macattn_slot_reset(fresh.m, 0));
        step(&fresh, 0, n, 1);
        same_runs(w.m, 1, fresh.m, 0);
        test_saved saved = test_save(w.m, 1);
        assert_ok(w.m, macattn_slot_load(w.m, 2, saved.data, saved.size));
        same_runs(w.m, 2, fresh.m, 0);
        test_slot_holds(w.m, 2, &saved);
        /* Grow on: the fork must not write into what slot 0 holds. */
        const uint64_t seed = w.seed;
        w.seed = fresh.seed = 99 + i;
        put_tokens(&w, 1, n, n + 60);
        put_tokens(&fresh, 0, n, n + 60);
        step(&w, 1, n + 60, 1);
        step(&fresh, 0, n + 60, 1);
        same_runs(w.m, 1, fresh.m, 0);
        w.seed = fresh.seed = seed;
        put_tokens(&w, 1, n, n + 60);
        put_tokens(&fresh, 0, n, n + 60);
        assert_ok(fresh.m, macattn_slot_reset(fresh.m, 0));
        step(&fresh, 0, LONG, 1);
        same_runs(w.m, 0, fresh.m, 0);
        free(saved.data);
    }
    close_world(&w);
    close_world(&fresh);
}

static void test_state(void **state)
{
    (void)state;
    test_rng rng = {6};
    macattn_config cfg = state_config();
    state_of(&cfg);
    cfg.n_heads = cfg.n_kv_heads = 1;
    cfg.head_dim = 32;
    for (int i = 0; i < (TEST_LIGHT ? 1 : 3); i++) {
        cfg.k_dtype = test_kv_type(&rng, 32);
        cfg.v_dtype = test_kv_type(&rng, 32);
        state_of(&cfg);
    }
}

/* Saved with another band or none at all, runs are taken over as far as they are wanted. What
 * makes no sense is refused. */
static void test_load(void **state)
{
    (void)state;
    macattn_config cfg = state_config();
    cfg.head_dim = 32;
    world w = open_world(&cfg, 4, 400, 1);
    put_tokens(&w, 0, 0, 400);
    step(&w, 0, 400, 1);
    test_saved saved = test_save(w.m, 0);
    cfg.band = 100;
    macattn *wider = test_create(&cfg);
    cfg.select = 1;
    macattn *means = test_create(&cfg);
    cfg.select = 0;
    macattn *without = test_create(&cfg);
    assert_ok(wider, macattn_slot_load(wider, 1, saved.data, saved.size));
    assert_int_equal(wider->slots[1].n_runs[0], 300 / 16);
    /* Outliers that are not wanted stay behind; where they are wanted and missing all is made anew. */
    assert_ok(means, macattn_slot_load(means, 1, saved.data, saved.size));
    assert_int_equal(means->slots[1].n_runs[0], 300 / 16);
    for (int32_t h = 0; h < 2; h++) {
        kept x = kept_of(wider, 1, h), y = kept_of(means, 1, h);
        assert_true(x.outlier && !y.outlier);
        assert_memory_equal(x.k, y.k, sizeof *x.k * (300 / 16) * 32);
        assert_memory_equal(x.v, y.v, sizeof *x.v * (300 / 16) * 32);
        free_kept(&x);
        free_kept(&y);
    }
    test_saved fewer = test_save(means, 1);
    assert_true(fewer.size < saved.size);
    assert_ok(wider, macattn_slot_load(wider, 2, fewer.data, fewer.size));
    assert_int_equal(wider->slots[2].n_runs[0], 0);
    free(fewer.data);
    macattn_destroy(means);
    assert_ok(without, macattn_slot_load(without, 1, saved.data, saved.size));
    assert_int_equal(without->slots[1].n_runs[0], 0);
    /* Its runs lie before the checksum: the last is an outlier; before these are the rows of V. */
    test_saved none = test_save(without, 1);
    assert_true(none.size < saved.size);
    const size_t outlier_at = saved.size - 4 - 34, per_head = (saved.size - none.size) / 2;
    const size_t v_at = saved.size - 4 - (size_t)w.m->slots[0].n_runs[0] * 34 - 34;
    const uint16_t nan16 = 0x7e00, infinite = 0x7c00;
    const struct {
        size_t at;
        uint16_t bits;
        bool fine;
    } cases[] = {{outlier_at, nan16, false},
                 {outlier_at, infinite, false},
                 {v_at, nan16, false},
                 {v_at, infinite, false},
                 {saved.size - 4 - per_head + 128, infinite, false}, /* the first row of K */
                 {saved.size - 4 - per_head + 128, nan16, true},
                 {saved.size - 4 - per_head + 2, 0x7fc0, false}}; /* the common key */
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t *bad = room(saved.size, 1);
        memcpy(bad, saved.data, saved.size);
        memcpy(bad + cases[i].at, &cases[i].bits, 2);
        uint32_t crc = 0xffffffffu;
        for (size_t j = 0; j < saved.size - 4; j++) {
            crc ^= bad[j];
            for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
        }
        crc = ~crc;
        memcpy(bad + saved.size - 4, &crc, 4);
        assert_int_equal(macattn_slot_load(w.m, 1, bad, saved.size),
                         cases[i].fine ? MACATTN_OK : MACATTN_E_FORMAT);
        free(bad);
    }
    free(saved.data);
    free(none.data);
    macattn_destroy(wider);
    macattn_destroy(without);
    close_world(&w);
}

static void test_bytes(void **state)
{
    (void)state;
    macattn_config cfg = state_config();
    size_t bytes = 7, more = 7;
    cfg.n_layers = 3;
    assert_int_equal(macattn_config_run_bytes(&cfg, 20, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 0);
    assert_int_equal(macattn_config_run_bytes(&cfg, 16384, &bytes), MACATTN_OK);
    assert_int_equal(macattn_config_run_bytes(&cfg, 16384 + 40, &more), MACATTN_OK);
    assert_true(bytes >= 3u * 1024 * 2 * 2 * 16 && more == 2 * bytes);
    assert_int_equal(macattn_config_run_bytes(&cfg, -1, &bytes), MACATTN_E_RANGE);
    assert_int_equal(macattn_config_run_bytes(&cfg, cfg.max_tokens + 1, &bytes), MACATTN_E_RANGE);
    assert_int_equal(macattn_config_run_bytes(&cfg, 5, NULL), MACATTN_E_ARG);
    cfg.select = 0;
    assert_int_equal(macattn_config_run_bytes(&cfg, 16384, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 0);
    cfg.select = 1;
    cfg.policy = MACATTN_POLICY_PAPER;
    assert_int_equal(macattn_config_run_bytes(&cfg, 16384, &bytes), MACATTN_OK);
    assert_int_equal(bytes, 0);
}

/* ------------------------------------------------------------------------------ random program -- */

enum { SLOTS = 4, SAVES = 2, ROOM = 300, WORLDS = 12 };

typedef struct program {
    world w;
    test_rng rng;
    uint64_t token[SLOTS + SAVES][ROOM]; /* the seed of each */
    int64_t length[SLOTS + SAVES];
    bool behind[SLOTS + SAVES]; /* its runs may not have caught up */
    test_saved saves[SAVES];
    int64_t selections, runs;
} program;

/* Far off from one another, so that what is stale is plain to see. */
static void put_token(program *x, int32_t slot, int64_t t)
{
    const macattn_config *c = &x->w.b.cfg;
    for (int32_t h = 0; h < c->n_kv_heads; h++) {
        float k[MAI_MAX_DIM] = {0}, v[MAI_MAX_DIM] = {0};
        fill(test_hash(x->token[slot][t], (uint64_t)h), c->head_dim, 2, k);
        fill(test_hash(x->token[slot][t / 16 * 16], (uint64_t)h), c->head_dim, 3, k);
        fill(test_hash(x->token[slot][t], (uint64_t)h + 7), c->v_head_dim, 2, v);
        test_kv_put(&x->w.b.kv, c, slot, t, h, k, v);
    }
}

static void put_sequence(program *x, int32_t slot)
{
    for (int64_t t = 0; t < x->length[slot]; t++) put_token(x, slot, t);
}

/* The slot's runs are the means of the tokens it holds now. */
static void check_slot(program *x, int32_t slot)
{
    const macattn *m = x->w.m;
    const macattn_config *c = &x->w.b.cfg;
    const int32_t n = m->slots[slot].n_runs[0], d = c->head_dim, dv = c->v_head_dim;
    const macattn_row row = {.slot = slot, .n_tokens = x->length[slot], .page = slot};
    const int32_t want = mai_runs_kept(&m->cfg, x->length[slot]);
    double k[MAI_MAX_DIM], v[MAI_MAX_DIM], outlier[MAI_MAX_DIM];
    if (x->behind[slot])
        assert_true(n <= want);
    else
        assert_int_equal(n, want);
    for (int32_t h = 0; h < c->n_kv_heads; h++) {
        kept got = kept_of(m, slot, h);
        for (int32_t i = 0; i < n; i++) {
            ref_run(c, &x->w.b.batch, &row, &x->w.b.kv.view, h, i, k, v, outlier);
            for (int32_t j = 0; j < d; j++)
                if (!(fabs(got.k[i * d + j] - k[j]) < 0.08)) fail_msg("run %d of slot %d", i, slot);
            for (int32_t j = 0; j < d; j++)
                if (!(fabs(got.outlier[i * d + j] - outlier[j]) < 0.08))
                    fail_msg("outlier of run %d of slot %d", i, slot);
            for (int32_t j = 0; j < dv; j++)
                if (!(fabs(got.v[i * dv + j] - v[j]) < 0.08))
                    fail_msg("run %d of slot %d", i, slot);
        }
        free_kept(&got);
    }
    x->runs += n;
}

static void random_step(program *x)
{
    world *w = &x->w;
    int32_t n_rows = 0;
    const bool single = test_below(&x->rng, 3) > 0, match = test_below(&x->rng, 10) > 0;
    for (int32_t s = 0; s < SLOTS; s++) {
        const int32_t n_queries = single ? 1 : 1 + (int32_t)test_below(&x->rng, 60);
        const int64_t unseen = test_below(&x->rng, 5) ? 0 : test_below(&x->rng, 50);
        const int64_t n = x->length[s] + unseen + n_queries;
        if (test_below(&x->rng, 3) == 0 || n > ROOM) continue;
        for (int64_t t = x->length[s]; t < n; t++) {
            x->token[s][t] = test_random(&x->rng);
            put_token(x, s, t);
        }
        x->length[s] = n;
        x->behind[s] = !match;
        w->b.rows[n_rows++] =
            (macattn_row){.slot = s, .n_queries = n_queries, .n_tokens = n, .page = s};
    }
    if (n_rows == 0) return;
    w->b.batch.n_rows = n_rows;
    put_queries(w);
    w->b.io.q_match = match ? w->b.q_match : NULL;
    assert_ok(w->m, macattn_plan(w->m, &w->b.batch));
    force(w->m, (int)test_below(&x->rng, 4));
    if (!single) {
        assert_ok(w->m, macattn_prefill(w->m, 0, &w->b.io));
        return;
    }
    assert_ok(w->m, macattn_decode(w->m, 0, &w->b.io));
    if (!match) return;
    for (int32_t i = 0; i < n_rows * w->b.cfg.n_kv_heads; i++)
        x->selections += selected(w->m, i / w->b.cfg.n_kv_heads, i % w->b.cfg.n_kv_heads);
}

static void copy_sequence(program *x, int32_t from, int32_t to)
{
    memcpy(x->token[to], x->token[from], sizeof x->token[from]);
    x->length[to] = x->length[from];
    x->behind[to] = x->behind[from];
}

static void operation(program *x)
{
    macattn *m = x->w.m;
    const int32_t slot = (int32_t)test_below(&x->rng, SLOTS), save = slot % SAVES;
    const int32_t other = (slot + 1 + (int32_t)test_below(&x->rng, SLOTS - 1)) % SLOTS;
    const int64_t which = test_below(&x->rng, 20);
    if (which < 10) {
        random_step(x);
    } else if (which < 14) {
        const int64_t back = test_below(&x->rng, test_below(&x->rng, 3) ? 20 : ROOM);
        x->length[slot] = x->length[slot] > back ? x->length[slot] - back : 0;
        assert_ok(m, macattn_slot_truncate(m, slot, x->length[slot]));
    } else if (which < 16) {
        assert_ok(m, macattn_slot_fork(m, slot, other));
        copy_sequence(x, slot, other);
        put_sequence(x, other);
    } else if (which < 17) {
        free(x->saves[save].data);
        x->saves[save] = test_save(m, slot);
        copy_sequence(x, slot, SLOTS + save);
    } else if (which < 19 && x->saves[save].data) {
        assert_ok(m, macattn_slot_load(m, slot, x->saves[save].data, x->saves[save].size));
        copy_sequence(x, SLOTS + save, slot);
        put_sequence(x, slot);
    } else if (test_below(&x->rng, 3) == 0) {
        assert_ok(m, macattn_slot_reset(m, slot));
        x->length[slot] = 0;
    }
}

static void test_random_program(void **state)
{
    (void)state;
    const int n = TEST_LIGHT ? 400 : 3000;
    const uint64_t seed = test_env("MACATTN_TEST_SEED", 1);
    int64_t selections = 0, runs = 0;
    for (int world_no = 0; world_no < WORLDS; world_no++) {
        program *x = room(1, sizeof *x);
        x->rng.state = test_hash(seed, (uint64_t)world_no);
        macattn_config cfg = state_config();
        cfg.n_heads = 2 + 2 * (int32_t)test_below(&x->rng, 2);
        cfg.head_dim = world_no % 2 ? 32 : 8;
        cfg.v_head_dim = world_no % 3 ? 32 : 24;
        cfg.k_dtype = test_kv_type(&x->rng, cfg.head_dim);
        cfg.v_dtype = test_kv_type(&x->rng, cfg.v_head_dim);
        cfg.band = 10 + (int32_t)test_below(&x->rng, 20);
        cfg.min_tokens = test_below(&x->rng, 2) * 60;
        cfg.fresh_tokens = (int32_t)test_below(&x->rng, 20);
        cfg.n_threads = 1 + world_no % 2;
        x->w = open_world(&cfg, SLOTS, ROOM, 80);
        x->w.b.batch.n_pages = SLOTS;
        for (int i = 0; i < n / WORLDS; i++) {
            operation(x);
            for (int32_t s = 0; s < SLOTS; s++) check_slot(x, s);
        }
        selections += x->selections;
        runs += x->runs;
        for (int i = 0; i < SAVES; i++) free(x->saves[i].data);
        close_world(&x->w);
        free(x);
    }
    print_message("%lld selections, %lld runs looked at\n", (long long)selections, (long long)runs);
    assert_true(selections > n / 4 && runs > n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tenth),          cmocka_unit_test(test_needle),
        cmocka_unit_test(test_flat),           cmocka_unit_test(test_nothing_allowed),
        cmocka_unit_test(test_decisions),      cmocka_unit_test(test_prompt_shows),
        cmocka_unit_test(test_samples),        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_threads),        cmocka_unit_test(test_state),
        cmocka_unit_test(test_load),           cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_random_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
