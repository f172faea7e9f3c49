/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn eval --tasks`: the score of long-context tasks with full attention and with a policy, on
 * the same samples.
 *
 * The prompt is computed once; the answer is then written twice from there, greedily: with exact
 * attention, and with the policy. Samples that share a context (tasks.h) share its computation,
 * and their questions are decoded under the policy as well. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/parse.h"
#include "common/say.h"
#include "metrics.h"
#include "score.h"
#include "session.h"
#include "tasks/longbench.h"
#include "tasks/options.h"
#include "tasks/scoring.h"

#define LONGBENCH_TOKENS 120000 /* of a prompt; more are cut from its middle */

/* ----------------------------------------------------------------------------------- answers -- */

typedef struct scoring {
    const eval_common *common;
    const tasks_common *tasks;
    eval_model *model;
    macattn_ggml_options exact, policy;
    const task *of;
    int64_t context; /* whose prompt is computed; -1: none */
    int32_t *tail;   /* tokens that follow the prompt, up to the answer */
    size_t n_tail;
} scoring;

static int64_t count_tokens(void *user, const char *s)
{
    size_t n;
    int32_t *tokens = eval_model_tokenize(user, s, strlen(s), &n);
    free(tokens);
    return (int64_t)n + (eval_model_first_token(user) >= 0);
}

/* Compute what samples of the context share, or all but the last token; the rest becomes the
 * tail. */
static void compute_prompt(scoring *r, const task_sample *sample)
{
    text rest = {NULL, 0, 0};
    size_t n;
    const size_t shared = (size_t)sample->shared_bytes;
    text_add(&rest, sample->input + shared);
    text_add(&rest, sample->answer_prefix);
    free(r->tail);
    r->tail = eval_model_tokenize(r->model, rest.s, rest.n, &r->n_tail);
    text_free(&rest);
    if (shared > 0 && sample->context == r->context) return;
    const int32_t first = eval_model_first_token(r->model);
    int32_t *prompt = eval_model_tokenize(r->model, sample->input, shared, &n);
    int32_t *all = memory_alloc((n + r->n_tail + 1) * sizeof *all);
    int64_t count = 0;
    if (first >= 0) all[count++] = first;
    memcpy(all + count, prompt, n * sizeof *all);
    count += (int64_t)n;
    if (shared == 0) { /* the last token is the tail */
        memcpy(all + count, r->tail, r->n_tail * sizeof *all);
        count += (int64_t)r->n_tail;
        if (r->of->metric == TASK_CHOICE)
            count = task_truncate_middle(all, count, LONGBENCH_TOKENS);
        r->tail[0] = all[--count];
        r->n_tail = 1;
    }
    eval_model_prompt(r->model, all, count, &r->policy, false);
    r->context = shared > 0 ? sample->context : -1;
    free(prompt);
    free(all);
}

static char *answer(scoring *r, const macattn_ggml_options *options, int32_t gen_tokens)
{
    const int32_t vocab = eval_model_vocab(r->model);
    text t = {NULL, 0, 0};
    const float *logits = NULL;
    eval_model_rewind(r->model, options, false);
    for (size_t i = 0; i < r->n_tail; i++) logits = eval_model_step(r->model, r->tail[i], false);
    for (int32_t i = 0; i < gen_tokens; i++) {
        const int32_t token = metrics_argmax(logits, vocab);
        char piece[256];
        if (eval_model_is_end(r->model, token)) break;
        text_add_bytes(&t, piece, eval_model_piece(r->model, token, piece, sizeof piece));
        if (r->of->metric == TASK_FIRST_LINE && strchr(t.s, '\n')) break;
        if (i + 1 < gen_tokens) logits = eval_model_step(r->model, token, false);
    }
    eval_model_expect_computed(r->model);
    return text_take(&t);
}

/* -------------------------------------------------------------------------------------- rows -- */

static const report_column columns[] = {{"task", "task", 18, 0},
                                        {"samples", "n", 5, 0},
                                        {"tokens", "tokens", 7, 0},
                                        {"score_exact", "exact %", 8, 2},
                                        {"score_exact_margin", "+-", 6, 2},
                                        {"score_policy", "policy %", 8, 2},
                                        {"score_policy_margin", "+-", 6, 2},
                                        {"difference", "diff", 6, 2},
                                        {"difference_margin", "+-", 6, 2},
                                        {"answers_differ", "differ", 6, 0},
                                        {0}};

typedef struct task_result {
    double *exact, *policy, *difference;
    int64_t n, differ, left_out;
    double tokens;
} task_result;

static void add_summary(cJSON *row, const char *name, const double *scores, int64_t n)
{
    char margin_name[64];
    double mean, margin;
    task_summary(scores, n, &mean, &margin);
    snprintf(margin_name, sizeof margin_name, "%s_margin", name);
    report_add_real(row, name, mean);
    report_add_real(row, margin_name, margin);
}

static cJSON *make_row(const scoring *r, const task_result *result)
{
    cJSON *row = report_row();
    const double setting = eval_setting_value(&r->policy);
    report_add_text(row, "task", r->of->name);
    report_add_text(row, "policy", macattn_policy_name(r->policy.policy));
    report_add_real(row, "setting", setting);
    report_add_int(row, "length", r->tasks->length);
    report_add_int(row, "seed", r->tasks->seed);
    report_add_int(row, "samples", result->n);
    report_add_int(row, "left_out", result->left_out);
    report_add_real(row, "tokens",
                    result->n > 0 ? result->tokens / (double)result->n : (double)NAN);
    add_summary(row, "score_exact", result->exact, result->n);
    add_summary(row, "score_policy", result->policy, result->n);
    add_summary(row, "difference", result->difference, result->n);
    report_add_int(row, "answers_differ", result->differ);
    eval_model_describe(r->model, row);
    return row;
}

static void score_task(scoring *r, const task_options *o, report *table, FILE *json)
{
    const int64_t n = r->tasks->samples;
    task_result result = {.exact = memory_alloc((size_t)n * sizeof(double)),
                          .policy = memory_alloc((size_t)n * sizeof(double)),
                          .difference = memory_alloc((size_t)n * sizeof(double))};
    r->context = -1;
    for (int64_t i = 0; i < n; i++) {
        task_sample sample;
        char error[256];
        report_progress("%s: %lld of %lld", r->of->name, (long long)i, (long long)n);
        if (!task_generate(r->of, o, i, &sample, error, sizeof error)) {
            report_progress_clear();
            die(EXIT_FAILED, "eval: %s", error);
        }
        compute_prompt(r, &sample);
        char *exact = answer(r, &r->exact, sample.gen_tokens);
        char *policy = answer(r, &r->policy, sample.gen_tokens);
        result.differ += strcmp(exact, policy) != 0;
        if (r->of->metric == TASK_CHOICE && (*exact == '\0' || *policy == '\0')) {
            result.left_out++;
        } else {
            result.exact[result.n] = task_score(r->of, &sample, exact);
            result.policy[result.n] = task_score(r->of, &sample, policy);
            result.difference[result.n] = result.policy[result.n] - result.exact[result.n];
            result.tokens += (double)sample.length;
            result.n++;
        }
        free(exact), free(policy);
        task_sample_free(&sample);
    }
    report_progress_clear();
    cJSON *row = make_row(r, &result);
    if (json) eval_write_row(json, r->common->json, row);
    report_print(table, row);
    free(result.exact), free(result.policy), free(result.difference);
}

/* The most tokens that a sample may have with its answer. */
static int64_t room_for(const tasks_common *c)
{
    int64_t most = c->length;
    for (int i = 0; i < c->n; i++) {
        const task *t = c->tasks[i];
        int64_t own = t->increment == 0 ? c->length + t->gen_tokens : c->length;
        if (t->metric == TASK_CHOICE) own = LONGBENCH_TOKENS + t->gen_tokens;
        most = own > most ? own : most;
    }
    return most + 64;
}

static FILE *open_rows(const eval_common *common)
{
    FILE *json = common->json ? fopen(common->json, "w") : NULL;
    if (common->json && !json) {
        die(EXIT_FAILED, "cannot write %s: %s", common->json, strerror(errno));
    }
    return json;
}

/* The plug-in's settings with what the command line says, and exact attention like them. */
static void make_settings(scoring *r)
{
    const setting_options *s = &r->common->settings;
    macattn_ggml_options *o = &r->policy;
    *o = eval_model_options(r->model);
    eval_common_apply(r->common, o);
    o->policy = (macattn_policy)setting_options_value(s, OPTION_POLICY, MACATTN_POLICY_BUDGET);
    o->tau = (float)setting_options_value(s, OPTION_TAU, (double)o->tau);
    o->budget = (float)setting_options_value(s, OPTION_BUDGET, (double)o->budget);
    if (s->values[OPTION_BAND].n == 0) o->band = MACATTN_DEFAULT_BAND(o->policy);
    o->audit_every = 0;
    r->exact = *o;
    r->exact.policy = MACATTN_POLICY_EXACT;
}

void eval_score(const eval_common *common, tasks_common *tasks)
{
    scoring r = {.common = common, .tasks = tasks};
    tasks_common_load(tasks, "eval", 20);
    FILE *json = open_rows(common);
    const eval_model_config config = {.model = common->model,
                                      .plugin = common->plugin,
                                      .kv = eval_common_kv(common),
                                      .n_threads = eval_common_threads(common),
                                      .n_tokens = room_for(tasks)};
    r.model = eval_model_open(&config);
    make_settings(&r);
    const task_options o = tasks_common_options(tasks, (task_counter){count_tokens, r.model});
    report table = {.columns = columns};
    for (int i = 0; i < tasks->n; i++) {
        r.of = tasks->tasks[i];
        score_task(&r, &o, &table, json);
    }
    if (json && fclose(json) != 0) {
        die(EXIT_FAILED, "cannot write %s: %s", common->json, strerror(errno));
    }
    free(r.tail);
    tasks_common_free(tasks);
    eval_model_close(r.model);
}
