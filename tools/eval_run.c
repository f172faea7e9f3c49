/* SPDX-License-Identifier: Apache-2.0 */
#include "eval_run.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ------------------------------------------------------------------------------------ settings -- */

static const char *const policy_names[] = {[MACATTN_POLICY_EXACT] = "exact",
                                           [MACATTN_POLICY_PAPER] = "paper",
                                           [MACATTN_POLICY_BUDGET] = "budget"};

const char *eval_policy_name(macattn_policy policy)
{
    return policy_names[policy];
}

bool eval_parse_policy(const char *name, macattn_policy *policy)
{
    for (size_t i = 0; i < sizeof policy_names / sizeof policy_names[0]; i++) {
        if (strcmp(name, policy_names[i]) == 0) {
            *policy = (macattn_policy)i;
            return true;
        }
    }
    return false;
}

double eval_setting_value(const macattn_ggml_options *setting)
{
    switch (setting->policy) {
    case MACATTN_POLICY_PAPER: return (double)setting->tau;
    case MACATTN_POLICY_BUDGET: return (double)setting->budget;
    default: return (double)NAN;
    }
}

/* -------------------------------------------------------------------------------------- logits -- */

/* Logits of many positions: for large vocabularies more than fits in memory, so in a file without a
 * name. */
typedef struct logit_store {
    float *at;
    size_t bytes;
    int32_t vocab;
} logit_store;

static logit_store store_open(int64_t n, int32_t vocab)
{
    logit_store store = {.vocab = vocab, .bytes = (size_t)n * (size_t)vocab * sizeof(float)};
    FILE *f = tmpfile();
    if (!f || posix_fallocate(fileno(f), 0, (off_t)store.bytes) != 0) {
        tool_die(TOOL_FAILED, "no room for %zu bytes in the folder of temporary files",
                 store.bytes);
    }
    void *at = mmap(NULL, store.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f), 0);
    if (at == MAP_FAILED) {
        tool_die(TOOL_FAILED, "out of memory (%zu bytes)", store.bytes);
    }
    fclose(f); /* the mapping keeps it */
    store.at = at;
    return store;
}

static float *store_row(const logit_store *store, int64_t i)
{
    return store->at + (size_t)i * (size_t)store->vocab;
}

static void store_close(logit_store *store)
{
    munmap(store->at, store->bytes);
}

/* -------------------------------------------------------------------------------------- passes -- */

/* One window's measurement. */
typedef struct run {
    eval_model *m;
    const eval_plan *plan;
    const int32_t *prompt;
    int32_t *tokens; /* [n_tokens + 1] from the prompt's end on */
    logit_store baseline, policy;
} run;

/* Compute the tokens after the prompt under `options`, and keep all logits. */
static void pass(run *r, const macattn_ggml_options *options, bool by_ggml, bool writes,
                 logit_store *store, tool_samples *us)
{
    const size_t row = (size_t)store->vocab * sizeof(float);
    tool_rng rng = {.state = r->plan->seed};
    eval_model_rewind(r->m, options, by_ggml);
    for (int64_t i = 0; i < r->plan->n_tokens; i++) {
        if (i % 16 == 0) {
            report_progress("%s, %s: %lld of %lld tokens", r->plan->what,
                            by_ggml ? "ggml" : eval_policy_name(options->policy), (long long)i,
                            (long long)r->plan->n_tokens);
        }
        const double start = tool_now_us();
        const float *logits = eval_model_step(r->m, r->tokens[i], by_ggml);
        tool_samples_add(us, tool_now_us() - start);
        memcpy(store_row(store, i), logits, row);
        if (writes) {
            r->tokens[i + 1] = eval_draw(r->m, logits, r->plan->temperature, &rng);
        }
    }
}

static void pass_baseline(run *r, const macattn_ggml_options *like, tool_samples *us)
{
    macattn_ggml_options options = *like;
    options.policy = MACATTN_POLICY_EXACT;
    options.audit_every = options.count_bytes = 0;
    pass(r, &options, r->plan->ggml_baseline, false, &r->baseline, us);
}

