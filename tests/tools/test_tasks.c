/* SPDX-License-Identifier: Apache-2.0 */
/* Long-context tasks (tools/tasks): formats, sizes and metrics on hand-made cases. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tasks/longbench.h"
#include "tasks/longgen.h"
#include "tasks/pieces.h"
#include "tasks/scoring.h"
#include "tasks/tasks.h"

/* Words: what spaces separate. */
static int64_t count_words(void *user, const char *s)
{
    int64_t n = 0;
    (void)user;
    for (const char *c = s; *c; c++)
        n += *c != ' ' && *c != '\n' && (c == s || c[-1] == ' ' || c[-1] == '\n');
    return n;
}

static task_options options(int64_t length)
{
    return (task_options){.length = length, .seed = 7, .counter = {count_words, NULL}};
}

static task_sample make(const char *name, const task_options *o, int64_t index)
{
    task_sample sample;
    char error[256] = "";
    assert_non_null(task_find(name));
    if (!task_generate(task_find(name), o, index, &sample, error, sizeof error))
        fail_msg("%s", error);
    return sample;
}

static int64_t count_of(const char *s, const char *what)
{
    int64_t n = 0;
    for (const char *at = s; (at = strstr(at, what)); at += strlen(what)) n++;
    return n;
}

/* A sample with one or two outputs, for scorers. */
static task_sample answered(const char *a, const char *b)
{
    task_sample s = {.answer_prefix = text_copy("")};
    text_list_add(&s.outputs, text_copy(a));
    if (b) text_list_add(&s.outputs, text_copy(b));
    return s;
}

static double score(const char *name, const task_sample *s, const char *prediction)
{
    return task_score(task_find(name), s, prediction);
}

/* ----------------------------------------------------------------------------------- scoring -- */

static void test_match(void **state)
{
    (void)state;
    task_sample s = answered("Alpha", "1234");
    assert_true(score("niah_multivalue", &s, "alpha and 1234") == 1.0);
    assert_true(score("niah_multivalue", &s, "ALPHA") == 0.5);
    assert_true(score("niah_multivalue", &s, "") == 0.0);
    assert_true(score("niah_multivalue", &s, "12 34, alph a") == 0.0);
    /* Control characters are line ends, so they part words. */
    assert_true(score("niah_multivalue", &s,
                      "x\talpha\x01"
                      "1234\x1f") == 1.0);
    assert_true(score("niah_multivalue", &s,
                      "12\x02"
                      "34 al\x03pha") == 0.0);
    assert_true(score("qa_1", &s, "it is 1234.") == 1.0);
    assert_true(score("qa_1", &s, "neither") == 0.0);
    assert_true(score("native_pairs", &s, " Alpha \nmore") == 1.0);
    assert_true(score("native_pairs", &s, "Alpha more") == 0.0);
    assert_true(score("native_pairs", &s, "\nAlpha") == 0.0);
    task_sample_free(&s);
}

static void test_choice(void **state)
{
    (void)state;
    assert_int_equal(task_choice("The correct answer is (B)"), 'B');
    assert_int_equal(task_choice("**The correct answer is (C)**."), 'C');
    assert_int_equal(task_choice("The correct answer is **D**"), 'D');
    assert_int_equal(task_choice("The correct answer is A, since"), 'A');
    /* The form with brackets goes first, wherever it is. */
    assert_int_equal(task_choice("The correct answer is A. No: The correct answer is (B)"), 'B');
    assert_int_equal(task_choice("The correct answer is (E)"), 0);
    assert_int_equal(task_choice("the correct answer is (A)"), 0);
    assert_int_equal(task_choice("B"), 0);
    assert_int_equal(task_choice(""), 0);
}

static void test_truncation(void **state)
{
    (void)state;
    int32_t t[11];
    for (int32_t i = 0; i < 11; i++) t[i] = i;
    assert_int_equal(task_truncate_middle(t, 11, 11), 11);
    assert_int_equal(t[5], 5);
    assert_int_equal(task_truncate_middle(t, 11, 4), 4);
    const int32_t want[] = {0, 1, 9, 10};
    assert_memory_equal(t, want, sizeof want);
    assert_int_equal(task_truncate_middle(t, 0, 4), 0);
}

static void test_summary(void **state)
{
    (void)state;
    const double scores[] = {1, 0, 1, 1};
    double mean, margin;
    task_summary(scores, 4, &mean, &margin);
    assert_float_equal(mean, 75, 1e-9);
    assert_float_equal(margin, 1.96 * 50 / 2, 1e-6); /* deviation 50 */
    task_summary(scores, 1, &mean, &margin);
    assert_true(mean == 100 && isnan(margin));
    task_summary(NULL, 0, &mean, &margin);
    assert_true(isnan(mean));
}

