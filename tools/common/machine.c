/* SPDX-License-Identifier: Apache-2.0 */
#include "machine.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "macattn/macattn.h"

#include "parse.h"

static void read_line(const char *path, char *line, size_t size)
{
    line[0] = '\0';
    FILE *file = fopen(path, "r");
    if (!file) {
        return;
    }
    if (fgets(line, (int)size, file)) {
        line[strcspn(line, "\n")] = '\0';
    }
    fclose(file);
}

static void cpu_name(char *name, size_t size)
{
    char line[512];
    snprintf(name, size, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file) {
        return;
    }
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (colon && strncmp(line, "model name", 10) == 0) {
            colon += 1 + strspn(colon + 1, " \t");
            colon[strcspn(colon, "\n")] = '\0';
            snprintf(name, size, "%s", colon);
            break;
        }
    }
    fclose(file);
}

/* Bytes of the unified or data cache of `level`, 0 if there is none; `level` 0: the last one. */
static size_t cache_bytes(int level)
{
    size_t found = 0;
    for (int i = 0; i < 8; i++) {
        char path[96], text[64];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i);
        read_line(path, text, sizeof text);
        if (text[0] == '\0' || strcmp(text, "Instruction") == 0) {
            continue;
        }
        int64_t its_level = 0, kib = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        read_line(path, text, sizeof text);
        (void)parse_int(text, 1, 8, &its_level);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        read_line(path, text, sizeof text);
        text[strcspn(text, "K")] = '\0';
        (void)parse_int(text, 1, 1 << 30, &kib);
        if (level == 0 ? (size_t)kib * 1024 > found : its_level == level) {
            found = (size_t)kib * 1024;
        }
    }
    return found;
}

static void huge_page_setting(char *setting, size_t size)
{
    char line[64];
    read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line);
    char *open = strchr(line, '['), *close = strchr(line, ']');
    if (open && close && close > open) {
        *close = '\0';
        snprintf(setting, size, "%s", open + 1);
    } else {
        snprintf(setting, size, "unknown");
    }
}

void machine_describe(machine_info *info)
{
    *info = (machine_info){0};
    cpu_name(info->cpu, sizeof info->cpu);
    struct utsname name;
    if (uname(&name) == 0) {
        snprintf(info->os, sizeof info->os, "%.40s %.80s %.40s", name.sysname, name.release,
                 name.machine);
    }
    cpu_set_t cpus;
    info->n_cpus = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    /* A machine that does not tell has what is usual. */
    info->l1d = cache_bytes(1);
    info->l2 = cache_bytes(2);
    info->llc = cache_bytes(0);
    if (info->l1d == 0) {
        info->l1d = (size_t)32 << 10;
    }
    if (info->l2 == 0) {
        info->l2 = (size_t)512 << 10;
    }
    if (info->llc < info->l2) {
        info->llc = info->l2 > ((size_t)16 << 20) ? info->l2 : (size_t)16 << 20;
    }
    info->memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    huge_page_setting(info->huge_pages, sizeof info->huge_pages);
}

const char *machine_isa(void)
{
    int best = 0;
    while (!macattn_isa_supported(macattn_isa_name(best))) best++; /* the last one always is */
    return macattn_isa_name(best);
}
