/* SPDX-License-Identifier: Apache-2.0 */
#include "text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/random.h"
#include "common/report.h"
#include "common/say.h"

static eval_document *add(eval_text *text)
{
    eval_document *documents = realloc(text->documents, (size_t)(text->n + 1) * sizeof *documents);
    if (!documents) {
        die(EXIT_FAILED, "out of memory");
    }
    text->documents = documents;
    documents[text->n] = (eval_document){0};
    return &documents[text->n++];
}

static char *read_file(const char *path, size_t *bytes)
{
    FILE *f = fopen(path, "rb");
    size_t room = 1 << 16;
    char *data = memory_alloc(room);
    *bytes = 0;
    if (!f) {
        die(EXIT_FAILED, "cannot read %s: %s", path, strerror(errno));
    }
    for (size_t n = 1; n > 0; *bytes += n) {
        if (*bytes == room) {
            room *= 2;
            data = realloc(data, room);
        }
        if (!data) {
            die(EXIT_FAILED, "out of memory");
        }
        n = fread(data + *bytes, 1, room - *bytes, f);
    }
    if (ferror(f)) {
        die(EXIT_FAILED, "cannot read %s: %s", path, strerror(errno));
    }
    fclose(f);
    return data;
}

static void add_document(eval_text *text, const eval_model *m, const char *bytes, size_t n_bytes)
{
    size_t n;
    int32_t *tokens = eval_model_tokenize(m, bytes, n_bytes, false, &n);
    const int32_t first = text->is_chat ? -1 : eval_model_first_token(m);
    const size_t extra = first >= 0;
    eval_document *d = add(text);
    d->tokens = memory_alloc((n + extra) * sizeof *d->tokens);
    d->n = (int64_t)(n + extra);
    if (extra) {
        d->tokens[0] = first;
    }
    memcpy(d->tokens + extra, tokens, n * sizeof *tokens);
    free(tokens);
}

void eval_text_add_file(eval_text *text, const eval_model *m, const char *path)
{
    size_t bytes;
    char *data = read_file(path, &bytes);
    for (size_t at = 0; at < bytes;) {
        const char *zero = memchr(data + at, '\0', bytes - at);
        const size_t length = zero ? (size_t)(zero - (data + at)) : bytes - at;
        report_progress("reading %s: %.0f %%", path, 100.0 * (double)at / (double)bytes);
        if (length > 0) {
            add_document(text, m, data + at, length);
        }
        at += length + 1;
    }
    report_progress_clear();
    free(data);
}

int32_t eval_draw(const eval_model *m, const float *logits, double temperature, bool may_end,
                  random_state *rng)
{
    const int32_t n = eval_model_vocab(m);
    double top = -INFINITY, sum = 0.0;
    int32_t best = 0;
    for (int32_t i = 0; i < n; i++) {
        if ((double)logits[i] > top && (may_end || !eval_model_is_end(m, i))) {
            top = (double)logits[i];
            best = i;
        }
    }
    if (temperature <= 0.0) {
        return best;
    }
    for (int32_t i = 0; i < n; i++) {
        sum += !may_end && eval_model_is_end(m, i) ? 0.0
                                                   : exp(((double)logits[i] - top) / temperature);
    }
    double left = sum * ((double)(random_next(rng) >> 11) * 0x1p-53);
    for (int32_t i = 0; i < n; i++) {
        left -= !may_end && eval_model_is_end(m, i) ? 0.0
                                                    : exp(((double)logits[i] - top) / temperature);
        if (left < 0.0) {
            return i;
        }
    }
    return best;
}

void eval_text_add_sample(eval_text *text, eval_model *m, int64_t n, uint64_t seed)
{
    macattn_ggml_options options = eval_model_options(m);
    options.policy = MACATTN_POLICY_EXACT;
    random_state rng = {.state = seed};
    eval_document *d = add(text);
    d->tokens = memory_alloc((size_t)n * sizeof *d->tokens);
    d->n = n;
    const int32_t first = eval_model_first_token(m);
    d->tokens[0] = first >= 0 ? first : (int32_t)random_below(&rng, eval_model_vocab(m));
    eval_model_prompt(m, NULL, 0, &options, 0, false);
    eval_model_rewind(m, &options, false);
    for (int64_t i = 1; i < n; i++) {
        report_progress("the model writes a text: %lld of %lld tokens", (long long)i, (long long)n);
        d->tokens[i] = eval_draw(m, eval_model_step(m, d->tokens[i - 1], false), 1.0, false, &rng);
    }
    report_progress_clear();
}

void eval_text_free(eval_text *text)
{
    for (int i = 0; i < text->n; i++) {
        free(text->documents[i].tokens);
    }
    for (int i = 0; i < text->n_prompts; i++) {
        free(text->prompts[i]);
    }
    free(text->documents);
    free(text->prompts);
    eval_chat_free(&text->chat);
    *text = (eval_text){0};
}

int eval_text_windows(const eval_text *text, int64_t n, eval_window *windows, int max)
{
    int count = 0;
    bool more = true;
    for (int64_t start = 0; more && count < max; start += n) {
        more = false;
        for (int i = 0; i < text->n && count < max; i++) {
            if (text->documents[i].n < start + n) {
                continue;
            }
            windows[count++] = (eval_window){text->documents[i].tokens + start, i, start};
            more = true;
        }
    }
    return count;
}

/* The message between what the template puts around it, its middle left out: n tokens. */
static int32_t *make_prompt(const eval_text *text, const eval_document *message, int64_t n)
{
    const eval_chat *chat = &text->chat;
    const size_t kept = (size_t)(n - eval_chat_tokens(chat)), head = kept / 2, tail = kept - head;
    int32_t *prompt = memory_alloc((size_t)n * sizeof *prompt), *at = prompt;
    memcpy(at, chat->before, chat->n_before * sizeof *at);
    at += chat->n_before;
    memcpy(at, message->tokens, head * sizeof *at);
    memcpy(at + head, message->tokens + (size_t)message->n - tail, tail * sizeof *at);
    memcpy(at + kept, chat->after, chat->n_after * sizeof *at);
    return prompt;
}

int eval_text_prompts(eval_text *text, int64_t n, eval_window *windows, int max)
{
    const int64_t least = n - eval_chat_tokens(&text->chat);
    int count = 0;
    for (int i = 0; i < text->n && count < max && least > 0; i++) {
        if (text->documents[i].n < least) {
            continue;
        }
        int32_t **prompts = realloc(text->prompts, (size_t)(text->n_prompts + 1) * sizeof *prompts);
        if (!prompts) {
            die(EXIT_FAILED, "out of memory");
        }
        text->prompts = prompts;
        prompts[text->n_prompts] = make_prompt(text, &text->documents[i], n);
        windows[count++] = (eval_window){prompts[text->n_prompts++], i, 0};
    }
    return count;
}
