/* SPDX-License-Identifier: Apache-2.0 */
/* Saving and loading a slot.
 *
 * Layout, little-endian: the header below; then for each layer and head a count and so many
 * entries, from the oldest to the newest: position, end, lse0, distance moved, share of the mass,
 * query (q_dtype), summary (f32: the output, and under lse_order 1 the mean of the keys); then the
 * CRC-32C of all that. The int8 forms are made anew on loading. */
#include <string.h>

#include "core/object.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#    error "the save format is written as it lies in memory, for little-endian machines"
#endif

#define SAVE_VERSION 4

typedef struct save_header {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t total_bytes;
    int64_t length;
    /* What gives a summary its meaning: all of it must agree. */
    int32_t n_layers, n_heads, n_kv_heads, head_dim, v_head_dim, q_dtype, k_dtype, v_dtype,
        fresh_tokens;
    float scale, softcap;
    int32_t lse_order;
} save_header;

static uint32_t crc32c(const uint8_t *data, size_t n)
{
    uint32_t crc = 0xffffffffu, table[16];
    for (uint32_t i = 0; i < 16; i++) { /* four bits at a time: small, and fast enough for a file */
        uint32_t c = i;
        for (int bit = 0; bit < 4; bit++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        table[i] = c;
    }
    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static save_header make_header(const macattn *m, int64_t length, size_t total)
{
    const macattn_config *c = &m->cfg;
    save_header h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, "MACATTN", 8);
    h.version = SAVE_VERSION;
    h.header_bytes = sizeof h;
    h.total_bytes = total;
    h.length = length;
    h.n_layers = c->n_layers;
    h.n_heads = c->n_heads;
    h.n_kv_heads = c->n_kv_heads;
    h.head_dim = c->head_dim;
    h.v_head_dim = c->v_head_dim;
    h.q_dtype = (int32_t)c->q_dtype;
    h.k_dtype = (int32_t)c->k_dtype;
    h.v_dtype = (int32_t)c->v_dtype;
    h.fresh_tokens = c->fresh_tokens;
    h.scale = c->scale;
    h.softcap = c->softcap;
    h.lse_order = c->lse_order;
    return h;
}

static size_t entry_bytes(const macattn *m)
{
    return 2 * sizeof(int32_t) + 3 * sizeof(float) + m->ring_dims.q_bytes +
           sizeof(float) * (size_t)m->ring_dims.width;
}

/* Entries of a head that count: void ones are the newest. `oldest` becomes the first one's row. */
static int valid_entries(const macattn *m, const mai_slot *s, int layer, int head, int *oldest)
{
    const mai_ring *ring = s->rings[layer];
    if (!ring) return 0;
    const int K = m->ring_dims.capacity;
    int count = ring->view.count[head];
    *oldest = (ring->view.head[head] - count + K) % K;
    while (count > 0) {
        const int newest = (*oldest + count - 1) % K;
        if (ring->view.pos[(size_t)head * (size_t)K + (size_t)newest] < s->void_from[layer]) break;
        count--;
    }
    return count;
}

static size_t saved_bytes(const macattn *m, const mai_slot *s)
{
    size_t bytes = sizeof(save_header) + sizeof(uint32_t);
    int oldest;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        for (int h = 0; h < m->cfg.n_heads; h++)
            bytes += sizeof(int32_t) + (size_t)valid_entries(m, s, l, h, &oldest) * entry_bytes(m);
    }
    return bytes;
}

static uint8_t *put(uint8_t *at, const void *data, size_t bytes)
{
    memcpy(at, data, bytes);
    return at + bytes;
}

static uint8_t *put_head(const macattn *m, const mai_slot *s, int layer, int head, uint8_t *at)
{
    const size_t K = (size_t)m->ring_dims.capacity, q_bytes = m->ring_dims.q_bytes;
    const size_t width = (size_t)m->ring_dims.width;
    int oldest = 0;
    const int32_t count = valid_entries(m, s, layer, head, &oldest);
    at = put(at, &count, sizeof count);
    for (int i = 0; i < count; i++) {
        const mai_ring_view *ring = &s->rings[layer]->view;
        const size_t row = (size_t)head * K + ((size_t)oldest + (size_t)i) % K;
        at = put(at, &ring->pos[row], sizeof(int32_t));
        at = put(at, &ring->end[row], sizeof(int32_t));
        at = put(at, &ring->lse0[row], sizeof(float));
        at = put(at, &ring->moved[row], sizeof(float));
        at = put(at, &ring->share[row], sizeof(float));
        at = put(at, ring->q + row * q_bytes, q_bytes);
        at = put(at, ring->out + row * width, sizeof(float) * width);
    }
    return at;
}

