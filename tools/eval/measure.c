/* SPDX-License-Identifier: Apache-2.0 */
#include "measure.h"

#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/memory.h"
#include "common/random.h"
#include "common/samples.h"
#include "common/say.h"
#include "logits.h"

/* ------------------------------------------------------------------------------------ passes -- */

/* One window's measurement. */
typedef struct measurement {
    eval_model *m;
    const eval_plan *plan;
    const int32_t *prompt;
    int32_t *tokens; /* [n + 1] from the prompt's end on */
    int64_t n;       /* positions: n_tokens, less where an answer ends */
    bool answered;   /* a chat: the tokens are the model's answer */
    logit_store baseline, policy;
    bool just_computed;      /* the prompt, for the one setting that is measured on it */
    int setting, n_settings; /* for the progress line */
} measurement;

/* Compute the tokens after the prompt under `options`, and keep all logits. */
static void pass(measurement *r, const macattn_ggml_options *options, bool by_ggml, bool writes,
                 logit_store *store, sample_list *us)
{
    const size_t row = (size_t)store->vocab * sizeof(float);
    random_state rng = {.state = r->plan->seed};
    if (r->just_computed) {
        eval_model_begin(r->m, options);
    } else {
        eval_model_rewind(r->m, options, by_ggml);
    }
    r->just_computed = false;
    r->n = writes ? r->plan->n_tokens : r->n;
    for (int64_t i = 0; i < r->n; i++) {
        if (i % 16 == 0) {
            report_progress("%s, setting %d of %d (%s): %lld of %lld tokens", r->plan->what,
                            r->setting + 1, r->n_settings,
                            by_ggml ? "ggml" : macattn_policy_name(options->policy), (long long)i,
                            (long long)r->plan->n_tokens);
        }
        const double start = clock_now_us();
        const float *logits = eval_model_step(r->m, r->tokens[i], by_ggml);
        sample_list_add(us, clock_now_us() - start);
        memcpy(logits_row(store, i), logits, row);
        if (!writes) continue;
        r->tokens[i + 1] = eval_draw(r->m, logits, r->plan->temperature, r->plan->chat, &rng);
        if (r->plan->chat && eval_model_is_end(r->m, r->tokens[i + 1])) r->n = i + 1;
    }
    if (!by_ggml) eval_model_expect_computed(r->m);
}

static void pass_baseline(measurement *r, const macattn_ggml_options *like, sample_list *us)
{
    macattn_ggml_options options = *like;
    options.policy = MACATTN_POLICY_EXACT;
    options.audit_every = options.count_bytes = 0;
    const bool answers = r->plan->chat && !r->plan->free_run && !r->answered;
    pass(r, &options, r->plan->ggml_baseline, answers, &r->baseline, us);
    r->answered = r->answered || answers;
}

static metrics_step compare_at(const measurement *r, int64_t i)
{
    return metrics_compare(logits_row(&r->baseline, i), logits_row(&r->policy, i),
                           r->baseline.vocab, r->tokens[i + 1]);
}

/* Instruction sets with vectors of one width add up alike: avx512vnni and avx512, avxvnni and avx2, all of NEON. */
static bool add_up_alike(const char *a, const char *b)
{
    if (strncmp(a, "neon", 4) == 0 && strncmp(b, "neon", 4) == 0) {
        return true;
    }
    const bool wide = strncmp(a, "avx512", 6) == 0, narrow = !wide && strncmp(a, "avx", 3) == 0;
    return (wide && strncmp(b, "avx512", 6) == 0) ||
           (narrow && strncmp(b, "avx512", 6) != 0 && strncmp(b, "avx", 3) == 0);
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
        } else if (!add_up_alike(best, name)) {
            return name;
        }
    }
    return NULL;
}

/* How far exact attention is from itself when only the order of its sums differs. A model whose
 * weights are quantised rounds its activations coarsely, so that this is not nothing. */
