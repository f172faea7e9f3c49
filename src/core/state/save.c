/* SPDX-License-Identifier: Apache-2.0 */
/* Saving and loading a slot.
 *
 * Layout, little-endian: the header below; then for each layer and head a count and so many
 * entries, from the oldest to the newest: position, end, lse0, distance moved, share of the mass,
 * query (q_dtype), summary (f32: the output, and under lse_order 1 the mean of the keys); then for
 * each layer the number of its runs and, if there are any, for each KV head the key that all have in
 * common (f32) and the rows of their mean keys, mean values and, where they are kept, outliers
 * (backend.h); then the CRC-32C of all that. The int8 forms of queries are made anew on loading. Runs
 * say of the tokens what the tokens say: an object that keeps fewer, or none, leaves the others out, and
 * one that keeps outliers makes all anew if there are none. */
#include <string.h>

#include "core/object.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#    error "the save format is written as it lies in memory, for little-endian machines"
#endif

#define SAVE_VERSION 6

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
    int32_t outliers; /* whether the runs have theirs; may differ */
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
    h.outliers = m->runs_dims.outliers;
    return h;
}

/* Values of a saved summary: also in an object that keeps no rings, which must still read it. */
static size_t summary_width(const macattn *m)
{
    return (size_t)(m->shape.dv + (m->cfg.lse_order > 0 ? m->shape.d : 0));
}

