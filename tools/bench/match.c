/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench match`: the search for the nearest remembered query.
 *
 * The public interface has no search of its own. It is measured as what a decode costs more with a
 * full ring than with a ring of one entry, everything else being the same (stream.h). */
#include "match.h"
#include "common/samples.h"
#include "common/say.h"
#include "stream.h"

static const report_column columns[] = {{"heads", "heads", 7, 0},
                                        {"head_dim", "dim", 4, 0},
                                        {"ring", "ring", 5, 0},
                                        {"threads", "threads", 7, 0},
                                        {"hit_ratio", "hits", 6, 3},
                                        {"us_median", "us", 9, 1},
                                        {"us_p10", "p10", 9, 1},
                                        {"us_p90", "p90", 9, 1},
                                        {"gbps", "GB/s", 7, 2},
                                        {"ceiling_share", "share", 6, 3},
                                        {0}};

static void match_row(bench_session *session, const bench_shape *shape, int32_t ring,
                      double hit_ratio)
{
    sample_list us = {0}, ceiling = {0};
    for (int i = 0; i < 5; i++) {
        sample_list_add(&ceiling, machine_read_gbps(session->team));
    }
    stream_match_times(session, shape, ring, hit_ratio, session->options->min_time * 1e6, &us);
    for (int i = 0; i < 5; i++) {
        sample_list_add(&ceiling, machine_read_gbps(session->team));
    }
    cJSON *row = report_row();
    bench_shape as_timed = *shape;
    as_timed.context = stream_match_tokens(session, ring);
    bench_add_shape(row, &as_timed);
    report_add_int(row, "ring", ring);
    report_add_real(row, "hit_ratio", hit_ratio);
    report_add_int(row, "reps", (int64_t)us.n);
    bench_add_times(row, "", &us);
    /* One byte a value. A search that stops early reads less. */
    double bytes = (double)ring * shape->heads.n_heads * shape->head_dim;
    double gbps = bytes / sample_list_median(&us) * 1e-3;
    report_add_int(row, "bytes", (int64_t)bytes);
    report_add_real(row, "gbps", gbps);
    report_add_real(row, "ceiling_gbps", sample_list_median(&ceiling));
    report_add_real(row, "ceiling_share", gbps / sample_list_median(&ceiling));
    const char *isa = session->options->isa;
    report_add_machine(row, &session->machine, isa ? isa : machine_isa());
    report_print(&session->report, row);
    sample_list_free(&us);
    sample_list_free(&ceiling);
}

static void match_shape(bench_session *session, const bench_shape *shape)
{
    const bench_options *o = session->options;
    for (int i = 0; i < o->ring.n; i++) {
        for (int j = 0; j < o->hit_ratio.n; j++) {
            match_row(session, shape, (int32_t)o->ring.values[i], o->hit_ratio.values[j]);
        }
    }
}

int bench_match(bench_session *session)
{
    session->report.columns = columns;
    bench_each_shape(session, match_shape);
    return EXIT_OK;
}
