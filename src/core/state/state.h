/* SPDX-License-Identifier: Apache-2.0 */
/* What is remembered: the slots, and the rings and runs they hold. */
#ifndef MAI_STATE_H
#define MAI_STATE_H

#include "core/backend.h"
#include "core/base.h"

/* A ring: the remembered queries of one (slot, layer), all heads; shared by the slots forked
 * from one another until one of them writes (`refs`). One allocation; the arrays lie in it as
 * mai_ring_dims (backend.h) says. Entries of head h sit in a circle: the newest at head[h] - 1,
 * count[h] of them. `pos` grows from the oldest to the newest. */
typedef struct mai_ring {
    mai_ring_view view;    /* pointers into the same allocation (backend.h) */
    int32_t refs;          /* slots that hold it; 0: on the free list */
    struct mai_ring *next; /* free list */
} mai_ring;

/* Means of up to MAI_SEGMENT runs of one (slot, layer), and all runs before them: a chain from the
 * newest segment to the first. Shared like rings, each by those that hold it: a slot, the segment after
 * it. All but the newest are full, and never written again. */
typedef struct mai_run_segment {
    mai_runs_view view; /* pointers into the same allocation */
    int32_t refs;       /* 0: on a list of free ones */
    struct mai_run_segment *before;
    struct mai_run_segment *next; /* of that list */
} mai_run_segment;

typedef struct mai_slot {
    int64_t length;      /* tokens as of the newest decode or prefill */
    uint64_t generation; /* grows with every reset, truncate, fork, load */
    mai_ring **rings;    /* [n_layers], NULL until first planned */
    mai_ring **spares;   /* [n_layers] free rings reserved by plan for copy-on-write, or NULL */
    int64_t *void_from;  /* [n_layers] entries made at this position or later are void;
                                mai_slot_ring drops them. INT64_MAX: none */
    /* Runs, where they are kept: [n_layers] each. */
    mai_run_segment **runs;       /* the newest segment; NULL: no runs yet */
    int32_t *n_runs;          /* runs [0, n_runs) are known */
    mai_run_segment **free_parts; /* lists of segments that plan has reserved for the layer */
} mai_slot;

/* slot.c. */
/* Called by plan: give the slot a ring for every layer, and a spare for every shared one. On
 * failure what was taken stays with the slot (it is not lost, and harmless). */
macattn_status mai_slot_prepare(macattn *m, int32_t slot);
/* The ring of a prepared slot, made the slot's own first if it is shared, and without void
 * entries: to be called before a layer's ring is read or written. Never fails. */
mai_ring *mai_slot_ring(macattn *m, int32_t slot, int32_t layer);
/* An empty ring from the free list, or a new one; NULL without memory. */
mai_ring *mai_ring_take(macattn *m);
void mai_ring_release(macattn *m, mai_ring *ring); /* NULL is allowed */
/* Replace the slot's rings (NULL: none at all) and length; the slot takes the references over. Its
 * runs are forgotten. */
void mai_slot_replace(macattn *m, int32_t slot, mai_ring **rings, int64_t length);
macattn_status mai_slot_check(macattn *m, int32_t slot);
macattn_status mai_slots_create(macattn *m);
void mai_slots_destroy(macattn *m);

/* runs.c. */
/* How many runs are kept of a sequence of n tokens: those that lie before its band. */
int32_t mai_runs_kept(const macattn_config *cfg, int64_t n_tokens);
/* Called by plan: reserve what mai_runs_extend takes for a sequence of n tokens, in all layers. On
 * failure what was taken stays with the slot. */
macattn_status mai_runs_reserve(macattn *m, int32_t slot, int64_t n_tokens);
/* Room for runs up to n_runs, the slot's own where it is to be written: as reserved; never fails.
 * Those from the slot's n_runs on are for the caller to make, and then to count. */
void mai_runs_extend(macattn *m, int32_t slot, int32_t layer, int32_t n_runs);
/* The first n segments of a layer's runs, in order. */
void mai_runs_segments(const mai_slot *s, int32_t layer, int n, mai_runs_view *views);
/* Forget runs from n_runs on. */
void mai_runs_truncate(macattn *m, int32_t slot, int32_t layer, int32_t n_runs);
/* Slot `to`, which has none, takes part in those of `from`. */
void mai_runs_share(macattn *m, int32_t from, int32_t to);
/* `n_runs` of a layer in segments of their own, not yet filled in: the newest; NULL without
 * memory. Freed with mai_run_segment_release. */
mai_run_segment *mai_run_segments_take(macattn *m, int32_t n_runs);
void mai_run_segment_release(macattn *m, mai_run_segment *segment); /* and those before it; NULL too */
macattn_status mai_runs_create(macattn *m, mai_slot *s); /* of a new slot */
void mai_runs_destroy(macattn *m, mai_slot *s);
void mai_runs_free_all(macattn *m);

static inline int32_t mai_n_segments(int32_t n_runs)
{
    return (int32_t)(((int64_t)n_runs + MAI_SEGMENT - 1) >> MAI_SEGMENT_SHIFT);
}

#endif /* MAI_STATE_H */