static void test_longgen_rates(void **state)
{
    (void)state;
    task_sample s = answered("Week", "the Red Key of bamo");
    text_list_add(&s.outputs, text_copy("the old lamp"));
    text_list_add(&s.outputs, text_copy("the old lamp"));
    const char *const tags[] = {"4", "2", "3", "4"};
    for (int i = 0; i < 4; i++) text_list_add(&s.tags, text_copy(tags[i]));
    free(s.answer_prefix);
    s.answer_prefix = text_copy("#*# Week 1:");
    double completed, checks;
    task_longgen_rates(&s,
                       " a\n#*# Week 2: saw THE red-key, of\nBAMO.\n#*# Week 3: the old lamps are\n"
                       "#*# Week 2: again #*# Month 4: the old lamp #*# Week 9: x *** finished",
                       &completed, &checks);
    assert_float_equal(completed, 3.0 / 4, 1e-9); /* 1, 2, 3 */
    /* "the old lamp" is part of "the old lamps"; week 4 is missing. */
    assert_float_equal(checks, 2.0 / 3, 1e-9);
    assert_float_equal(score("longgen_week", &s, ""), 0, 1e-9);
    task_longgen_rates(&s, "", &completed, &checks);
    assert_float_equal(completed, 1.0 / 4, 1e-9);
    task_sample_free(&s);
}

/* -------------------------------------------------------------------------------- generation -- */

/* As large as it may be, and not larger; the same again from the same seed, another from
 * another. */
static void test_sizes(void **state)
{
    (void)state;
    const task *t;
    for (int i = 0; (t = task_of(NULL, i)); i++) {
        if (t->increment == 0 || strncmp(t->name, "qa_", 3) == 0) continue;
        task_options o = options(3000);
        task_sample a = make(t->name, &o, 3), b = make(t->name, &o, 3), c = make(t->name, &o, 43);
        assert_string_equal(a.input, b.input);
        assert_string_equal(a.outputs.items[0], b.outputs.items[0]);
        assert_true(strcmp(a.input, c.input) != 0);
        assert_true(a.length <= 3000 && a.gen_tokens == t->gen_tokens);
        const int64_t words = count_words(NULL, a.input) + count_words(NULL, a.answer_prefix);
        assert_true(llabs(words + t->gen_tokens - a.length) <= 1); /* they may meet in one word */
        /* One increment of filler is at most 500 words, of counted ones 30 each. */
        if (a.length < 3000 - 1300) fail_msg("%s: only %lld", t->name, (long long)a.length);
        o.seed++;
        task_sample d = make(t->name, &o, 3);
        assert_true(strcmp(a.input, d.input) != 0);
        task_sample_free(&a), task_sample_free(&b), task_sample_free(&c), task_sample_free(&d);
    }
}

static void test_too_small(void **state)
{
    (void)state;
    const task_options o = options(100);
    task_sample sample;
    char error[256] = "";
    assert_false(task_generate(task_find("niah_single_1"), &o, 0, &sample, error, sizeof error));
    assert_non_null(strstr(error, "more than 100"));
}

static void test_needles(void **state)
{
    (void)state;
    const struct {
        const char *name;
        int64_t outputs, hidden; /* at least */
        bool one;
    } cases[] = {{"niah_single_1", 1, 1, true},    {"niah_single_2", 1, 1, true},
                 {"niah_single_3", 1, 1, true},    {"niah_multikey_1", 1, 4, true},
                 {"niah_multikey_2", 1, 20, true}, {"niah_multikey_3", 1, 20, true},
                 {"niah_multivalue", 4, 4, false}, {"niah_multiquery", 4, 4, false}};
    const task_options o = options(2500);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        task_sample s = make(cases[i].name, &o, 5);
        assert_int_equal(s.outputs.n, cases[i].outputs);
        assert_true(count_of(s.input, "One of the special magic ") >= cases[i].hidden);
        for (int64_t k = 0; k < s.outputs.n; k++) {
            char value[80];
            snprintf(value, sizeof value, "is: %s.", s.outputs.items[k]);
            assert_int_equal(count_of(s.input, value), 1);
        }
        assert_int_equal(count_of(s.input, cases[i].one ? "What is the special magic "
                                                        : "What are all the special magic "),
                         1);
        assert_non_null(strstr(s.answer_prefix, " mentioned in the provided text "));
        if (strcmp(cases[i].name, "niah_multiquery") == 0)
            assert_non_null(strstr(s.answer_prefix, ", and "));
        task_sample_free(&s);
    }
}

