/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/memory.h"
#include "common/report.h"
#include "common/say.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

#define BATCH 2048 /* tokens of a prompt given to llama.cpp at a time, */
#define UBATCH 512 /* and computed at a time */

/* A sequence in one llama_context. */
typedef struct eval_sequence {
    struct llama_context *ctx;
    const int32_t *prompt;     /* borrowed */
    int64_t n_prompt, n_again; /* its tokens, and those of them that a rewind computes again */
    int64_t n;                 /* tokens computed altogether */
} eval_sequence;

struct eval_model {
    struct llama_model *model;
    const struct llama_vocab *vocab;
    const macattn_ggml_interface *plugin;
    macattn_ggml *attention;
    eval_sequence own, ggml;
    bool cannot_rewind; /* this kind of cache cannot take tokens back */
    int n_threads;
    char name[256];
};

/* ----------------------------------------------------------------------------------- loading -- */

/* llama.cpp's own messages, of which only the last error is kept, for the sentence we die with. */
static char last_error[512];

static void keep_error(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) {
        snprintf(last_error, sizeof last_error, "%s", text);
        last_error[strcspn(last_error, "\n")] = '\0';
    }
}

static bool beside_program(const char *folder, char *path, size_t size)
{
    char program[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    if (n <= 0) {
        return false;
    }
    program[n] = '\0';
    snprintf(path, size, "%s/%s/libggml-macattn.so", dirname(program), folder);
    return access(path, R_OK) == 0;
}

static void find_plugin(const char *given, char *path, size_t size)
{
    if (given) {
        snprintf(path, size, "%s", given);
        if (access(path, R_OK) != 0) {
            die(EXIT_FAILED, "there is no plug-in %s", path);
        }
    } else if (!beside_program("plugins/ggml", path, size) &&
               !beside_program(EVAL_PLUGIN_FOLDER, path, size)) {
        die(EXIT_FAILED, "libggml-macattn.so is not where it was built or installed; "
                         "--plugin says where it is");
    }
}

/* ggml looks for its own backends beside the program; they are beside ggml. */
static void load_ggml(void)
{
    Dl_info info;
    char path[PATH_MAX] = "";
    void *inside = NULL;
    struct ggml_backend_reg *(*load)(const char *) = ggml_backend_load;
    memcpy(&inside, &load, sizeof inside);
    if (dladdr(inside, &info) && info.dli_fname) {
        snprintf(path, sizeof path, "%s", info.dli_fname);
    }
    unsetenv("GGML_BACKEND_PATH"); /* the plug-in is loaded by name, once */
    ggml_backend_load_all_from_path(*path ? dirname(path) : NULL);
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        die(EXIT_FAILED, "ggml has no CPU backend%s%s", *path ? " in " : "", path);
    }
}

static const macattn_ggml_interface *load_plugin(const char *path)
{
    ggml_backend_reg_t reg = ggml_backend_load(path);
    macattn_ggml_interface_t get = NULL;
    if (!reg) {
        die(EXIT_FAILED, "%s was not loaded%s%s", path, *last_error ? ": " : "", last_error);
    }
    void *function = ggml_backend_reg_get_proc_address(reg, MACATTN_GGML_INTERFACE);
    memcpy(&get, &function, sizeof get);
    const macattn_ggml_interface *plugin = get ? get(MACATTN_GGML_INTERFACE_VERSION) : NULL;
    if (!plugin) {
        die(EXIT_FAILED, "%s is of another version than this program", path);
    }
    return plugin;
}

static enum ggml_type type_of(macattn_dtype dtype)
{
    switch (dtype) {
    case MACATTN_DTYPE_F32: return GGML_TYPE_F32;
    case MACATTN_DTYPE_BF16: return GGML_TYPE_BF16;
    case MACATTN_DTYPE_Q8_0: return GGML_TYPE_Q8_0;
    case MACATTN_DTYPE_Q4_0: return GGML_TYPE_Q4_0;
    case MACATTN_DTYPE_Q4_1: return GGML_TYPE_Q4_1;
    case MACATTN_DTYPE_Q5_0: return GGML_TYPE_Q5_0;
    case MACATTN_DTYPE_Q5_1: return GGML_TYPE_Q5_1;
    case MACATTN_DTYPE_IQ4_NL: return GGML_TYPE_IQ4_NL;
    default: return GGML_TYPE_F16;
    }
}

