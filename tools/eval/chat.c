/* SPDX-License-Identifier: Apache-2.0 */
#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/say.h"

/* Stands for the message in the template. */
#define MARK "\x01message\x01"

/* The tokens of a piece of the template, behind the model's first one if it wants that. */
static int32_t *pieces(const eval_model *m, const char *text, size_t bytes, bool first, size_t *n)
{
    const int32_t begin = first ? eval_model_first_token(m) : -1;
    size_t count;
    int32_t *tokens = eval_model_tokenize(m, text, bytes, true, &count);
    if (begin < 0 || (count > 0 && tokens[0] == begin)) {
        *n = count;
        return tokens;
    }
    int32_t *all = memory_alloc((count + 1) * sizeof *all);
    all[0] = begin;
    memcpy(all + 1, tokens, count * sizeof *all);
    free(tokens);
    *n = count + 1;
    return all;
}

eval_chat eval_chat_open(const eval_model *m)
{
    eval_chat chat = {0};
    char *text = eval_model_chat(m, MARK);
    const char *mark = strstr(text, MARK);
    if (!mark) {
        die(EXIT_FAILED, "the chat template of %s leaves out the message", eval_model_name(m));
    }
    const char *rest = mark + strlen(MARK);
    chat.before = pieces(m, text, (size_t)(mark - text), true, &chat.n_before);
    chat.after = pieces(m, rest, strlen(rest), false, &chat.n_after);
    free(text);
    return chat;
}

eval_chat eval_chat_none(const eval_model *m)
{
    eval_chat chat = {0};
    chat.before = pieces(m, "", 0, true, &chat.n_before);
    return chat;
}

void eval_chat_free(eval_chat *chat)
{
    free(chat->before);
    free(chat->after);
    *chat = (eval_chat){0};
}

int64_t eval_chat_tokens(const eval_chat *chat)
{
    return (int64_t)(chat->n_before + chat->n_after);
}
