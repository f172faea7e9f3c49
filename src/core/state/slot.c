/* SPDX-License-Identifier: Apache-2.0 */
/* Slots and their rings: who holds which, copy-on-write, truncation. Their runs: runs.c. */
#include <string.h>

#include "core/object.h"

/* ------------------------------------------------------------------------------------- rings -- */

static void ring_clear(const macattn *m, mai_ring *ring)
{
    memset(ring->view.head, 0, sizeof(int32_t) * (size_t)m->shape.n_heads);
    memset(ring->view.count, 0, sizeof(int32_t) * (size_t)m->shape.n_heads);
}

mai_ring *mai_ring_take(macattn *m)
{
    mai_ring *ring = m->free_rings;
    if (ring) {
        m->free_rings = ring->next;
    } else {
        const size_t header = mai_align_up(sizeof *ring);
        char *memory = mai_alloc(&m->cfg, header + m->ring_dims.bytes);
        if (!memory) return NULL;
        ring = (mai_ring *)(void *)memory;
        mai_ring_view_init(&ring->view, &m->ring_dims, memory + header);
    }
    ring->refs = 1;
    ring->next = NULL;
    ring_clear(m, ring);
    return ring;
}

void mai_ring_release(macattn *m, mai_ring *ring)
{
    if (!ring || --ring->refs > 0) return;
    ring->next = m->free_rings;
    m->free_rings = ring;
}

/* Rows of the circle that are in use, from 0 on. */
static size_t rows_in_use(const macattn *m, const mai_ring_view *ring, int head)
{
    const int count = ring->count[head], K = m->ring_dims.capacity;
    return (size_t)(ring->head[head] == count % K ? count : K);
}

/* Only what is in use, so that a short sequence's ring stays small in memory. */
static void ring_copy(const macattn *m, mai_ring_view *to, const mai_ring_view *from)
{
    const mai_ring_dims *dims = &m->ring_dims;
    const size_t K = (size_t)dims->capacity, padded = (size_t)dims->n_blocks * MAI_LANES;
    memcpy(to->head, from->head, sizeof(int32_t) * (size_t)dims->n_heads);
    memcpy(to->count, from->count, sizeof(int32_t) * (size_t)dims->n_heads);
    for (int h = 0; h < dims->n_heads; h++) {
        const size_t rows = rows_in_use(m, from, h), at = (size_t)h * K;
        const size_t width = (size_t)dims->width;
        const size_t lanes = (rows + MAI_LANES - 1) / MAI_LANES * MAI_LANES;
        memcpy(to->pos + at, from->pos + at, sizeof(int32_t) * rows);
        memcpy(to->end + at, from->end + at, sizeof(int32_t) * rows);
        memcpy(to->lse0 + at, from->lse0 + at, sizeof(float) * rows);
        memcpy(to->moved + at, from->moved + at, sizeof(float) * rows);
        memcpy(to->share + at, from->share + at, sizeof(float) * rows);
        memcpy(to->q + at * dims->q_bytes, from->q + at * dims->q_bytes, rows * dims->q_bytes);
        memcpy(to->out + at * width, from->out + at * width, sizeof(float) * rows * width);
        const size_t p = (size_t)h * padded;
        memcpy(to->scale + p, from->scale + p, sizeof(float) * rows);
        memcpy(to->residual + p, from->residual + p, sizeof(float) * rows);
        for (int c = 0; c < dims->n_chunks; c++) {
            const size_t chunk = ((size_t)h * (size_t)dims->n_chunks + (size_t)c) * padded;
            memcpy(to->norm2 + chunk, from->norm2 + chunk, sizeof(float) * rows);
            memcpy(to->q8 + chunk * MAI_CHUNK, from->q8 + chunk * MAI_CHUNK, lanes * MAI_CHUNK);
        }
    }
}

/* Take back the entries made at `void_from` or later: the newest ones. */
static void ring_truncate(const macattn *m, mai_ring_view *ring, int64_t void_from)
{
    const int K = m->ring_dims.capacity;
    for (int h = 0; h < m->shape.n_heads; h++) {
        while (ring->count[h] > 0) {
            const int newest = ring->head[h] == 0 ? K - 1 : ring->head[h] - 1;
            if (ring->pos[(size_t)h * (size_t)K + (size_t)newest] < void_from) break;
            ring->head[h] = newest;
            ring->count[h]--;
        }
    }
}

mai_ring *mai_slot_ring(macattn *m, int32_t slot, int32_t layer)
{
    mai_slot *s = &m->slots[slot];
    mai_ring *ring = s->rings[layer];
    if (ring->refs > 1) {
        mai_ring *own = s->spares[layer];
        s->spares[layer] = NULL;
        ring_copy(m, &own->view, &ring->view);
        mai_ring_release(m, ring);
        s->rings[layer] = ring = own;
    }
    if (s->void_from[layer] != INT64_MAX) {
        ring_truncate(m, &ring->view, s->void_from[layer]);
        s->void_from[layer] = INT64_MAX;
    }
    return ring;
}

/* ------------------------------------------------------------------------------------- slots -- */

