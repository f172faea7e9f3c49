/* SPDX-License-Identifier: Apache-2.0 */
/* A program whose ggml is of a version nobody has: the plug-in must refuse to load. Argument:
 * the plug-in. */
#include <dlfcn.h>
#include <stdio.h>

const char *ggml_version(void);

__attribute__((visibility("default"))) const char *ggml_version(void)
{
    return "99.1.2";
}

int main(int argc, char **argv)
{
    void *plugin = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
    if (!plugin) {
        fprintf(stderr, "cannot open the plug-in: %s\n", argc == 2 ? dlerror() : "no argument");
        return 2;
    }
    void *(*init)(void);
    *(void **)(void *)&init = dlsym(plugin, "ggml_backend_init");
    return init && init() == NULL ? 0 : 1;
}
