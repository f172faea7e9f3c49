/* SPDX-License-Identifier: Apache-2.0 */
#include "peer_load.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/say.h"

/* The directory of fetch/get-llama.sh, which names the version. */
#define GGML_DIR "llama.cpp-0.3.36"

static const char *set_or_null(const char *name)
{
    const char *value = getenv(name);
    return value && value[0] ? value : NULL;
}

static void peer_dir(char *dir, size_t size)
{
    const char *own = set_or_null("MACATTN_PEER_DIR");
    const char *cache = set_or_null("MACATTN_CACHE");
    const char *xdg = set_or_null("XDG_CACHE_HOME");
    const char *home = set_or_null("HOME");
    if (own) {
        snprintf(dir, size, "%s", own);
    } else if (cache) {
        snprintf(dir, size, "%s/" GGML_DIR, cache);
    } else if (xdg) {
        snprintf(dir, size, "%s/macattn/" GGML_DIR, xdg);
    } else {
        snprintf(dir, size, "%s/.cache/macattn/" GGML_DIR, home ? home : "");
    }
}

const peer_api *peer_load(const char *name)
{
    char dir[2048], path[2304];
    if (strcmp(name, "ggml") != 0) {
        die(EXIT_USAGE, "there is no peer '%s'; known: ggml", name);
    }
    peer_dir(dir, sizeof dir);
    snprintf(path, sizeof path, "%s/libmacattn-peer-%s.so", dir, name);
    if (access(path, R_OK) != 0) {
        die(EXIT_FAILED, "the peer '%s' is not at %s; run fetch/get-llama.sh first", name, path);
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        die(EXIT_FAILED, "cannot load the peer: %s; run fetch/get-llama.sh again", dlerror());
    }
    /* POSIX lets a void pointer hold a function; C wants it said this way. */
    peer_entry entry = NULL;
    void *symbol = dlsym(library, MACATTN_PEER_ENTRY);
    memcpy(&entry, &symbol, sizeof entry);
    const peer_api *api = entry ? entry() : NULL;
    if (!api || api->abi != MACATTN_PEER_ABI) {
        die(EXIT_FAILED, "%s is of another version; run fetch/get-llama.sh again", path);
    }
    return api;
}