/* Following the chain in the text leads to the answers. */
static void test_variables(void **state)
{
    (void)state;
    const task_options o = options(1500);
    task_sample s = make("vt", &o, 2);
    assert_int_equal(s.outputs.n, 5);
    char line[64];
    const char *at = s.input;
    for (int i = 1; i < 5; i++) {
        snprintf(line, sizeof line, "VAR %s = VAR %s ", s.outputs.items[i], s.outputs.items[i - 1]);
        const char *here = strstr(s.input, line);
        assert_non_null(here);
        assert_true(here > at);
        at = here;
    }
    assert_int_equal(count_of(s.answer_prefix, "5 variables are assigned the value "), 1);
    assert_int_equal(count_of(s.input, "Question:"), 2);
    task_sample_free(&s);
}

/* Occurrences of a word with nothing but spaces around it in the last list of the input. */
static int64_t word_count(const char *input, const char *word)
{
    int64_t n = 0;
    const size_t length = strlen(word);
    for (const char *at = input; (at = strstr(at, word)); at += length) {
        n += (at == input || at[-1] == ' ' || at[-1] == '\n') &&
             (at[length] == ' ' || at[length] == '\n');
    }
    return n;
}

static void test_counting(void **state)
{
    (void)state;
    const task_options o = options(6000);
    task_sample s = make("cwe", &o, 1);
    assert_int_equal(s.outputs.n, 10);
    const char *question = strrchr(s.input, '\n');
    const char *list = strstr(strstr(s.input, "1. ") + 1, "\nThis is");
    assert_true(list && question > list);
    for (int64_t i = 0; i < 10; i++) assert_int_equal(word_count(list, s.outputs.items[i]), 30);
    task_sample_free(&s);
    s = make("fwe", &o, 1);
    assert_int_equal(s.outputs.n, 3);
    int64_t before = word_count(s.input, "...");
    for (int64_t i = 0; i < 3; i++) {
        const int64_t n = word_count(s.input, s.outputs.items[i]);
        assert_true(n > 0 && n < before);
        before = n;
    }
    task_sample_free(&s);
}

/* Questions to one context share its text to the byte, and their answers are in it. */
static void test_native(void **state)
{
    (void)state;
    static const char *const names[] = {"native_needles", "native_lists", "native_pairs",
                                        "native_lines", "native_variables"};
    const task_options o = options(2000);
    for (size_t i = 0; i < 5; i++) {
        task_sample a = make(names[i], &o, 20), b = make(names[i], &o, 39),
                    c = make(names[i], &o, 40);
        assert_int_equal(a.context, 1);
        assert_int_equal(c.context, 2);
        assert_int_equal(a.shared_bytes, b.shared_bytes);
        assert_memory_equal(a.input, b.input, (size_t)a.shared_bytes);
        assert_true(strncmp(a.input, c.input, 400) != 0);
        assert_true(strcmp(a.input + a.shared_bytes, b.input + b.shared_bytes) != 0);
        assert_memory_equal(a.input + a.shared_bytes, "Question: ", 10);
        assert_int_equal(a.outputs.n, strcmp(names[i], "native_lists") == 0 ? 8 : 1);
        for (int64_t k = 0; k < a.outputs.n; k++) {
            const char *value = strrchr(a.outputs.items[k], ' ');
            value = value ? value + 1 : a.outputs.items[k];
            const char *there = strstr(a.input, value);
            assert_true(there && there < a.input + a.shared_bytes);
        }
        task_sample_free(&a), task_sample_free(&b), task_sample_free(&c);
    }
}

/* ------------------------------------------------------------------------------- user's data -- */

static const char *write_file(const char *content)
{
    static char path[] = "test_tasks.XXXXXX";
    strcpy(path, "test_tasks.XXXXXX");
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, strlen(content)), (ssize_t)strlen(content));
    close(fd);
    return path;
}

static task_sample from_data(const char *name, const char *content, int64_t index)
{
    task_options o = options(120);
    o.data = write_file(content);
    task_sample s = make(name, &o, index);
    unlink(o.data);
    return s;
}