static struct llama_context *make_context(const eval_model *m, const eval_model_config *config)
{
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)((config->n_tokens + 255) / 256 * 256);
    params.n_batch = BATCH;
    params.n_ubatch = UBATCH;
    params.n_seq_max = 1;
    params.n_threads = params.n_threads_batch = config->n_threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = type_of(config->kv.k);
    params.type_v = type_of(config->kv.v);
    params.offload_kqv = false;
    params.swa_full = true; /* tokens are taken back */
    struct llama_context *ctx = llama_init_from_model(m->model, params);
    if (!ctx) {
        die(EXIT_FAILED, "llama.cpp makes no context of %u tokens%s%s", params.n_ctx,
            *last_error ? ": " : "", last_error);
    }
    return ctx;
}

static void make_contexts(eval_model *m, const eval_model_config *config)
{
    char error[256] = "";
    macattn_ggml_options options = eval_model_options(m);
    options.policy = MACATTN_POLICY_PAPER; /* so that it can be any */
    if (m->plugin->set_options(&options, error, sizeof error) != MACATTN_OK) {
        die(EXIT_FAILED, "the plug-in: %s", error);
    }
    if (config->with_ggml) {
        m->plugin->enable(0);
        m->ggml.ctx = make_context(m, config);
        m->plugin->enable(1);
    }
    m->own.ctx = make_context(m, config);
    m->attention = m->plugin->newest();
    if (!m->attention) {
        die(EXIT_FAILED, "llama.cpp does not use the plug-in");
    }
}

static void take_name(eval_model *m, const char *path)
{
    const char *slash = strrchr(path, '/');
    snprintf(m->name, sizeof m->name, "%s", slash ? slash + 1 : path);
}

eval_model *eval_model_open(const eval_model_config *config)
{
    char path[PATH_MAX];
    eval_model *m = memory_alloc(sizeof *m);
    find_plugin(config->plugin, path, sizeof path);
    llama_log_set(keep_error, NULL);
    load_ggml();
    m->plugin = load_plugin(path);
    llama_backend_init();
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    m->model = llama_model_load_from_file(config->model, params);
    if (!m->model) {
        die(EXIT_FAILED, "llama.cpp does not load %s%s%s", config->model, *last_error ? ": " : "",
            last_error);
    }
    if (llama_model_has_encoder(m->model) || !llama_model_has_decoder(m->model) ||
        llama_model_is_recurrent(m->model)) {
        die(EXIT_FAILED, "%s is no model that decodes with attention", config->model);
    }
    m->vocab = llama_model_get_vocab(m->model);
    m->n_threads = config->n_threads;
    take_name(m, config->model);
    make_contexts(m, config);
    return m;
}

void eval_model_close(eval_model *m)
{
    llama_free(m->own.ctx);
    llama_free(m->ggml.ctx);
    llama_model_free(m->model);
    llama_backend_free();
    free(m);
}

/* --------------------------------------------------------------------------------- questions -- */

macattn_ggml_options eval_model_options(const eval_model *m)
{
    macattn_ggml_options options = {.struct_size = sizeof options};
    m->plugin->get_options(&options);
    return options;
}

const char *eval_model_name(const eval_model *m)
{
    return m->name;
}

void eval_model_describe(const eval_model *m, cJSON *row)
{
    char description[128] = "";
    llama_model_desc(m->model, description, sizeof description);
    report_add_text(row, "model", m->name);
    report_add_text(row, "model_description", description);
    report_add_int(row, "parameters", (int64_t)llama_model_n_params(m->model));
    report_add_int(row, "threads", m->n_threads);
    report_add_text(row, "llama_version", llama_version());
    report_add_text(row, "ggml_version", ggml_version());
}

int32_t eval_model_vocab(const eval_model *m)
{
    return llama_vocab_n_tokens(m->vocab);
}

bool eval_model_is_end(const eval_model *m, int32_t token)
{
    return llama_vocab_is_eog(m->vocab, token);
}

