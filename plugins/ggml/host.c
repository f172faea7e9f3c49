/* SPDX-License-Identifier: Apache-2.0 */
#include "host.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

host_functions host;

void host_say(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(stderr, "macattn: %s\n", line);
}

static void *find(void *library, const char *name)
{
    void *symbol = library ? dlsym(library, name) : NULL;
    return symbol ? symbol : dlsym(RTLD_DEFAULT, name);
}

static bool find_all(void *library, const char *where)
{
#define HOST_FIND(type, name, args)                                                             \
    *(void **)(void *)&host.name = find(library, #name);                                        \
    if (!host.name) {                                                                           \
        host_say("not loaded: %s does not export %s; the plug-in needs a ggml built as shared " \
                 "libraries, or with its symbols exported",                                     \
                 where, #name);                                                                 \
        return false;                                                                           \
    }
    HOST_FUNCTIONS(HOST_FIND)
#undef HOST_FIND
    return true;
}

bool host_find(const void *caller)
{
    Dl_info info = {0};
    void *library = NULL;
    const char *where = "the program";
    if (dladdr(caller, &info) && info.dli_fname) {
        where = info.dli_fname;
        library = dlopen(where, RTLD_NOLOAD | RTLD_LAZY);
    }
    if (!library) library = dlopen(NULL, RTLD_LAZY);
    *(void **)(void *)&host.ggml_version = find(library, "ggml_version");
    const char *version = host.ggml_version ? host.ggml_version() : "unknown";
    if (strcmp(version, MACATTN_GGML_VERSION) != 0) {
        host_say(
            "not loaded: built for ggml %s (backend interface %d), but %s has ggml %s. Build the "
            "plug-in against that version's sources; see docs/llama.cpp.md",
            MACATTN_GGML_VERSION, GGML_BACKEND_API_VERSION, where, version);
        return false;
    }
    return find_all(library, where);
}
