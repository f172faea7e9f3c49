/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench mac`: decode with reuse at a given hit ratio, in turns with exact attention.
 *
 * One repetition: a decode on one slot, then exact attention (macattn_attend: what decode gives
 * when it does not reuse) on another slot's copy of the same tokens, by the same threads. Slots
 * rotate, so that rings, K and V come from memory. Truncating the slot and planning are not
 * timed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "mac.h"
#include "select.h"
#include "stream.h"

#define N_STEPS 64 /* different ones, in turns */
#define SEARCH_TIME_US 3e5
#define CEILING_SAMPLES 12
/* Steps in which the policy budget learns what hits cost, or that nothing hits. */
#define LEARN_STEPS 48

static const report_column columns[] = {BENCH_SHAPE_COLUMNS,
                                        {"ring", "ring", 5, 0},
                                        {"threads", "threads", 7, 0},
                                        {"hit_ratio", "hits", 6, 3},
                                        BENCH_TIME_COLUMNS,
                                        {"exact_us_median", "exact us", 10, 1},
                                        {"speedup_vs_exact", "speedup", 7, 2},
                                        {"match_us_median", "match us", 8, 1},
                                        {"judge_us_mean", "judge us", 8, 2},
                                        {"gbps", "GB/s", 7, 2},
                                        {"ceiling_share", "share", 6, 3},
                                        {0}};

typedef struct mac_times {
    sample_list us, exact, ceiling, match;
    double bytes;     /* sum over the steps timed */
    double hit_ratio; /* as counted by the library */
    double skipped;   /* share of the tokens */
    double judge_us;  /* mean */
    double error;
    int64_t wrong; /* decisions other than those the steps were made for */
} mac_times;

/* From this size on, queries drawn at random are never near each other, and every decision is
 * known. */
#define DECISIONS_KNOWN_DIM 96

/* The policy budget decides for all heads of a KV head as one. */
static bool is_clustered(const bench_session *session)
{
    return session->options->clustered || session->options->policy == MACATTN_POLICY_BUDGET;
}

static int32_t slots_wanted(const bench_session *session, const bench_shape *shape)
{
    size_t bytes = tensors_kv_bytes(shape->kv, shape->heads.n_kv_heads, shape->head_dim,
                                    shape->v_head_dim, shape->context);
    int32_t n = bench_layers(session, bytes);
    /* Two at least, so that exact attention does not leave the newest tokens in cache. */
    return n < 2 && !session->options->warm ? 2 : n > 16 ? 16 : n;
}

static bool check(bench_session *session, stream *s, const stream_step *steps, mac_times *times)
{
    times->error = (double)NAN;
    for (int i = 0; s->cfg.policy == MACATTN_POLICY_BUDGET && i < LEARN_STEPS; i++) {
        stream_rewind(s, 0);
        (void)stream_decode_us(s, &steps[1 + i % (N_STEPS - 1)]);
    }
    const stream_step *step = &steps[0];
    stream_rewind(s, 0);
    (void)stream_decode_us(s, step);
    if (!session->options->check) {
        return true;
    }
    report_progress("[%d/%d] checking", session->rows_done + 1, session->n_rows);
    int64_t affordable = ((int64_t)1 << 27) / (s->n_tokens * (s->cfg.head_dim + s->cfg.v_head_dim));
    times->error = stream_error(s, step, 0, affordable < 4 ? 4 : (int)(affordable & 0xffff));
    report_progress_clear();
    if (!(times->error <= BENCH_TOLERANCE)) {
        say("bench: the result is off by %.2e of its largest value; no time", times->error);
        return false;
    }
    return true;
}

static void measure(bench_session *session, stream *s, const stream_step *steps, mac_times *times)
{
    double spent = 0.0;
    /* Slots forked from the first get rings of their own. */
    for (int32_t slot = 1; slot < s->n_slots; slot++) {
        stream_rewind(s, slot);
        (void)stream_decode_us(s, &steps[0]);
    }
    die_unless_ok(s->m, macattn_stats_reset(s->m), "macattn_stats_reset");
    int64_t rep = 0, planned = 0;
    for (; !bench_enough(session, rep, spent); rep++) {
        const stream_step *step = &steps[rep % N_STEPS];
        int32_t slot = (int32_t)(rep % s->n_slots);
        if ((double)times->ceiling.n <= CEILING_SAMPLES * bench_share_done(session, rep, spent)) {
            bench_step_progress(session, "measuring", rep, spent);
            sample_list_add(&times->ceiling, machine_read_gbps(session->team));
            /* Wakes the threads, and leaves no ring in the caches. */
            stream_plan_exact(s, (slot + s->n_slots / 2) % s->n_slots);
            (void)stream_exact_us(s, step);
        }
        stream_rewind(s, slot);
        double us = stream_decode_us(s, step);
        sample_list_add(&times->us, us);
        times->bytes += stream_bytes(s, step);
        for (int32_t head = 0; head < s->cfg.n_heads; head++) {
            planned += step->source[head] >= 0;
        }
        stream_plan_exact(s, (slot + s->n_slots / 2) % s->n_slots);
        double exact = stream_exact_us(s, step);
        sample_list_add(&times->exact, exact);
        spent += us + exact;
    }
    macattn_stats stats = {.struct_size = sizeof stats};
    die_unless_ok(s->m, macattn_stats_get(s->m, -1, -1, &stats), "macattn_stats_get");
    times->bytes /= (double)rep;
    /* The policy budget refuses hits now and then, to learn. */
    const bool known =
        s->cfg.policy == MACATTN_POLICY_PAPER && s->cfg.head_dim >= DECISIONS_KNOWN_DIM;
    times->wrong = known ? llabs((int64_t)stats.hits - planned) : 0;
    times->judge_us = (double)stats.judge_ns * 1e-3 / (double)rep;
    times->hit_ratio = (double)stats.hits / (double)stats.steps;
    times->skipped = (double)stats.tokens_skipped / (double)stats.tokens_total;
}

static void print_row(bench_session *session, const bench_shape *shape, const stream *s,
                      double asked, const mac_times *times)
{
    cJSON *row = report_row();
    bench_add_shape(row, shape);
    const bool budget = s->cfg.policy == MACATTN_POLICY_BUDGET;
    report_add_text(row, "policy", macattn_policy_name(s->cfg.policy));
    report_add_real(row, budget ? "budget" : "tau", (double)(budget ? s->cfg.budget : s->cfg.tau));
    report_add_int(row, "ring", s->cfg.ring);
    report_add_int(row, "band", s->cfg.band);
    report_add_text(row, "misses", is_clustered(session) ? "clustered" : "scattered");
    report_add_real(row, "hit_ratio_asked", asked);
    report_add_real(row, "hit_ratio", times->hit_ratio);
    report_add_real(row, "tokens_skipped_share", times->skipped);
    report_add_int(row, "slots_rotated", s->n_slots);
    report_add_int(row, "reps", (int64_t)times->us.n);
    bench_add_times(row, "", &times->us);
    bench_add_times(row, "exact_", &times->exact);
    double us = sample_list_median(&times->us), exact = sample_list_median(&times->exact);
    report_add_real(row, "speedup_vs_exact", exact / us);
    bench_add_times(row, "match_", &times->match);
    report_add_real(row, "match_share", sample_list_median(&times->match) / us);
    report_add_real(row, "judge_us_mean", budget ? times->judge_us : (double)NAN);

    /* K and V that the step has to read, and the compressed ring queries. */
    double ring = (double)s->cfg.ring * s->cfg.n_heads * s->cfg.head_dim;
    double ceiling = sample_list_median(&times->ceiling);
    report_add_int(row, "kv_bytes", (int64_t)times->bytes);
    report_add_int(row, "bytes", (int64_t)(times->bytes + ring));
    report_add_real(row, "gbps", (times->bytes + ring) / us * 1e-3);
    report_add_real(row, "ceiling_gbps", ceiling);
    report_add_real(row, "ceiling_share", (times->bytes + ring) / us * 1e-3 / ceiling);
    report_add_real(row, "error", times->error);
    report_add_machine(row, &session->machine, s->cfg.isa);
    report_print(&session->report, row);
}

static void hit_ratio_row(bench_session *session, const bench_shape *shape, stream *s,
                          double hit_ratio)
{
    const bench_options *o = session->options;
    random_state rng = {(uint64_t)o->seed + 1};
    stream_step steps[N_STEPS];
    mac_times times = {0};
    for (int i = 0; i < N_STEPS; i++) {
        steps[i] = stream_step_create(s, hit_ratio, is_clustered(session), false, &rng);
    }
    if (check(session, s, steps, &times)) {
        stream_match_times(session, shape, s->cfg.ring, hit_ratio, SEARCH_TIME_US, &times.match);
        measure(session, s, steps, &times);
    } else {
        times.wrong = -1;
    }
    if (times.wrong == 0 || !o->check) {
        print_row(session, shape, s, hit_ratio, &times);
    } else {
        report_progress_clear();
        if (times.wrong > 0) {
            say("bench: %lld decisions are wrong; no time", (long long)times.wrong);
        }
        session->n_failed++;
    }
    for (int i = 0; i < N_STEPS; i++) {
        stream_step_free(&steps[i]);
    }
    sample_list_free(&times.us);
    sample_list_free(&times.exact);
    sample_list_free(&times.ceiling);
    sample_list_free(&times.match);
}

static void mac_shape(bench_session *session, const bench_shape *shape)
{
    const bench_options *o = session->options;
    const int32_t ring = bench_mac_ring(session, shape);
    stream s;
    for (int i = 0; i < o->hit_ratio.n; i++) {
        /* What the policy budget has learnt of one hit ratio is not to judge the next one. */
        if (i == 0 || o->policy == MACATTN_POLICY_BUDGET) {
            if (i > 0) stream_destroy(&s);
            stream_create(session, shape, ring, shape->context, slots_wanted(session, shape), 0,
                          &s);
        }
        hit_ratio_row(session, shape, &s, o->hit_ratio.values[i]);
    }
    stream_destroy(&s);
}

int bench_mac(bench_session *session)
{
    session->report.columns = columns;
    if (session->options->batch.n > 1 || session->options->batch.values[0] != 1) {
        die(EXIT_USAGE, "bench mac: --batch is for attend, and for mac with --device cuda");
    }
    if (session->options->select_share.n > 0) return bench_select(session);
    bench_each_shape(session, mac_shape);
    return session->n_failed == 0 ? EXIT_OK : EXIT_FAILED;
}
