/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of `macattn`. Each gets its own name in argv[0] and returns the exit status. */
#ifndef MACATTN_TOOLS_COMMANDS_H
#define MACATTN_TOOLS_COMMANDS_H

int command_info(int argc, char **argv);
int command_bench(int argc, char **argv);
int command_check(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_tune(int argc, char **argv);
int command_tasks(int argc, char **argv);

#endif /* MACATTN_TOOLS_COMMANDS_H */
