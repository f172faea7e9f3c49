/* SPDX-License-Identifier: Apache-2.0 */
/* What `eval` and `tune` measure with: the model, the texts, and where results go. */
#ifndef MACATTN_TOOLS_EVAL_SESSION_H
#define MACATTN_TOOLS_EVAL_SESSION_H

#include <stdio.h>

#include "measure.h"
#include "options.h"
#include "text.h"

/* Everything that is open during a run. */
typedef struct eval_session {
    const eval_common *common;
    eval_model *model;
    eval_text text;
    report table;
    FILE *json;
    machine_info machine;
    bool heads; /* print a grid of heads below each row */
} eval_session;

/* Opens the model and reads the texts; the model writes one itself if none is named. Dies with a
 * sentence on failure. */
void eval_session_open(eval_session *session, const eval_common *common);
void eval_session_close(eval_session *session);

/* What records call the text: the first file's name without its folder. */
const char *eval_session_text(const eval_session *session);

/* The plug-in's defaults with what the command line says. */
macattn_ggml_options eval_session_options(const eval_session *session);

/* Measure settings at one context length, on as many windows as there are and are asked for.
 * With `rows` each result is printed, and written to the JSON file, as soon as it is complete.
 * Dies if the texts are too short for one window. The results are to be freed. */
eval_result *eval_session_measure(eval_session *session, eval_plan *plan,
                                  const macattn_ggml_options *settings, int n_settings,
                                  bool rows);

/* Write a row as one line. Dies if `path` cannot be written. */
void eval_write_row(FILE *json, const char *path, const cJSON *row);

#endif /* MACATTN_TOOLS_EVAL_SESSION_H */
