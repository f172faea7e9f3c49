/* SPDX-License-Identifier: Apache-2.0 */
#include "stream.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/memory.h"
#include "common/parse.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "ref.h"
#include "reference.h"

/* Distance of a hit from the query it repeats, as a share of the query's norm: far inside the
 * radius, whereas an independent query is far outside. */
#define HIT_NOISE 0.05f

/* Queries of a piece of a prompt that are all remembered, under every policy: macattn_prefill. */
#define PIECE 32

static size_t query_values(const stream *s)
{
    return (size_t)s->cfg.n_heads * (size_t)s->cfg.head_dim;
}

/* Position of remembered query i, and the first token its summary does not cover. */
static int64_t ring_position(const stream *s, int32_t i)
{
    return s->n_tokens - 1 - s->cfg.ring + i;
}

static int64_t ring_end(const stream *s, int32_t i)
{
    return ring_position(s, i) + 1 - s->cfg.band;
}

/* ------------------------------------------------------------------------------------- state -- */

static void plan(stream *s, const macattn_row *row)
{
    macattn_batch batch = {
        .struct_size = sizeof batch, .n_rows = 1, .rows = row, .n_pages = s->kv.n_sequences};
    die_unless_ok(s->m, macattn_plan(s->m, &batch), "macattn_plan");
}

/* Remembers `n` queries from `first` on, in an empty slot or behind those before, as the end of a prompt. */
static void remember_piece(stream *s, int32_t slot, int32_t sequence, int32_t first, int32_t n)
{
    macattn_row row = {.slot = slot,
                       .n_queries = n,
                       .n_tokens = ring_position(s, first + n - 1) + 1,
                       .page = sequence};
    plan(s, &row);
    float *out =
        memory_alloc((size_t)n * (size_t)s->cfg.n_heads * (size_t)s->cfg.v_head_dim * sizeof *out);
    const float *q = s->ring_q + (size_t)first * query_values(s);
    macattn_io io = {.struct_size = sizeof io,
                     .q = q,
                     .q_match = q,
                     .kv = tensors_kv_view(&s->kv, 0, 0),
                     .out = out};
    die_unless_ok(s->m, macattn_prefill(s->m, 0, &io), "macattn_prefill");
    free(out);
}

static void fill_ring(stream *s, int32_t slot, int32_t sequence)
{
    for (int32_t first = 0; first < s->cfg.ring; first += PIECE) {
        const int32_t left = s->cfg.ring - first;
        remember_piece(s, slot, sequence, first, left < PIECE ? left : PIECE);
    }
}

void stream_create(bench_session *session, const bench_shape *shape, int32_t ring, int64_t n_tokens,
                   int32_t n_slots, int32_t more_slots, stream *s)
{
    const bench_options *o = session->options;
    random_state rng = {(uint64_t)o->seed};
    *s = (stream){.n_slots = n_slots, .n_tokens = n_tokens};
    bench_config(session, shape, &s->cfg);
    s->cfg.policy = o->policy;
    s->cfg.budget =
        0.5f; /* between hits, which are nearly the same, and misses, which have nothing to do */
    s->cfg.ring = ring;
    s->cfg.select = 0; /* what misses costs what exact attention costs */
    s->cfg.fresh_tokens = 0;
    s->cfg.band = (int32_t)o->band;
    s->cfg.min_tokens = 0;
    s->cfg.max_tokens = n_tokens;
    s->cfg.max_slots = n_slots + more_slots;
    s->m = bench_create(&s->cfg);
    die_unless_ok(s->m, macattn_get_config(s->m, &s->cfg), "macattn_get_config");

    tensors_kv_create(&s->kv, shape->kv, shape->heads.n_kv_heads, shape->head_dim,
                      shape->v_head_dim, n_slots, n_tokens, 1, o->huge, true, &rng);
    tensors_kv_copy_first(&s->kv);
    s->ring_q = memory_alloc((size_t)ring * query_values(s) * sizeof *s->ring_q);
    s->out =
        memory_alloc((size_t)shape->heads.n_heads * (size_t)shape->v_head_dim * sizeof *s->out);
    tensors_fill_normal(s->ring_q, (size_t)ring * query_values(s), &rng);

    report_progress("[%d/%d] filling the rings", session->rows_done + 1, session->n_rows);
    fill_ring(s, 0, 0);
    for (int32_t slot = 1; slot < n_slots; slot++) {
        die_unless_ok(s->m, macattn_slot_fork(s->m, 0, slot), "macattn_slot_fork");
    }
}

