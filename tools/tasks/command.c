/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn tasks`: samples out and scores of answers in, as JSON lines, for any program that
 * runs a model. */
#include <argp.h>
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "commands.h"
#include "common/parse.h"
#include "common/say.h"
#include "options.h"
#include "scoring.h"

typedef struct arguments {
    tasks_common common;
    double bytes_per_token;
} arguments;

enum { KEY_BYTES = 512, KEY_SEED };

static const struct argp_option options_table[] = {
    {"bytes-per-token", KEY_BYTES, "X", 0, "how tokens are counted here (default 4)", 2},
    {"seed", KEY_SEED, "N", 0, "what the samples are made from (default 42)", 1},
    {0}};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    arguments *o = state->input;
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &o->common; return 0;
    case KEY_BYTES:
        if (!parse_real(arg, 0.5, 64, &o->bytes_per_token))
            argp_error(state, "--bytes-per-token does not take '%s' (0.5 to 64)", arg);
        return 0;
    case KEY_SEED:
        if (!parse_int(arg, 0, INT32_MAX, &o->common.seed))
            argp_error(state, "--seed does not take '%s' (0 to %d)", arg, (int)INT32_MAX);
        return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static int64_t count_bytes(void *user, const char *s)
{
    return (int64_t)((double)strlen(s) / *(const double *)user) + 1;
}

/* ---------------------------------------------------------------------------------- generate -- */

static void print_sample(const task *t, const task_sample *sample)
{
    cJSON *row = cJSON_CreateObject(), *outputs, *tags;
    cJSON_AddNumberToObject(row, "index", (double)sample->index);
    cJSON_AddStringToObject(row, "task", t->name);
    cJSON_AddStringToObject(row, "input", sample->input);
    cJSON_AddStringToObject(row, "answer_prefix", sample->answer_prefix);
    outputs = cJSON_AddArrayToObject(row, "outputs");
    tags = cJSON_AddArrayToObject(row, "tags");
    for (int64_t i = 0; i < sample->outputs.n; i++)
        cJSON_AddItemToArray(outputs, cJSON_CreateString(sample->outputs.items[i]));
    for (int64_t i = 0; i < sample->tags.n; i++)
        cJSON_AddItemToArray(tags, cJSON_CreateString(sample->tags.items[i]));
    cJSON_AddNumberToObject(row, "length", (double)sample->length);
    cJSON_AddNumberToObject(row, "gen_tokens", sample->gen_tokens);
    char *line = cJSON_PrintUnformatted(row);
    puts(line);
    cJSON_free(line);
    cJSON_Delete(row);
}

static int generate(arguments *a)
{
    tasks_common *c = &a->common;
    char error[256];
    tasks_common_load(c, "tasks", 10);
    const task_options o =
        tasks_common_options(c, (task_counter){count_bytes, &a->bytes_per_token});
    for (int i = 0; i < c->n; i++) {
        for (int64_t k = 0; k < c->samples; k++) {
            task_sample sample;
            if (!task_generate(c->tasks[i], &o, k, &sample, error, sizeof error)) {
                tasks_common_free(c);
                die(EXIT_FAILED, "tasks: %s", error);
            }
            print_sample(c->tasks[i], &sample);
            task_sample_free(&sample);
        }
    }
    tasks_common_free(c);
    return EXIT_OK;
}

/* ------------------------------------------------------------------------------------- score -- */

static void read_strings(const cJSON *row, const char *name, text_list *list)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(row, name))
    {
        if (cJSON_IsString(item)) text_list_add(list, text_copy(item->valuestring));
    }
}

/* The score of one line, -1 if it is left out (an empty answer to a question of choice). */
static double score_line(const char *line, int64_t number, const task **of)
{
    cJSON *row = cJSON_Parse(line);
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(row, "task");
    const cJSON *answer = cJSON_GetObjectItemCaseSensitive(row, "pred");
    const cJSON *prefix = cJSON_GetObjectItemCaseSensitive(row, "answer_prefix");
    *of = cJSON_IsString(name) ? task_find(name->valuestring) : NULL;
    task_sample sample = {.answer_prefix =
                              text_copy(cJSON_IsString(prefix) ? prefix->valuestring : "")};
    read_strings(row, "outputs", &sample.outputs);
    read_strings(row, "tags", &sample.tags);
    if (!*of || !cJSON_IsString(answer) || sample.outputs.n == 0 ||
        ((*of)->metric == TASK_LONGGEN && sample.tags.n != sample.outputs.n)) {
        die(EXIT_FAILED,
            "tasks: line %lld is not a sample with its answer ('task', 'outputs', 'pred')",
            (long long)number);
    }
    const bool left_out = (*of)->metric == TASK_CHOICE && answer->valuestring[0] == '\0';
    const double score = left_out ? -1 : task_score(*of, &sample, answer->valuestring);
    task_sample_free(&sample);
    cJSON_Delete(row);
    return score;
}

static int score(void)
{
    struct {
        const task *of;
        double *scores;
        int64_t n, left_out;
    } sums[TASKS_MAX] = {{0}};
    int n_sums = 0;
    char *line = NULL;
    size_t room = 0;
    for (int64_t number = 1; getline(&line, &room, stdin) > 0; number++) {
        const task *of;
        if (line[strspn(line, " \t\r\n")] == '\0') continue;
        const double one = score_line(line, number, &of);
        int i = 0;
        while (i < n_sums && sums[i].of != of) i++;
        if (i == n_sums) sums[n_sums++].of = of;
        if (one < 0) {
            sums[i].left_out++;
            continue;
        }
        double *more = realloc(sums[i].scores, (size_t)(sums[i].n + 1) * sizeof *more);
        if (!more) die(EXIT_FAILED, "no memory");
        sums[i].scores = more;
        more[sums[i].n++] = one;
    }
    free(line);
    printf("%-18s %6s %8s %7s %8s\n", "task", "n", "score", "+-", "left out");
    for (int i = 0; i < n_sums; i++) {
        double mean, margin;
        task_summary(sums[i].scores, sums[i].n, &mean, &margin);
        printf("%-18s %6lld %8.2f %7.2f %8lld\n", sums[i].of->name, (long long)sums[i].n, mean,
               margin, (long long)sums[i].left_out);
        free(sums[i].scores);
    }
    return EXIT_OK;
}

static int list(void)
{
    const task *t;
    for (int i = 0; (t = task_of(NULL, i)); i++) {
        printf("%-18s %-10s %6d tokens to answer\n", t->name, t->family, t->gen_tokens);
    }
    return EXIT_OK;
}

int command_tasks(int argc, char **argv)
{
    static const struct argp_child children[] = {{&tasks_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {options_table,
                                     parse_option,
                                     "list|generate|score",
                                     "\nLong-context tasks as JSON lines.\v"
                                     "  list      the tasks\n"
                                     "  generate  samples to standard output\n"
                                     "  score     samples with their answers ('pred') from "
                                     "standard input, by task: per cent, half a "
                                     "95% interval\n",
                                     children,
                                     NULL,
                                     NULL};
    arguments a = {.bytes_per_token = 4};
    tasks_common_init(&a.common);
    a.common.names = "ruler";
    const char *what = argc > 1 && argv[1][0] != '-' ? argv[1] : "";
    if (*what) {
        argv[1] = argv[0];
        argv++, argc--;
    }
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &a);
    if (strcmp(what, "list") == 0) return list();
    if (strcmp(what, "generate") == 0) return generate(&a);
    if (strcmp(what, "score") == 0) return score();
    die(EXIT_USAGE, "tasks: say what: list, generate or score (see macattn tasks --help)");
}
