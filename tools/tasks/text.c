/* SPDX-License-Identifier: Apache-2.0 */
#include "text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/memory.h"
#include "common/say.h"

static void *grown(void *old, size_t bytes)
{
    void *p = realloc(old, bytes);
    if (!p) die(EXIT_FAILED, "no memory for %zu bytes", bytes);
    return p;
}

void text_add_bytes(text *t, const char *s, size_t n)
{
    if (t->n + n + 1 > t->room) {
        t->room = 2 * (t->n + n) + 64;
        t->s = grown(t->s, t->room);
    }
    memcpy(t->s + t->n, s, n);
    t->n += n;
    t->s[t->n] = '\0';
}

void text_add(text *t, const char *s)
{
    text_add_bytes(t, s, strlen(s));
}

void text_printf(text *t, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, format, args);
    char *s = memory_alloc((size_t)n + 1);
    vsnprintf(s, (size_t)n + 1, format, again);
    va_end(again);
    va_end(args);
    text_add_bytes(t, s, (size_t)n);
    free(s);
}

char *text_take(text *t)
{
    char *s = t->s ? t->s : text_copy("");
    *t = (text){NULL, 0, 0};
    return s;
}

void text_free(text *t)
{
    free(t->s);
    *t = (text){NULL, 0, 0};
}

void text_list_add(text_list *list, char *item)
{
    if (list->n == list->room) {
        list->room = 2 * list->room + 16;
        list->items = grown(list->items, (size_t)list->room * sizeof *list->items);
    }
    list->items[list->n++] = item;
}

bool text_list_has(const text_list *list, const char *item)
{
    for (int64_t i = 0; i < list->n; i++) {
        if (strcmp(list->items[i], item) == 0) return true;
    }
    return false;
}

void text_list_free(text_list *list)
{
    for (int64_t i = 0; i < list->n; i++) free(list->items[i]);
    free(list->items);
    *list = (text_list){NULL, 0, 0};
}

char *text_list_join(const text_list *list)
{
    text t = {NULL, 0, 0};
    for (int64_t i = 0; i < list->n; i++) {
        if (i > 0) text_add(&t, list->n > 2 ? ", " : " ");
        if (i > 0 && i == list->n - 1) text_add(&t, "and ");
        text_add(&t, list->items[i]);
    }
    return text_take(&t);
}

char *text_copy(const char *s)
{
    const size_t n = strlen(s) + 1;
    char *copy = memory_alloc(n);
    memcpy(copy, s, n);
    return copy;
}

char *text_read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    text t = {NULL, 0, 0};
    char piece[65536];
    size_t n;
    while ((n = fread(piece, 1, sizeof piece, file)) > 0) text_add_bytes(&t, piece, n);
    const bool failed = ferror(file) != 0;
    fclose(file);
    if (!failed) return text_take(&t);
    text_free(&t);
    return NULL;
}