void stream_destroy(stream *s)
{
    macattn_destroy(s->m);
    tensors_kv_destroy(&s->kv);
    free(s->ring_q);
    free(s->out);
    *s = (stream){0};
}

/* ------------------------------------------------------------------------------------- steps -- */

/* Marks n of `size` places, each choice equally likely. */
static void choose(bool *chosen, int32_t size, int32_t n, random_state *rng)
{
    for (int32_t i = 0; i < size; i++) {
        chosen[i] = random_below(rng, size - i) < n;
        n -= chosen[i];
    }
}

static void choose_hits(const stream *s, double hit_ratio, bool clustered, bool *hits,
                        random_state *rng)
{
    int32_t units = clustered ? s->cfg.n_kv_heads : s->cfg.n_heads;
    int32_t each = s->cfg.n_heads / units;
    double wanted = hit_ratio * units;
    /* A share that is no whole number of heads is met on average. */
    int32_t n = (int32_t)wanted;
    n += (double)random_below(rng, 1 << 20) * 0x1p-20 < wanted - n;
    bool chosen[1024];
    choose(chosen, units, n, rng);
    for (int32_t head = 0; head < s->cfg.n_heads; head++) {
        hits[head] = chosen[head / each];
    }
}

stream_step stream_step_create(const stream *s, double hit_ratio, bool clustered, bool same,
                               random_state *rng)
{
    size_t dim = (size_t)s->cfg.head_dim;
    stream_step step = {.q = memory_alloc(query_values(s) * sizeof(float)),
                        .source = memory_alloc((size_t)s->cfg.n_heads * sizeof(int32_t))};
    bool hits[1024];
    choose_hits(s, hit_ratio, clustered, hits, rng);
    tensors_fill_normal(step.q, query_values(s), rng);
    /* The oldest entry goes when the step's own query is remembered. */
    int32_t shared = 1 + (int32_t)random_below(rng, s->cfg.ring - 1);
    for (int32_t head = 0; head < s->cfg.n_heads; head++) {
        step.source[head] = -1;
        if (!hits[head]) {
            continue;
        }
        int32_t i = same ? shared : 1 + (int32_t)random_below(rng, s->cfg.ring - 1);
        const float *from = s->ring_q + (size_t)i * query_values(s) + (size_t)head * dim;
        float *q = step.q + (size_t)head * dim;
        step.source[head] = i;
        for (size_t k = 0; k < dim; k++) {
            q[k] = from[k] + HIT_NOISE * q[k];
        }
    }
    return step;
}

void stream_step_free(stream_step *step)
{
    free(step->q);
    free(step->source);
    *step = (stream_step){0};
}

void stream_rewind(stream *s, int32_t slot)
{
    int64_t length;
    die_unless_ok(s->m, macattn_slot_length(s->m, slot, &length), "macattn_slot_length");
    if (length > s->n_tokens - 1) {
        die_unless_ok(s->m, macattn_slot_truncate(s->m, slot, s->n_tokens - 1),
                      "macattn_slot_truncate");
    }
    macattn_row row = {
        .slot = slot, .n_queries = 1, .n_tokens = s->n_tokens, .page = slot % s->n_slots};
    plan(s, &row);
}

void stream_plan_exact(stream *s, int32_t sequence)
{
    macattn_row row = {.slot = -1, .n_queries = 1, .n_tokens = s->n_tokens, .page = sequence};
    plan(s, &row);
}

