/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench`: what the benchmarks share. */
#include "bench.h"

#include <math.h>
#include <stdio.h>

#include "common/say.h"

#define MEMORY_LIMIT ((size_t)3 << 30) /* of K and V */
#define MIN_REPS 7
#define MAX_REPS 2000

void bench_each_shape(bench_session *session,
                      void (*row)(bench_session *session, const bench_shape *shape))
{
    const bench_options *o = session->options;
    /* Threads first: making a team anew costs a second. */
    for (int t = 0; t < o->threads.n; t++) {
        if (!o->cuda) bench_use_team(session, (int)o->threads.values[t]);
        int total = o->n_heads * o->head_dim.n * o->n_kv * o->context.n * o->batch.n;
        for (int i = 0; i < total; i++) {
            int rest = i;
            bench_shape shape = {.threads = (int32_t)o->threads.values[t]};
            shape.context = o->context.values[rest % o->context.n];
            rest /= o->context.n;
            shape.batch = (int32_t)o->batch.values[rest % o->batch.n];
            rest /= o->batch.n;
            shape.kv = o->kv[rest % o->n_kv];
            rest /= o->n_kv;
            shape.head_dim = (int32_t)o->head_dim.values[rest % o->head_dim.n];
            rest /= o->head_dim.n;
            shape.heads = o->heads[rest];
            shape.v_head_dim = o->v_head_dim > 0 ? (int32_t)o->v_head_dim : shape.head_dim;
            session->n_rows = total * o->threads.n;
            row(session, &shape);
            session->rows_done++;
        }
    }
    report_progress_clear();
}

void bench_use_team(bench_session *session, int threads)
{
    if (session->team && session->team_threads == threads) {
        return;
    }
    report_progress("measuring the machine's read bandwidth with %d threads", threads);
    machine_team_destroy(session->team);
    session->team = machine_team_create(threads);
    session->team_threads = threads;
}

void bench_config(const bench_session *session, const bench_shape *shape, macattn_config *cfg)
{
    die_unless_ok(NULL, macattn_config_init(cfg), "macattn_config_init");
    cfg->n_layers = 1;
    cfg->n_heads = shape->heads.n_heads;
    cfg->n_kv_heads = shape->heads.n_kv_heads;
    cfg->head_dim = shape->head_dim;
    cfg->v_head_dim = shape->v_head_dim;
    cfg->k_dtype = shape->kv.k;
    cfg->v_dtype = shape->kv.v;
    /* Queries and keys are standard normal. Three times the usual scale gives logits the spread
     * that lets a few tokens dominate, as in a model: an average over all would hide errors. */
    cfg->scale = 3.0f / sqrtf((float)shape->head_dim);
    cfg->softcap = (float)session->options->softcap;
    cfg->n_threads = shape->threads;
    cfg->isa = session->options->isa;
}

macattn *bench_create(const macattn_config *cfg)
{
    macattn *m;
    char error[320];
    macattn_status status = macattn_create(cfg, &m, error, sizeof error);
    if (status != MACATTN_OK) {
        die(EXIT_FAILED, "%s: %s", macattn_status_string(status), error);
    }
    return m;
}

bool bench_enough(const bench_session *session, int64_t reps, double spent_us)
{
    const bench_options *o = session->options;
    if (o->reps > 0) {
        return reps >= o->reps;
    }
    return reps >= MAX_REPS || (reps >= MIN_REPS && spent_us >= o->min_time * 1e6);
}

double bench_share_done(const bench_session *session, int64_t rep, double spent_us)
{
    const bench_options *o = session->options;
    if (o->reps > 0) {
        return (double)rep / (double)o->reps;
    }
    return fmin(fmin(spent_us / (o->min_time * 1e6 + 1.0), (double)rep / MIN_REPS), 1.0);
}

void bench_step_progress(const bench_session *session, const char *what, int64_t rep,
                         double spent_us)
{
    report_progress("[%d/%d] %s %3.0f%%", session->rows_done + 1, session->n_rows, what,
                    100.0 * bench_share_done(session, rep, spent_us));
}

int32_t bench_layers(const bench_session *session, size_t bytes)
{
    if (session->options->warm || bytes == 0) {
        return 1;
    }
    size_t wanted = (MACHINE_COLD_BYTES + bytes - 1) / bytes;
    size_t room = MEMORY_LIMIT / bytes;
    size_t layers = wanted < room ? wanted : room;
    return layers < 1 ? 1 : layers > 64 ? 64 : (int32_t)layers;
}

int32_t bench_mac_ring(const bench_session *session, const bench_shape *shape)
{
    const int32_t ring = (int32_t)session->options->ring.values[0];
    const int64_t least = ring + session->options->band + 1;
    if (shape->context < least) {
        die(EXIT_USAGE, "bench mac: a ring of %d and a band of %d need a --context of %d", ring,
            (int)session->options->band, (int)least);
    }
    return ring;
}

void bench_add_shape(cJSON *row, const bench_shape *shape)
{
    char text[32];
    snprintf(text, sizeof text, "%d/%d", shape->heads.n_heads, shape->heads.n_kv_heads);
    report_add_text(row, "heads", text);
    report_add_int(row, "head_dim", shape->head_dim);
    report_add_int(row, "v_head_dim", shape->v_head_dim);
    report_add_text(row, "kv", kv_types_name(shape->kv, text));
    report_add_int(row, "context", shape->context);
    report_add_int(row, "batch", shape->batch);
    report_add_int(row, "threads", shape->threads);
}

void bench_add_times(cJSON *row, const char *prefix, const sample_list *us)
{
    static const struct {
        const char *name;
        double quantile;
    } columns[] = {{"us_median", 0.5}, {"us_p10", 0.1}, {"us_p90", 0.9}};
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        char field[64];
        snprintf(field, sizeof field, "%s%s", prefix, columns[i].name);
        report_add_real(row, field, sample_list_quantile(us, columns[i].quantile));
    }
}

double bench_error(const float *out, const double *expected, int32_t n)
{
    double largest = 0.0, worst = 0.0;
    for (int32_t i = 0; i < n; i++) {
        double off = fabs((double)out[i] - expected[i]);
        largest = fmax(largest, fabs(expected[i]));
        if (!(off <= worst)) { /* NaN counts */
            worst = isnan(off) ? (double)INFINITY : off;
        }
    }
    return largest > 0.0 ? worst / largest : worst;
}
