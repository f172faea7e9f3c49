/* SPDX-License-Identifier: Apache-2.0 */
/* Reading JSON (RFC 8259) from memory, value by value. Small, because the plug-in depends on no
 * library: it is loaded by programs that have none.
 *
 * Every call returns false once anything is wrong; `error` then says what, and where. */
#ifndef MACATTN_PLUGIN_JSON_H
#define MACATTN_PLUGIN_JSON_H

#include <stdbool.h>
#include <stddef.h>

typedef struct json {
    const char *at, *end;
    int line;
    char error[160];
} json;

void json_open(json *j, const char *text, size_t bytes);

/*! json_fail() : set the error, if there is none yet.  @return : false. */
bool json_fail(json *j, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*! json_next_key() : within an object. `*first` is true before the first call.
 * @return : true and the key; false at the object's end, or if anything is wrong (see json_ok). */
bool json_next_key(json *j, bool *first, char *key, size_t key_size);

/*! json_next_element() : within an array, as json_next_key. */
bool json_next_element(json *j, bool *first);

bool json_number(json *j, double *value);
bool json_string(json *j, char *text, size_t size); /* too long a string is cut */
bool json_skip(json *j);                            /* any value */
bool json_at_end(json *j);
bool json_ok(const json *j);

#endif
