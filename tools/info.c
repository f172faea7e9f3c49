/* SPDX-License-Identifier: Apache-2.0 */
/* `macattn info`: what was built, what this machine has, what is chosen. */
#include <argp.h>
#include <stdio.h>
#include <string.h>

#include "commands.h"
#include "commit.h"
#include "common/ceiling.h"
#include "common/machine.h"
#include "common/report.h"
#include "common/samples.h"
#include "common/say.h"

typedef struct info_options {
    bool json;
    bool quick; /* measure nothing */
} info_options;

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    info_options *options = state->input;
    switch (key) {
    case 'j': options->json = true; return 0;
    case 'q': options->quick = true; return 0;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static void measure(const machine_info *machine, double *read, double *fma)
{
    machine_team *team = machine_team_create(machine->n_cpus);
    sample_list rates = {0}, peaks = {0};
    for (int i = 0; i < 7; i++) {
        sample_list_add(&rates, machine_read_gbps(team));
        sample_list_add(&peaks, machine_fma_gflops(team, NULL));
    }
    *read = sample_list_median(&rates);
    *fma = sample_list_median(&peaks);
    sample_list_free(&rates);
    sample_list_free(&peaks);
    machine_team_destroy(team);
}

static void print_json(const machine_info *machine, double read, double fma, bool measured)
{
    report r = {.json = true};
    cJSON *row = report_row();
    cJSON *isas = cJSON_AddArrayToObject(row, "isas");
    for (int i = 0; isas && macattn_isa_name(i); i++) {
        cJSON *isa = cJSON_CreateObject();
        report_add_text(isa, "name", macattn_isa_name(i));
        cJSON_AddBoolToObject(isa, "supported", macattn_isa_supported(macattn_isa_name(i)));
        cJSON_AddItemToArray(isas, isa);
    }
    if (measured) {
        report_add_real(row, "read_gbps", read);
        report_add_real(row, "fma_peak_gflops", fma);
    }
    report_add_int(row, "l1d_bytes", (int64_t)machine->l1d);
    report_add_machine(row, machine, machine_isa());
    report_print(&r, row);
}

static void print_text(const machine_info *machine, double read, double fma, bool measured)
{
    printf("macattn      %s (commit %s)\n", macattn_version(), MACATTN_COMMIT);
    printf("isa          %s\n", machine_isa());
    printf("compiled in ");
    for (int i = 0; macattn_isa_name(i); i++) {
        const char *name = macattn_isa_name(i);
        printf(" %s%s", name, macattn_isa_supported(name) ? "" : " (not on this machine)");
    }
    printf("\nkernels      attend, prefill, match, insert, merge for each of them\n");
    printf("types        q f32 f16 bf16; k, v f32 f16 bf16 q8_0 q5_1 q5_0 q4_1 q4_0 iq4_nl\n");
    printf("policies     exact paper budget\n");
    printf("cpu          %s, %d usable\n", machine->cpu, machine->n_cpus);
    printf("caches       L1d %zu KiB, L2 %zu KiB, last level %zu KiB\n", machine->l1d >> 10,
           machine->l2 >> 10, machine->llc >> 10);
    printf("memory       %.1f GiB, transparent huge pages: %s\n",
           (double)machine->memory / (double)(1 << 30), machine->huge_pages);
    printf("system       %s\n", machine->os);
    if (measured) {
        printf("read         %.1f GB/s with %d threads\n", read, machine->n_cpus);
        printf("multiply-add %.0f GFLOP/s in f32 with %d threads\n", fma, machine->n_cpus);
    }
}

int command_info(int argc, char **argv)
{
    static const struct argp_option options_table[] = {
        {"json", 'j', NULL, 0, "one JSON object", 0},
        {"quick", 'q', NULL, 0, "do not measure the memory's and the processor's speed", 0},
        {0}};
    const struct argp argp = {
        options_table, parse_option, NULL, "\nSay what was built, and what this machine has.",
        NULL,          NULL,         NULL};
    info_options options = {0};
    machine_info machine;
    double read = 0.0, fma = 0.0;
    argp_err_exit_status = EXIT_USAGE;
    (void)argp_parse(&argp, argc, argv, 0, NULL, &options);
    machine_describe(&machine);
    if (!options.quick) {
        measure(&machine, &read, &fma);
    }
    if (options.json) {
        print_json(&machine, read, fma, !options.quick);
    } else {
        print_text(&machine, read, fma, !options.quick);
    }
    return EXIT_OK;
}
