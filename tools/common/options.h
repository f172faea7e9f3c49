/* SPDX-License-Identifier: Apache-2.0 */
/* Options that several commands take: settings of the library, with its names, its ranges, its
 * defaults and its words for them (macattn_setting_at). */
#ifndef MACATTN_TOOLS_COMMON_OPTIONS_H
#define MACATTN_TOOLS_COMMON_OPTIONS_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include "macattn/macattn.h"
#include "parse.h"

typedef enum setting_option {
    OPTION_POLICY,
    OPTION_TAU,
    OPTION_BUDGET,
    OPTION_RING,
    OPTION_BAND,
    OPTION_FRESH,
    OPTION_LSE_ORDER,
    OPTION_SELECT,
    OPTION_MIN_TOKENS,
    OPTION_THREADS,
    OPTION_KV, /* K's and V's type in one */
    OPTION_COUNT
} setting_option;

/* What a command takes, and what its line says. */
typedef struct setting_options {
    real_list values[OPTION_COUNT]; /* n = 0: not given. A policy by its number */
    kv_types kv[LIST_MAX];
    int n_kv; /* 0: not given */
    /* For argp: */
    uint32_t lists; /* bit 1 << option: takes a list, and may be given several times */
    struct argp_option table[OPTION_COUNT + 1];
    char about[OPTION_COUNT][256];
} setting_options;

/* `taken`, `lists`: options that there are, and of those, the ones that take a list. `policy`:
 * what the command does without --policy, for its help. */
void setting_options_init(setting_options *o, uint32_t taken, uint32_t lists,
                          macattn_policy policy);

/* What argp is given as a child, with `o` as its input. `o` must stay where it is. */
struct argp setting_options_argp(const setting_options *o);

/* The first value that was given, or another. */
double setting_options_value(const setting_options *o, setting_option option, double otherwise);

/* Numbers in the range of a setting of the library; false if they are not. Whole ones may end in k
 * (1024) or m. */
bool parse_setting(const char *setting, const char *text, double *value);
bool parse_setting_int(const char *setting, const char *text, int64_t *value);
bool parse_setting_list(const char *setting, const char *text, int_list *list);

#endif /* MACATTN_TOOLS_COMMON_OPTIONS_H */
