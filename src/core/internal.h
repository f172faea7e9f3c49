/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of src/core share: the object, its slots and rings, errors, allocation, threads.
 * Nothing here knows an instruction set; the kernels come through `mai_backend` (backend.h). */
#ifndef MAI_INTERNAL_H
#define MAI_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "judge.h"
#include "macattn/macattn.h"

/* ------------------------------------------------------------------------------------- errors -- */

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

/* --------------------------------------------------------------------------------- allocation -- */

/* alloc.c: the caller's allocator or malloc, aligned to MAI_ALIGN bytes; contents undefined.
 * `bytes` 0 gives a valid pointer. NULL on failure. mai_free accepts NULL. */
#define MAI_ALIGN 64
void *mai_alloc(const macattn_config *cfg, size_t bytes);
void *mai_alloc_zero(const macattn_config *cfg, size_t bytes);
void mai_free(const macattn_config *cfg, void *ptr);

/* A buffer that plan may grow and decode only uses. mai_buffer_reserve keeps no contents. */
typedef struct mai_buffer {
    void *ptr;
    size_t bytes;
} mai_buffer;
macattn_status mai_buffer_reserve(macattn *m, mai_buffer *buffer, size_t bytes, const char *what);

/* ------------------------------------------------------------------------------------ threads -- */

/* threads.c: the own pool (persistent threads that spin for spin_us, then sleep) or the caller's
 * parallel_for. Tasks are handed out one by one, so uneven tasks balance. The calling thread works
 * too: n_threads = 1 starts no thread at all. */
typedef struct mai_threads mai_threads;
macattn_status mai_threads_create(const macattn_config *cfg, mai_threads **out, char *error,
                                  size_t error_size);
void mai_threads_destroy(const macattn_config *cfg, mai_threads *threads);
/* Run task(arg, i, worker) for every i in [0, n_tasks); `worker` in [0, n_threads) says whose scratch
 * memory the task may use: no two tasks that run at the same time get the same one. */
typedef void (*mai_task)(void *arg, int i, int worker);
int mai_threads_default(void); /* CPUs this process may use */
int64_t mai_now_ns(void);      /* monotonic clock */
void mai_threads_run(mai_threads *threads, int n_tasks, mai_task task, void *arg);

/* -------------------------------------------------------------------------------------- rings -- */

/* A ring: the remembered queries of one (slot, layer), all heads; shared by the slots forked from one
 * another until one of them writes (`refs`). One allocation; the arrays lie in it as mai_ring_dims
 * (backend.h) says. Entries of head h sit in a circle: the newest at head[h] - 1, count[h] of them.
 * `pos` grows from the oldest to the newest. */
typedef struct mai_ring {
    mai_ring_view view;    /* pointers into the same allocation (backend.h) */
    int32_t refs;          /* slots that hold it; 0: on the free list */
    struct mai_ring *next; /* free list */
} mai_ring;

typedef struct mai_slot {
    int64_t length;      /* tokens as of the newest decode or prefill */
    uint64_t generation; /* grows with every reset, truncate, fork, load */
    mai_ring **rings;    /* [n_layers], NULL until first planned */
    mai_ring **spares;   /* [n_layers] free rings reserved by plan for copy-on-write, or NULL */
    int64_t *keep_below; /* [n_layers] entries made at this position or later are void; they are
                                dropped when the ring is next written */
} mai_slot;

/* slot.c. */
/* Whether slots keep rings at all: not under EXACT, not with a window. */
bool mai_keeps_rings(const macattn_config *cfg);
/* Called by plan: give the slot a ring for every layer, and a spare for every shared one. On failure
 * what was taken stays with the slot (it is not lost, and harmless). */
macattn_status mai_slot_prepare(macattn *m, int32_t slot);
/* The ring of a prepared slot, made the slot's own first if it is shared, and without void entries. To
 * be called before a ring is read, too. Never fails. */
mai_ring *mai_slot_ring_for_write(macattn *m, int32_t slot, int32_t layer);
/* An empty ring from the free list, or a new one; NULL without memory. */
mai_ring *mai_ring_take(macattn *m);
void mai_ring_release(macattn *m, mai_ring *ring); /* NULL is allowed */
/* Replace the slot's rings (NULL: none at all) and length; the slot takes the references over. */
void mai_slot_replace(macattn *m, int32_t slot, mai_ring **rings, int64_t length);
macattn_status mai_slot_check(macattn *m, int32_t slot);
macattn_status mai_slots_create(macattn *m);
void mai_slots_destroy(macattn *m);

/* ---------------------------------------------------------------------------------- statistics -- */

/* stats.c: counters of one (layer, head). */
typedef struct mai_counters {
    uint64_t steps, hits, misses, tokens_total, tokens_skipped;
    uint64_t distance[MACATTN_DISTANCE_BINS];
} mai_counters;
/* Wall time of a layer's decode calls, by phase. */
typedef struct mai_times {
    uint64_t match_ns, attend_ns, merge_ns, judge_ns;
} mai_times;
macattn_status mai_stats_create(macattn *m);
void mai_stats_destroy(macattn *m);
/* One decoded (row, head). `distance2` is the squared distance of a hit, else unused. */
void mai_stats_add(macattn *m, int32_t layer, int32_t head, bool hit, int64_t n_tokens,
                   int64_t n_skipped, double distance2);

void mai_stats_add_times(macattn *m, int32_t layer, int64_t match_ns, int64_t attend_ns,
                         int64_t merge_ns, int64_t judge_ns);

/* -------------------------------------------------------------------------------------- policy -- */

/* policy.c. What a policy has to say before any key is read. A new policy is one more of these. */
typedef struct mai_policy {
    const char *name;
    /* Largest distance at which an entry may be reused (exclusive); < 0: never. `n` = tokens. */
    double (*radius)(const macattn_config *cfg, int64_t n_tokens);
    bool judges; /* what the search found is a candidate, to be judged (judge.h) */
} mai_policy;
const mai_policy *mai_policy_get(macattn_policy policy); /* NULL if unknown */

/* judge.c: what policies that judge have learnt (judge.h). */
macattn_status mai_records_create(macattn *m);
void mai_records_destroy(macattn *m);

/* ---------------------------------------------------------------------------------------- plan -- */

typedef struct mai_plan mai_plan; /* plan.h */
void mai_plan_destroy(macattn *m);

/* -------------------------------------------------------------------------------------- object -- */

struct macattn {
    macattn_config cfg; /* validated, all defaults resolved */
    const mai_backend *backend;
    mai_shape shape;         /* what the kernels need to know of cfg (backend.h) */
    mai_ring_dims ring_dims; /* how a ring's arrays lie in its allocation */
    mai_threads *threads;
    mai_slot *slots; /* [max_slots] */
    mai_ring *free_rings;
    mai_counters *counters; /* [n_layers][n_heads] */
    mai_times *times;       /* [n_layers] */
    mai_record *records;    /* [n_layers][n_heads]; NULL unless the policy judges */
    mai_habit *habits;      /* [n_layers][n_kv_heads]; the same */
    mai_plan *plan;
    char error[320];
};

/* object.c: what the kernels need of a resolved configuration. */
mai_shape mai_shape_of(const macattn_config *cfg);

/* config.c: check and resolve a configuration; used by create and by macattn_config_state_bytes. */
macattn_status mai_config_resolve(const macattn_config *in, macattn_config *out,
                                  const mai_backend **backend, char *error, size_t error_size);

#endif /* MAI_INTERNAL_H */