static metrics_step compare_at(const run *r, int64_t i)
{
    return metrics_compare(store_row(&r->baseline, i), store_row(&r->policy, i), r->baseline.vocab,
                           r->tokens[i + 1]);
}

const char *eval_other_isa(void)
{
    const char *best = NULL;
    for (int i = 0; macattn_isa_name(i); i++) {
        const char *name = macattn_isa_name(i);
        if (!macattn_isa_supported(name)) {
            continue;
        }
        if (!best) {
            best = name;
        } else if (strncmp(best, name, 4) != 0) { /* avx512vnni adds up as avx512 does */
            return name;
        }
    }
    return NULL;
}

/* How far exact attention is from itself when only the order of its sums differs. A model whose weights
 * are quantised rounds its activations coarsely, so that this is not nothing. */
static void measure_floor(run *r, const macattn_ggml_options *like, eval_result *results,
                          int n_results)
{
    macattn_ggml_options options = *like;
    tool_samples us = {0};
    options.policy = MACATTN_POLICY_EXACT;
    options.isa = eval_other_isa();
    options.audit_every = options.count_bytes = 0;
    pass(r, &options, false, false, &r->policy, &us);
    tool_samples_free(&us);
    for (int64_t i = 0; i < r->plan->n_tokens; i++) {
        const metrics_step step = compare_at(r, i);
        for (int k = 0; k < n_results; k++) {
            metrics_add(&results[k].floor, &step);
        }
    }
}

static void note_audit(void *user, int32_t layer, int32_t head, double error)
{
    eval_result *result = user;
    tool_samples_add(&result->heads[layer * result->n_heads + head].errors, error);
}

static macattn_ggml_layer layer_of(const eval_model *m, int32_t l)
{
    macattn_ggml_layer layer = {.struct_size = sizeof layer};
    eval_model_plugin(m)->layer(eval_model_attention(m), l, &layer);
    return layer;
}

static void make_heads(const eval_model *m, eval_result *result)
{
    result->n_layers = eval_model_plugin(m)->n_layers(eval_model_attention(m));
    bool reuses = false;
    for (int l = 0; l < result->n_layers; l++) {
        const macattn_ggml_layer layer = layer_of(m, l);
        reuses = reuses || layer.reuses;
        result->n_heads = layer.n_heads > result->n_heads ? layer.n_heads : result->n_heads;
    }
    if (!reuses) {
        tool_die(TOOL_FAILED,
                 "no layer of %s can reuse anything in llama.cpp: its queries before "
                 "RoPE, or its cache's cells, cannot be had (docs/llama.cpp.md)",
                 eval_model_name(m));
    }
    result->heads =
        tool_alloc((size_t)result->n_layers * (size_t)result->n_heads * sizeof *result->heads);
}

/* What the plug-in counted since the rewind. */
static void take_counts(const eval_model *m, const macattn_ggml_options *setting,
                        eval_result *result)
{
    const macattn_ggml_interface *plugin = eval_model_plugin(m);
    macattn_ggml *attention = eval_model_attention(m);
    for (int l = 0; l < result->n_layers; l++) {
        const macattn_ggml_layer layer = layer_of(m, l);
        macattn_ggml_bytes bytes = {0};
        plugin->bytes(attention, l, &bytes);
        result->bytes.total += bytes.total;
        result->bytes.far += bytes.far;
        result->bytes.skipped += bytes.skipped;
        for (int h = 0; h < layer.n_heads; h++) {
            macattn_stats stats = {.struct_size = sizeof stats};
            plugin->stats(attention, l, h, &stats);
            result->heads[l * result->n_heads + h].steps += stats.steps;
            result->heads[l * result->n_heads + h].hits += stats.hits;
            if (setting->policy != MACATTN_POLICY_EXACT) {
                /* One byte a value of every remembered query, once the ring is full. */
                result->search_bytes +=
                    stats.steps * (uint64_t)setting->ring * (uint64_t)layer.head_dim;
            }
        }
    }
    macattn_ggml_counts counts = {.struct_size = sizeof counts};
    plugin->counts(attention, &counts);
    result->left_to_ggml += counts.left_to_ggml;
    result->changes += counts.changes + counts.mismatches;
}