static void measure_floor(measurement *r, const macattn_ggml_options *like, eval_result *results,
                          int n_results)
{
    macattn_ggml_options options = *like;
    sample_list us = {0};
    options.policy = MACATTN_POLICY_EXACT;
    options.isa = eval_other_isa();
    options.audit_every = options.count_bytes = 0;
    pass(r, &options, false, false, &r->policy, &us);
    sample_list_free(&us);
    for (int64_t i = 0; i < r->n; i++) {
        const metrics_step step = compare_at(r, i);
        for (int k = 0; k < n_results; k++) {
            metrics_add(&results[k].floor, &step);
        }
    }
}

static void note_audit(void *user, int32_t layer, int32_t head, double own, double unit)
{
    eval_result *result = user;
    if (!result->heads) return; /* a prompt's */
    eval_head *h = &result->heads[layer * result->n_heads + head];
    sample_list_add(&h->errors, own);
    sample_list_add(&h->layer_errors, unit);
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
        die(EXIT_FAILED,
            "no layer of %s can reuse anything in llama.cpp: its queries before "
            "RoPE, or its cache's cells, cannot be had (docs/llama.cpp.md)",
            eval_model_name(m));
    }
    result->heads =
        memory_alloc((size_t)result->n_layers * (size_t)result->n_heads * sizeof *result->heads);
}

/* What the plug-in counted since the rewind. */
static void take_counts(const eval_model *m, eval_result *result)
{
    const macattn_ggml_interface *plugin = eval_model_plugin(m);
    macattn_ggml *attention = eval_model_attention(m);
    for (int l = 0; l < result->n_layers; l++) {
        const macattn_ggml_layer layer = layer_of(m, l);
        macattn_stats all = {.struct_size = sizeof all};
        plugin->stats(attention, l, -1, &all);
        for (int way = 0; way < MACATTN_WAYS; way++) result->groups[way] += all.groups[way];
        for (int h = 0; h < layer.n_heads; h++) {
            macattn_stats stats = {.struct_size = sizeof stats};
            plugin->stats(attention, l, h, &stats);
            eval_head *head = &result->heads[l * result->n_heads + h];
            head->steps += stats.steps;
            head->hits += stats.hits;
            head->refused += stats.samples;
            head->refused_error2 += stats.error2_head;
            head->refused_layer_error2 += stats.error2_layer;
        }
    }
    const macattn_ggml_bytes bytes = eval_model_bytes(m);
    result->bytes.total += bytes.total;
    result->bytes.far += bytes.far;
    result->bytes.skipped += bytes.skipped;
    result->bytes.rings += bytes.rings;
    result->bytes.runs += bytes.runs;
    macattn_ggml_counts counts = {.struct_size = sizeof counts};
    plugin->counts(attention, &counts);
    result->left_to_ggml += counts.left_to_ggml;
    result->changes += counts.changes + counts.mismatches;
}