int32_t eval_model_first_token(const eval_model *m)
{
    return llama_vocab_get_add_bos(m->vocab) ? llama_vocab_bos(m->vocab) : -1;
}

size_t eval_model_piece(const eval_model *m, int32_t token, char *out, size_t room)
{
    const int32_t n = llama_token_to_piece(m->vocab, token, out, (int32_t)room, 0, false);
    return n > 0 ? (size_t)n : 0;
}

char *eval_model_chat(const eval_model *m, const char *message)
{
    const char *template = llama_model_chat_template(m->model, NULL);
    const struct llama_chat_message one = {"user", message};
    const int32_t n = template ? llama_chat_apply_template(template, &one, 1, true, NULL, 0) : -1;
    if (n < 0) {
        die(EXIT_FAILED, "%s has no chat template that llama.cpp knows", m->name);
    }
    char *text = memory_alloc((size_t)n + 1);
    llama_chat_apply_template(template, &one, 1, true, text, n);
    text[n] = '\0';
    return text;
}

int32_t *eval_model_tokenize(const eval_model *m, const char *text, size_t bytes, bool special,
                             size_t *n)
{
    if (bytes > INT32_MAX) {
        die(EXIT_FAILED, "a document of %zu bytes is too long", bytes);
    }
    /* No token is shorter than a byte. */
    int32_t *tokens = memory_alloc((bytes + 16) * sizeof *tokens);
    const int32_t count =
        llama_tokenize(m->vocab, text, (int32_t)bytes, tokens, (int32_t)bytes + 16, false, special);
    if (count < 0) {
        die(EXIT_FAILED, "llama.cpp does not tokenise the text");
    }
    *n = (size_t)count;
    return tokens;
}

const macattn_ggml_interface *eval_model_plugin(const eval_model *m)
{
    return m->plugin;
}

macattn_ggml *eval_model_attention(const eval_model *m)
{
    return m->attention;
}

/* --------------------------------------------------------------------------------- computing -- */

static eval_sequence *sequence_of(eval_model *m, bool by_ggml)
{
    return by_ggml ? &m->ggml : &m->own;
}

static void decode(eval_model *m, eval_sequence *s, const int32_t *tokens, int32_t n)
{
    struct llama_batch batch = llama_batch_get_one((llama_token *)(uintptr_t)tokens, n);
    if (s == &m->ggml) {
        m->plugin->enable(0);
    }
    const int32_t status = llama_decode(s->ctx, batch);
    m->plugin->enable(1);
    if (status != 0) {
        die(EXIT_FAILED, "llama.cpp fails to decode at token %lld (status %d)%s%s", (long long)s->n,
            (int)status, *last_error ? ": " : "", last_error);
    }
    s->n += n;
}

static void restart(eval_model *m, const macattn_ggml_options *options)
{
    char error[256] = "";
    if (m->plugin->restart(m->attention, options, error, sizeof error) != MACATTN_OK) {
        die(EXIT_FAILED, "the plug-in: %s", error);
    }
}

/* Take back what comes after the first n tokens. */
static void go_back(eval_model *m, eval_sequence *s, int64_t n)
{
    if (s->n > n && !m->cannot_rewind) {
        m->cannot_rewind = !llama_memory_seq_rm(llama_get_memory(s->ctx), 0, (llama_pos)n, -1);
    }
    if (m->cannot_rewind || n == 0) {
        llama_memory_clear(llama_get_memory(s->ctx), true);
        n = 0;
    }
    s->n = n;
}

static void compute_prompt(eval_model *m, eval_sequence *s, int64_t end)
{
    while (s->n < end) {
        const int64_t left = end - s->n;
        report_progress("prompt: %lld of %lld tokens", (long long)s->n, (long long)s->n_prompt);
        decode(m, s, s->prompt + s->n, (int32_t)(left < BATCH ? left : BATCH));
    }
}

/* The settings under which a prompt is computed, whatever is measured after it: everything is
 * remembered, and shown to a policy that learns, but a single token at the end of a part, which is
 * a step of its own, reuses nothing. So a prompt's K and V are the same to the bit for all policies,
 * and whatever the budgets are. */
