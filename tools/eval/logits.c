/* SPDX-License-Identifier: Apache-2.0 */
#include "logits.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

#include "common/say.h"

logit_store logits_open(int64_t n, int32_t vocab)
{
    logit_store store = {.vocab = vocab, .bytes = (size_t)n * (size_t)vocab * sizeof(float)};
    FILE *f = tmpfile();
    if (!f || posix_fallocate(fileno(f), 0, (off_t)store.bytes) != 0) {
        die(EXIT_FAILED, "no room for %zu bytes in the folder of temporary files", store.bytes);
    }
    void *at = mmap(NULL, store.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(f), 0);
    if (at == MAP_FAILED) {
        die(EXIT_FAILED, "out of memory (%zu bytes)", store.bytes);
    }
    fclose(f); /* the mapping keeps it */
    store.at = at;
    return store;
}

float *logits_row(const logit_store *store, int64_t i)
{
    return store->at + (size_t)i * (size_t)store->vocab;
}

void logits_close(logit_store *store)
{
    munmap(store->at, store->bytes);
}