static void compare(const run *r, eval_result *result)
{
    const int64_t n = r->plan->n_tokens;
    for (int64_t i = 0; i < n; i++) {
        const metrics_step step = compare_at(r, i);
        metrics_add(&result->all, &step);
        if (i < result->n_edge) {
            metrics_add(&result->first, &step);
        }
        if (i >= n - result->n_edge) {
            metrics_add(&result->last, &step);
        }
    }
}

static void measure(run *r, const macattn_ggml_options *setting, eval_result *result)
{
    macattn_ggml_options options = *setting;
    if (!result->heads) {
        make_heads(r->m, result);
        result->n_edge = r->plan->n_tokens / 2 < 512 ? r->plan->n_tokens / 2 : 512;
    }
    options.count_bytes = 1;
    options.on_audit = note_audit;
    options.audit_user = result;
    pass(r, &options, false, r->plan->free_run, &r->policy, &result->us);
    take_counts(r->m, &options, result);
    if (r->plan->free_run) {
        pass_baseline(r, setting, &result->us_baseline);
    }
    compare(r, result);
    result->n_windows++;
}

/* ------------------------------------------------------------------------------------- windows -- */

static bool same_prompt(const macattn_ggml_options *a, const macattn_ggml_options *b)
{
    return a->ring == b->ring && a->band == b->band && a->min_tokens == b->min_tokens;
}

/* What one prompt's settings are compared with. The prompt is computed by parts that depend on ring and
 * band, and so rounds differently: every prompt has a baseline of its own. */
static void measure_baseline(run *r, const macattn_ggml_options *settings, int first,
                             int n_settings, eval_result *results)
{
    tool_samples us = {0};
    pass_baseline(r, &settings[first], &us);
    for (int i = first; i < n_settings; i++) {
        for (size_t k = 0; k < us.n && same_prompt(&settings[i], &settings[first]); k++) {
            tool_samples_add(&results[i].us_baseline, us.values[k]);
        }
    }
    tool_samples_free(&us);
    if (first == 0 && !r->plan->ggml_baseline && eval_other_isa()) {
        measure_floor(r, &settings[first], results, n_settings);
    }
}

/* The settings from `first` on whose prompt is that of `first`, unless an earlier one's was. */
static void run_settings(run *r, const macattn_ggml_options *settings, int first, int n_settings,
                         eval_result *results)
{
    for (int i = 0; i < first; i++) {
        if (same_prompt(&settings[i], &settings[first])) {
            return;
        }
    }
    macattn_ggml_options options = settings[first];
    options.policy = MACATTN_POLICY_PAPER; /* what a prompt leaves is the same for all that reuse */
    options.audit_every = 0;
    eval_model_prompt(r->m, r->prompt, r->plan->context, &options, false);
    if (!r->plan->free_run) { /* there, every setting writes a text of its own */
        measure_baseline(r, settings, first, n_settings, results);
    }
    for (int i = first; i < n_settings; i++) {
        if (same_prompt(&settings[i], &settings[first])) {
            measure(r, &settings[i], &results[i]);
        }
    }
}

void eval_run_window(eval_model *m, const eval_plan *plan, const eval_window *window,
                     const macattn_ggml_options *settings, int n_settings, eval_result *results)
{
    const size_t n = (size_t)plan->n_tokens + 1;
    run r = {.m = m, .plan = plan, .prompt = window->tokens};
    r.tokens = tool_alloc(n * sizeof *r.tokens);
    memcpy(r.tokens, window->tokens + plan->context, n * sizeof *r.tokens);
    r.baseline = store_open(plan->n_tokens, eval_model_vocab(m));
    r.policy = store_open(plan->n_tokens, eval_model_vocab(m));
    if (plan->ggml_baseline) {
        eval_model_prompt(m, window->tokens, plan->context, NULL, true);
    }
    for (int i = 0; i < n_settings; i++) {
        run_settings(&r, settings, i, n_settings, results);
    }
    store_close(&r.baseline);
    store_close(&r.policy);
    free(r.tokens);
    report_progress_clear();
}

/* ------------------------------------------------------------------------------------- results -- */

