/* SPDX-License-Identifier: Apache-2.0 */
#include "parse.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool parse_int(const char *text, int64_t min, int64_t max, int64_t *value)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || errno != 0 || number > (INT64_MAX >> 21) || number < -(INT64_MAX >> 21)) {
        return false;
    }
    if (*end == 'k' || *end == 'K') {
        number *= 1024;
        end++;
    } else if (*end == 'm' || *end == 'M') {
        number *= 1024 * 1024;
        end++;
    }
    if (*end != '\0' || number < min || number > max) {
        return false;
    }
    *value = number;
    return true;
}

bool parse_real(const char *text, double min, double max, double *value)
{
    char *end;
    double number = strtod(text, &end);
    if (end == text || *end != '\0' || !(number >= min && number <= max)) {
        return false;
    }
    *value = number;
    return true;
}

bool parse_next_item(const char **list, char *item, size_t item_size)
{
    if (!*list) {
        return false;
    }
    size_t length = strcspn(*list, ",");
    size_t kept = length < item_size - 1 ? length : item_size - 1;
    memcpy(item, *list, kept);
    item[kept] = '\0';
    *list = (*list)[length] == ',' ? *list + length + 1 : NULL;
    return true;
}

bool parse_int_list(const char *text, int64_t min, int64_t max, int_list *list)
{
    char item[32];
    list->n = 0;
    while (parse_next_item(&text, item, sizeof item)) {
        if (list->n == LIST_MAX || !parse_int(item, min, max, &list->values[list->n])) {
            return false;
        }
        list->n++;
    }
    return true;
}

bool parse_real_list(const char *text, double min, double max, real_list *list)
{
    char item[32];
    list->n = 0;
    while (parse_next_item(&text, item, sizeof item)) {
        if (list->n == LIST_MAX || !parse_real(item, min, max, &list->values[list->n])) {
            return false;
        }
        list->n++;
    }
    return true;
}

bool parse_heads(const char *text, head_counts *heads)
{
    char query[16] = "";
    size_t length = strcspn(text, "/");
    if (length >= sizeof query) {
        return false;
    }
    memcpy(query, text, length);
    int64_t n_heads, n_kv_heads;
    if (!parse_int(query, 1, 1024, &n_heads)) {
        return false;
    }
    n_kv_heads = n_heads;
    if (text[length] == '/' && !parse_int(text + length + 1, 1, n_heads, &n_kv_heads)) {
        return false;
    }
    heads->n_heads = (int32_t)n_heads;
    heads->n_kv_heads = (int32_t)n_kv_heads;
    return n_heads % n_kv_heads == 0;
}

bool parse_kv(const char *text, kv_types *types)
{
    char k[16] = "";
    size_t length = strcspn(text, "/");
    if (length >= sizeof k) {
        return false;
    }
    memcpy(k, text, length);
    return macattn_dtype_find(k, &types->k) == MACATTN_OK &&
           macattn_dtype_find(text[length] == '/' ? text + length + 1 : k, &types->v) == MACATTN_OK;
}

const char *kv_types_name(kv_types types, char *text)
{
    if (types.k == types.v) {
        snprintf(text, 16, "%s", macattn_dtype_name(types.k));
    } else {
        snprintf(text, 16, "%s/%s", macattn_dtype_name(types.k), macattn_dtype_name(types.v));
    }
    return text;
}