macattn_status macattn_slot_save(macattn *m, int32_t slot, void *buffer, size_t *size)
{
    MAI_TRY(mai_slot_check(m, slot));
    if (!size) return mai_fail(m, MACATTN_E_ARG, "size is NULL");
    const mai_slot *s = &m->slots[slot];
    const size_t total = saved_bytes(m, s), room = *size;
    *size = total;
    if (!buffer) return MACATTN_OK;
    if (room < total) {
        return mai_fail(m, MACATTN_E_SPACE, "the buffer has %zu bytes; %zu are needed", room,
                        total);
    }
    const save_header header = make_header(m, s->length, total);
    uint8_t *at = put(buffer, &header, sizeof header);
    for (int l = 0; l < m->cfg.n_layers; l++) {
        for (int h = 0; h < m->cfg.n_heads; h++) at = put_head(m, s, l, h, at);
    }
    const uint32_t crc = crc32c(buffer, total - sizeof crc);
    put(at, &crc, sizeof crc);
    return MACATTN_OK;
}

/* -------------------------------------------------------------------------------------- load -- */

typedef struct saved_entry {
    int32_t pos, end;
    float lse0, moved, share;
    const uint8_t *q, *summary; /* as they lie in the file: not aligned */
} saved_entry;

static saved_entry get_entry(const macattn *m, const uint8_t *at)
{
    saved_entry e;
    memcpy(&e.pos, at, 4);
    memcpy(&e.end, at + 4, 4);
    memcpy(&e.lse0, at + 8, 4);
    memcpy(&e.moved, at + 12, 4);
    memcpy(&e.share, at + 16, 4);
    e.q = at + 20;
    e.summary = e.q + m->ring_dims.q_bytes;
    return e;
}

static bool floats_finite(const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, data + 4 * i, 4);
        if ((bits >> 23 & 255u) == 255u) return false;
    }
    return true;
}

static bool query_finite(const macattn *m, const uint8_t *q)
{
    if (m->shape.q_dtype == MACATTN_DTYPE_F32) return floats_finite(q, (size_t)m->shape.d);
    const uint32_t exponent = m->shape.q_dtype == MACATTN_DTYPE_F16 ? 0x7c00u : 0x7f80u;
    for (int i = 0; i < m->shape.d; i++) {
        uint16_t bits;
        memcpy(&bits, q + 2 * i, 2);
        if ((bits & exponent) == exponent) return false;
    }
    return true;
}

static bool entry_valid(const macattn *m, const saved_entry *e, int32_t pos_before, int64_t length)
{
    return e->pos > pos_before && e->pos < length && e->end > m->cfg.fresh_tokens &&
           e->end <= e->pos + 1 && floats_finite((const uint8_t *)&e->lse0, 1) &&
           floats_finite((const uint8_t *)&e->moved, 1) && e->moved >= 0 && e->share >= 0 &&
           e->share <= 1 && query_finite(m, e->q) &&
           floats_finite(e->summary, (size_t)m->ring_dims.width);
}

/* Check the header against this object, and the checksum. */
static macattn_status check_envelope(macattn *m, const uint8_t *data, size_t size,
                                     save_header *header)
{
    const size_t least = sizeof *header + sizeof(uint32_t);
    if (size < least) {
        return mai_fail(m, MACATTN_E_FORMAT, "%zu bytes are too few for a saved slot", size);
    }
    memcpy(header, data, sizeof *header);
    if (memcmp(header->magic, "MACATTN", 8) != 0) {
        return mai_fail(m, MACATTN_E_FORMAT, "this is not a saved slot");
    }
    if (header->version != SAVE_VERSION || header->header_bytes != sizeof *header) {
        return mai_fail(m, MACATTN_E_FORMAT, "the save format is version %u; this library reads %d",
                        (unsigned)header->version, SAVE_VERSION);
    }
    if (header->total_bytes != size) {
        return mai_fail(m, MACATTN_E_FORMAT, "the saved slot has %llu bytes; %zu were given",
                        (unsigned long long)header->total_bytes, size);
    }
    uint32_t crc;
    memcpy(&crc, data + size - sizeof crc, sizeof crc);
    if (crc != crc32c(data, size - sizeof crc)) {
        return mai_fail(m, MACATTN_E_FORMAT, "the checksum does not agree: the data is corrupt");
    }
    const save_header own = make_header(m, header->length, size);
    if (memcmp(header, &own, sizeof own) != 0) {
        return mai_fail(
            m, MACATTN_E_FORMAT,
            "saved under another configuration (layers, heads, dims, dtypes, scale, soft cap, "
            "fresh_tokens or lse_order differ)");
    }
    if (header->length < 0 || header->length > m->cfg.max_tokens) {
        return mai_fail(m, MACATTN_E_FORMAT, "the saved slot has %lld tokens; max_tokens is %lld",
                        (long long)header->length, (long long)m->cfg.max_tokens);
    }
    return MACATTN_OK;
}