static size_t entry_bytes(const macattn *m)
{
    return 2 * sizeof(int32_t) + 3 * sizeof(float) + m->ring_dims.q_bytes +
           sizeof(float) * summary_width(m);
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

/* Of one layer, but for their number. */
static size_t runs_bytes(const macattn *m, int32_t n_runs, bool outliers)
{
    const mai_runs_dims *dims = &m->runs_dims;
    const size_t row = dims->k_bytes + dims->v_bytes + (outliers ? dims->k_bytes : 0);
    const size_t rows = (size_t)n_runs * row;
    return n_runs == 0 ? 0 : (size_t)dims->n_kv_heads * (sizeof(float) * (size_t)dims->d + rows);
}

static size_t saved_bytes(const macattn *m, const mai_slot *s)
{
    size_t bytes = sizeof(save_header) + sizeof(uint32_t);
    int oldest;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        for (int h = 0; h < m->cfg.n_heads; h++)
            bytes += sizeof(int32_t) + (size_t)valid_entries(m, s, l, h, &oldest) * entry_bytes(m);
        bytes += sizeof(int32_t) + runs_bytes(m, s->n_runs[l], m->runs_dims.outliers);
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

/* Where the rows of one KV head lie in a segment, and how many bytes each has. */
typedef struct rows_of {
    char *rows;
    size_t bytes;
} rows_of;

static rows_of k_rows(const mai_runs_dims *dims, const mai_runs_view *view, size_t kv_head)
{
    return (rows_of){view->k + kv_head * MAI_SEGMENT * dims->k_bytes, dims->k_bytes};
}

static rows_of v_rows(const mai_runs_dims *dims, const mai_runs_view *view, size_t kv_head)
{
    return (rows_of){view->v + kv_head * MAI_SEGMENT * dims->v_bytes, dims->v_bytes};
}

static rows_of outlier_rows(const mai_runs_dims *dims, const mai_runs_view *view, size_t kv_head)
{
    return (rows_of){view->outlier + kv_head * MAI_SEGMENT * dims->k_bytes, dims->k_bytes};
}

/* `segment` is that of the runs' index / MAI_SEGMENT. The chain leads from the last to the first. */
static void put_segment(const macattn *m, const mai_run_segment *segment, int32_t index,
                        int32_t n_runs, uint8_t *at)
{
    const mai_runs_dims *dims = &m->runs_dims;
    const size_t from = (size_t)index * MAI_SEGMENT, n = (size_t)n_runs;
    const size_t own = n - from < MAI_SEGMENT ? n - from : MAI_SEGMENT;
    const size_t common = sizeof(float) * (size_t)dims->d;
    for (size_t h = 0; h < (size_t)dims->n_kv_heads; h++) {
        const rows_of k = k_rows(dims, &segment->view, h), v = v_rows(dims, &segment->view, h);
        if (index == 0) put(at, segment->view.common + h * (size_t)dims->d, common);
        put(at + common + from * k.bytes, k.rows, own * k.bytes);
        put(at + common + n * k.bytes + from * v.bytes, v.rows, own * v.bytes);
        if (dims->outliers) {
            const rows_of outlier = outlier_rows(dims, &segment->view, h);
            put(at + common + n * (k.bytes + v.bytes) + from * k.bytes, outlier.rows,
                own * k.bytes);
        }
        at += runs_bytes(m, n_runs, dims->outliers) / (size_t)dims->n_kv_heads;
    }
}

static uint8_t *put_runs(const macattn *m, const mai_slot *s, int layer, uint8_t *at)
{
    const int32_t n_runs = s->n_runs[layer];
    int32_t i = mai_n_segments(n_runs);
    at = put(at, &n_runs, sizeof n_runs);
    for (const mai_run_segment *x = s->runs[layer]; x; x = x->before)
        put_segment(m, x, --i, n_runs, at);
    return at + runs_bytes(m, n_runs, m->runs_dims.outliers);
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
    for (int l = 0; l < m->cfg.n_layers; l++) at = put_runs(m, s, l, at);
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
           e->share <= 1 && query_finite(m, e->q) && floats_finite(e->summary, summary_width(m));
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
    save_header own = make_header(m, header->length, size);
    own.outliers = header->outliers == 1;
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

/* Walk over all entries; `end` is where they end. With `rings` NULL they are checked, else inserted. */
static macattn_status walk(macattn *m, const uint8_t *data, size_t size, int64_t length,
                           mai_ring **rings, size_t *end)
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
    *end = at;
    return MACATTN_OK;
}

/* Whether the values of a row are finite. A NaN in the first place of a row of K says that its run is
 * always read. */
static bool row_valid(macattn_dtype dtype, const uint8_t *row, size_t bytes, bool may_say_nan)
{
    const size_t step = dtype == MACATTN_DTYPE_Q8_0 ? macattn_dtype_row_bytes(dtype, 32) : 2;
    for (size_t i = 0; i < bytes; i += step) {
        uint16_t bits;
        memcpy(&bits, row + i, 2);
        const bool nan = (bits & 0x7c00u) == 0x7c00u && (bits & 0x3ffu) != 0;
        if ((bits & 0x7c00u) == 0x7c00u && !(i == 0 && may_say_nan && nan)) return false;
    }
    return true;
}

static bool rows_valid(const mai_runs_dims *dims, const uint8_t *at, size_t n, bool outliers)
{
    for (size_t i = 0; i < n; i++, at += dims->k_bytes) {
        if (!row_valid(dims->k_dtype, at, dims->k_bytes, true)) return false;
    }
    for (size_t i = 0; i < n; i++, at += dims->v_bytes) {
        if (!row_valid(dims->v_dtype, at, dims->v_bytes, false)) return false;
    }
    for (size_t i = 0; outliers && i < n; i++, at += dims->k_bytes) {
        if (!row_valid(dims->k_dtype, at, dims->k_bytes, false)) return false;
    }
    return true;
}

/* Where a layer's runs begin behind their number, and that number. */
static macattn_status get_runs(macattn *m, const uint8_t *data, const save_header *header,
                               int layer, size_t *at, int32_t *n_runs)
{
    const size_t stop = (size_t)header->total_bytes - sizeof(uint32_t);
    if (stop - *at < sizeof *n_runs) return mai_fail(m, MACATTN_E_FORMAT, "the data ends early");
    memcpy(n_runs, data + *at, sizeof *n_runs);
    *at += sizeof *n_runs;
    if (*n_runs < 0 || *n_runs > header->length / MAI_RUN_TOKENS ||
        runs_bytes(m, *n_runs, header->outliers) > stop - *at) {
        return mai_fail(m, MACATTN_E_FORMAT, "layer %d: %d runs do not fit", layer, (int)*n_runs);
    }
    return MACATTN_OK;
}

static macattn_status check_runs(macattn *m, const uint8_t *data, const save_header *header,
                                 size_t at)
{
    const mai_runs_dims *dims = &m->runs_dims;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        int32_t n = 0;
        MAI_TRY(get_runs(m, data, header, l, &at, &n));
        for (int h = 0; n > 0 && h < dims->n_kv_heads; h++) {
            const uint8_t *head = data + at;
            const size_t common = sizeof(float) * (size_t)dims->d;
            if (!floats_finite(head, (size_t)dims->d) ||
                !rows_valid(dims, head + common, (size_t)n, header->outliers)) {
                return mai_fail(m, MACATTN_E_FORMAT, "layer %d, KV head %d: the runs make no sense",
                                l, h);
            }
            at += runs_bytes(m, n, header->outliers) / (size_t)dims->n_kv_heads;
        }
    }
    const size_t stop = (size_t)header->total_bytes - sizeof(uint32_t);
    if (at != stop) return mai_fail(m, MACATTN_E_FORMAT, "%zu bytes are left over", stop - at);
    return MACATTN_OK;
}

/* The first `kept` of n saved runs; `outliers`: whether these have theirs, as they must if they are to
 * be kept. */
static void fill_runs(const macattn *m, mai_run_segment *newest, int32_t kept, int32_t n_runs,
                      bool outliers, const uint8_t *at)
{
    const mai_runs_dims *dims = &m->runs_dims;
    const size_t n = (size_t)n_runs, common = sizeof(float) * (size_t)dims->d;
    int32_t i = mai_n_segments(kept);
    for (mai_run_segment *x = newest; x; x = x->before) {
        const size_t from = (size_t)--i * MAI_SEGMENT;
        const size_t own = (size_t)kept - from < MAI_SEGMENT ? (size_t)kept - from : MAI_SEGMENT;
        const uint8_t *head = at;
        for (size_t h = 0; h < (size_t)dims->n_kv_heads; h++) {
            const rows_of k = k_rows(dims, &x->view, h), v = v_rows(dims, &x->view, h);
            if (i == 0) memcpy(x->view.common + h * (size_t)dims->d, head, common);
            memcpy(k.rows, head + common + from * k.bytes, own * k.bytes);
            memcpy(v.rows, head + common + n * k.bytes + from * v.bytes, own * v.bytes);
            if (dims->outliers) {
                memcpy(outlier_rows(dims, &x->view, h).rows,
                       head + common + n * (k.bytes + v.bytes) + from * k.bytes, own * k.bytes);
            }
            head += runs_bytes(m, n_runs, outliers) / (size_t)dims->n_kv_heads;
        }
    }
}

/* What a slot is to hold. */
typedef struct loaded {
    mai_ring **rings;
    mai_run_segment **runs; /* [n_layers] */
    int32_t *n_runs;        /* [n_layers] */
} loaded;

static void release_loaded(macattn *m, loaded *x)
{
    for (int l = 0; x->runs && l < m->cfg.n_layers; l++) mai_run_segment_release(m, x->runs[l]);
    for (int l = 0; x->rings && l < m->cfg.n_layers; l++) mai_ring_release(m, x->rings[l]);
    mai_free(&m->cfg, x->runs);
    mai_free(&m->cfg, x->n_runs);
    mai_free(&m->cfg, x->rings);
}

/* The data was checked. Without memory, what was taken is in `x`. */
static macattn_status load_runs(macattn *m, const uint8_t *data, const save_header *header,
                                size_t at, loaded *x)
{
    const bool useful = header->outliers || !m->runs_dims.outliers;
    const int32_t most = useful ? mai_runs_kept(&m->cfg, header->length) : 0;
    x->runs = mai_alloc_zero(&m->cfg, sizeof *x->runs * (size_t)m->cfg.n_layers);
    x->n_runs = mai_alloc_zero(&m->cfg, sizeof *x->n_runs * (size_t)m->cfg.n_layers);
    if (!x->runs || !x->n_runs) return MACATTN_E_NOMEM;
    for (int l = 0; l < m->cfg.n_layers; l++) {
        int32_t n = 0;
        MAI_TRY(get_runs(m, data, header, l, &at, &n));
        x->n_runs[l] = n < most ? n : most;
        x->runs[l] = mai_run_segments_take(m, x->n_runs[l]);
        if (x->n_runs[l] > 0 && !x->runs[l]) return MACATTN_E_NOMEM;
        fill_runs(m, x->runs[l], x->n_runs[l], n, header->outliers, data + at);
        at += runs_bytes(m, n, header->outliers);
    }
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

/* The slot takes over what was loaded. */
static void hand_over(macattn *m, int32_t slot, loaded *x, int64_t length)
{
    mai_slot *s = &m->slots[slot];
    mai_slot_replace(m, slot, x->rings, length);
    for (int l = 0; l < m->cfg.n_layers; l++) {
        s->runs[l] = x->runs[l];
        s->n_runs[l] = x->n_runs[l];
        x->runs[l] = NULL;
        if (x->rings) x->rings[l] = NULL;
    }
}

macattn_status macattn_slot_load(macattn *m, int32_t slot, const void *data, size_t size)
{
    MAI_TRY(mai_slot_check(m, slot));
    if (!data) return mai_fail(m, MACATTN_E_ARG, "data is NULL");
    save_header header;
    size_t end;
    MAI_TRY(check_envelope(m, data, size, &header));
    MAI_TRY(walk(m, data, size, header.length, NULL, &end));
    MAI_TRY(check_runs(m, data, &header, end));
    loaded x = {NULL, NULL, NULL};
    if (mai_keeps_rings(&m->cfg)) x.rings = take_rings(m);
    macattn_status status = load_runs(m, data, &header, end, &x);
    if (mai_keeps_rings(&m->cfg) && !x.rings) status = MACATTN_E_NOMEM;
    if (status == MACATTN_OK) {
        if (x.rings) walk(m, data, size, header.length, x.rings, &end); /* was checked */
        hand_over(m, slot, &x, header.length);
    }
    release_loaded(m, &x);
    if (status == MACATTN_E_NOMEM)
        return mai_fail(m, status, "no memory for what slot %d is to hold", (int)slot);
    return status;
}