macattn_status mai_slot_prepare(macattn *m, int32_t slot)
{
    mai_slot *s = &m->slots[slot];
    for (int l = 0; l < m->cfg.n_layers; l++) {
        if (!s->rings[l]) {
            s->void_from[l] = INT64_MAX;
            s->rings[l] = mai_ring_take(m);
        }
        if (s->rings[l] && s->rings[l]->refs > 1 && !s->spares[l]) s->spares[l] = mai_ring_take(m);
        if (!s->rings[l] || (s->rings[l]->refs > 1 && !s->spares[l])) {
            return mai_fail(m, MACATTN_E_NOMEM,
                            "no memory for the ring of slot %d, layer %d (%zu bytes)", (int)slot, l,
                            m->ring_dims.bytes);
        }
    }
    return MACATTN_OK;
}

void mai_slot_replace(macattn *m, int32_t slot, mai_ring **rings, int64_t length)
{
    mai_slot *s = &m->slots[slot];
    for (int l = 0; l < m->cfg.n_layers; l++) {
        mai_ring_release(m, s->rings[l]);
        s->rings[l] = rings ? rings[l] : NULL;
        s->void_from[l] = INT64_MAX;
        mai_runs_truncate(m, slot, l, 0);
    }
    s->length = length;
    s->generation++;
}

macattn_status mai_slot_check(macattn *m, int32_t slot)
{
    if (!m) return MACATTN_E_ARG;
    if (slot < 0 || slot >= m->cfg.max_slots) {
        return mai_fail(m, MACATTN_E_RANGE, "slot %d is not in [0, max_slots = %d)", (int)slot,
                        (int)m->cfg.max_slots);
    }
    return MACATTN_OK;
}

macattn_status mai_slots_create(macattn *m)
{
    const size_t n = (size_t)m->cfg.max_slots, layers = (size_t)m->cfg.n_layers;
    m->slots = mai_alloc_zero(&m->cfg, n * sizeof *m->slots);
    if (!m->slots) return MACATTN_E_NOMEM;
    for (size_t i = 0; i < n; i++) {
        mai_slot *s = &m->slots[i];
        s->rings = mai_alloc_zero(&m->cfg, layers * sizeof *s->rings);
        s->spares = mai_alloc_zero(&m->cfg, layers * sizeof *s->spares);
        s->void_from = mai_alloc(&m->cfg, layers * sizeof *s->void_from);
        if (!s->rings || !s->spares || !s->void_from) return MACATTN_E_NOMEM;
        for (size_t l = 0; l < layers; l++) s->void_from[l] = INT64_MAX;
        MAI_TRY(mai_runs_create(m, s));
    }
    return MACATTN_OK;
}

void mai_slots_destroy(macattn *m)
{
    for (int i = 0; m->slots && i < m->cfg.max_slots; i++) {
        mai_slot *s = &m->slots[i];
        for (int l = 0; l < m->cfg.n_layers; l++) {
            if (s->rings) mai_ring_release(m, s->rings[l]);
            if (s->spares) mai_ring_release(m, s->spares[l]);
        }
        mai_free(&m->cfg, s->rings);
        mai_free(&m->cfg, s->spares);
        mai_free(&m->cfg, s->void_from);
        mai_runs_destroy(m, s);
    }
    mai_runs_free_all(m);
    mai_free(&m->cfg, m->slots);
    m->slots = NULL;
    while (m->free_rings) {
        mai_ring *ring = m->free_rings;
        m->free_rings = ring->next;
        mai_free(&m->cfg, ring);
    }
}

macattn_status macattn_slot_reset(macattn *m, int32_t slot)
{
    MAI_TRY(mai_slot_check(m, slot));
    mai_slot_replace(m, slot, NULL, 0);
    return MACATTN_OK;
}

macattn_status macattn_slot_truncate(macattn *m, int32_t slot, int64_t n_tokens)
{
    MAI_TRY(mai_slot_check(m, slot));
    mai_slot *s = &m->slots[slot];
    if (n_tokens < 0 || n_tokens > s->length) {
        return mai_fail(m, MACATTN_E_RANGE, "%lld tokens are not in [0, the slot's length = %lld]",
                        (long long)n_tokens, (long long)s->length);
    }
    for (int l = 0; l < m->cfg.n_layers; l++) {
        if (n_tokens < s->void_from[l]) s->void_from[l] = n_tokens;
        mai_runs_truncate(m, slot, l, mai_runs_kept(&m->cfg, n_tokens));
    }
    s->length = n_tokens;
    s->generation++;
    return MACATTN_OK;
}

macattn_status macattn_slot_fork(macattn *m, int32_t from, int32_t to)
{
    MAI_TRY(mai_slot_check(m, from));
    MAI_TRY(mai_slot_check(m, to));
    if (from == to)
        return mai_fail(m, MACATTN_E_ARG, "slot %d cannot be forked to itself", (int)from);
    mai_slot *source = &m->slots[from];
    for (int l = 0; l < m->cfg.n_layers; l++) {
        if (source->rings[l]) source->rings[l]->refs++;
    }
    mai_slot_replace(m, to, source->rings, source->length);
    mai_runs_share(m, from, to);
    memcpy(m->slots[to].void_from, source->void_from,
           sizeof *source->void_from * (size_t)m->cfg.n_layers);
    source->generation++; /* a plan made before has reserved no copy for what is now shared */
    return MACATTN_OK;
}

macattn_status macattn_slot_length(macattn *m, int32_t slot, int64_t *n_tokens)
{
    MAI_TRY(mai_slot_check(m, slot));
    if (!n_tokens) return mai_fail(m, MACATTN_E_ARG, "n_tokens is NULL");
    *n_tokens = m->slots[slot].length;
    return MACATTN_OK;
}