static void test_qa(void **state)
{
    (void)state;
    task_sample s = from_data("qa_1",
                              "{\"data\":[{\"paragraphs\":[{\"context\":\"Para one.\",\"qas\":["
                              "{\"question\":\"none?\",\"is_impossible\":true,\"answers\":[]},"
                              "{\"question\":\"who?\",\"is_impossible\":false,\"answers\":[{"
                              "\"text\":\"Ada\"},{\"text\":\"A. L.\"}]}]},"
                              "{\"context\":\"Para two.\",\"qas\":[]}]}]}",
                              0);
    assert_int_equal(s.outputs.n, 2);
    assert_string_equal(s.outputs.items[1], "A. L.");
    assert_int_equal(count_of(s.input, "Document "), 2);
    assert_int_equal(count_of(s.input, "Para one."), 1);
    assert_non_null(strstr(s.input, "Question: who?"));
    assert_string_equal(s.answer_prefix, " Answer:");
    task_sample_free(&s);
    s = from_data("qa_2",
                  "[{\"question\":\"where?\",\"answer\":\"Rome\",\"supporting_facts\":[[\"T2\",0]],"
                  "\"context\":[[\"T1\",[\"a.\"]],[\"T2\",[\"b.\",\" c.\"]]]}]",
                  0);
    assert_string_equal(s.outputs.items[0], "Rome");
    assert_non_null(strstr(s.input, "T2\nb. c."));
    task_sample_free(&s);
}

static void test_longbench(void **state)
{
    (void)state;
    static const char item[] =
        "{\"context\":\"CTX\",\"question\":\"Q\",\"choice_A\":\"a\",\"choice_B\":\"b\",\"choice_"
        "C\":\"c\","
        "\"choice_D\":\"d\",\"answer\":\"C\",\"difficulty\":\"hard\",\"length\":\"short\"}";
    char array[1024];
    snprintf(array, sizeof array, "[%s]", item);
    for (int i = 0; i < 2; i++) { /* as lines, as an array */
        task_sample s = from_data("longbench_v2", i ? array : item, 0);
        assert_non_null(strstr(s.input, "<text>\nCTX\n</text>"));
        assert_non_null(strstr(s.input, "(D) d\n"));
        assert_true(score("longbench_v2", &s, "The correct answer is (C)") == 1.0);
        assert_true(score("longbench_v2", &s, "The correct answer is (D)") == 0.0);
        assert_string_equal(s.tags.items[0], "hard");
        task_sample_free(&s);
    }
}

static void test_bad_data(void **state)
{
    (void)state;
    static const struct {
        const char *task, *content, *words;
    } cases[] = {{"qa_1", "{\"data\":[]}", "not what it should be"},
                 {"qa_1", "nonsense", "not what it should be"},
                 {"qa_2", "[{\"question\":1}]", "not what it should be"},
                 {"qa_2", "[{\"question\":\"q\",\"answer\":\"a\",\"context\":[[1]]}]",
                  "not what it should be"},
                 {"longbench_v2", "{\"context\":\"c\"}", "has no 'question'"},
                 {"longbench_v2", "{", "not readable"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        task_options o = options(4000);
        task_sample sample;
        char error[256] = "";
        o.data = write_file(cases[i].content);
        assert_false(task_generate(task_find(cases[i].task), &o, 0, &sample, error, sizeof error));
        unlink(o.data);
        if (!strstr(error, cases[i].words)) fail_msg("%s: %s", cases[i].task, error);
        o.data = "no such file";
        assert_false(task_generate(task_find(cases[i].task), &o, 0, &sample, error, sizeof error));
        assert_non_null(strstr(error, "no such file"));
    }
}

static void test_lists(void **state)
{
    (void)state;
    const task *tasks[64];
    char error[128];
    assert_int_equal(task_list("ruler", tasks, 64, error, sizeof error), 13);
    assert_int_equal(task_list("vt,ruler,vt", tasks, 64, error, sizeof error), 13);
    assert_string_equal(tasks[0]->name, "vt");
    assert_int_equal(task_list("native,longbench_v2", tasks, 64, error, sizeof error), 6);
    assert_int_equal(task_list("vt,bogus", tasks, 64, error, sizeof error), -1);
    assert_non_null(strstr(error, "'bogus'"));
    assert_int_equal(task_list("", tasks, 64, error, sizeof error), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_match),         cmocka_unit_test(test_choice),
        cmocka_unit_test(test_truncation),    cmocka_unit_test(test_summary),
        cmocka_unit_test(test_longgen_rates), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_too_small),     cmocka_unit_test(test_needles),
        cmocka_unit_test(test_variables),     cmocka_unit_test(test_counting),
        cmocka_unit_test(test_native),        cmocka_unit_test(test_qa),
        cmocka_unit_test(test_longbench),     cmocka_unit_test(test_bad_data),
        cmocka_unit_test(test_lists),
    };
    return cmocka_run_group_tests_name("tasks", tests, NULL, NULL);
}
