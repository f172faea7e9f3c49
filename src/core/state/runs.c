/* SPDX-License-Identifier: Apache-2.0 */
/* Runs: where their means lie, who holds which, copy-on-write, truncation. They are a function of the
 * tokens alone, so a slot's are those of the slots it was forked from, as far as they go. */
#include <string.h>

#include "core/object.h"

/* Eight bits, where a row is a whole number of blocks. */
static macattn_dtype row_dtype(int32_t dim)
{
    return macattn_dtype_row_bytes(MACATTN_DTYPE_Q8_0, dim) > 0 ? MACATTN_DTYPE_Q8_0
                                                                : MACATTN_DTYPE_F16;
}

void mai_runs_dims_init(mai_runs_dims *dims, const mai_shape *shape, bool outliers)
{
    const size_t heads = (size_t)shape->n_kv_heads, rows = heads * MAI_SEGMENT;
    *dims = (mai_runs_dims){.n_kv_heads = shape->n_kv_heads,
                            .d = shape->d,
                            .dv = shape->dv,
                            .k_dtype = row_dtype(shape->d),
                            .v_dtype = row_dtype(shape->dv),
                            .outliers = outliers};
    dims->k_bytes = macattn_dtype_row_bytes(dims->k_dtype, shape->d);
    dims->v_bytes = macattn_dtype_row_bytes(dims->v_dtype, shape->dv);
    dims->off_common = 0;
    dims->off_k = mai_align_up(heads * (size_t)shape->d * sizeof(float));
    dims->off_v = dims->off_k + mai_align_up(rows * dims->k_bytes);
    dims->off_outlier = dims->off_v + mai_align_up(rows * dims->v_bytes);
    dims->bytes = dims->off_outlier + (outliers ? mai_align_up(rows * dims->k_bytes) : 0);
}

void mai_runs_view_init(mai_runs_view *view, const mai_runs_dims *dims, void *base)
{
    char *at = base;
    *view = (mai_runs_view){.common = (float *)(void *)(at + dims->off_common),
                            .k = at + dims->off_k,
                            .v = at + dims->off_v,
                            .outlier = dims->outliers ? at + dims->off_outlier : NULL};
}

int32_t mai_runs_kept(const macattn_config *cfg, int64_t n_tokens)
{
    if (!mai_keeps_runs(cfg) || n_tokens < cfg->min_tokens || n_tokens < cfg->band) return 0;
    return (int32_t)((n_tokens - cfg->band) >> MAI_RUN_SHIFT);
}

/* ---------------------------------------------------------------------------------- segments -- */

static mai_run_segment *pop(mai_run_segment **list)
{
    mai_run_segment *s = *list;
    if (!s) return NULL;
    *list = s->next;
    s->next = s->before = NULL;
    s->refs = 1;
    return s;
}

static void push(mai_run_segment **list, mai_run_segment *s)
{
    s->next = *list;
    *list = s;
}

/* From the free list, or a new one; NULL without memory. */
static mai_run_segment *take(macattn *m)
{
    mai_run_segment *s = pop(&m->free_segments);
    if (s) return s;
    const size_t header = mai_align_up(sizeof *s);
    char *memory = mai_alloc(&m->cfg, header + m->runs_dims.bytes);
    if (!memory) return NULL;
    s = (mai_run_segment *)(void *)memory;
    *s = (mai_run_segment){.refs = 1};
    mai_runs_view_init(&s->view, &m->runs_dims, memory + header);
    return s;
}

void mai_run_segment_release(macattn *m, mai_run_segment *segment)
{
    while (segment && --segment->refs == 0) {
        mai_run_segment *before = segment->before;
        push(&m->free_segments, segment);
        segment = before;
    }
}

mai_run_segment *mai_run_segments_take(macattn *m, int32_t n_runs)
{
    mai_run_segment *newest = NULL;
    for (int32_t i = 0; i < mai_n_segments(n_runs); i++) {
        mai_run_segment *s = take(m);
        if (!s) {
            mai_run_segment_release(m, newest);
            return NULL;
        }
        s->before = newest;
        newest = s;
    }
    return newest;
}

/* The first n runs of a segment. */
static void copy(const mai_runs_dims *dims, mai_runs_view *to, const mai_runs_view *from, size_t n)
{
    const size_t heads = (size_t)dims->n_kv_heads;
    memcpy(to->common, from->common, heads * (size_t)dims->d * sizeof(float));
    for (size_t h = 0; h < heads; h++) {
        const size_t k = h * MAI_SEGMENT * dims->k_bytes, v = h * MAI_SEGMENT * dims->v_bytes;
        memcpy(to->k + k, from->k + k, n * dims->k_bytes);
        memcpy(to->v + v, from->v + v, n * dims->v_bytes);
        if (dims->outliers) memcpy(to->outlier + k, from->outlier + k, n * dims->k_bytes);
    }
}

