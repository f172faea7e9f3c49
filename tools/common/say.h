/* SPDX-License-Identifier: Apache-2.0 */
/* Sentences on standard error, and the end of the program. */
#ifndef MACATTN_TOOLS_COMMON_SAY_H
#define MACATTN_TOOLS_COMMON_SAY_H

#include "macattn/macattn.h"

/* Exit statuses. */
#define EXIT_OK 0
#define EXIT_FAILED 1 /* the machine, the library or a check */
#define EXIT_USAGE 2  /* the command line */

/* Print a sentence to standard error, the program's name first. */
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
void say(const char *format, ...);

/* The same, and end. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3), noreturn))
#endif
void die(int status, const char *format, ...);

/* Dies with the library's own sentence. */
void die_unless_ok(const macattn *m, macattn_status status, const char *what);

#endif /* MACATTN_TOOLS_COMMON_SAY_H */
