/* SPDX-License-Identifier: Apache-2.0 */
/* Memory, or the end of the program. */
#ifndef MACATTN_TOOLS_COMMON_MEMORY_H
#define MACATTN_TOOLS_COMMON_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

void *memory_alloc(size_t bytes); /* zeroed; never NULL */

/* Large buffers, aligned to pages, untouched. `huge` asks the system for huge pages. */
void *memory_map(size_t bytes, bool huge);
void memory_unmap(void *ptr, size_t bytes);

#endif /* MACATTN_TOOLS_COMMON_MEMORY_H */
