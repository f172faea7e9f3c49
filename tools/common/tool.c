/* SPDX-License-Identifier: Apache-2.0 */
#include "tool.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

void tool_die(int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("macattn: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(status);
}

void tool_expect(const macattn *m, macattn_status status, const char *what)
{
    if (status != MACATTN_OK) {
        const char *sentence = macattn_last_error(m);
        tool_die(TOOL_FAILED, "%s: %s%s%s", what, macattn_status_string(status),
                 sentence[0] ? ": " : "", sentence);
    }
}

void *tool_alloc(size_t bytes)
{
    void *ptr = calloc(1, bytes ? bytes : 1);
    if (!ptr) {
        tool_die(TOOL_FAILED, "out of memory (%zu bytes)", bytes);
    }
    return ptr;
}

void *tool_map(size_t bytes, bool huge)
{
    void *ptr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ptr == MAP_FAILED) {
        tool_die(TOOL_FAILED, "out of memory (%zu bytes)", bytes);
    }
    if (huge) {
        (void)madvise(ptr, bytes, MADV_HUGEPAGE);
    }
    return ptr;
}

void tool_unmap(void *ptr, size_t bytes)
{
    if (ptr) {
        (void)munmap(ptr, bytes);
    }
}

double tool_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec * 1e-3;
}

void tool_sleep_us(int us)
{
    struct timespec wait = {.tv_sec = us / 1000000, .tv_nsec = (long)(us % 1000000) * 1000};
    nanosleep(&wait, NULL);
}

/* ---------------------------------------------------------------------------- random numbers -- */

/* splitmix64. */
uint64_t tool_random(tool_rng *rng)
{
    uint64_t z = (rng->state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int64_t tool_random_below(tool_rng *rng, int64_t n)
{
    return (int64_t)(tool_random(rng) % (uint64_t)n);
}

/* Box and Muller. */
float tool_random_normal(tool_rng *rng)
{
    double u = ((double)(tool_random(rng) >> 11) + 1.0) * 0x1p-53;
    double w = (double)(tool_random(rng) >> 11) * 0x1p-53;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * w));
}

/* ----------------------------------------------------------------------------------- samples -- */

void tool_samples_add(tool_samples *s, double value)
{
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 64;
        double *values = realloc(s->values, room * sizeof *values);
        if (!values) {
            tool_die(TOOL_FAILED, "out of memory");
        }
        s->values = values;
        s->room = room;
    }
    s->values[s->n++] = value;
}

static int compare_reals(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double tool_samples_quantile(const tool_samples *s, double quantile)
{
    if (s->n == 0) {
        return (double)NAN;
    }
    double *sorted = tool_alloc(s->n * sizeof *sorted);
    memcpy(sorted, s->values, s->n * sizeof *sorted);
    qsort(sorted, s->n, sizeof *sorted, compare_reals);
    double at = quantile * (double)(s->n - 1);
    size_t low = (size_t)at;
    size_t high = low + 1 < s->n ? low + 1 : low;
    double value = sorted[low] + (at - (double)low) * (sorted[high] - sorted[low]);
    free(sorted);
    return value;
}

double tool_samples_median(const tool_samples *s)
{
    return tool_samples_quantile(s, 0.5);
}

void tool_samples_free(tool_samples *s)
{
    free(s->values);
    *s = (tool_samples){0};
}

/* ------------------------------------------------------------------------------------- lists -- */

bool tool_parse_int(const char *text, int64_t min, int64_t max, int64_t *value)
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

bool tool_parse_real(const char *text, double min, double max, double *value)
{
    char *end;
    double number = strtod(text, &end);
    if (end == text || *end != '\0' || !(number >= min && number <= max)) {
        return false;
    }
    *value = number;
    return true;
}

bool tool_next_item(const char **list, char *item, size_t item_size)
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

bool tool_parse_int_list(const char *text, int64_t min, int64_t max, tool_int_list *list)
{
    char item[32];
    list->n = 0;
    while (tool_next_item(&text, item, sizeof item)) {
        if (list->n == TOOL_LIST_MAX || !tool_parse_int(item, min, max, &list->values[list->n])) {
            return false;
        }
        list->n++;
    }
    return true;
}

bool tool_parse_real_list(const char *text, double min, double max, tool_real_list *list)
{
    char item[32];
    list->n = 0;
    while (tool_next_item(&text, item, sizeof item)) {
        if (list->n == TOOL_LIST_MAX || !tool_parse_real(item, min, max, &list->values[list->n])) {
            return false;
        }
        list->n++;
    }
    return true;
}

bool tool_parse_heads(const char *text, tool_heads *heads)
{
    char query[16] = "";
    size_t length = strcspn(text, "/");
    if (length >= sizeof query) {
        return false;
    }
    memcpy(query, text, length);
    int64_t n_heads, n_kv_heads;
    if (!tool_parse_int(query, 1, 1024, &n_heads)) {
        return false;
    }
    n_kv_heads = n_heads;
    if (text[length] == '/' && !tool_parse_int(text + length + 1, 1, n_heads, &n_kv_heads)) {
        return false;
    }
    heads->n_heads = (int32_t)n_heads;
    heads->n_kv_heads = (int32_t)n_kv_heads;
    return n_heads % n_kv_heads == 0;
}

static const char *const dtype_names[] = {[MACATTN_DTYPE_F32] = "f32",
                                          [MACATTN_DTYPE_F16] = "f16",
                                          [MACATTN_DTYPE_BF16] = "bf16",
                                          [MACATTN_DTYPE_Q8_0] = "q8_0",
                                          [MACATTN_DTYPE_F8_E4M3] = "f8_e4m3"};
#define N_DTYPES ((int)(sizeof dtype_names / sizeof dtype_names[0]))

const char *tool_dtype_name(macattn_dtype dtype)
{
    return (int)dtype >= 0 && (int)dtype < N_DTYPES ? dtype_names[dtype] : "?";
}

static bool parse_dtype(const char *text, macattn_dtype *dtype)
{
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(text, dtype_names[i]) == 0) {
            *dtype = (macattn_dtype)i;
            return true;
        }
    }
    return false;
}

bool tool_parse_kv(const char *text, tool_kv_types *types)
{
    char k[16] = "";
    size_t length = strcspn(text, "/");
    if (length >= sizeof k) {
        return false;
    }
    memcpy(k, text, length);
    return parse_dtype(k, &types->k) &&
           parse_dtype(text[length] == '/' ? text + length + 1 : k, &types->v);
}

const char *tool_kv_name(tool_kv_types types, char *text)
{
    if (types.k == types.v) {
        snprintf(text, 16, "%s", tool_dtype_name(types.k));
    } else {
        snprintf(text, 16, "%s/%s", tool_dtype_name(types.k), tool_dtype_name(types.v));
    }
    return text;
}
