/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench`: what the three benchmarks share. */
#ifndef MACATTN_TOOLS_BENCH_BENCH_H
#define MACATTN_TOOLS_BENCH_BENCH_H

#include "common/ceiling.h"
#include "common/machine.h"
#include "common/options.h"
#include "common/parse.h"
#include "common/report.h"
#include "common/samples.h"
#include "peer.h"
#include "tensors.h"

typedef struct bench_options {
    /* Shapes: every combination is one row. */
    head_counts heads[LIST_MAX];
    int n_heads;
    kv_types kv[LIST_MAX];
    int n_kv;
    int_list head_dim, context, threads, batch;
    int64_t v_head_dim; /* 0 = head_dim */
    int64_t page_size;  /* 0 = contiguous */
    int64_t n_queries;  /* attend: 1 = decode */
    double softcap;
    const char *isa; /* NULL = best */
    /* mac and match. */
    real_list hit_ratio;
    real_list select_share; /* mac: not empty: selection instead of reuse */
    int_list ring;
    int64_t band;
    int32_t select; /* with select_share */
    macattn_policy policy;
    bool clustered; /* misses fall on all query heads of a KV head together */
    /* How to measure. */
    int64_t reps;    /* 0 = until min_time */
    double min_time; /* seconds of the measured calls, for each row */
    bool warm, huge, json, check;
    int64_t seed;
    const char *peer;
    bool cuda;          /* --device cuda */
    uint32_t given;     /* options that were, by bits: command.c */
    setting_options settings; /* what the command line says: kv, threads, ring, band, policy... */
} bench_options;

/* Lent by the driver to a benchmark: the machine, its ceilings on the row's number of threads. */
typedef struct bench_session {
    const bench_options *options;
    machine_info machine;
    machine_team *team; /* of the current number of threads */
    int team_threads;
    report report;
    int n_rows, rows_done; /* for the progress line */
    int n_failed;
} bench_session;

/* One combination of the lists. */
typedef struct bench_shape {
    head_counts heads;
    kv_types kv;
    int32_t head_dim, v_head_dim, batch, threads;
    int64_t context;
} bench_shape;

/* Calls `row` for every combination of the lists. */
void bench_each_shape(bench_session *session,
                      void (*row)(bench_session *session, const bench_shape *shape));
/* Makes session->team have `threads` threads. */
void bench_use_team(bench_session *session, int threads);

/* A configuration with the shape, thread count, ISA and soft cap of the row. */
void bench_config(const bench_session *session, const bench_shape *shape, macattn_config *cfg);
/* Dies with the reason unless the object can be made. */
macattn *bench_create(const macattn_config *cfg);

/* How many repetitions are enough. `spent_us` is the time measured so far. */
bool bench_enough(const bench_session *session, int64_t reps, double spent_us);
/* How far that is, from 0 to 1. */
double bench_share_done(const bench_session *session, int64_t reps, double spent_us);
void bench_step_progress(const bench_session *session, const char *what, int64_t rep,
                         double spent_us);

/* How many layers' buffers to rotate, so that a layer is out of the caches when its turn comes
 * again. `bytes` of one layer. */
int32_t bench_layers(const bench_session *session, size_t bytes);

/* Queries that `mac` remembers. Dies if the context is too short for that many, band included. */
int32_t bench_mac_ring(const bench_session *session, const bench_shape *shape);

/* Fields of a row that all benchmarks have. */
void bench_add_shape(cJSON *row, const bench_shape *shape);
void bench_add_times(cJSON *row, const char *prefix, const sample_list *us);

/* Columns of those fields, for tables that show them all. */
#define BENCH_SHAPE_COLUMNS           \
    {"heads", "heads", 7, 0},         \
    {"head_dim", "dim", 4, 0},        \
    {"kv", "kv", 9, 0},               \
    {"context", "context", 8, 0}
#define BENCH_TIME_COLUMNS            \
    {"us_median", "us", 10, 1},       \
    {"us_p10", "p10", 10, 1},         \
    {"us_p90", "p90", 10, 1}

/* ------------------------------------------------------------------------------------- check -- */

/* Largest difference from the float64 result, as a share of the largest float64 value. */
double bench_error(const float *out, const double *expected, int32_t n);
/* A kernel that passes is off by rounding; one that is wrong is off by far more. */
#define BENCH_TOLERANCE 1e-3
/* Peers round queries and sums to 16 or 8 bits. */
#define BENCH_PEER_TOLERANCE 1e-1

#endif /* MACATTN_TOOLS_BENCH_BENCH_H */
