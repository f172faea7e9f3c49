/* SPDX-License-Identifier: Apache-2.0 */
#include "writes.h"

#include <stdatomic.h>
#include <string.h>

#include "division.h"

enum { MAX_WRITES = 1024 };

/* Of one graph: its tensors are gone when another is built in their memory. */
static _Thread_local struct {
    uint64_t division;
    int n;
    struct {
        const struct ggml_tensor *cache, *written;
    } entries[MAX_WRITES];
} writes;

static _Atomic uint64_t changes;

bool writes_is_key_cache(const struct ggml_tensor *t)
{
    return t && strncmp(t->name, "cache_k_l", strlen("cache_k_l")) == 0;
}

void writes_note(const struct ggml_tensor *node)
{
    if (!writes_is_key_cache(node->view_src)) return;
    if (node->op != GGML_OP_SET_ROWS) {
        atomic_fetch_add(&changes, 1);
        return;
    }
    if (writes.division != division_number()) writes.n = 0;
    writes.division = division_number();
    if (writes.n == MAX_WRITES) return;
    writes.entries[writes.n].cache = node->view_src;
    writes.entries[writes.n++].written = node->src[1];
}

const struct ggml_tensor *writes_cells(const struct ggml_tensor *cache)
{
    if (writes.division != division_number()) return NULL;
    for (int i = writes.n - 1; i >= 0; i--) {
        const struct ggml_tensor *written = writes.entries[i].written;
        if (writes.entries[i].cache == cache) {
            return written->type == GGML_TYPE_I64 ? written : NULL;
        }
    }
    return NULL;
}

uint64_t writes_changes(void)
{
    return atomic_load(&changes);
}
