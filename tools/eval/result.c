/* SPDX-License-Identifier: Apache-2.0 */
#include "result.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void eval_result_free(eval_result *r)
{
    metrics_free(&r->all);
    metrics_free(&r->first);
    metrics_free(&r->last);
    metrics_free(&r->floor);
    for (int i = 0; r->heads && i < r->n_layers * r->n_heads; i++) {
        sample_list_free(&r->heads[i].errors);
        sample_list_free(&r->heads[i].layer_errors);
    }
    free(r->heads);
    sample_list_free(&r->us);
    sample_list_free(&r->us_baseline);
    *r = (eval_result){0};
}

void eval_result_errors(const eval_result *r, bool of_layer, double *mean, double *p99, double *max)
{
    sample_list all = {0};
    for (int i = 0; i < r->n_layers * r->n_heads; i++) {
        const eval_head *head = &r->heads[i];
        const sample_list *errors = of_layer ? &head->layer_errors : &head->errors;
        for (size_t k = 0; k < errors->n; k++) {
            sample_list_add(&all, errors->values[k]);
        }
    }
    *mean = metrics_mean(&all);
    *p99 = sample_list_quantile(&all, 0.99);
    *max = metrics_max(&all);
    sample_list_free(&all);
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

double eval_result_groups(const eval_result *r, macattn_way way)
{
    uint64_t sum = 0;
    for (int i = 0; i < MACATTN_WAYS; i++) sum += r->groups[i];
    return share((double)r->groups[way], (double)sum);
}

double eval_result_skipped(const eval_result *r)
{
    return share((double)r->bytes.skipped, (double)r->bytes.far);
}

double eval_bytes_read(const macattn_ggml_bytes *bytes)
{
    const double rows = (double)bytes->total - (double)bytes->skipped;
    return share(rows + (double)(bytes->rings + bytes->runs), (double)bytes->total);
}

double eval_result_read(const eval_result *r)
{
    return eval_bytes_read(&r->bytes);
}

/* -------------------------------------------------------------------------------------- rows -- */

double eval_setting_value(const macattn_ggml_options *setting)
{
    switch (setting->policy) {
    case MACATTN_POLICY_PAPER: return (double)setting->tau;
    case MACATTN_POLICY_BUDGET: return (double)setting->budget;
    default: return (double)NAN;
    }
}

const report_column eval_columns[] = {
    {"policy", "policy", 6, 0},        {"setting", "setting", 7, 4},
    {"context", "context", 7, 0},      {"kl_mean", "KL mean", 9, 6},
    {"kl_p99", "p99", 8, 5},           {"kl_max", "max", 7, 4},
    {"top1_agreement", "top-1", 6, 4}, {"ppl_exact", "ppl exact", 9, 4},
    {"ppl_policy", "policy", 8, 4},    {"layer_error_mean", "error", 7, 4},
    {"layer_error_p99", "p99", 7, 4},  {"layer_error_max", "max", 7, 4},
    {"hit_ratio", "hits", 6, 4},       {"selected", "select", 6, 4},
    {"bytes_read", "read", 6, 4},      {NULL, NULL, 0, 0}};

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
    return metrics_mean(&head->layer_errors);
}

static double head_error_p99(const eval_head *head)
{
    return sample_list_quantile(&head->layer_errors, 0.99);
}

static double head_error_max(const eval_head *head)
{
    return metrics_max(&head->layer_errors);
}

/* Errors of single heads: where summaries were used, as audited, and of those that were refused. */
static void add_errors(cJSON *row, const eval_result *r)
{
    double mean, p99, max, own2 = 0.0, layer2 = 0.0;
    uint64_t refused = 0;
    eval_result_errors(r, false, &mean, &p99, &max);
    report_add_real(row, "rel_error_mean", mean);
    report_add_real(row, "rel_error_p99", p99);
    report_add_real(row, "rel_error_max", max);
    eval_result_errors(r, true, &mean, &p99, &max);
    report_add_real(row, "layer_error_mean", mean);
    report_add_real(row, "layer_error_p99", p99);
    report_add_real(row, "layer_error_max", max);
    for (int i = 0; i < r->n_layers * r->n_heads; i++) {
        refused += r->heads[i].refused;
        own2 += r->heads[i].refused_error2;
        layer2 += r->heads[i].refused_layer_error2;
    }
    report_add_int(row, "refused", (int64_t)refused);
    report_add_real(row, "refused_rel_error_rms", sqrt(share(own2, (double)refused)));
    report_add_real(row, "refused_layer_error_rms", sqrt(share(layer2, (double)refused)));
}

static void add_fidelity(cJSON *row, const eval_result *r)
{
    report_add_real(row, "kl_mean", metrics_kl_mean(&r->all));
    report_add_real(row, "kl_p99", sample_list_quantile(&r->all.kl, 0.99));
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
    add_errors(row, r);
}

static void add_saving(cJSON *row, const eval_result *r)
{
    report_add_real(row, "hit_ratio", eval_result_hit_ratio(r));
    report_add_real(row, "reused", eval_result_groups(r, MACATTN_REUSED));
    report_add_real(row, "selected", eval_result_groups(r, MACATTN_SELECTED));
    report_add_real(row, "exact", eval_result_groups(r, MACATTN_EXACT));
    report_add_real(row, "bytes_skipped", eval_result_skipped(r));
    report_add_real(row, "bytes_read", eval_result_read(r));
    report_add_int(row, "kv_bytes", (int64_t)r->bytes.total);
    report_add_int(row, "kv_bytes_far", (int64_t)r->bytes.far);
    report_add_int(row, "kv_bytes_skipped", (int64_t)r->bytes.skipped);
    report_add_int(row, "ring_bytes", (int64_t)r->bytes.rings);
    report_add_int(row, "run_bytes", (int64_t)r->bytes.runs);
    report_add_int(row, "restarts", (int64_t)r->changes);
    report_add_int(row, "left_to_ggml", (int64_t)r->left_to_ggml);
}

cJSON *eval_result_row(const eval_model *m, const eval_plan *plan,
                       const macattn_ggml_options *setting, const eval_result *r)
{
    cJSON *row = report_row();
    report_add_text(row, "policy", macattn_policy_name(setting->policy));
    report_add_real(row, "setting", eval_setting_value(setting));
    report_add_int(row, "context", plan->context);
    report_add_int(row, "ring", setting->ring);
    report_add_int(row, "band", setting->band);
    report_add_int(row, "fresh_tokens", setting->fresh_tokens);
    report_add_int(row, "lse_order", setting->lse_order);
    report_add_int(row, "select", setting->select);
    report_add_int(row, "min_tokens", setting->min_tokens);
    report_add_int(row, "head_budgets", setting->budget_scale != NULL);
    report_add_text(row, "mode", plan->free_run ? "free-run" : "teacher-forced");
    report_add_int(row, "chat", plan->chat);
    report_add_text(row, "baseline", plan->ggml_baseline ? "ggml" : "exact");
    report_add_int(row, "windows", r->n_windows);
    report_add_int(row, "tokens", (int64_t)r->all.kl.n);
    add_fidelity(row, r);
    add_saving(row, r);
    /* What an audit computes is no part of decoding. */
    report_add_real(row, "ms_per_token",
                    setting->audit_every ? (double)NAN : sample_list_median(&r->us) * 1e-3);
    report_add_real(row, "ms_per_token_baseline", sample_list_median(&r->us_baseline) * 1e-3);
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
