/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <stdio.h>
#include <string.h>

enum { FIRST_KEY = 0x1000 }; /* no key of a command: policy is -p */

/* What the options are called, the fields of macattn_config that they set, and their argument. */
static const struct {
    const char *name, *setting, *argument;
} options[OPTION_COUNT] = {[OPTION_POLICY] = {"policy", "policy", "NAME"},
                           [OPTION_TAU] = {"tau", "tau", "X"},
                           [OPTION_BUDGET] = {"budget", "budget", "X"},
                           [OPTION_RING] = {"ring", "ring", "K"},
                           [OPTION_BAND] = {"band", "band", "R"},
                           [OPTION_FRESH] = {"fresh", "fresh_tokens", "F"},
                           [OPTION_LSE_ORDER] = {"lse-order", "lse_order", "N"},
                           [OPTION_SELECT] = {"select", "select", "N"},
                           [OPTION_MIN_TOKENS] = {"min-tokens", "min_tokens", "N"},
                           [OPTION_THREADS] = {"threads", "n_threads", "N"},
                           [OPTION_KV] = {"kv", "k_dtype", "TYPE"}};

/* "exact, paper, budget": what there is by name. */
static void list_names(const macattn_setting *s, char *text, size_t size)
{
    size_t n = 0;
    for (int i = (int)s->low; i <= (int)s->high && n < size; i++) {
        const char *name = s->type == MACATTN_SETTING_POLICY
                               ? macattn_policy_name((macattn_policy)i)
                               : macattn_dtype_name((macattn_dtype)i);
        n += (size_t)snprintf(text + n, size - n, "%s%s", n ? ", " : "", name);
    }
}

static void describe(const setting_options *o, setting_option option, macattn_policy policy,
                     char *text, size_t size)
{
    const macattn_setting *s = macattn_setting_find(options[option].setting);
    const char *list = o->lists >> option & 1 ? "; a list" : "";
    char names[128];
    if (option == OPTION_KV) {
        list_names(s, names, sizeof names);
        snprintf(text, size, "type of K and V: %s, or K's/V's as in f16/q8_0%s (default %s)", names,
                 list, macattn_dtype_name((macattn_dtype)s->initial));
    } else if (option == OPTION_POLICY) {
        list_names(s, names, sizeof names);
        snprintf(text, size, "%s: %s%s (default %s)", s->about, names, list,
                 macattn_policy_name(policy));
    } else {
        snprintf(text, size, "%s%s (default %g)", s->about, list, s->initial);
    }
}

void setting_options_init(setting_options *o, uint32_t taken, uint32_t lists, macattn_policy policy)
{
    struct argp_option *next = o->table;
    memset(o, 0, sizeof *o);
    o->lists = lists;
    for (setting_option i = 0; i < OPTION_COUNT; i++) {
        if (!(taken >> i & 1)) continue;
        describe(o, i, policy, o->about[i], sizeof o->about[i]);
        *next++ = (struct argp_option){.name = options[i].name,
                                       .key = i == OPTION_POLICY ? 'p' : FIRST_KEY + (int)i,
                                       .arg = options[i].argument,
                                       .doc = o->about[i]};
    }
}

double setting_options_value(const setting_options *o, setting_option option, double otherwise)
{
    return o->values[option].n > 0 ? o->values[option].values[0] : otherwise;
}

/* ----------------------------------------------------------------------------------- parsing -- */

bool parse_setting(const char *setting, const char *text, double *value)
{
    const macattn_setting *s = macattn_setting_find(setting);
    macattn_policy policy;
    int64_t whole;
    switch (s->type) {
    case MACATTN_SETTING_REAL: return parse_real(text, s->low, s->high, value);
    case MACATTN_SETTING_POLICY:
        if (macattn_policy_find(text, &policy) != MACATTN_OK) return false;
        *value = (double)policy;
        return true;
    default:
        if (!parse_int(text, INT64_MIN, INT64_MAX, &whole)) return false;
        *value = (double)whole;
        return *value >= s->low && *value <= s->high;
    }
}

bool parse_setting_int(const char *setting, const char *text, int64_t *value)
{
    double number;
    if (!parse_setting(setting, text, &number)) return false;
    *value = (int64_t)number;
    return true;
}

bool parse_setting_list(const char *setting, const char *text, int_list *list)
{
    char item[32];
    list->n = 0;
    while (parse_next_item(&text, item, sizeof item)) {
        if (list->n == LIST_MAX || !parse_setting_int(setting, item, &list->values[list->n++])) {
            return false;
        }
    }
    return true;
}

static bool add_value(setting_options *o, setting_option option, const char *text)
{
    real_list *list = &o->values[option];
    if (option == OPTION_KV) {
        return o->n_kv < LIST_MAX && parse_kv(text, &o->kv[o->n_kv++]);
    }
    return list->n < LIST_MAX &&
           parse_setting(options[option].setting, text, &list->values[list->n++]);
}

/* An option that takes one value forgets an earlier one. */
static bool take(setting_options *o, setting_option option, const char *arg)
{
    char item[32];
    if (!(o->lists >> option & 1)) {
        o->values[option].n = 0;
        o->n_kv = option == OPTION_KV ? 0 : o->n_kv;
        return add_value(o, option, arg);
    }
    while (parse_next_item(&arg, item, sizeof item)) {
        if (!add_value(o, option, item)) return false;
    }
    return true;
}

static void refuse(struct argp_state *state, setting_option option, const char *arg)
{
    const macattn_setting *s = macattn_setting_find(options[option].setting);
    char range[64];
    if (s->type == MACATTN_SETTING_POLICY || s->type == MACATTN_SETTING_DTYPE) {
        list_names(s, range, sizeof range);
    } else {
        snprintf(range, sizeof range, "%.10g to %.10g", s->low, s->high);
    }
    argp_error(state, "--%s does not take '%s' (%s)", options[option].name, arg, range);
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    setting_options *o = state->input;
    const setting_option option = key == 'p' ? OPTION_POLICY : (setting_option)(key - FIRST_KEY);
    if (key != 'p' && (key < FIRST_KEY || key >= FIRST_KEY + (int)OPTION_COUNT)) {
        return ARGP_ERR_UNKNOWN;
    }
    if (!take(o, option, arg)) refuse(state, option, arg);
    return 0;
}

struct argp setting_options_argp(const setting_options *o)
{
    return (struct argp){.options = o->table, .parser = parse_option};
}