void eval_result_free(eval_result *r)
{
    metrics_free(&r->all);
    metrics_free(&r->first);
    metrics_free(&r->last);
    metrics_free(&r->floor);
    for (int i = 0; r->heads && i < r->n_layers * r->n_heads; i++) {
        tool_samples_free(&r->heads[i].errors);
    }
    free(r->heads);
    tool_samples_free(&r->us);
    tool_samples_free(&r->us_baseline);
    *r = (eval_result){0};
}

void eval_result_errors(const eval_result *r, double *mean, double *p99, double *max)
{
    tool_samples all = {0};
    for (int i = 0; i < r->n_layers * r->n_heads; i++) {
        for (size_t k = 0; k < r->heads[i].errors.n; k++) {
            tool_samples_add(&all, r->heads[i].errors.values[k]);
        }
    }
    *mean = metrics_mean(&all);
    *p99 = tool_samples_quantile(&all, 0.99);
    *max = metrics_max(&all);
    tool_samples_free(&all);
}

static double share(double part, double whole)
{
    return whole > 0.0 ? part / whole : (double)NAN;
}

/* Steps of the policy exact are not counted by the library: nothing hit. */
double eval_result_hit_ratio(const eval_result *r)
{
    uint64_t steps = 0, hits = 0;
    for (int i = 0; i < r->n_layers * r->n_heads; i++) {
        steps += r->heads[i].steps;
        hits += r->heads[i].hits;
    }
    return steps > 0 ? (double)hits / (double)steps : 0.0;
}

double eval_result_skipped(const eval_result *r)
{
    return share((double)r->bytes.skipped, (double)r->bytes.far);
}

double eval_result_saved(const eval_result *r)
{
    return share((double)r->bytes.skipped - (double)r->search_bytes, (double)r->bytes.total);
}

/* --------------------------------------------------------------------------------------- rows -- */

const report_column eval_columns[] = {
    {"policy", "policy", 6, 0},        {"setting", "setting", 7, 4},
    {"context", "context", 7, 0},      {"kl_mean", "KL mean", 9, 6},
    {"kl_p99", "p99", 8, 5},           {"kl_max", "max", 7, 4},
    {"top1_agreement", "top-1", 6, 4}, {"ppl_exact", "ppl exact", 9, 4},
    {"ppl_policy", "policy", 8, 4},    {"rel_error_mean", "error", 7, 4},
    {"rel_error_p99", "p99", 7, 4},    {"rel_error_max", "max", 7, 4},
    {"hit_ratio", "hits", 6, 4},       {"bytes_skipped", "skipped", 7, 4},
    {"bytes_saved", "saved", 7, 4},    {NULL, NULL, 0, 0}};

/* [[of each head] of each layer] */
static void add_grid(cJSON *row, const char *field, const eval_result *r,
                     double (*value)(const eval_head *head))
{
    cJSON *grid = cJSON_AddArrayToObject(row, field);
    for (int l = 0; grid && l < r->n_layers; l++) {
        cJSON *line = cJSON_CreateArray();
        cJSON_AddItemToArray(grid, line);
        for (int h = 0; h < r->n_heads; h++) {
            const double x = value(&r->heads[l * r->n_heads + h]);
            char text[32];
            snprintf(text, sizeof text, "%.4g", x);
            cJSON_AddItemToArray(line, !isfinite(x) ? cJSON_CreateNull() : cJSON_CreateRaw(text));
        }
    }
}

static double head_hits(const eval_head *head)
{
    return share((double)head->hits, (double)head->steps);
}

static double head_error_mean(const eval_head *head)
{
    return metrics_mean(&head->errors);
}

static double head_error_p99(const eval_head *head)
{
    return tool_samples_quantile(&head->errors, 0.99);
}

static double head_error_max(const eval_head *head)
{
    return metrics_max(&head->errors);
}