/* ------------------------------------------------------------------------------------- slots -- */

/* Whether the newest segment is to be written, and is not the slot's own. */
static bool must_copy(const mai_slot *s, int32_t layer, int32_t n_runs)
{
    const int32_t have = s->n_runs[layer];
    return n_runs > have && have % MAI_SEGMENT != 0 && s->runs[layer]->refs > 1;
}

macattn_status mai_runs_reserve(macattn *m, int32_t slot, int64_t n_tokens)
{
    mai_slot *s = &m->slots[slot];
    const int32_t n_runs = mai_runs_kept(&m->cfg, n_tokens);
    for (int l = 0; l < m->cfg.n_layers; l++) {
        int need = mai_n_segments(n_runs) - mai_n_segments(s->n_runs[l]);
        if (must_copy(s, l, n_runs)) need++;
        for (const mai_run_segment *x = s->free_parts[l]; x; x = x->next) need--;
        for (; need > 0; need--) {
            mai_run_segment *x = take(m);
            if (!x) {
                return mai_fail(m, MACATTN_E_NOMEM,
                                "no memory for the runs of slot %d, layer %d (%zu bytes)",
                                (int)slot, l, m->runs_dims.bytes);
            }
            push(&s->free_parts[l], x);
        }
        /* What an earlier plan asked for and did not use. */
        for (; need < 0; need++) push(&m->free_segments, pop(&s->free_parts[l]));
    }
    return MACATTN_OK;
}

void mai_runs_extend(macattn *m, int32_t slot, int32_t layer, int32_t n_runs)
{
    mai_slot *s = &m->slots[slot];
    const int32_t have = s->n_runs[layer];
    if (must_copy(s, layer, n_runs)) {
        mai_run_segment *shared = s->runs[layer], *own = pop(&s->free_parts[layer]);
        copy(&m->runs_dims, &own->view, &shared->view, (size_t)(have % MAI_SEGMENT));
        own->before = shared->before;
        if (own->before) own->before->refs++;
        mai_run_segment_release(m, shared);
        s->runs[layer] = own;
    }
    for (int32_t i = mai_n_segments(have); i < mai_n_segments(n_runs); i++) {
        mai_run_segment *own = pop(&s->free_parts[layer]);
        own->before = s->runs[layer];
        s->runs[layer] = own;
    }
}

void mai_runs_segments(const mai_slot *s, int32_t layer, int n, mai_runs_view *views)
{
    const mai_run_segment *segment = s->runs[layer];
    int i = 0;
    for (const mai_run_segment *x = segment; x; x = x->before) i++;
    for (; segment; segment = segment->before) {
        if (--i < n) views[i] = segment->view;
    }
}

void mai_runs_truncate(macattn *m, int32_t slot, int32_t layer, int32_t n_runs)
{
    mai_slot *s = &m->slots[slot];
    if (n_runs >= s->n_runs[layer]) return;
    for (int32_t i = mai_n_segments(s->n_runs[layer]); i > mai_n_segments(n_runs); i--) {
        mai_run_segment *newest = s->runs[layer];
        s->runs[layer] = newest->before;
        if (newest->before) newest->before->refs++;
        mai_run_segment_release(m, newest);
    }
    s->n_runs[layer] = n_runs;
}

void mai_runs_share(macattn *m, int32_t from, int32_t to)
{
    const mai_slot *x = &m->slots[from];
    mai_slot *y = &m->slots[to];
    for (int l = 0; l < m->cfg.n_layers; l++) {
        if (x->runs[l]) x->runs[l]->refs++;
        y->runs[l] = x->runs[l];
        y->n_runs[l] = x->n_runs[l];
    }
}

macattn_status mai_runs_create(macattn *m, mai_slot *s)
{
    const size_t layers = (size_t)m->cfg.n_layers;
    s->runs = mai_alloc_zero(&m->cfg, layers * sizeof *s->runs);
    s->n_runs = mai_alloc_zero(&m->cfg, layers * sizeof *s->n_runs);
    s->free_parts = mai_alloc_zero(&m->cfg, layers * sizeof *s->free_parts);
    return s->runs && s->n_runs && s->free_parts ? MACATTN_OK : MACATTN_E_NOMEM;
}

void mai_runs_destroy(macattn *m, mai_slot *s)
{
    for (int l = 0; l < m->cfg.n_layers; l++) {
        if (s->runs) mai_run_segment_release(m, s->runs[l]);
        while (s->free_parts && s->free_parts[l]) push(&m->free_segments, pop(&s->free_parts[l]));
    }
    mai_free(&m->cfg, s->runs);
    mai_free(&m->cfg, s->n_runs);
    mai_free(&m->cfg, s->free_parts);
}

void mai_runs_free_all(macattn *m)
{
    while (m->free_segments) {
        mai_run_segment *s = m->free_segments;
        m->free_segments = s->next;
        mai_free(&m->cfg, s);
    }
}
