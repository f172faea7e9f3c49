/* SPDX-License-Identifier: Apache-2.0 */
/* A model in llama.cpp whose attention the plug-in computes, as `eval` and `tune` use it: one
 * sequence, a prompt that is computed once, and tokens after it that are computed again and
 * again under different settings. */
#ifndef MACATTN_TOOLS_EVAL_MODEL_H
#define MACATTN_TOOLS_EVAL_MODEL_H

#include <cjson/cJSON.h>

#include "common/parse.h"
#include "macattn/ggml.h"

typedef struct eval_model eval_model;

typedef struct eval_model_config {
    const char *model;  /* a GGUF file */
    const char *plugin; /* libggml-macattn.so; NULL = the one built or installed with this */
    kv_types kv;
    int n_threads;
    int64_t n_tokens; /* room of the cache */
    bool with_ggml;   /* a second context without the plug-in */
} eval_model_config;

/* Dies with a sentence on failure. */
eval_model *eval_model_open(const eval_model_config *config);
void eval_model_close(eval_model *m);

/* The settings of the environment and their defaults. */
macattn_ggml_options eval_model_options(const eval_model *m);

/* What the model is called, and what records say of it and of llama.cpp. */
const char *eval_model_name(const eval_model *m);
void eval_model_describe(const eval_model *m, cJSON *row);

int32_t eval_model_vocab(const eval_model *m);
bool eval_model_is_end(const eval_model *m, int32_t token); /* ends the text */

/* The bytes of a token, at most `room`; returns how many. */
size_t eval_model_piece(const eval_model *m, int32_t token, char *out, size_t room);

/* The tokens of a text, without any that the model wants at the start; to be freed. `special`: names
 * of special tokens stand for these. */
int32_t *eval_model_tokenize(const eval_model *m, const char *text, size_t bytes, bool special,
                             size_t *n);
/* The token a sequence begins with, -1 if the model wants none. */
int32_t eval_model_first_token(const eval_model *m);

/* The message as the model's own chat template puts it, up to the answer; to be freed. Dies if the
 * model has no template that llama.cpp knows. */
char *eval_model_chat(const eval_model *m, const char *message);

/* Tokens of a prompt that a policy that learns is shown again at each rewind: enough for it to judge
 * as after the whole prompt, nearly. */
#define EVAL_TEACHING 4096

/* Forget everything and compute a prompt, keeping what `options` would reuse after it; nothing is
 * reused in it. `again`: tokens at its end that each rewind computes again for a policy that
 * reuses; EVAL_TEACHING where one learns from them, else 0. */
void eval_model_prompt(eval_model *m, const int32_t *tokens, int64_t n,
                       const macattn_ggml_options *options, int64_t again, bool by_ggml);

/* Once, right after the prompt: go on under the `options` of the prompt. */
void eval_model_begin(eval_model *m, const macattn_ggml_options *options);

/* Go back to the end of the prompt, and go on under `options` (ring, band, first tokens and order
 * of the lse as in the prompt). */
void eval_model_rewind(eval_model *m, const macattn_ggml_options *options, bool by_ggml);

/* The logits of what follows what was computed last. */
const float *eval_model_logits(eval_model *m);

/* Compute one more token. Returns the logits of what follows, valid until the next call. */
const float *eval_model_step(eval_model *m, int32_t token, bool by_ggml);

/* Bytes of all layers' steps since the last rewind, where the settings count them. */
macattn_ggml_bytes eval_model_bytes(const eval_model *m);

/* Dies if macattn has computed nothing since the last prompt or rewind: whatever came out then is
 * ggml's, and says nothing of it. */
void eval_model_expect_computed(const eval_model *m);

/* The plug-in's view of the context; layers are known once a prompt was computed. */
const macattn_ggml_interface *eval_model_plugin(const eval_model *m);
macattn_ggml *eval_model_attention(const eval_model *m);

#endif /* MACATTN_TOOLS_EVAL_MODEL_H */
