/* SPDX-License-Identifier: Apache-2.0 */
/* Aligned memory from the caller's allocator or malloc. The only file that allocates. */
#include <stdlib.h>
#include <string.h>

#include "object.h"

/* The pointer that the allocator gave is kept just before the aligned one. */
void *mai_alloc(const macattn_config *cfg, size_t bytes)
{
    const size_t extra = MAI_ALIGN + sizeof(void *);
    if (bytes > SIZE_MAX - extra) return NULL;
    char *raw = cfg->alloc ? cfg->alloc(cfg->alloc_user, bytes + extra) : malloc(bytes + extra);
    if (!raw) return NULL;
    char *ptr = raw + sizeof(void *);
    ptr += (MAI_ALIGN - (uintptr_t)ptr % MAI_ALIGN) % MAI_ALIGN;
    memcpy(ptr - sizeof(void *), &raw, sizeof raw);
    return ptr;
}

void *mai_alloc_zero(const macattn_config *cfg, size_t bytes)
{
    void *ptr = mai_alloc(cfg, bytes);
    if (ptr) memset(ptr, 0, bytes);
    return ptr;
}

void mai_free(const macattn_config *cfg, void *ptr)
{
    if (!ptr) return;
    void *raw;
    memcpy(&raw, (char *)ptr - sizeof(void *), sizeof raw);
    if (cfg->free) {
        cfg->free(cfg->alloc_user, raw);
    } else {
        free(raw);
    }
}

macattn_status mai_buffer_reserve(macattn *m, mai_buffer *buffer, size_t bytes, const char *what)
{
    if (buffer->ptr && buffer->bytes >= bytes) return MACATTN_OK;
    /* A quarter more, so that a growing sequence does not allocate at every step. */
    const size_t room = bytes <= SIZE_MAX / 2 ? bytes + bytes / 4 : bytes;
    void *ptr = mai_alloc(&m->cfg, room);
    if (!ptr) return mai_fail(m, MACATTN_E_NOMEM, "no memory for %zu bytes of %s", room, what);
    mai_free(&m->cfg, buffer->ptr);
    *buffer = (mai_buffer){ptr, room};
    return MACATTN_OK;
}