static void add_fidelity(cJSON *row, const eval_result *r)
{
    report_add_real(row, "kl_mean", metrics_kl_mean(&r->all));
    report_add_real(row, "kl_p99", tool_samples_quantile(&r->all.kl, 0.99));
    report_add_real(row, "kl_max", metrics_kl_max(&r->all));
    report_add_real(row, "kl_first", metrics_kl_mean(&r->first));
    report_add_real(row, "kl_last", metrics_kl_mean(&r->last));
    report_add_real(row, "kl_floor", metrics_kl_mean(&r->floor));
    report_add_real(row, "top1_floor", metrics_agreement(&r->floor));
    report_add_int(row, "edge_tokens", r->n_edge);
    report_add_real(row, "top1_agreement", metrics_agreement(&r->all));
    report_add_real(row, "top1_margin_max", metrics_margin_max(&r->all));
    report_add_real(row, "ppl_exact", metrics_ppl_exact(&r->all));
    report_add_real(row, "ppl_policy", metrics_ppl_policy(&r->all));
    report_add_real(row, "ppl_difference",
                    metrics_ppl_policy(&r->all) - metrics_ppl_exact(&r->all));
    double mean, p99, max;
    eval_result_errors(r, &mean, &p99, &max);
    report_add_real(row, "rel_error_mean", mean);
    report_add_real(row, "rel_error_p99", p99);
    report_add_real(row, "rel_error_max", max);
}

static void add_saving(cJSON *row, const eval_result *r)
{
    report_add_real(row, "hit_ratio", eval_result_hit_ratio(r));
    report_add_real(row, "bytes_skipped", eval_result_skipped(r));
    report_add_real(row, "bytes_saved", eval_result_saved(r));
    report_add_int(row, "kv_bytes", (int64_t)r->bytes.total);
    report_add_int(row, "kv_bytes_far", (int64_t)r->bytes.far);
    report_add_int(row, "kv_bytes_skipped", (int64_t)r->bytes.skipped);
    report_add_int(row, "search_bytes", (int64_t)r->search_bytes);
    report_add_int(row, "restarts", (int64_t)r->changes);
    report_add_int(row, "left_to_ggml", (int64_t)r->left_to_ggml);
}

cJSON *eval_result_row(const eval_model *m, const eval_plan *plan,
                       const macattn_ggml_options *setting, const eval_result *r)
{
    cJSON *row = report_row();
    report_add_text(row, "policy", eval_policy_name(setting->policy));
    report_add_real(row, "setting", eval_setting_value(setting));
    report_add_int(row, "context", plan->context);
    report_add_int(row, "ring", setting->ring);
    report_add_int(row, "band", setting->band);
    report_add_int(row, "min_tokens", setting->min_tokens);
    report_add_int(row, "head_budgets", setting->budget_scale != NULL);
    report_add_text(row, "mode", plan->free_run ? "free-run" : "teacher-forced");
    report_add_text(row, "baseline", plan->ggml_baseline ? "ggml" : "exact");
    report_add_int(row, "windows", r->n_windows);
    report_add_int(row, "tokens", (int64_t)r->all.kl.n);
    add_fidelity(row, r);
    add_saving(row, r);
    /* What an audit computes is no part of decoding. */
    report_add_real(row, "ms_per_token",
                    setting->audit_every ? (double)NAN : tool_samples_median(&r->us) * 1e-3);
    report_add_real(row, "ms_per_token_baseline", tool_samples_median(&r->us_baseline) * 1e-3);
    report_add_int(row, "audit_every", setting->audit_every);
    add_grid(row, "per_layer_head", r, head_hits);
    add_grid(row, "per_layer_head_error_mean", r, head_error_mean);
    add_grid(row, "per_layer_head_error_p99", r, head_error_p99);
    add_grid(row, "per_layer_head_error_max", r, head_error_max);
    eval_model_describe(m, row);
    return row;
}

void eval_print_heads(const eval_result *r)
{
    printf("  hits in per cent / mean error of those, by layer (down) and head\n");
    for (int l = 0; l < r->n_layers; l++) {
        printf("  %3d ", l);
        for (int h = 0; h < r->n_heads; h++) {
            const eval_head *head = &r->heads[l * r->n_heads + h];
            const double hits = head_hits(head), error = head_error_mean(head);
            printf(" %3.0f/%-7.2g", isnan(hits) ? 0.0 : 100.0 * hits, isnan(error) ? 0.0 : error);
        }
        putchar('\n');
    }
}
