/* SPDX-License-Identifier: Apache-2.0 */
/* The command `macattn`: chooses the command and hands over the rest of the line. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "commit.h"
#include "common/say.h"
#include "macattn/macattn.h"

static void print_version(FILE *stream, struct argp_state *state)
{
    (void)state;
    fprintf(stream, "macattn %s (commit %s), instruction sets:", macattn_version(), MACATTN_COMMIT);
    for (int i = 0; macattn_isa_name(i); i++) {
        const char *name = macattn_isa_name(i);
        fprintf(stream, " %s%s", name, macattn_isa_supported(name) ? "" : "(-)");
    }
    fputc('\n', stream);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    switch (key) {
    case ARGP_KEY_ARG: argp_error(state, "there is no command '%s'", arg); return 0;
    case ARGP_KEY_NO_ARGS: argp_usage(state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

int main(int argc, char **argv)
{
    /* What usage messages call them. */
    static char info[] = "macattn info", bench[] = "macattn bench", check[] = "macattn check",
                eval[] = "macattn eval", tune[] = "macattn tune", tasks[] = "macattn tasks";
    static const struct {
        const char *name;
        char *title;
        int (*run)(int argc, char **argv);
    } commands[] = {{"info", info, command_info},    {"bench", bench, command_bench},
                    {"check", check, command_check}, {"eval", eval, command_eval},
                    {"tune", tune, command_tune},    {"tasks", tasks, command_tasks}};
    const struct argp argp = {
        NULL,
        parse_option,
        "COMMAND [OPTION...]",
        "\nFast decode attention for long contexts.\v"
        "  info    what was built, and what this machine has\n"
        "  bench   measure attention: attend, mac, match\n"
        "  check   compare every kernel of this machine with the reference\n"
        "  eval    what reuse changes in a model's predictions, and what it saves\n"
        "  tune    which settings suit a model\n"
        "  tasks   long-context tasks: samples and scores\n\n"
        "macattn COMMAND --help says more. The manual page is macattn(1).",
        NULL,
        NULL,
        NULL};
    argp_program_version_hook = print_version;
    argp_err_exit_status = EXIT_USAGE;
    for (size_t i = 0; argc > 1 && i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            argv[1] = commands[i].title;
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    (void)argp_parse(&argp, argc, argv, 0, NULL, NULL);
    return EXIT_OK;
}
