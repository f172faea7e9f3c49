/* SPDX-License-Identifier: Apache-2.0 */
#include "say.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void print(const char *format, va_list args)
{
    fputs("macattn: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print(format, args);
    va_end(args);
}

void die(int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print(format, args);
    va_end(args);
    exit(status);
}

void die_unless_ok(const macattn *m, macattn_status status, const char *what)
{
    if (status != MACATTN_OK) {
        const char *sentence = macattn_last_error(m);
        die(EXIT_FAILED, "%s: %s%s%s", what, macattn_status_string(status), sentence[0] ? ": " : "",
            sentence);
    }
}
