/* SPDX-License-Identifier: Apache-2.0 */
#include "writes.h"

#include <pthread.h>
#include <string.h>

#define MAX_WRITES 4096

static struct {
    pthread_mutex_t lock;
    struct {
        const struct ggml_tensor *cache, *written;
    } entries[MAX_WRITES];
    int n, next;
} writes = {.lock = PTHREAD_MUTEX_INITIALIZER};

bool writes_is_key_cache(const struct ggml_tensor *t)
{
    return t && strncmp(t->name, "cache_k_l", strlen("cache_k_l")) == 0;
}

void writes_note(const struct ggml_tensor *node)
{
    if (!writes_is_key_cache(node->view_src)) return;
    pthread_mutex_lock(&writes.lock);
    int i = 0;
    while (i < writes.n && writes.entries[i].cache != node->view_src) i++;
    if (i == writes.n) {
        i = writes.next;
        writes.next = (writes.next + 1) % MAX_WRITES;
        if (writes.n < MAX_WRITES) writes.n++;
    }
    writes.entries[i].cache = node->view_src;
    writes.entries[i].written = node->src[1];
    pthread_mutex_unlock(&writes.lock);
}

const struct ggml_tensor *writes_cells(const struct ggml_tensor *cache)
{
    const struct ggml_tensor *written = NULL;
    pthread_mutex_lock(&writes.lock);
    for (int i = 0; i < writes.n; i++) {
        if (writes.entries[i].cache == cache) written = writes.entries[i].written;
    }
    pthread_mutex_unlock(&writes.lock);
    return written && written->type == GGML_TYPE_I64 ? written : NULL;
}
