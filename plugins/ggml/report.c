/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "host.h"

enum { MAX_LAYERS = 1024 };

typedef struct layer_record {
    int group, layer;
    macattn_stats stats;
    uint64_t kv_bytes;
    report_audit audit;
} layer_record;

/* Contexts may end on different threads. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static layer_record layers[MAX_LAYERS];
static int n_layers;
static report_totals all;

static layer_record *find(int group, int layer)
{
    for (int i = 0; i < n_layers; i++) {
        if (layers[i].group == group && layers[i].layer == layer) return &layers[i];
    }
    if (n_layers == MAX_LAYERS) return NULL;
    layers[n_layers] = (layer_record){.group = group, .layer = layer};
    return &layers[n_layers++];
}

static void add_stats(macattn_stats *to, const macattn_stats *from)
{
    to->steps += from->steps;
    to->hits += from->hits;
    to->tokens_total += from->tokens_total;
    to->tokens_skipped += from->tokens_skipped;
    to->samples += from->samples;
    to->error2_layer += from->error2_layer;
    to->error2_head += from->error2_head;
    to->checks += from->checks;
    to->error2_selected += from->error2_selected;
    for (int way = 0; way < MACATTN_WAYS; way++) {
        to->groups[way] += from->groups[way];
        to->kv_bytes[way] += from->kv_bytes[way];
        to->run_bytes[way] += from->run_bytes[way];
        to->ring_bytes[way] += from->ring_bytes[way];
    }
}

void report_layer(int group, int layer, const macattn_stats *stats, uint64_t kv_bytes,
                  const report_audit *audit)
{
    pthread_mutex_lock(&lock);
    layer_record *r = find(group, layer);
    if (r) {
        add_stats(&r->stats, stats);
        r->kv_bytes += kv_bytes;
        r->audit.n += audit->n;
        r->audit.own_sum += audit->own_sum;
        r->audit.unit_sum += audit->unit_sum;
        r->audit.own_max = fmax(r->audit.own_max, audit->own_max);
        r->audit.unit_max = fmax(r->audit.unit_max, audit->unit_max);
    }
    pthread_mutex_unlock(&lock);
}

static void add_calls(report_calls *to, const report_calls *from)
{
    to->calls += from->calls;
    to->ns += from->ns;
}

void report_add(const report_totals *totals)
{
    pthread_mutex_lock(&lock);
    add_calls(&all.decode, &totals->decode);
    add_calls(&all.prefill, &totals->prefill);
    add_calls(&all.ggml, &totals->ggml);
    all.tracked.prompts += totals->tracked.prompts;
    all.tracked.changes += totals->tracked.changes;
    all.tracked.mismatches += totals->tracked.mismatches;
    all.tracked.rollbacks += totals->tracked.rollbacks;
    all.tracked.forks += totals->tracked.forks;
    if (totals->memory.rings > all.memory.rings) all.memory = totals->memory;
    pthread_mutex_unlock(&lock);
}

static void write_calls(FILE *f, const char *name, const report_calls *calls)
{
    fprintf(f, "  \"%s\": {\"calls\": %" PRIu64 ", \"ms\": %.3f},\n", name, calls->calls,
            (double)calls->ns * 1e-6);
}

/* Mean of n, 0 of none. */
static double mean(double sum, uint64_t n)
{
    return n > 0 ? sum / (double)n : 0.0;
}

static uint64_t of_all_ways(const uint64_t *counts)
{
    uint64_t sum = 0;
    for (int way = 0; way < MACATTN_WAYS; way++) sum += counts[way];
    return sum;
}

/* K and V, rings and runs. */
static double read_share(const macattn_stats *s, uint64_t kv_bytes)
{
    const uint64_t read =
        of_all_ways(s->kv_bytes) + of_all_ways(s->ring_bytes) + of_all_ways(s->run_bytes);
    return kv_bytes > 0 ? (double)read / (double)kv_bytes : 0.0;
}

/* (row, KV head) pairs by how they came to their results. */
static void write_groups(FILE *f, const macattn_stats *s)
{
    fprintf(f, "\"reused\": %" PRIu64 ", \"selected\": %" PRIu64 ", \"exact\": %" PRIu64,
            s->groups[MACATTN_REUSED], s->groups[MACATTN_SELECTED], s->groups[MACATTN_EXACT]);
}

