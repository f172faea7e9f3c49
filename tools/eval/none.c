/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn eval` and `macattn tune` where they were not built. */
#include "commands.h"
#include "common/say.h"

static int missing(const char *command)
{
    die(EXIT_FAILED,
        "%s is not in this build: it needs llama.cpp. Build with -DMACATTN_BUILD_EVAL=ON "
        "-DMACATTN_BUILD_GGML_PLUGIN=ON -DMACATTN_GGML_DIR=... -DMACATTN_GGML_BIN=...; "
        "docs/eval.md says how",
        command);
}

int command_eval(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return missing("eval");
}

int command_tune(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    return missing("tune");
}
