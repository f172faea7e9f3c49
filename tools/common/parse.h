/* SPDX-License-Identifier: Apache-2.0 */
/* Values and lists of them on the command line. */
#ifndef MACATTN_TOOLS_COMMON_PARSE_H
#define MACATTN_TOOLS_COMMON_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "macattn/macattn.h"

#define LIST_MAX 32

typedef struct int_list {
    int64_t values[LIST_MAX];
    int n;
} int_list;

typedef struct real_list {
    double values[LIST_MAX];
    int n;
} real_list;

/* Query heads / KV heads, and the types of K and V. */
typedef struct head_counts {
    int32_t n_heads, n_kv_heads;
} head_counts;

typedef struct kv_types {
    macattn_dtype k, v;
} kv_types;

/* Parsers: false if `text` is not what they read, or a number is outside [min, max]. A list is
 * separated by commas; integers may end in k (1024) or m (1024 squared). */
bool parse_int(const char *text, int64_t min, int64_t max, int64_t *value);
bool parse_real(const char *text, double min, double max, double *value);
bool parse_int_list(const char *text, int64_t min, int64_t max, int_list *list);
bool parse_real_list(const char *text, double min, double max, real_list *list);
bool parse_heads(const char *text, head_counts *heads);
bool parse_kv(const char *text, kv_types *types);

/* Cuts the first element off a comma-separated list into `item`; false if there is none. */
bool parse_next_item(const char **list, char *item, size_t item_size);

/* "f16", or "f16/q8_0" when K and V differ; `text` has room for 16 characters. */
const char *kv_types_name(kv_types types, char *text);

#endif /* MACATTN_TOOLS_COMMON_PARSE_H */
