/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target without a fuzzing engine: on the files named, or on -n N pseudo-random
 * inputs. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_file(const char *name)
{
    static uint8_t data[1 << 20];
    FILE *file = fopen(name, "rb");
    if (!file) {
        perror(name);
        return 1;
    }
    const size_t size = fread(data, 1, sizeof data, file);
    fclose(file);
    return LLVMFuzzerTestOneInput(data, size);
}

static void run_random(long n)
{
    uint64_t x = 88172645463325252u;
    uint8_t data[600];
    for (long i = 0; i < n; i++) {
        size_t size = 0;
        do {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            data[size++] = (uint8_t)(x >> 32);
        } while (size < sizeof data && x % 257 != 0);
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%ld inputs\n", n);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "-n") == 0) {
        run_random(strtol(argv[2], NULL, 10));
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        if (run_file(argv[i])) return 1;
    }
    return 0;
}
