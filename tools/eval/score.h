/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MACATTN_TOOLS_EVAL_SCORE_H
#define MACATTN_TOOLS_EVAL_SCORE_H

/* `macattn eval` where its line has --tasks: another list of options. */
int command_eval_tasks(int argc, char **argv);

#endif /* MACATTN_TOOLS_EVAL_SCORE_H */
