/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn eval --tasks`. */
#ifndef MACATTN_TOOLS_EVAL_SCORE_H
#define MACATTN_TOOLS_EVAL_SCORE_H

#include "options.h"
#include "tasks/options.h"

/* Scores of tasks with exact attention and with the policy that is given, a row each. Dies with a
 * sentence on failure. */
void eval_score(const eval_common *common, tasks_common *tasks);

#endif /* MACATTN_TOOLS_EVAL_SCORE_H */
