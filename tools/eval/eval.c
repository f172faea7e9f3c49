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
    bool wanted[3]; /* by policy */
    bool any_policy;
    real_list taus, budgets;
    bool free_run, heads;
    double temperature;
} eval_arguments;

enum { KEY_POLICY = 'p', KEY_TAU = 512, KEY_BUDGET, KEY_FREE_RUN, KEY_TEMPERATURE, KEY_HEADS };

static const struct argp_option options_table[] = {
    {"policy", KEY_POLICY, "NAME,...", 0,
     "exact, paper, budget: a list; may be given several times (default paper)", 6},
    {"tau", KEY_TAU, "X,...", 0, "settings of the policy paper, a list (default 0.45)", 6},
    {"budget", KEY_BUDGET, "X,...", 0, "settings of the policy budget, a list (default 0.002)", 6},
    {"free-run", KEY_FREE_RUN, NULL, 0,
     "the policy writes the tokens, and the baseline is given the same ones", 7},
    {"temperature", KEY_TEMPERATURE, "X", 0, "of --free-run (default 0: the most likely token)", 7},
    {"heads", KEY_HEADS, NULL, 0, "print hits and errors of every head", 8},
    {0}};

static void parse_policies(struct argp_state *state, eval_arguments *o, const char *arg)
{
    char item[32];
    const char *rest = arg;
    while (parse_next_item(&rest, item, sizeof item)) {
        macattn_policy policy;
        if (macattn_policy_find(item, &policy) != MACATTN_OK) {
            argp_error(state, "--policy does not take '%s'", item);
            return;
        }
        o->wanted[policy] = o->any_policy = true;
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    eval_arguments *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; return 0;
    case KEY_POLICY: parse_policies(state, o, arg); return 0;
    case KEY_TAU:
        if (!parse_real_list(arg, 0.0, 1.0, &o->taus)) {
            argp_error(state, "--tau does not take '%s'", arg);
        }
        return 0;
    case KEY_BUDGET:
        if (!parse_real_list(arg, 0.0, 1.0, &o->budgets)) {
            argp_error(state, "--budget does not take '%s'", arg);
        }
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

static void check(const eval_arguments *o)
{
    if (o->taus.n && !o->wanted[MACATTN_POLICY_PAPER]) {
        die(EXIT_USAGE, "eval: --tau is for --policy paper");
    }
    if (o->budgets.n && !o->wanted[MACATTN_POLICY_BUDGET]) {
        die(EXIT_USAGE, "eval: --budget is for --policy budget");
    }
    if (o->temperature > 0.0 && !o->free_run) {
        die(EXIT_USAGE, "eval: --temperature is for --free-run");
    }
    if (o->common.model && o->common.n_texts == 0) {
        die(EXIT_USAGE, "eval: --text is missing: a file with text of the kind you use");
    }
}

static int add_settings(macattn_ggml_options *settings, int n, const macattn_ggml_options *like,
                        macattn_policy policy, const real_list *values)
{
    for (int i = 0; i < (values->n ? values->n : 1); i++) {
        macattn_ggml_options *s = &settings[n++];
        *s = *like;
        s->policy = policy;
        if (s->band == 0) {
            s->band = MACATTN_DEFAULT_BAND(policy);
        }
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
        n = add_settings(settings, n, like, MACATTN_POLICY_PAPER, &o->taus);
    }
    if (o->wanted[MACATTN_POLICY_BUDGET]) {
        n = add_settings(settings, n, like, MACATTN_POLICY_BUDGET, &o->budgets);
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
    const macattn_ggml_options like = eval_session_options(&session);
    const int n = make_settings(o, &like, settings);
    for (int c = 0; c < o->common.contexts.n; c++) {
        eval_plan plan = {.context = o->common.contexts.values[c],
                          .n_tokens = o->common.n_tokens,
                          .free_run = o->free_run,
                          .ggml_baseline = o->common.ggml_baseline,
                          .temperature = o->temperature,
                          .seed = (uint64_t)o->common.seed};
        eval_result *results = eval_session_measure(&session, &plan, settings, n);
        for (int i = 0; i < n; i++) {
            eval_session_row(&session, &plan, &settings[i], &results[i]);
            if (o->heads) {
                eval_print_heads(&results[i]);
            }
        }
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
    static const struct argp_child children[] = {{&eval_common_argp, 0, NULL, 0}, {0}};
    const struct argp argp = {
        options_table,
        parse_option,
        NULL,
        "\nCompare a policy with exact attention in a model, on a text: what it changes in the "
        "predictions, and which part of the KV cache it leaves unread.",
        children,
        NULL,
        NULL};
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--tasks", 7) == 0 || strncmp(argv[i], "-t", 2) == 0)
            return command_eval_tasks(argc, argv);
    }
    eval_arguments o = {.any_policy = false};
    eval_common_defaults(&o.common);
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &o);
    if (!o.any_policy) {
        o.wanted[MACATTN_POLICY_PAPER] = true;
    }
    check(&o);
    evaluate(&o);
    return EXIT_OK;
}