static macattn_ggml_options teaching(const macattn_ggml_options *options)
{
    macattn_ggml_options o = *options;
    o.policy = MACATTN_POLICY_BUDGET;
    o.budget = 1e-6f;
    o.budget_scale = NULL;
    o.scale_layers = o.scale_heads = 0;
    return o;
}

void eval_model_prompt(eval_model *m, const int32_t *tokens, int64_t n,
                       const macattn_ggml_options *options, int64_t again, bool by_ggml)
{
    eval_sequence *s = sequence_of(m, by_ggml);
    s->prompt = tokens;
    s->n_prompt = n;
    s->n_again = again < n ? again : n;
    s->n_again -= s->n_again % UBATCH == 1; /* a last token alone would be a step of its own */
    go_back(m, s, 0);
    if (by_ggml) {
        compute_prompt(m, s, n);
        return;
    }
    const macattn_ggml_options like = teaching(options);
    restart(m, &like);
    compute_prompt(m, s, n - s->n_again);
    if (m->plugin->keep(m->attention) != MACATTN_OK) {
        die(EXIT_FAILED, "no memory to keep what the prompt left to reuse");
    }
    compute_prompt(m, s, n);
}

static void set_budgets(eval_model *m, const macattn_ggml_options *options)
{
    char error[256] = "";
    if (m->plugin->set_budgets(m->attention, options, error, sizeof error) != MACATTN_OK) {
        die(EXIT_FAILED, "the plug-in: %s", error);
    }
}

/* Exact attention needs nothing of what the last tokens leave to reuse. */
static void rewind_own(eval_model *m, const macattn_ggml_options *options)
{
    eval_sequence *s = &m->own;
    const bool learns = options->policy == MACATTN_POLICY_BUDGET;
    const int64_t again = options->policy == MACATTN_POLICY_EXACT ? 0 : s->n_again;
    const macattn_ggml_options like = learns ? teaching(options) : *options;
    restart(m, &like);
    go_back(m, s, s->n_prompt - again);
    compute_prompt(m, s, s->n_prompt);
    if (learns) {
        set_budgets(m, options);
    }
}

void eval_model_begin(eval_model *m, const macattn_ggml_options *options)
{
    if (options->policy == MACATTN_POLICY_BUDGET) {
        set_budgets(m, options);
    } else {
        rewind_own(m, options);
    }
}

void eval_model_rewind(eval_model *m, const macattn_ggml_options *options, bool by_ggml)
{
    if (by_ggml) {
        go_back(m, &m->ggml, m->ggml.n_prompt);
        compute_prompt(m, &m->ggml, m->ggml.n_prompt);
    } else {
        rewind_own(m, options);
    }
}

const float *eval_model_logits(eval_model *m)
{
    return llama_get_logits_ith(m->own.ctx, -1);
}

const float *eval_model_step(eval_model *m, int32_t token, bool by_ggml)
{
    eval_sequence *s = sequence_of(m, by_ggml);
    decode(m, s, &token, 1);
    return llama_get_logits_ith(s->ctx, -1);
}

macattn_ggml_bytes eval_model_bytes(const eval_model *m)
{
    macattn_ggml_bytes sum = {0};
    for (int32_t l = 0; l < m->plugin->n_layers(m->attention); l++) {
        macattn_ggml_bytes bytes = {0};
        m->plugin->bytes(m->attention, l, &bytes);
        sum.total += bytes.total;
        sum.far += bytes.far;
        sum.skipped += bytes.skipped;
        sum.rings += bytes.rings;
        sum.runs += bytes.runs;
    }
    return sum;
}

void eval_model_expect_computed(const eval_model *m)
{
    macattn_ggml_counts counts = {.struct_size = sizeof counts};
    m->plugin->counts(m->attention, &counts);
    if (counts.decode_calls + counts.prefill_calls > 0) return;
    die(EXIT_FAILED,
        "no attention of %s was computed by macattn: llama.cpp gave it none that it takes "
        "(%llu calls were left to ggml); there is nothing to measure",
        m->name, (unsigned long long)counts.left_to_ggml);
}
