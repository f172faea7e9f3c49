/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn eval --tasks`: the score of long-context tasks with full attention and with a policy, on
 * the same samples.
 *
 * The prompt is computed once; the answer is then written twice from there, greedily: with the
 * policy, and with exact attention. Samples that share a context (tasks.h) share its computation,
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
    eval_chat chat; /* around a sample's input; the answer's prefix is the model's */
    macattn_ggml_options exact, policy;
    const task *of;
    int64_t context; /* whose prompt is computed; -1: none */
    int32_t *prompt;
    bool just_computed; /* and nothing since */
    int32_t *tail;      /* tokens that follow the prompt, up to the answer */
    size_t n_tail;
} scoring;

static int64_t count_tokens(void *user, const char *s)
{
    const scoring *r = user;
    size_t n;
    int32_t *tokens = eval_model_tokenize(r->model, s, strlen(s), false, &n);
    free(tokens);
    return (int64_t)n + eval_chat_tokens(&r->chat);
}

static void add_tokens(scoring *r, const int32_t *tokens, size_t n)
{
    int32_t *tail = realloc(r->tail, (r->n_tail + n + 1) * sizeof *tail);
    if (!tail) die(EXIT_FAILED, "out of memory");
    memcpy(tail + r->n_tail, tokens, n * sizeof *tail);
    r->tail = tail;
    r->n_tail += n;
}

static void add_text(scoring *r, const char *s)
{
    size_t n;
    int32_t *tokens = eval_model_tokenize(r->model, s, strlen(s), false, &n);
    add_tokens(r, tokens, n);
    free(tokens);
}

/* What comes behind what samples share: in a chat the answer's prefix is a text of its own. */
static void make_tail(scoring *r, const task_sample *sample)
{
    const char *input = sample->input + sample->shared_bytes, *prefix = sample->answer_prefix;
    r->n_tail = 0;
    if (r->chat.n_after > 0) {
        add_text(r, input);
        add_tokens(r, r->chat.after, r->chat.n_after);
        add_text(r, prefix + strspn(prefix, " "));
        return;
    }
    text both = {NULL, 0, 0};
    text_add(&both, input);
    text_add(&both, prefix);
    add_text(r, both.s);
    text_free(&both);
}

/* Compute what samples of the context share, or all but the last token; the rest becomes the
 * tail. What the policy learns of a prompt is not kept for a second question to it: that is shown
 * it again. */
static void compute_prompt(scoring *r, const task_sample *sample)
{
    const size_t shared = (size_t)sample->shared_bytes, before = r->chat.n_before;
    size_t n;
    make_tail(r, sample);
    if (shared > 0 && sample->context == r->context) return;
    int32_t *prompt = eval_model_tokenize(r->model, sample->input, shared, false, &n);
    int32_t *all = memory_alloc((before + n + r->n_tail + 1) * sizeof *all);
    memcpy(all, r->chat.before, before * sizeof *all);
    memcpy(all + before, prompt, n * sizeof *all);
    int64_t count = (int64_t)(before + n);
    if (shared == 0) { /* the last token is the tail */
        memcpy(all + count, r->tail, r->n_tail * sizeof *all);
        count += (int64_t)r->n_tail;
        if (r->of->metric == TASK_CHOICE)
            count = task_truncate_middle(all, count, LONGBENCH_TOKENS);
        r->tail[0] = all[--count];
        r->n_tail = 1;
    }
    eval_model_prompt(r->model, all, count, &r->policy, shared > 0 ? EVAL_TEACHING : 0, false);
    r->context = shared > 0 ? sample->context : -1;
    r->just_computed = true;
    free(r->prompt);
    r->prompt = all;
    free(prompt);
}

static char *answer(scoring *r, const macattn_ggml_options *options, int32_t gen_tokens)
{
    const int32_t vocab = eval_model_vocab(r->model);
    text t = {NULL, 0, 0};
    const float *logits = NULL;
    if (r->just_computed) {
        eval_model_begin(r->model, options);
    } else {
        eval_model_rewind(r->model, options, false);
    }
    r->just_computed = false;
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
                                        {"bytes_read", "read", 6, 4},
                                        {0}};

typedef struct task_result {
    double *exact, *policy, *difference;
    int64_t n, differ, left_out;
    double tokens;
    macattn_ggml_bytes bytes; /* under the policy */
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

static void add_settings(cJSON *row, const macattn_ggml_options *o)
{
    report_add_int(row, "ring", o->ring);
    report_add_int(row, "band", o->band);
    report_add_int(row, "fresh_tokens", o->fresh_tokens);
    report_add_int(row, "lse_order", o->lse_order);
    report_add_int(row, "select", o->select);
}

static void add_bytes(macattn_ggml_bytes *sum, const eval_model *m)
{
    const macattn_ggml_bytes bytes = eval_model_bytes(m);
    sum->total += bytes.total;
    sum->skipped += bytes.skipped;
    sum->rings += bytes.rings;
    sum->runs += bytes.runs;
}

static cJSON *make_row(const scoring *r, const task_result *result)
{
    cJSON *row = report_row();
    const double setting = eval_setting_value(&r->policy);
    report_add_text(row, "task", r->of->name);
    report_add_text(row, "policy", macattn_policy_name(r->policy.policy));
    report_add_real(row, "setting", setting);
    add_settings(row, &r->policy);
    report_add_int(row, "chat", r->chat.n_after > 0);
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
    report_add_real(row, "bytes_read", eval_bytes_read(&result->bytes));
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
        char *policy = answer(r, &r->policy, sample.gen_tokens);
        add_bytes(&result.bytes, r->model);
        char *exact = answer(r, &r->exact, sample.gen_tokens);
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
    eval_common_resolve(o);
    o->audit_every = 0;
    o->count_bytes = 1;
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
    r.chat = common->chat ? eval_chat_open(r.model) : eval_chat_none(r.model);
    make_settings(&r);
    const task_options o = tasks_common_options(tasks, (task_counter){count_tokens, &r});
    report table = {.columns = columns};
    for (int i = 0; i < tasks->n; i++) {
        r.of = tasks->tasks[i];
        score_task(&r, &o, &table, json);
    }
    if (json && fclose(json) != 0) {
        die(EXIT_FAILED, "cannot write %s: %s", common->json, strerror(errno));
    }
    free(r.tail);
    free(r.prompt);
    eval_chat_free(&r.chat);
    tasks_common_free(tasks);
    eval_model_close(r.model);
}
