/* SPDX-License-Identifier: Apache-2.0 */
/* Names of policies and types, and the settings by name. */
#include <math.h>
#include <string.h>

#include "support.h"

static void test_names(void **state)
{
    (void)state;
    const char *const policies[] = {"exact", "paper", "budget"};
    const char *const dtypes[] = {"f32",  "f16",  "bf16", "q8_0", "f8_e4m3",
                                  "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"};
    macattn_policy policy = (macattn_policy)77;
    macattn_dtype dtype = (macattn_dtype)77;
    assert_null(macattn_policy_name((macattn_policy)3));
    assert_null(macattn_policy_name((macattn_policy)-1));
    assert_null(macattn_dtype_name((macattn_dtype)10));
    assert_null(macattn_dtype_name((macattn_dtype)-1));
    assert_int_equal(macattn_policy_find("Paper", &policy), MACATTN_E_RANGE);
    assert_int_equal(macattn_policy_find("", &policy), MACATTN_E_RANGE);
    assert_int_equal(macattn_policy_find(NULL, &policy), MACATTN_E_ARG);
    assert_int_equal(macattn_policy_find("paper", NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_dtype_find("f64", &dtype), MACATTN_E_RANGE);
    assert_int_equal(macattn_dtype_find(NULL, &dtype), MACATTN_E_ARG);
    assert_int_equal(macattn_dtype_find("f16", NULL), MACATTN_E_ARG);
    assert_int_equal(policy, 77);
    assert_int_equal(dtype, 77);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(macattn_policy_name((macattn_policy)i), policies[i]);
        assert_int_equal(macattn_policy_find(policies[i], &policy), MACATTN_OK);
        assert_int_equal(policy, i);
    }
    for (int i = 0; i < 5; i++) {
        assert_string_equal(macattn_dtype_name((macattn_dtype)i), dtypes[i]);
        assert_int_equal(macattn_dtype_find(dtypes[i], &dtype), MACATTN_OK);
        assert_int_equal(dtype, i);
    }
}

/* Every field that is no pointer has a setting: together with those they fill the structure. */
static void test_all_fields(void **state)
{
    (void)state;
    macattn_config empty, set;
    memset(&empty, 0, sizeof empty);
    memset(&set, 0, sizeof set);
    empty.struct_size = set.struct_size = sizeof set;
    int n = 0;
    for (; macattn_setting_at(n); n++) {
        const macattn_setting *s = macattn_setting_at(n);
        assert_true(s->struct_size == sizeof *s && strlen(s->about) > 3);
        assert_ptr_equal(macattn_setting_find(s->name), s);
        assert_true(s->low < s->high && s->initial <= s->high);
        assert_true(s->policies > 0 && s->policies < 8);
        double before = -1, value = 0;
        assert_int_equal(macattn_setting_get(&set, s->name, &before), MACATTN_OK);
        assert_true(before == 0); /* no other setting wrote here */
        assert_int_equal(macattn_setting_set(&set, s->name, s->high, NULL, 0), MACATTN_OK);
        assert_int_equal(macattn_setting_get(&set, s->name, &value), MACATTN_OK);
        assert_true(value == s->high);
    }
    assert_int_equal(n, 24);
    assert_null(macattn_setting_at(-1));
    assert_null(macattn_setting_find("isa"));
    assert_null(macattn_setting_find(NULL));
    assert_int_equal(set.n_layers, 65536);
    assert_int_equal(set.k_dtype, MACATTN_DTYPE_IQ4_NL);
    assert_int_equal(set.policy, MACATTN_POLICY_BUDGET);
    assert_true(set.min_tokens == INT64_MAX && set.window == INT32_MAX);
    assert_true(set.tau == 1 && set.budget == 1);
    assert_int_equal(set.spin_us, 1000000);
    assert_memory_equal(&set.parallel_for, &empty.parallel_for,
                        offsetof(macattn_config, lse_order) -
                            offsetof(macattn_config, parallel_for));
}

static void test_defaults(void **state)
{
    (void)state;
    macattn_config initial;
    assert_int_equal(macattn_config_init(&initial), MACATTN_OK);
    for (int i = 0; macattn_setting_at(i); i++) {
        const macattn_setting *s = macattn_setting_at(i);
        double value = -1;
        assert_int_equal(macattn_setting_get(&initial, s->name, &value), MACATTN_OK);
        assert_true(value == s->initial || value == (double)(float)s->initial);
    }
    const uint32_t paper = 1u << MACATTN_POLICY_PAPER, budget = 1u << MACATTN_POLICY_BUDGET;
    assert_int_equal(macattn_setting_find("tau")->policies, paper);
    assert_int_equal(macattn_setting_find("budget")->policies, budget);
    assert_int_equal(macattn_setting_find("ring")->policies, paper | budget);
    assert_int_equal(macattn_setting_find("max_tokens")->policies, paper | budget | 1);
    assert_true(macattn_setting_find("head_dim")->initial < macattn_setting_find("head_dim")->low);
}