/* Walk over all entries. With `rings` NULL they are checked, else inserted. */
static macattn_status walk(macattn *m, const uint8_t *data, size_t size, int64_t length,
                           mai_ring **rings)
{
    size_t at = sizeof(save_header);
    const size_t stop = size - sizeof(uint32_t), entry = entry_bytes(m);
    for (int i = 0; i < m->cfg.n_layers * m->cfg.n_heads; i++) {
        const int layer = i / m->cfg.n_heads, head = i % m->cfg.n_heads;
        int32_t count, before = -1;
        if (stop - at < sizeof count) return mai_fail(m, MACATTN_E_FORMAT, "the data ends early");
        memcpy(&count, data + at, sizeof count);
        at += sizeof count;
        if (count < 0 || (size_t)count > (stop - at) / entry) {
            return mai_fail(m, MACATTN_E_FORMAT, "layer %d, head %d: %d entries do not fit", layer,
                            head, (int)count);
        }
        for (int k = 0; k < count; k++, at += entry) {
            const saved_entry e = get_entry(m, data + at);
            if (!rings && !entry_valid(m, &e, before, length)) {
                return mai_fail(m, MACATTN_E_FORMAT, "layer %d, head %d: entry %d makes no sense",
                                layer, head, k);
            }
            before = e.pos;
            if (!rings) continue;
            float summary[2 * MAI_MAX_DIM];
            memcpy(summary, e.summary, sizeof(float) * (size_t)m->ring_dims.width);
            const mai_ring_view *ring = &rings[layer]->view;
            const size_t row =
                (size_t)head * (size_t)m->ring_dims.capacity + (size_t)ring->head[head];
            m->backend->insert(&m->ring_dims, ring, m->shape.q_dtype, head, e.q, e.pos, e.end,
                               e.lse0, summary);
            ring->moved[row] = e.moved;
            ring->share[row] = e.share;
        }
    }
    if (at != stop) return mai_fail(m, MACATTN_E_FORMAT, "%zu bytes are left over", stop - at);
    return MACATTN_OK;
}

static mai_ring **take_rings(macattn *m)
{
    mai_ring **rings = mai_alloc_zero(&m->cfg, sizeof *rings * (size_t)m->cfg.n_layers);
    if (!rings) return NULL;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        rings[l] = mai_ring_take(m);
        if (rings[l]) continue;
        while (l-- > 0) mai_ring_release(m, rings[l]);
        mai_free(&m->cfg, rings);
        return NULL;
    }
    return rings;
}

macattn_status macattn_slot_load(macattn *m, int32_t slot, const void *data, size_t size)
{
    MAI_TRY(mai_slot_check(m, slot));
    if (!data) return mai_fail(m, MACATTN_E_ARG, "data is NULL");
    save_header header;
    MAI_TRY(check_envelope(m, data, size, &header));
    MAI_TRY(walk(m, data, size, header.length, NULL));
    mai_ring **rings = NULL;
    if (mai_keeps_rings(&m->cfg)) {
        rings = take_rings(m);
        if (!rings)
            return mai_fail(m, MACATTN_E_NOMEM, "no memory for the rings of slot %d", (int)slot);
        MAI_TRY(walk(m, data, size, header.length, rings)); /* was checked: does not fail */
    }
    mai_slot_replace(m, slot, rings, header.length);
    mai_free(&m->cfg, rings);
    return MACATTN_OK;
}
