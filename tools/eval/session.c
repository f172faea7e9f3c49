/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/parse.h"
#include "common/say.h"

static int64_t longest(const eval_common *common)
{
    int64_t n = 0;
    for (int i = 0; i < common->contexts.n; i++) {
        n = common->contexts.values[i] > n ? common->contexts.values[i] : n;
    }
    return n + common->n_tokens + 1;
}

void eval_session_open(eval_session *session, const eval_common *common)
{
    *session = (eval_session){.common = common, .table = {.columns = eval_columns}};
    if (common->json) {
        session->json = fopen(common->json, "w");
        if (!session->json) {
            die(EXIT_FAILED, "cannot write %s: %s", common->json, strerror(errno));
        }
    }
    machine_describe(&session->machine);
    const eval_model_config config = {.model = common->model,
                                      .plugin = common->plugin,
                                      .kv = eval_common_kv(common),
                                      .n_threads = eval_common_threads(common),
                                      .n_tokens = longest(common),
                                      .with_ggml = common->ggml_baseline};
    session->model = eval_model_open(&config);
    session->text.is_chat = common->chat;
    if (common->chat) session->text.chat = eval_chat_open(session->model);
    for (int i = 0; i < common->n_texts; i++) {
        eval_text_add_file(&session->text, session->model, common->texts[i]);
    }
    if (common->n_texts == 0) {
        eval_text_add_sample(&session->text, session->model, longest(common),
                             (uint64_t)common->seed);
    }
}

void eval_session_close(eval_session *session)
{
    eval_text_free(&session->text);
    eval_model_close(session->model);
    if (session->json && fclose(session->json) != 0) {
        die(EXIT_FAILED, "cannot write %s: %s", session->common->json, strerror(errno));
    }
}

const char *eval_session_text(const eval_session *session)
{
    if (session->common->n_texts == 0) {
        return "sampled from the model";
    }
    const char *slash = strrchr(session->common->texts[0], '/');
    return slash ? slash + 1 : session->common->texts[0];
}

macattn_ggml_options eval_session_options(const eval_session *session)
{
    const eval_common *common = session->common;
    macattn_ggml_options options = eval_model_options(session->model);
    options.audit_every = (int32_t)common->audit_every;
    eval_common_apply(common, &options);
    return options;
}

void eval_write_row(FILE *json, const char *path, const cJSON *row)
{
    char *text = cJSON_PrintUnformatted(row);
    if (!text || fprintf(json, "%s\n", text) < 0 || fflush(json) != 0) {
        die(EXIT_FAILED, "cannot write %s: %s", path, strerror(errno));
    }
    cJSON_free(text);
}

static void print_row(eval_session *session, const eval_plan *plan,
                      const macattn_ggml_options *setting, const eval_result *result)
{
    char dtype[16];
    cJSON *row = eval_result_row(session->model, plan, setting, result);
    report_add_text(row, "dtype", kv_types_name(eval_common_kv(session->common), dtype));
    report_add_text(row, "machine", session->machine.cpu);
    report_add_text(row, "text", eval_session_text(session));
    report_add_machine(row, &session->machine, machine_isa());
    if (session->json) eval_write_row(session->json, session->common->json, row);
    report_print(&session->table, row);
}

static void print_result(void *user, const eval_plan *plan, const macattn_ggml_options *setting,
                         const eval_result *result)
{
    eval_session *session = user;
    print_row(session, plan, setting, result);
    if (session->heads) {
        eval_print_heads(result);
        fflush(stdout);
    }
}

eval_result *eval_session_measure(eval_session *session, eval_plan *plan,
                                  const macattn_ggml_options *settings, int n_settings, bool rows)
{
    eval_window windows[EVAL_MAX_WINDOWS];
    const int64_t length = plan->context + plan->n_tokens + 1;
    const int most = (int)session->common->n_windows;
    const int n = plan->chat ? eval_text_prompts(&session->text, plan->context, windows, most)
                             : eval_text_windows(&session->text, length, windows, most);
    if (n == 0 && plan->chat) {
        die(EXIT_FAILED, "no document has the tokens for a chat of --context %lld",
            (long long)plan->context);
    } else if (n == 0) {
        die(EXIT_FAILED, "no document has the %lld tokens that --context %lld --tokens %lld take",
            (long long)length, (long long)plan->context, (long long)plan->n_tokens);
    }
    eval_result *results = memory_alloc((size_t)n_settings * sizeof *results);
    for (int w = 0; w < n; w++) {
        char what[64];
        snprintf(what, sizeof what, "context %lld, window %d of %d", (long long)plan->context,
                 w + 1, n);
        plan->what = what;
        if (rows && w == n - 1) { /* a result is complete with its last window */
            plan->on_result = print_result;
            plan->user = session;
        }
        eval_measure_window(session->model, plan, &windows[w], settings, n_settings, results);
    }
    plan->what = NULL;
    plan->on_result = NULL;
    return results;
}
