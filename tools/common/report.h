/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of results: a table for people, or one JSON object a line for programs. */
#ifndef MACATTN_TOOLS_COMMON_REPORT_H
#define MACATTN_TOOLS_COMMON_REPORT_H

#include <cjson/cJSON.h>
#include <stdbool.h>

#include "machine.h"

/* One column of the table. The JSON object may have more fields than the table has columns. */
typedef struct report_column {
    const char *field; /* of the row */
    const char *heading;
    int width;
    int decimals;
} report_column;

typedef struct report {
    bool json;
    const report_column *columns; /* ends with field NULL */
    bool started;
} report;

/* A row, to be filled with the functions below and given to report_print, which frees it. */
cJSON *report_row(void);
void report_add_real(cJSON *row, const char *field, double value); /* NAN becomes null */
void report_add_int(cJSON *row, const char *field, int64_t value);
void report_add_text(cJSON *row, const char *field, const char *value);
/* What every row says of the machine, the library and this program. */
void report_add_machine(cJSON *row, const machine_info *machine, const char *isa);
void report_print(report *r, cJSON *row);

/* A line of progress on standard error: one that changes on a terminal; elsewhere a line a
 * minute, or every `seconds`, 0 = none. */
void report_progress_every(double seconds);
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
void report_progress(const char *format, ...);
void report_progress_clear(void);

#endif /* MACATTN_TOOLS_COMMON_REPORT_H */
