/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "commit.h"
#include "macattn/macattn.h"
#include "say.h"

static cJSON *check(cJSON *item)
{
    if (!item) {
        die(EXIT_FAILED, "out of memory");
    }
    return item;
}

cJSON *report_row(void)
{
    return check(cJSON_CreateObject());
}

void report_add_real(cJSON *row, const char *field, double value)
{
    if (isnan(value)) {
        check(cJSON_AddNullToObject(row, field));
        return;
    }
    /* Six digits are more than any measurement has. */
    char text[32];
    snprintf(text, sizeof text, "%.6g", value);
    check(cJSON_AddNumberToObject(row, field, strtod(text, NULL)));
}

void report_add_int(cJSON *row, const char *field, int64_t value)
{
    check(cJSON_AddNumberToObject(row, field, (double)value));
}

void report_add_text(cJSON *row, const char *field, const char *value)
{
    check(cJSON_AddStringToObject(row, field, value));
}

void report_add_machine(cJSON *row, const machine_info *machine, const char *isa)
{
    report_add_text(row, "isa", isa);
    report_add_text(row, "version", macattn_version());
    report_add_text(row, "commit", MACATTN_COMMIT);
    report_add_text(row, "cpu", machine->cpu);
    report_add_int(row, "cpus", machine->n_cpus);
    report_add_int(row, "l2_bytes", (int64_t)machine->l2);
    report_add_int(row, "llc_bytes", (int64_t)machine->llc);
    report_add_int(row, "memory_bytes", (int64_t)machine->memory);
    report_add_text(row, "transparent_huge_pages", machine->huge_pages);
    report_add_text(row, "os", machine->os);
    /* What else kept the machine busy: above the number of threads, times mean little. */
    double load;
    report_add_real(row, "load_average", getloadavg(&load, 1) == 1 ? load : (double)NAN);
}

static void print_cell(const report_column *column, const cJSON *item)
{
    if (cJSON_IsString(item)) {
        printf("%*s", column->width, item->valuestring);
    } else if (cJSON_IsNumber(item)) {
        printf("%*.*f", column->width, column->decimals, item->valuedouble);
    } else {
        printf("%*s", column->width, "-");
    }
}

static void print_table_row(report *r, const cJSON *row)
{
    if (!r->started) {
        for (const report_column *c = r->columns; c->field; c++) {
            printf("%s%*s", c == r->columns ? "" : "  ", c->width, c->heading);
        }
        putchar('\n');
        r->started = true;
    }
    for (const report_column *c = r->columns; c->field; c++) {
        fputs(c == r->columns ? "" : "  ", stdout);
        print_cell(c, cJSON_GetObjectItemCaseSensitive(row, c->field));
    }
    putchar('\n');
}

void report_print(report *r, cJSON *row)
{
    report_progress_clear();
    if (r->json) {
        char *text = cJSON_PrintUnformatted(row);
        if (!text) {
            die(EXIT_FAILED, "out of memory");
        }
        puts(text);
        cJSON_free(text);
    } else {
        print_table_row(r, row);
    }
    fflush(stdout);
    cJSON_Delete(row);
}

static bool to_terminal(void)
{
    static int terminal = -1;
    if (terminal < 0) terminal = isatty(STDERR_FILENO);
    return terminal;
}

static double progress_us = 60e6; /* between lines */

void report_progress_every(double seconds)
{
    progress_us = seconds * 1e6;
}

/* Whether it is time for another line. What is over sooner needs none. */
static bool is_due(void)
{
    static double last = -1.0;
    const double now = clock_now_us();
    if (last >= 0.0 && progress_us > 0.0 && now - last >= progress_us) {
        last = now;
        return true;
    }
    last = last < 0.0 ? now : last;
    return false;
}

void report_progress(const char *format, ...)
{
    const bool terminal = to_terminal();
    if (!terminal && !is_due()) return;
    va_list args;
    va_start(args, format);
    fputs(terminal ? "\r\033[K" : "macattn: ", stderr);
    vfprintf(stderr, format, args);
    if (!terminal) fputc('\n', stderr);
    va_end(args);
    fflush(stderr);
}

void report_progress_clear(void)
{
    if (!to_terminal()) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
}
