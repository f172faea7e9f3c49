/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "say.h"

void *memory_alloc(size_t bytes)
{
    void *ptr = calloc(1, bytes ? bytes : 1);
    if (!ptr) {
        die(EXIT_FAILED, "out of memory (%zu bytes)", bytes);
    }
    return ptr;
}

void *memory_map(size_t bytes, bool huge)
{
    void *ptr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ptr == MAP_FAILED) {
        die(EXIT_FAILED, "out of memory (%zu bytes)", bytes);
    }
    if (huge) {
        (void)madvise(ptr, bytes, MADV_HUGEPAGE);
    }
    return ptr;
}

void memory_unmap(void *ptr, size_t bytes)
{
    if (ptr) {
        (void)munmap(ptr, bytes);
    }
}
