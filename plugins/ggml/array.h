/* SPDX-License-Identifier: Apache-2.0 */
/* Arrays that grow. */
#ifndef MACATTN_PLUGIN_ARRAY_H
#define MACATTN_PLUGIN_ARRAY_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/*! array_room() : room for `n` items of `size` bytes in a growing array; `array` is the address of
 *  the pointer.
 *  @return : false without memory, nothing having changed. */
static inline bool array_room(void *array, size_t *capacity, size_t n, size_t size)
{
    void *old;
    if (n <= *capacity) return true;
    memcpy(&old, array, sizeof old);
    const size_t more = n + n / 2 + 16;
    void *p = realloc(old, more * size);
    if (!p) return false;
    memcpy(array, &p, sizeof p);
    *capacity = more;
    return true;
}

/*! array_room_int() : the same where counts are int. */
static inline bool array_room_int(void *array, int *capacity, int n, size_t size)
{
    size_t c = (size_t)*capacity;
    const bool ok = array_room(array, &c, (size_t)n, size);
    *capacity = (int)c;
    return ok;
}

#endif
