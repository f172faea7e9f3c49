/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn eval`: what a policy changes in what a model predicts, and what it saves. */
#include <argp.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "common/parse.h"
#include "common/say.h"
#include "score.h"
#include "session.h"

#define MAX_SETTINGS (2 * LIST_MAX + 1)

typedef struct eval_arguments {
    eval_common common;
    tasks_common tasks;
    bool wanted[3]; /* by policy */
    bool free_run, heads;
    double temperature;
} eval_arguments;

enum { KEY_FREE_RUN = 512, KEY_TEMPERATURE, KEY_HEADS };

static const struct argp_option options_table[] = {
    {"free-run", KEY_FREE_RUN, NULL, 0,
     "the policy writes the tokens, and the baseline is given the same ones", 7},
    {"temperature", KEY_TEMPERATURE, "X", 0, "of --free-run (default 0: the most likely token)", 7},
    {"heads", KEY_HEADS, NULL, 0, "print hits and errors of every head", 8},
    {0}};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    eval_arguments *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &o->common;
        state->child_inputs[1] = &o->common.settings;
        state->child_inputs[2] = &o->tasks;
        return 0;
    case KEY_TEMPERATURE:
        if (!parse_real(arg, 0.0, 100.0, &o->temperature)) {
            argp_error(state, "--temperature does not take '%s'", arg);
        }
        return 0;
    case KEY_FREE_RUN: o->free_run = true; return 0;
    case KEY_HEADS: o->heads = true; return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static const real_list *given(const eval_arguments *o, setting_option option)
{
    return &o->common.settings.values[option];
}

/* The policies that are named; `otherwise` if none is. */
static void take_policies(eval_arguments *o, macattn_policy otherwise)
{
    const real_list *policies = given(o, OPTION_POLICY);
    o->wanted[otherwise] = policies->n == 0;
    for (int i = 0; i < policies->n; i++) o->wanted[(int)policies->values[i]] = true;
}

static void check_settings(const eval_arguments *o)
{
    if (given(o, OPTION_TAU)->n && !o->wanted[MACATTN_POLICY_PAPER]) {
        die(EXIT_USAGE, "eval: --tau is for --policy paper");
    }
    if (given(o, OPTION_BUDGET)->n && !o->wanted[MACATTN_POLICY_BUDGET]) {
        die(EXIT_USAGE, "eval: --budget is for --policy budget");
    }
}

static void check_text(const eval_arguments *o)
{
    const char *option = tasks_common_given(&o->tasks);
    if (option) {
        die(EXIT_USAGE, "eval: --%s is for --tasks", option);
    }
    if (o->temperature > 0.0 && !o->free_run) {
        die(EXIT_USAGE, "eval: --temperature is for --free-run");
    }
    if (o->common.model && o->common.n_texts == 0) {
        die(EXIT_USAGE, "eval: --text is missing: a file with text of the kind you use");
    }
}

static void check_tasks(const eval_arguments *o)
{
    const char *option = eval_common_given(&o->common);
    option = o->free_run ? "free-run" : o->heads ? "heads" : option;
    option = o->temperature > 0.0 ? "temperature" : option;
    if (option) {
        die(EXIT_USAGE, "eval: --%s is not for --tasks", option);
    }
    if (given(o, OPTION_POLICY)->n > 1 || given(o, OPTION_TAU)->n > 1 ||
        given(o, OPTION_BUDGET)->n > 1) {
        die(EXIT_USAGE, "eval: --tasks compares one setting of one policy with exact attention");
    }
}

static int add_settings(macattn_ggml_options *settings, int n, const macattn_ggml_options *like,
                        macattn_policy policy, const real_list *values)
{
    for (int i = 0; i < (values->n ? values->n : 1); i++) {
        macattn_ggml_options *s = &settings[n++];
        *s = *like;
        s->policy = policy;
        eval_common_resolve(s);
        if (values->n && policy == MACATTN_POLICY_PAPER) {
            s->tau = (float)values->values[i];
        } else if (values->n && policy == MACATTN_POLICY_BUDGET) {
            s->budget = (float)values->values[i];
        }
    }
    return n;
}

static int make_settings(const eval_arguments *o, const macattn_ggml_options *like,
                         macattn_ggml_options *settings)
{
    static const real_list none = {.n = 0};
    int n = 0;
    if (o->wanted[MACATTN_POLICY_EXACT]) {
        n = add_settings(settings, n, like, MACATTN_POLICY_EXACT, &none);
    }
    if (o->wanted[MACATTN_POLICY_PAPER]) {
        n = add_settings(settings, n, like, MACATTN_POLICY_PAPER, given(o, OPTION_TAU));
    }
    if (o->wanted[MACATTN_POLICY_BUDGET]) {
        n = add_settings(settings, n, like, MACATTN_POLICY_BUDGET, given(o, OPTION_BUDGET));
    }
    return n;
}

static void print_floor(const eval_result *r)
{
    if (r->floor.kl.n) {
        printf("        rounding alone (exact, with %s instructions): KL mean %.6f, top-1 %.4f\n",
               eval_other_isa(), metrics_kl_mean(&r->floor), metrics_agreement(&r->floor));
        fflush(stdout);
    }
}

static void evaluate(const eval_arguments *o)
{
    eval_session session;
    macattn_ggml_options settings[MAX_SETTINGS];
    eval_session_open(&session, &o->common);
    session.heads = o->heads;
    const macattn_ggml_options like = eval_session_options(&session);
    const int n = make_settings(o, &like, settings);
    for (int c = 0; c < o->common.contexts.n; c++) {
        eval_plan plan = {.context = o->common.contexts.values[c],
                          .n_tokens = o->common.n_tokens,
                          .free_run = o->free_run,
                          .ggml_baseline = o->common.ggml_baseline,
                          .chat = o->common.chat,
                          .temperature = o->temperature,
                          .seed = (uint64_t)o->common.seed};
        eval_result *results = eval_session_measure(&session, &plan, settings, n, true);
        print_floor(&results[0]);
        for (int i = 0; i < n; i++) {
            eval_result_free(&results[i]);
        }
        free(results);
    }
    eval_session_close(&session);
}

int command_eval(int argc, char **argv)
{
    eval_arguments o = {.free_run = false};
    const uint32_t lists = 1 << OPTION_POLICY | 1 << OPTION_TAU | 1 << OPTION_BUDGET;
    eval_common_init(&o.common, (1 << OPTION_COUNT) - 1, lists, MACATTN_POLICY_PAPER);
    tasks_common_init(&o.tasks);
    const struct argp settings = setting_options_argp(&o.common.settings);
    const struct argp_child children[] = {
        {&eval_common_argp, 0, NULL, 0},
        {&settings, 0, NULL, 6},
        {&tasks_common_argp, 0,
         "Long-context tasks instead of a text (default policy: budget):", 9},
        {0}};
    const struct argp argp = {
        options_table,
        parse_option,
        NULL,
        "\nCompare a policy with exact attention in a model, on a text: what it changes in the "
        "predictions, and which part of the KV cache it leaves unread. Or, with --tasks, the "
        "scores "
        "of long-context tasks with both.",
        children,
        NULL,
        NULL};
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &o);
    take_policies(&o, o.tasks.names ? MACATTN_POLICY_BUDGET : MACATTN_POLICY_PAPER);
    check_settings(&o);
    o.tasks.seed = o.common.seed;
    if (o.tasks.names) {
        check_tasks(&o);
    } else {
        check_text(&o);
    }
    eval_common_complete(&o.common, 4096);
    if (o.tasks.names) {
        eval_score(&o.common, &o.tasks);
    } else {
        evaluate(&o);
    }
    return EXIT_OK;
}
