/* SPDX-License-Identifier: Apache-2.0 */
/* The ground that all of src/core stands on: errors, memory, threads, the clock. */
#ifndef MAI_BASE_H
#define MAI_BASE_H

#include <stdbool.h>
#include <stdint.h>

#include "macattn/macattn.h"

/* ------------------------------------------------------------------------------------ errors -- */

/* status.c. Write the sentence for macattn_last_error and return the code. `m` may be NULL. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
macattn_status
mai_fail(macattn *m, macattn_status code, const char *format, ...);

#define MAI_TRY(expr)                            \
    do {                                         \
        macattn_status mai_try_status_ = (expr); \
        if (mai_try_status_ != MACATTN_OK) {     \
            return mai_try_status_;              \
        }                                        \
    } while (0)

/* ------------------------------------------------------------------------------------ memory -- */

/* Arrays that share an allocation begin at multiples of it, too. */
#define MAI_ALIGN 64
static inline size_t mai_align_up(size_t bytes)
{
    return (bytes + MAI_ALIGN - 1) / MAI_ALIGN * MAI_ALIGN;
}

/* alloc.c: the caller's allocator or malloc, aligned to MAI_ALIGN bytes; contents undefined.
 * `bytes` 0 gives a valid pointer. NULL on failure. mai_free accepts NULL. */
void *mai_alloc(const macattn_config *cfg, size_t bytes);
void *mai_alloc_zero(const macattn_config *cfg, size_t bytes);
void mai_free(const macattn_config *cfg, void *ptr);

/* A buffer that plan may grow and decode only uses. mai_buffer_reserve keeps no contents. */
typedef struct mai_buffer {
    void *ptr;
    size_t bytes;
} mai_buffer;
macattn_status mai_buffer_reserve(macattn *m, mai_buffer *buffer, size_t bytes, const char *what);

/* ----------------------------------------------------------------------------------- threads -- */

/* threads.c: the own pool (persistent threads that spin for spin_us, then sleep) or the caller's
 * parallel_for. Tasks are handed out one by one, so uneven tasks balance. The calling thread works
 * too: n_threads = 1 starts no thread at all. */
typedef struct mai_threads mai_threads;
macattn_status mai_threads_create(const macattn_config *cfg, mai_threads **out, char *error,
                                  size_t error_size);
void mai_threads_destroy(const macattn_config *cfg, mai_threads *threads);
/* Run task(arg, i, worker) for every i in [0, n_tasks); `worker` in [0, n_threads) says whose
 * scratch memory the task may use: no two tasks that run at the same time get the same one. */
typedef void (*mai_task)(void *arg, int i, int worker);
void mai_threads_run(mai_threads *threads, int n_tasks, mai_task task, void *arg);
int mai_threads_default(void); /* CPUs this process may use */
int64_t mai_now_ns(void);      /* monotonic clock */

#endif /* MAI_BASE_H */