static macattn_io step_io(stream *s, const stream_step *step)
{
    return (macattn_io){.struct_size = sizeof(macattn_io),
                        .q = step->q,
                        .q_match = step->q,
                        .kv = tensors_kv_view(&s->kv, 0, 0),
                        .out = s->out};
}

double stream_decode_us(stream *s, const stream_step *step)
{
    macattn_io io = step_io(s, step);
    double start = clock_now_us();
    macattn_status status = macattn_decode(s->m, 0, &io);
    double us = clock_now_us() - start;
    die_unless_ok(s->m, status, "macattn_decode");
    return us;
}

double stream_exact_us(stream *s, const stream_step *step)
{
    macattn_io io = step_io(s, step);
    double start = clock_now_us();
    macattn_status status = macattn_attend(s->m, &io);
    double us = clock_now_us() - start;
    die_unless_ok(s->m, status, "macattn_attend");
    return us;
}

/* ------------------------------------------------------------------------------------- check -- */

/* The summary of tokens [0, end) made for the query `old`, and its lse for the query `now`. */
static double far_summary(const stream *s, const macattn_row *row, int32_t head, int64_t end,
                          const float *old, const float *now, double *far)
{
    macattn_kv kv = tensors_kv_view(&s->kv, 0, 0);
    macattn_batch batch = {.struct_size = sizeof batch, .n_rows = 1, .rows = row};
    const size_t d = (size_t)s->cfg.head_dim, at = (size_t)head * d;
    double *q = memory_alloc(2 * d * sizeof *q), *kbar = q + d;
    for (size_t i = 0; i < d; i++) q[i] = (double)old[at + i];
    double lse = ref_range_keys(&s->cfg, &batch, row, &kv, head, q, 0, end, far, kbar);
    for (size_t i = 0; s->cfg.lse_order > 0 && i < d; i++)
        lse += (double)s->cfg.scale * ((double)now[at + i] - q[i]) * kbar[i];
    free(q);
    return lse;
}

static double head_error(const stream *s, const stream_step *step, int32_t sequence, int32_t head,
                         double *expected, double *far)
{
    macattn_kv kv = tensors_kv_view(&s->kv, 0, 0);
    macattn_row row = {.slot = -1, .page = sequence};
    int32_t source = step->source[head];
    int64_t end = source < 0 ? 0 : ring_end(s, source);
    double lse;
    bench_reference(&s->cfg, &kv, &row, 0, head, step->q, end, s->n_tokens, expected, &lse);
    if (source >= 0) {
        const float *old = s->ring_q + (size_t)source * query_values(s);
        const double far_lse = far_summary(s, &row, head, end, old, step->q, far);
        ref_merge(s->cfg.v_head_dim, expected, &lse, far, far_lse);
    }
    return bench_error(s->out + (size_t)head * (size_t)s->cfg.v_head_dim, expected,
                       s->cfg.v_head_dim);
}

double stream_error(const stream *s, const stream_step *step, int32_t sequence, int max_heads)
{
    double *expected = memory_alloc(2 * (size_t)s->cfg.v_head_dim * sizeof *expected);
    double worst = 0.0;
    /* Heads spread evenly over all. */
    int32_t stride = (s->cfg.n_heads + max_heads - 1) / max_heads;
    for (int32_t head = 0; head < s->cfg.n_heads; head += stride) {
        double error = head_error(s, step, sequence, head, expected, expected + s->cfg.v_head_dim);
        worst = fmax(worst, error);
    }
    free(expected);
    return worst;
}

double stream_bytes(const stream *s, const stream_step *step)
{
    int32_t group = s->cfg.n_heads / s->cfg.n_kv_heads;
    double bytes = 0.0;
    kv_types types = {s->cfg.k_dtype, s->cfg.v_dtype};
    for (int32_t kv_head = 0; kv_head < s->cfg.n_kv_heads; kv_head++) {
        int64_t from = s->n_tokens;
        for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
            int64_t end = step->source[head] < 0 ? 0 : ring_end(s, step->source[head]);
            from = end < from ? end : from;
        }
        bytes += (double)tensors_kv_bytes(types, 1, s->cfg.head_dim, s->cfg.v_head_dim,
                                          s->n_tokens - from);
    }
    return bytes;
}