/* Errors have two units: the head's own output, and that of the layer's heads. */
static void write_layer(FILE *f, const layer_record *r, const char *end)
{
    const report_audit *a = &r->audit;
    const macattn_stats *s = &r->stats;
    fprintf(f,
            "    {\"group\": %d, \"layer\": %d, \"steps\": %" PRIu64 ", \"hits\": %" PRIu64
            ", \"tokens_total\": %" PRIu64 ", \"tokens_skipped\": %" PRIu64 ", ",
            r->group, r->layer, s->steps, s->hits, s->tokens_total, s->tokens_skipped);
    write_groups(f, s);
    fprintf(f,
            ", \"bytes_read_share\": %.6f, \"audited\": %" PRIu64
            ", \"error_mean\": %.6g, \"error_max\": %.6g, \"layer_error_mean\": %.6g, "
            "\"layer_error_max\": %.6g",
            read_share(s, r->kv_bytes), a->n, mean(a->own_sum, a->n), a->own_max,
            mean(a->unit_sum, a->n), a->unit_max);
    fprintf(f,
            ", \"refused\": %" PRIu64 ", \"refused_error_rms\": %.6g"
            ", \"refused_layer_error_rms\": %.6g, \"checked\": %" PRIu64
            ", \"selected_layer_error_rms\": %.6g}%s\n",
            s->samples, sqrt(mean(s->error2_head, s->samples)),
            sqrt(mean(s->error2_layer, s->samples)), s->checks,
            sqrt(mean(s->error2_selected, s->checks)), end);
}

static void write_sequences(FILE *f)
{
    const tracker_counts *t = &all.tracked;
    fprintf(f,
            "  \"sequences\": {\"prompts\": %" PRIu64 ", \"changes\": %" PRIu64
            ", \"mismatches\": %" PRIu64 ", \"rollbacks\": %" PRIu64 ", \"forks\": %" PRIu64 "},\n",
            t->prompts, t->changes, t->mismatches, t->rollbacks, t->forks);
    fprintf(f, "  \"bytes_a_sequence\": {\"rings\": %" PRIu64 ", \"runs\": %" PRIu64 "},\n",
            all.memory.rings, all.memory.runs);
}

static void write_all(FILE *f, const plugin_settings *settings)
{
    macattn_stats sum = {.struct_size = sizeof sum};
    uint64_t kv_bytes = 0;
    for (int i = 0; i < n_layers; i++) {
        add_stats(&sum, &layers[i].stats);
        kv_bytes += layers[i].kv_bytes;
    }
    fprintf(f, "{\n  \"version\": \"%s\",\n  \"ggml\": \"%s\",\n  \"policy\": \"%s\",\n",
            macattn_version(), MACATTN_GGML_VERSION, macattn_policy_name(settings->config.policy));
    write_calls(f, "decode", &all.decode);
    write_calls(f, "prefill", &all.prefill);
    write_calls(f, "left_to_ggml", &all.ggml);
    write_sequences(f);
    fprintf(f,
            "  \"steps\": %" PRIu64 ",\n  \"hits\": %" PRIu64 ",\n  \"hit_ratio\": %.6f,\n"
            "  \"tokens_skipped_share\": %.6f,\n  \"groups\": {",
            sum.steps, sum.hits, mean((double)sum.hits, sum.steps),
            mean((double)sum.tokens_skipped, sum.tokens_total));
    write_groups(f, &sum);
    fprintf(f, "},\n  \"bytes_read_share\": %.6f,\n  \"layers\": [\n", read_share(&sum, kv_bytes));
    for (int i = 0; i < n_layers; i++) write_layer(f, &layers[i], i + 1 < n_layers ? "," : "");
    fprintf(f, "  ]\n}\n");
}

void report_write(const plugin_settings *settings)
{
    if (!settings->stats_path) return;
    pthread_mutex_lock(&lock);
    if (strcmp(settings->stats_path, "-") == 0) {
        write_all(stderr, settings);
    } else {
        FILE *f = fopen(settings->stats_path, "w");
        if (f) {
            write_all(f, settings);
            fclose(f);
        } else {
            host_say("cannot write MACATTN_STATS=%s: %s", settings->stats_path, strerror(errno));
        }
    }
    pthread_mutex_unlock(&lock);
}
