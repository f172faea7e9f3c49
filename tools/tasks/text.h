/* SPDX-License-Identifier: Apache-2.0 */
/* Growing strings and lists of strings. */
#ifndef MACATTN_TOOLS_TASKS_TEXT_H
#define MACATTN_TOOLS_TASKS_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct text {
    char *s; /* ends with a zero byte; NULL while empty */
    size_t n, room;
} text;

void text_add(text *t, const char *s);
void text_add_bytes(text *t, const char *s, size_t n);
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
void text_printf(text *t, const char *format, ...);
/* The string, which the caller frees; "" if nothing was added. The text is empty afterwards. */
char *text_take(text *t);
void text_free(text *t);

typedef struct text_list {
    char **items;
    int64_t n, room;
} text_list;

void text_list_add(text_list *list, char *item); /* takes the item */
bool text_list_has(const text_list *list, const char *item);
void text_list_free(text_list *list);
/* "a, b, and c" */
char *text_list_join(const text_list *list);

char *text_copy(const char *s);
/* A file's bytes with a zero byte after them; NULL if it cannot be read. */
char *text_read_file(const char *path);

#endif /* MACATTN_TOOLS_TASKS_TEXT_H */