/* Refused with `status`, a sentence that says `word`, and nothing written. */
static void refuse(const char *name, const char *text, double number, macattn_status status,
                   const char *word)
{
    macattn_config cfg = test_config(4, 2, 32);
    const macattn_config before = cfg;
    char error[200] = "";
    const macattn_status got = text ? macattn_setting_parse(&cfg, name, text, error, sizeof error)
                                    : macattn_setting_set(&cfg, name, number, error, sizeof error);
    assert_int_equal(got, status);
    if (!strstr(error, word)) fail_msg("\"%s\" does not say \"%s\"", error, word);
    assert_memory_equal(&cfg, &before, sizeof cfg);
}

static void test_refused(void **state)
{
    (void)state;
    for (int i = 0; macattn_setting_at(i); i++) {
        const macattn_setting *s = macattn_setting_at(i);
        refuse(s->name, NULL, s->low - fabs(s->low) - 1, MACATTN_E_RANGE, s->name);
        refuse(s->name, NULL, NAN, MACATTN_E_RANGE, s->name);
        refuse(s->name, NULL, INFINITY, MACATTN_E_RANGE, s->name);
        if (s->type != MACATTN_SETTING_REAL)
            refuse(s->name, NULL, s->low + 0.5, MACATTN_E_RANGE, s->name);
        refuse(s->name, "", 0, MACATTN_E_RANGE, s->name);
        refuse(s->name, " 1", 0, MACATTN_E_RANGE, s->name);
        refuse(s->name, "1x", 0, MACATTN_E_RANGE, s->name);
        refuse(s->name, "nan", 0, MACATTN_E_RANGE, s->name);
    }
    refuse("ring", NULL, 4097, MACATTN_E_RANGE, "[0, 4096]");
    refuse("ring", "2.5", 0, MACATTN_E_RANGE, "whole");
    refuse("budget", "1.01", 0, MACATTN_E_RANGE, "[0, 1]");
    refuse("policy", "always", 0, MACATTN_E_RANGE, "exact, paper, budget");
    refuse("policy", "2", 0, MACATTN_E_RANGE, "exact, paper, budget");
    refuse("policy", NULL, 3, MACATTN_E_RANGE, "exact, paper, budget");
    refuse("q_dtype", "q8_0", 0, MACATTN_E_UNSUPPORTED, "f32, f16, bf16");
    refuse("k_dtype", "f64", 0, MACATTN_E_RANGE, "f8_e4m3");
    refuse("rings", "1", 0, MACATTN_E_RANGE, "rings");
    refuse("isa", "avx2", 0, MACATTN_E_RANGE, "isa");
    refuse(NULL, NULL, 0, MACATTN_E_ARG, "NULL");
    assert_int_equal(macattn_setting_set(NULL, "ring", 1, NULL, 0), MACATTN_E_ARG);
    macattn_config cfg = test_config(4, 2, 32);
    double value = 77;
    assert_int_equal(macattn_setting_parse(&cfg, "ring", NULL, NULL, 0), MACATTN_E_ARG);
    assert_int_equal(macattn_setting_get(&cfg, "ring", NULL), MACATTN_E_ARG);
    assert_int_equal(macattn_setting_get(NULL, "ring", &value), MACATTN_E_ARG);
    assert_int_equal(macattn_setting_get(&cfg, "rings", &value), MACATTN_E_RANGE);
    assert_true(value == 77);
}

static void test_parsed(void **state)
{
    (void)state;
    macattn_config cfg = test_config(4, 2, 32);
    assert_int_equal(macattn_setting_parse(&cfg, "policy", "paper", NULL, 0), MACATTN_OK);
    assert_int_equal(macattn_setting_parse(&cfg, "k_dtype", "q8_0", NULL, 0), MACATTN_OK);
    assert_int_equal(macattn_setting_parse(&cfg, "budget", "1e-2", NULL, 0), MACATTN_OK);
    assert_int_equal(macattn_setting_parse(&cfg, "ring", "64", NULL, 0), MACATTN_OK);
    assert_int_equal(macattn_setting_parse(&cfg, "min_tokens", "4000000000", NULL, 0), MACATTN_OK);
    assert_int_equal(cfg.policy, MACATTN_POLICY_PAPER);
    assert_int_equal(cfg.k_dtype, MACATTN_DTYPE_Q8_0);
    assert_true(cfg.budget == 0.01f);
    assert_int_equal(cfg.ring, 64);
    assert_true(cfg.min_tokens == 4000000000);
    macattn_destroy(test_create(&cfg)); /* what was set goes together */
}

/* A program built against an older header has a shorter structure: nothing is written behind it. */
static void test_older_program(void **state)
{
    (void)state;
    macattn_config cfg = test_config(4, 2, 32);
    cfg.struct_size = offsetof(macattn_config, spin_us);
    double value = 77;
    assert_int_equal(macattn_setting_set(&cfg, "spin_us", 5, NULL, 0), MACATTN_E_ARG);
    assert_int_equal(macattn_setting_get(&cfg, "spin_us", &value), MACATTN_E_ARG);
    assert_true(cfg.spin_us == 100 && value == 77);
    assert_int_equal(macattn_setting_set(&cfg, "n_threads", 5, NULL, 0), MACATTN_OK);
    assert_int_equal(cfg.n_threads, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),    cmocka_unit_test(test_all_fields),
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_parsed),   cmocka_unit_test(test_older_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
