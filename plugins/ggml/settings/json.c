/* SPDX-License-Identifier: Apache-2.0 */
#include "settings/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32 };

void json_open(json *j, const char *text, size_t bytes)
{
    *j = (json){.at = text, .end = text + bytes, .line = 1};
}

bool json_ok(const json *j)
{
    return j->error[0] == '\0';
}

bool json_fail(json *j, const char *format, ...)
{
    va_list args;
    if (!json_ok(j)) return false;
    int n = snprintf(j->error, sizeof j->error, "line %d: ", j->line);
    va_start(args, format);
    vsnprintf(j->error + n, sizeof j->error - (size_t)n, format, args);
    va_end(args);
    return false;
}

static char peek(json *j)
{
    while (j->at < j->end &&
           (*j->at == ' ' || *j->at == '\t' || *j->at == '\r' || *j->at == '\n')) {
        j->line += *j->at++ == '\n';
    }
    return j->at < j->end ? *j->at : '\0';
}

static bool take(json *j, char wanted)
{
    if (peek(j) != wanted || j->at == j->end) return json_fail(j, "'%c' expected", wanted);
    j->at++;
    return true;
}

/* The next item of a list between `open` and `close`. */
static bool next(json *j, bool *first, char open, char close)
{
    if (!json_ok(j)) return false;
    if (*first && !take(j, open)) return false;
    if (peek(j) == close) {
        j->at++;
        return false;
    }
    if (!*first && !take(j, ',')) return false;
    *first = false;
    return true;
}

bool json_next_key(json *j, bool *first, char *key, size_t key_size)
{
    return next(j, first, '{', '}') && json_string(j, key, key_size) && take(j, ':');
}

bool json_next_element(json *j, bool *first)
{
    return next(j, first, '[', ']');
}

bool json_number(json *j, double *value)
{
    char text[64];
    const char c = peek(j);
    const size_t n = strspn(j->at, "+-0123456789.eE"); /* the text ends with a zero */
    if ((c != '-' && (c < '0' || c > '9')) || n >= sizeof text) {
        return json_fail(j, "a number expected");
    }
    memcpy(text, j->at, n);
    text[n] = '\0';
    char *end;
    *value = strtod(text, &end);
    if (*end != '\0' || !isfinite(*value)) return json_fail(j, "%s is no number", text);
    j->at += n;
    return true;
}

/* Escapes are kept as they are but for \" and \\ : names that matter have none. */
bool json_string(json *j, char *text, size_t size)
{
    size_t n = 0;
    if (!take(j, '"')) return json_fail(j, "a string expected");
    for (; j->at < j->end && *j->at != '"'; j->at++) {
        if ((unsigned char)*j->at < 32) return json_fail(j, "a string does not end");
        if (*j->at == '\\' && j->at + 1 < j->end && (j->at[1] == '"' || j->at[1] == '\\')) j->at++;
        if (n + 1 < size) text[n++] = *j->at;
    }
    if (size > 0) text[n] = '\0';
    return take(j, '"');
}

static bool skip_word(json *j)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        const size_t n = strlen(words[i]);
        if ((size_t)(j->end - j->at) >= n && memcmp(j->at, words[i], n) == 0) {
            j->at += n;
            return true;
        }
    }
    return json_fail(j, "a value expected");
}

static bool skip(json *j, int depth)
{
    bool first = true;
    char key[4];
    double number;
    if (depth > MAX_DEPTH) return json_fail(j, "nested too deeply");
    const char c = peek(j);
    if (c == '{') {
        while (json_next_key(j, &first, key, sizeof key)) {
            if (!skip(j, depth + 1)) return false;
        }
        return json_ok(j);
    }
    if (c == '[') {
        while (json_next_element(j, &first)) {
            if (!skip(j, depth + 1)) return false;
        }
        return json_ok(j);
    }
    if (c == '"') return json_string(j, key, sizeof key);
    if (c == '-' || (c >= '0' && c <= '9')) return json_number(j, &number);
    return skip_word(j);
}

bool json_skip(json *j)
{
    return skip(j, 0);
}

bool json_at_end(json *j)
{
    peek(j);
    return j->at == j->end || json_fail(j, "something follows the end");
}