static void compare(const measurement *r, eval_result *result)
{
    const int64_t n = r->n;
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

/* With `alone` nothing was computed since the prompt, and the baseline comes after the setting. */
static void measure(measurement *r, const macattn_ggml_options *setting, bool alone,
                    eval_result *result)
{
    macattn_ggml_options options = *setting;
    if (!result->heads) {
        make_heads(r->m, result);
        result->n_edge = r->plan->n_tokens / 2 < 512 ? r->plan->n_tokens / 2 : 512;
    }
    options.count_bytes = 1;
    options.on_audit = note_audit;
    options.audit_user = result;
    r->just_computed = alone;
    pass(r, &options, false, r->plan->free_run, &r->policy, &result->us);
    take_counts(r->m, result);
    if (r->plan->free_run || alone) {
        pass_baseline(r, setting, &result->us_baseline);
    }
    compare(r, result);
    result->n_windows++;
}

/* ----------------------------------------------------------------------------------- windows -- */

static bool same_prompt(const macattn_ggml_options *a, const macattn_ggml_options *b)
{
    return a->ring == b->ring && a->band == b->band && a->min_tokens == b->min_tokens &&
           a->fresh_tokens == b->fresh_tokens && a->lse_order == b->lse_order &&
           a->select == b->select;
}

/* The settings of one prompt. */
typedef struct prompt_group {
    int first, n;
    bool judges; /* a policy among them learns from the prompt */
    bool alone;  /* the one setting, which then sees the prompt as in use, and no baseline before */
} prompt_group;

static prompt_group group_of(const measurement *r, const macattn_ggml_options *settings, int first,
                             int n_settings)
{
    prompt_group g = {.first = first};
    for (int i = first; i < n_settings; i++) {
        if (!same_prompt(&settings[i], &settings[first])) continue;
        g.n++;
        g.judges = g.judges || settings[i].policy == MACATTN_POLICY_BUDGET;
    }
    /* A chat's answer is the baseline's. */
    g.alone = g.n == 1 && (!r->plan->chat || r->plan->free_run || r->answered);
    return g;
}

/* What one prompt's settings are compared with. The prompt is computed by parts that depend on
 * ring and band, and so rounds differently: every prompt has a baseline of its own. */
static void measure_baseline(measurement *r, const macattn_ggml_options *settings, int first,
                             int n_settings, eval_result *results)
{
    sample_list us = {0};
    pass_baseline(r, &settings[first], &us);
    for (int i = first; i < n_settings; i++) {
        for (size_t k = 0; k < us.n && same_prompt(&settings[i], &settings[first]); k++) {
            sample_list_add(&results[i].us_baseline, us.values[k]);
        }
    }
    sample_list_free(&us);
}

static void compute_prompt(measurement *r, const macattn_ggml_options *settings,
                           const prompt_group *g, eval_result *results)
{
    macattn_ggml_options options = settings[g->first];
    if (g->alone) { /* these last from the prompt on */
        options.count_bytes = 1;
        options.on_audit = note_audit;
        options.audit_user = &results[g->first];
    } else {
        options.audit_every = 0;
    }
    eval_model_prompt(r->m, r->prompt, r->plan->context, &options,
                      g->judges && !g->alone ? EVAL_TEACHING : 0, false);
    eval_model_expect_computed(r->m);
    if (r->plan->chat && !r->answered) {
        r->tokens[0] = metrics_argmax(eval_model_logits(r->m), r->baseline.vocab);
    }
}

/* The settings from `first` on whose prompt is that of `first`, unless an earlier one's was. */
static void measure_settings(measurement *r, const macattn_ggml_options *settings, int first,
                             int n_settings, eval_result *results)
{
    for (int i = 0; i < first; i++) {
        if (same_prompt(&settings[i], &settings[first])) {
            return;
        }
    }
    const prompt_group g = group_of(r, settings, first, n_settings);
    const bool floor =
        first == 0 && !r->plan->free_run && !r->plan->ggml_baseline && eval_other_isa();
    r->setting = first;
    compute_prompt(r, settings, &g, results);
    if (!r->plan->free_run && !g.alone) { /* there, every setting writes a text of its own */
        measure_baseline(r, settings, first, n_settings, results);
        if (floor) measure_floor(r, &settings[first], results, n_settings);
    }
    for (int i = first; i < n_settings; i++) {
        if (!same_prompt(&settings[i], &settings[first])) continue;
        r->setting = i;
        measure(r, &settings[i], g.alone, &results[i]);
        if (g.alone && floor) measure_floor(r, &settings[first], results, n_settings);
        if (r->plan->on_result) {
            r->plan->on_result(r->plan->user, r->plan, &settings[i], &results[i]);
        }
    }
}

void eval_measure_window(eval_model *m, const eval_plan *plan, const eval_window *window,
                         const macattn_ggml_options *settings, int n_settings, eval_result *results)
{
    const size_t n = (size_t)plan->n_tokens + 1;
    measurement r = {.m = m, .plan = plan, .prompt = window->tokens, .n_settings = n_settings};
    r.n = plan->n_tokens;
    r.tokens = memory_alloc(n * sizeof *r.tokens);
    if (!plan->chat) memcpy(r.tokens, window->tokens + plan->context, n * sizeof *r.tokens);
    r.baseline = logits_open(plan->n_tokens, eval_model_vocab(m));
    r.policy = logits_open(plan->n_tokens, eval_model_vocab(m));
    if (plan->ggml_baseline) {
        eval_model_prompt(m, window->tokens, plan->context, NULL, 0, true);
    }
    for (int i = 0; i < n_settings; i++) {
        measure_settings(&r, settings, i, n_settings, results);
    }
    logits_close(&r.baseline);
    logits_close(&r.policy);
    free(r.tokens);
    report_progress_clear();
}
