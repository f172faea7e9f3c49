/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the macattn command share: ends, time, random numbers, samples, lists. */
#ifndef MACATTN_TOOLS_COMMON_TOOL_H
#define MACATTN_TOOLS_COMMON_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "macattn/macattn.h"

/* Exit statuses. */
#define TOOL_OK 0
#define TOOL_FAILED 1 /* the machine, the library or a check */
#define TOOL_USAGE 2  /* the command line */

/* Print a sentence to standard error and end. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3), noreturn))
#endif
void tool_die(int status, const char *format, ...);

/* Dies with the library's own sentence. */
void tool_expect(const macattn *m, macattn_status status, const char *what);

void *tool_alloc(size_t bytes); /* zeroed; never NULL */

/* Large buffers, aligned to pages, untouched. `huge` asks the system for huge pages. */
void *tool_map(size_t bytes, bool huge);
void tool_unmap(void *ptr, size_t bytes);

double tool_now_us(void);
void tool_sleep_us(int us);

/* ---------------------------------------------------------------------------- random numbers -- */

typedef struct tool_rng {
    uint64_t state;
} tool_rng;

uint64_t tool_random(tool_rng *rng);
int64_t tool_random_below(tool_rng *rng, int64_t n);
float tool_random_normal(tool_rng *rng);

/* ----------------------------------------------------------------------------------- samples -- */

typedef struct tool_samples {
    double *values;
    size_t n, room;
} tool_samples;

void tool_samples_add(tool_samples *s, double value);
double tool_samples_quantile(const tool_samples *s, double quantile); /* NAN if empty */
double tool_samples_median(const tool_samples *s);
void tool_samples_free(tool_samples *s);

/* ------------------------------------------------------------------------------------- lists -- */

#define TOOL_LIST_MAX 32

typedef struct tool_int_list {
    int64_t values[TOOL_LIST_MAX];
    int n;
} tool_int_list;

typedef struct tool_real_list {
    double values[TOOL_LIST_MAX];
    int n;
} tool_real_list;

/* Query heads / KV heads, and the types of K and V. */
typedef struct tool_heads {
    int32_t n_heads, n_kv_heads;
} tool_heads;

typedef struct tool_kv_types {
    macattn_dtype k, v;
} tool_kv_types;

/* Parsers: false if `text` is not what they read, or a number is outside [min, max]. A list is
 * separated by commas; integers may end in k (1024) or m (1024 squared). */
bool tool_parse_int(const char *text, int64_t min, int64_t max, int64_t *value);
bool tool_parse_real(const char *text, double min, double max, double *value);
bool tool_parse_int_list(const char *text, int64_t min, int64_t max, tool_int_list *list);
bool tool_parse_real_list(const char *text, double min, double max, tool_real_list *list);
bool tool_parse_heads(const char *text, tool_heads *heads);
bool tool_parse_kv(const char *text, tool_kv_types *types);

/* Cuts the first element off a comma-separated list into `item`; false if there is none. */
bool tool_next_item(const char **list, char *item, size_t item_size);

const char *tool_dtype_name(macattn_dtype dtype);
/* "f16", or "f16/q8_0" when K and V differ; `text` has room for 16 characters. */
const char *tool_kv_name(tool_kv_types types, char *text);

#endif /* MACATTN_TOOLS_COMMON_TOOL_H */
