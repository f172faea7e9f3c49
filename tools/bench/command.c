/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn bench`: the command line. */
#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attend.h"
#include "commands.h"
#include "common/parse.h"
#include "common/say.h"
#include "cuda.h"
#include "mac.h"
#include "match.h"

enum option_key {
    KEY_HEADS = 256,
    KEY_HEAD_DIM,
    KEY_V_HEAD_DIM,
    KEY_CONTEXT,
    KEY_BATCH,
    KEY_PAGE_SIZE,
    KEY_QUERIES,
    KEY_SOFTCAP,
    KEY_ISA,
    KEY_HIT_RATIO,
    KEY_SELECT_SHARE,
    KEY_CLUSTERED,
    KEY_SCATTERED,
    KEY_REPS,
    KEY_MIN_TIME,
    KEY_WARM,
    KEY_COLD,
    KEY_HUGE,
    KEY_PEER,
    KEY_JSON,
    KEY_NO_CHECK,
    KEY_SEED,
    KEY_DEVICE
};

static const struct argp_option option_table[] = {
    {NULL, 0, NULL, 0, "Shapes; a list (a,b,c) makes a row of each:", 1},
    {"heads", KEY_HEADS, "Q/KV", 0, "query heads / KV heads, a list (32/8)", 0},
    {"head-dim", KEY_HEAD_DIM, "N", 0, "head size of q and K, a list (128)", 0},
    {"v-head-dim", KEY_V_HEAD_DIM, "N", 0, "head size of V (that of K)", 0},
    {"context", KEY_CONTEXT, "N", 0, "tokens in the cache, a list; 8k is 8192 (8k)", 0},
    {"batch", KEY_BATCH, "N", 0, "attend: sequences, a list (1)", 0},
    {"page-size", KEY_PAGE_SIZE, "N", 0,
     "attend: tokens a page, the pages shuffled; 0 is one contiguous run (0)", 0},
    {"queries", KEY_QUERIES, "N", 0,
     "attend: a prompt chunk of N tokens behind the context; 1 is decode (1)", 0},
    {"softcap", KEY_SOFTCAP, "X", 0, "logit soft cap (0, off)", 0},
    {"isa", KEY_ISA, "NAME", 0, "instruction set (the best this machine has)", 0},
    {NULL, 0, NULL, 0, "Reuse (mac, match):", 2},
    {"hit-ratio", KEY_HIT_RATIO, "X", 0, "share of query heads that hit, a list (0,0.5,0.95,1)", 0},
    {"select-share", KEY_SELECT_SHARE, "X", 0,
     "mac: budget, and nothing is reused: share of the runs of 16 tokens that carry the mass, a "
     "list",
     0},
    {"scattered", KEY_SCATTERED, NULL, 0, "misses fall on any query head (default)", 0},
    {"clustered", KEY_CLUSTERED, NULL, 0, "misses fall on all query heads of a KV head", 0},
    {NULL, 0, NULL, 0, "How to measure:", 3},
    {"device", KEY_DEVICE, "NAME", 0,
     "cpu, or cuda: attend and mac on the GPU (--batch also for mac; pages of 16) (cpu)", 0},
    {"peer", KEY_PEER, "NAME", 0, "attend: measure another implementation in turns: ggml", 0},
    {"reps", KEY_REPS, "N", 0, "repetitions (as many as --min-time takes, at least 7)", 0},
    {"min-time", KEY_MIN_TIME, "S", 0, "seconds of measured calls for a row (1)", 0},
    {"cold", KEY_COLD, NULL, 0, "rotate layers so that K and V come from memory (default)", 0},
    {"warm", KEY_WARM, NULL, 0, "use one layer over and over", 0},
    {"huge-pages", KEY_HUGE, NULL, 0, "ask for huge pages for K and V", 0},
    {"no-check", KEY_NO_CHECK, NULL, 0, "do not compare with the reference first", 0},
    {"seed", KEY_SEED, "N", 0, "of the random tensors (1)", 0},
    {"json", KEY_JSON, NULL, 0, "one JSON object a row", 0},
    {0}};

/* Kinds of measurement; and of them those on the GPU. */
enum { ATTEND = 1, MAC = 2, MATCH = 4, GPU = 8 };

static const struct {
    const char *name;
    unsigned kind;
    int (*measure)(bench_session *session);
} kinds[] = {
    {"attend", ATTEND, bench_attend}, {"mac", MAC, bench_mac}, {"match", MATCH, bench_match}};

#define N_KINDS ((int)(sizeof kinds / sizeof kinds[0]))

/* Options that not every kind takes. */
static const struct {
    int key;
    unsigned kinds;
} limited[] = {{KEY_V_HEAD_DIM, ATTEND | MAC | MATCH},
               {KEY_CONTEXT, ATTEND | MAC | GPU},
               {KEY_BATCH, ATTEND | MAC | GPU},
               {KEY_PAGE_SIZE, ATTEND},
               {KEY_QUERIES, ATTEND},
               {KEY_SOFTCAP, ATTEND | MAC | MATCH},
               {KEY_ISA, ATTEND | MAC | MATCH},
               {KEY_HIT_RATIO, MAC | MATCH | GPU},
               {KEY_SELECT_SHARE, MAC | GPU},
               {KEY_SCATTERED, MAC | MATCH | GPU},
               {KEY_CLUSTERED, MAC | MATCH | GPU},
               {KEY_HUGE, ATTEND | MAC | MATCH},
               {KEY_PEER, ATTEND},
               {KEY_REPS, ATTEND | MAC | GPU},
               {KEY_NO_CHECK, ATTEND | MAC | GPU}};
/* The same of the library's settings. */
static const struct {
    setting_option option;
    const char *name;
    unsigned kinds;
} limited_settings[] = {{OPTION_POLICY, "policy", MAC | GPU},
                        {OPTION_RING, "ring", MAC | MATCH | GPU},
                        {OPTION_BAND, "band", MAC | MATCH | GPU},
                        {OPTION_SELECT, "select", MAC | GPU},
                        {OPTION_THREADS, "threads", ATTEND | MAC | MATCH}};

static bool parse_heads_list(const char *arg, bench_options *options)
{
    char item[32];
    options->n_heads = 0;
    while (parse_next_item(&arg, item, sizeof item)) {
        if (options->n_heads == LIST_MAX ||
            !parse_heads(item, &options->heads[options->n_heads++])) {
            return false;
        }
    }
    return true;
}

static bool is_isa(const char *name)
{
    for (int i = 0; macattn_isa_name(i); i++) {
        if (strcmp(macattn_isa_name(i), name) == 0) {
            return true;
        }
    }
    return false;
}

/* What argp says of a wrong value; of an instruction set with the names that there are. */
static void bad_value(struct argp_state *state, int key, const char *option, const char *arg)
{
    char names[128] = "";
    size_t n = 0;
    for (int i = 0; key == KEY_ISA && macattn_isa_name(i) && n < sizeof names; i++) {
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", n ? ", " : " (",
                              macattn_isa_name(i));
    }
    argp_error(state, "--%s does not take '%s'%s%s", option, arg, names, n ? ")" : "");
}

/* Options with a value. False if the value is wrong. */
static bool parse_value(int key, const char *arg, bench_options *options)
{
    const int64_t max_tokens = INT32_MAX;
    switch (key) {
    case KEY_HEADS: return parse_heads_list(arg, options);
    case KEY_HEAD_DIM: return parse_setting_list("head_dim", arg, &options->head_dim);
    case KEY_V_HEAD_DIM: return parse_setting_int("v_head_dim", arg, &options->v_head_dim);
    case KEY_CONTEXT: return parse_int_list(arg, 1, max_tokens, &options->context);
    case KEY_BATCH: return parse_int_list(arg, 1, 4096, &options->batch);
    case KEY_PAGE_SIZE:
        return parse_int(arg, 0, 1 << 20, &options->page_size) &&
               (options->page_size & (options->page_size - 1)) == 0;
    case KEY_QUERIES: return parse_int(arg, 1, 1 << 20, &options->n_queries);
    case KEY_SOFTCAP: return parse_setting("softcap", arg, &options->softcap);
    case KEY_ISA: options->isa = arg; return is_isa(arg);
    case KEY_HIT_RATIO: return parse_real_list(arg, 0.0, 1.0, &options->hit_ratio);
    case KEY_SELECT_SHARE: return parse_real_list(arg, 0.0, 1.0, &options->select_share);
    case KEY_REPS: return parse_int(arg, 1, 1000000, &options->reps);
    case KEY_MIN_TIME: return parse_real(arg, 0.0, 3600.0, &options->min_time);
    case KEY_SEED: return parse_int(arg, 0, INT32_MAX, &options->seed);
    case KEY_DEVICE:
        options->cuda = strcmp(arg, "cuda") == 0;
        return options->cuda || strcmp(arg, "cpu") == 0;
    case KEY_PEER: options->peer = arg; return strcmp(arg, "ggml") == 0;
    default: return false;
    }
}

static const char *option_name(int key)
{
    for (size_t i = 0; i < sizeof option_table / sizeof option_table[0]; i++) {
        if (option_table[i].key == key && option_table[i].name) {
            return option_table[i].name;
        }
    }
    return "?";
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    bench_options *options = state->input;
    if (key >= KEY_HEADS && key <= KEY_DEVICE) {
        options->given |= (uint32_t)1 << (key - KEY_HEADS);
    }
    switch (key) {
    case ARGP_KEY_INIT: state->child_inputs[0] = &options->settings; return 0;
    case KEY_SCATTERED:
    case KEY_CLUSTERED: options->clustered = key == KEY_CLUSTERED; return 0;
    case KEY_COLD:
    case KEY_WARM: options->warm = key == KEY_WARM; return 0;
    case KEY_HUGE: options->huge = true; return 0;
    case KEY_JSON: options->json = true; return 0;
    case KEY_NO_CHECK: options->check = false; return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: break;
    }
    if (key < KEY_HEADS || key > KEY_DEVICE) {
        return ARGP_ERR_UNKNOWN;
    }
    if (!parse_value(key, arg, options)) {
        bad_value(state, key, option_name(key), arg);
    }
    return 0;
}

static void default_options(bench_options *options)
{
    *options = (bench_options){.n_heads = 1,
                               .heads = {{32, 8}},
                               .head_dim = {{128}, 1},
                               .context = {{8192}, 1},
                               .batch = {{1}, 1},
                               .n_queries = 1,
                               .hit_ratio = {{0.0, 0.5, 0.95, 1.0}, 4},
                               .min_time = 1.0,
                               .check = true,
                               .seed = 1};
    setting_options_init(&options->settings,
                         1 << OPTION_POLICY | 1 << OPTION_RING | 1 << OPTION_BAND |
                             1 << OPTION_SELECT | 1 << OPTION_THREADS | 1 << OPTION_KV,
                         1 << OPTION_RING | 1 << OPTION_THREADS | 1 << OPTION_KV,
                         MACATTN_POLICY_PAPER);
}

/* What was given, or the library's default; `otherwise` stands for a 0. */
static int_list settings_list(const setting_options *s, setting_option option, const char *name,
                              int64_t otherwise)
{
    int_list list = {.values = {(int64_t)macattn_setting_find(name)->initial}, .n = 1};
    for (int i = 0; i < s->values[option].n; i++) {
        list.values[i] = (int64_t)s->values[option].values[i];
        list.n = i + 1;
    }
    for (int i = 0; i < list.n; i++) {
        list.values[i] = list.values[i] == 0 ? otherwise : list.values[i];
    }
    return list;
}

/* An option that was given, and what takes it. */
static void check_option(const bench_options *options, int kind, const char *option, unsigned takes)
{
    char others[64] = "";
    size_t n = 0;
    for (int i = 0; i < N_KINDS; i++) {
        if (takes & kinds[i].kind) {
            n += (size_t)snprintf(others + n, sizeof others - n, "%s%s", n ? " and " : "",
                                  kinds[i].name);
        }
    }
    if (!(takes & kinds[kind].kind)) {
        die(EXIT_USAGE, "bench %s: --%s is for %s", kinds[kind].name, option, others);
    }
    if (options->cuda && !(takes & GPU)) {
        die(EXIT_USAGE, "bench %s: --%s is not for --device cuda", kinds[kind].name, option);
    }
}

static bool is_given(const bench_options *options, int key)
{
    return options->given >> (key - KEY_HEADS) & 1;
}

/* An option that would change nothing is a mistake about what is measured. */
static void check_options(const bench_options *options, int kind)
{
    const bool selects = options->select_share.n > 0;
    const setting_options *s = &options->settings;
    for (size_t i = 0; i < sizeof limited / sizeof limited[0]; i++) {
        if (is_given(options, limited[i].key)) {
            check_option(options, kind, option_name(limited[i].key), limited[i].kinds);
        }
    }
    for (size_t i = 0; i < sizeof limited_settings / sizeof limited_settings[0]; i++) {
        if (s->values[limited_settings[i].option].n > 0) {
            check_option(options, kind, limited_settings[i].name, limited_settings[i].kinds);
        }
    }
    if (selects && (is_given(options, KEY_HIT_RATIO) || is_given(options, KEY_SCATTERED) ||
                    is_given(options, KEY_CLUSTERED))) {
        die(EXIT_USAGE, "bench mac: with --select-share nothing is reused, so --hit-ratio, "
                        "--scattered and --clustered say nothing");
    }
    if (!selects && s->values[OPTION_SELECT].n > 0) {
        die(EXIT_USAGE, "bench mac: --select is for --select-share");
    }
    if (options->cuda && kinds[kind].kind == MATCH) {
        die(EXIT_USAGE, "bench match: --device cuda is for attend and mac");
    }
    if (options->cuda && !selects &&
        setting_options_value(s, OPTION_POLICY, MACATTN_POLICY_PAPER) == MACATTN_POLICY_BUDGET) {
        die(EXIT_USAGE, "bench mac: with --device cuda hits are measured under the policy paper; "
                        "budget goes with --select-share");
    }
}

static void take_settings(bench_options *options, int n_cpus)
{
    const setting_options *s = &options->settings;
    options->policy = (macattn_policy)setting_options_value(s, OPTION_POLICY, MACATTN_POLICY_PAPER);
    if (options->policy == MACATTN_POLICY_EXACT) {
        die(EXIT_USAGE, "bench: --policy exact has nothing to reuse; bench attend measures it");
    }
    options->threads = settings_list(s, OPTION_THREADS, "n_threads", n_cpus);
    options->ring = settings_list(s, OPTION_RING, "ring", MACATTN_DEFAULT_RING(options->policy));
    for (int i = 0; i < options->ring.n; i++) {
        if (options->ring.values[i] < 2) die(EXIT_USAGE, "bench: --ring has to be at least 2");
    }
    options->band = (int64_t)setting_options_value(s, OPTION_BAND, 0);
    if (options->band == 0) options->band = MACATTN_DEFAULT_BAND(options->policy);
    options->select =
        (int32_t)setting_options_value(s, OPTION_SELECT, macattn_setting_find("select")->initial);
    if (options->select == 0 && options->select_share.n > 0) {
        die(EXIT_USAGE, "bench mac: --select-share with --select 0 has nothing to measure");
    }
    memcpy(options->kv, s->kv, sizeof options->kv);
    options->n_kv = s->n_kv;
    if (s->n_kv == 0) {
        options->kv[options->n_kv++] = (kv_types){MACATTN_DTYPE_F16, MACATTN_DTYPE_F16};
    }
}

static const char bench_doc[] =
    "\nMeasure attention on random tensors laid out as in llama.cpp's cache.\v"
    "  attend  exact attention: decode, or a prompt chunk with --queries\n"
    "  mac     decode with reuse at given hit ratios, and exact attention in turns\n"
    "  match   the search of the ring alone\n\n"
    "Every shape of attend and mac is compared with a float64 reference before it is timed. "
    "Times are of one call for one layer.";

int command_bench(int argc, char **argv)
{
    bench_session session = {0};
    bench_options options;
    machine_describe(&session.machine);
    default_options(&options);
    session.options = &options;
    const struct argp settings = setting_options_argp(&options.settings);
    const struct argp_child children[] = {{&settings, 0, "Settings of the library:", 2}, {0}};
    const struct argp argp = {.options = option_table,
                              .parser = parse_option,
                              .args_doc = "attend|mac|match",
                              .doc = bench_doc,
                              .children = children};

    int kind = -1;
    for (int i = 0; argc > 1 && i < N_KINDS; i++) {
        if (strcmp(argv[1], kinds[i].name) == 0) {
            kind = i;
        }
    }
    if (kind >= 0) {
        /* The kind is taken out, the program's name stays. */
        argv[1] = argv[0];
        argv++;
        argc--;
    }
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &options);
    if (kind < 0) {
        die(EXIT_USAGE, "bench: say what: attend, mac or match (see macattn bench --help)");
    }
    check_options(&options, kind);
    take_settings(&options, session.machine.n_cpus);
    session.report.json = options.json;
    const int status =
        options.cuda ? bench_cuda(&session, kinds[kind].name) : kinds[kind].measure(&session);
    machine_team_destroy(session.team);
    return status;
}