/* ------------------------------------------------------------------------------------- match -- */

#define MATCH_SLOTS 32
#define MATCH_MEMORY ((size_t)2 << 30) /* of rings */

/* Slots with full rings: enough that a ring has left the caches when its turn comes again, and an
 * even number. */
static int32_t match_slots(const bench_session *session, const bench_shape *shape, int32_t ring)
{
    macattn_config cfg;
    size_t state = 1;
    bench_config(session, shape, &cfg);
    cfg.ring = ring;
    die_unless_ok(NULL, macattn_config_state_bytes(&cfg, &state), "macattn_config_state_bytes");
    size_t room = MATCH_MEMORY / (state + 1);
    if (session->options->warm || room < 2) {
        return 2;
    }
    return room > MATCH_SLOTS ? MATCH_SLOTS : (int32_t)(room / 2 * 2);
}

/* Both slots see the same tokens and compute the same parts of them: only the search differs. The
 * slot with one entry is prepared anew before each step, but for all slots at a time, so that this
 * does not leave in cache what the step is going to read. */
static void match_round(stream *s, const stream_step *steps, sample_list *us, double *spent)
{
    int32_t n = s->n_slots, n_steps = n / 2;
    for (int32_t i = 0; i < n; i++) {
        const stream_step *step = &steps[i % n_steps];
        int32_t source = 1;
        for (int32_t head = 0; head < s->cfg.n_heads; head++) {
            source = step->source[head] > 0 ? step->source[head] : source;
        }
        die_unless_ok(s->m, macattn_slot_reset(s->m, n + i), "macattn_slot_reset");
        remember_piece(s, n + i, i, source, 1);
    }
    for (int32_t i = 0; i < n; i++) {
        /* The same step on another copy of the tokens, so that neither finds them in cache. */
        const stream_step *step = &steps[i % n_steps];
        stream_rewind(s, i);
        double full = stream_decode_us(s, step);
        stream_rewind(s, n + (i + n_steps) % n);
        double one = stream_decode_us(s, step);
        sample_list_add(us, full - one);
        *spent += full + one;
    }
}

/* The shortest row in which every entry covers something: little but the search is left. */
int64_t stream_match_tokens(const bench_session *session, int32_t ring)
{
    return (int64_t)ring + session->options->band + 1;
}

void stream_match_times(bench_session *session, const bench_shape *shape, int32_t ring,
                        double hit_ratio, double min_us, sample_list *us)
{
    const bench_options *o = session->options;
    random_state rng = {(uint64_t)o->seed + 2};
    int32_t n_slots = match_slots(session, shape, ring);
    stream s;
    /* The search is the same under every policy. */
    bench_options by_paper = *o;
    by_paper.policy = MACATTN_POLICY_PAPER;
    bench_session paper_run = *session;
    paper_run.options = &by_paper;
    stream_create(&paper_run, shape, ring, stream_match_tokens(session, ring), n_slots, n_slots,
                  &s);
    stream_step steps[MATCH_SLOTS / 2];
    for (int32_t i = 0; i < n_slots / 2; i++) {
        steps[i] = stream_step_create(&s, hit_ratio, o->clustered, true, &rng);
    }
    double spent = 0.0;
    match_round(&s, steps, us, &spent);
    us->n = 0; /* the first round copies the forked rings */
    spent = 0.0;
    while (us->n < 32 || (spent < min_us && us->n < 4000)) {
        report_progress("[%d/%d] measuring the search", session->rows_done + 1, session->n_rows);
        match_round(&s, steps, us, &spent);
    }
    for (int32_t i = 0; i < n_slots / 2; i++) {
        stream_step_free(&steps[i]);
    }
    stream_destroy(&s);
}
