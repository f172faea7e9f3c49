/* SPDX-License-Identifier: Apache-2.0 */
/* What is remembered: the slots, and the rings they hold. */
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

typedef struct mai_slot {
    int64_t length;      /* tokens as of the newest decode or prefill */
    uint64_t generation; /* grows with every reset, truncate, fork, load */
    mai_ring **rings;    /* [n_layers], NULL until first planned */
    mai_ring **spares;   /* [n_layers] free rings reserved by plan for copy-on-write, or NULL */
    int64_t *void_from;  /* [n_layers] entries made at this position or later are void;
                                mai_slot_ring drops them. INT64_MAX: none */
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
/* Replace the slot's rings (NULL: none at all) and length; the slot takes the references over. */
void mai_slot_replace(macattn *m, int32_t slot, mai_ring **rings, int64_t length);
macattn_status mai_slot_check(macattn *m, int32_t slot);
macattn_status mai_slots_create(macattn *m);
void mai_slots_destroy(macattn *m);

#endif /* MAI_STATE_H */
