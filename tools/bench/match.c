/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench match`: the search for the nearest remembered query.
 *
 * The public interface has no search of its own. It is measured as what a decode costs more with a
 * full ring than with a ring of one entry, everything else being the same (stream.h). */
#include "match.h"
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

static void match_row(bench_run *run, const bench_shape *shape, int32_t ring, double hit_ratio)
{
    tool_samples us = {0}, ceiling = {0};
    for (int i = 0; i < 5; i++) {
        tool_samples_add(&ceiling, machine_read_gbps(run->team));
    }
    stream_match_times(run, shape, ring, hit_ratio, run->options->min_time * 1e6, &us);
    for (int i = 0; i < 5; i++) {
        tool_samples_add(&ceiling, machine_read_gbps(run->team));
    }
    cJSON *row = report_row();
    bench_add_shape(row, shape);
    report_add_int(row, "ring", ring);
    report_add_real(row, "hit_ratio", hit_ratio);
    report_add_int(row, "reps", (int64_t)us.n);
    bench_add_times(row, "", &us);
    /* One byte a value. A search that stops early reads less. */
    double bytes = (double)ring * shape->heads.n_heads * shape->head_dim;
    double gbps = bytes / tool_samples_median(&us) * 1e-3;
    report_add_int(row, "bytes", (int64_t)bytes);
    report_add_real(row, "gbps", gbps);
    report_add_real(row, "ceiling_gbps", tool_samples_median(&ceiling));
    report_add_real(row, "ceiling_share", gbps / tool_samples_median(&ceiling));
    report_add_machine(row, &run->machine, run->options->isa ? run->options->isa : "best");
    report_print(&run->report, row);
    tool_samples_free(&us);
    tool_samples_free(&ceiling);
}

static void match_shape(bench_run *run, const bench_shape *shape)
{
    const bench_options *o = run->options;
    for (int i = 0; i < o->ring.n; i++) {
        for (int j = 0; j < o->hit_ratio.n; j++) {
            match_row(run, shape, (int32_t)o->ring.values[i], o->hit_ratio.values[j]);
        }
    }
}

int bench_match(bench_run *run)
{
    run->report.columns = columns;
    bench_each_shape(run, match_shape);
    return TOOL_OK;
}
