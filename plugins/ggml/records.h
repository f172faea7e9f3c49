/* SPDX-License-Identifier: Apache-2.0 */
/* What a context consists of. Records only: each file says what it does with them. */
#ifndef MACATTN_PLUGIN_RECORDS_H
#define MACATTN_PLUGIN_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "array.h"
#include "host.h"
#include "macattn/ggml.h"
#include "pool.h"
#include "settings/settings.h"
#include "report.h"
#include "tracker.h"

typedef struct group_key {
    int32_t n_heads, n_kv_heads, head_dim, v_head_dim;
    macattn_dtype k_dtype, v_dtype;
    float scale, softcap;
    int64_t n_cells, n_streams; /* of the cache; 0: no cache, nothing is tracked */
    int32_t nth_mask;           /* of the graph: a model may have several kinds of layers */
} group_key;

typedef struct layer {
    const struct ggml_tensor *cache; /* K's buffer of cells */
    const char *k;                   /* its start, stream 0 */
    size_t cell_stride, head_stride, stream_stride;
    int nth_use;  /* of this cache in the graph: layers may share one */
    bool matches; /* its queries before RoPE can be had */
    uint64_t n_decodes_with_hits;
    report_audit audit;
    double unit2; /* mean squared norm of the heads' outputs, of n_units audited steps */
    int n_units;
    macattn_ggml_bytes bytes;
} layer;

typedef struct step_row {
    int32_t stream, first_query, n_queries;
    int64_t n_tokens;
    bool contiguous;
    int64_t first_cell; /* contiguous */
    size_t cells_at;    /* untracked, not contiguous: place in step.cells */
    tracked_row tracked;
} step_row;

typedef enum step_mode { STEP_GGML, STEP_EXACT, STEP_REUSE } step_mode;

typedef struct step {
    step_mode mode;
    const void *mask;
    int64_t n_queries, n_streams, n_kv; /* of the nodes; queries a stream */
    int64_t first_stream;
    step_row *rows;
    int n_rows, rows_capacity;
    int32_t *cells; /* of untracked rows */
    size_t n_cells, cells_capacity;
    int32_t *pages; /* page tables */
    size_t pages_capacity;
    macattn_row *plan_rows;
    bool single; /* one query in every row */
    bool paged;
    uint8_t *done; /* [n_layers] */
} step;

/* A slot, saved. */
typedef struct kept_slot {
    void *data; /* NULL: there was nothing */
    size_t size;
} kept_slot;

typedef struct group {
    group_key key;
    int number;
    macattn *m;
    int m_layers; /* what m was made for */
    layer *layers;
    int n_layers;
    int rope_layer; /* the deepest whose keys depend on position; -1 = none */
    uint64_t changes; /* writes_changes() when its sequences were last looked at */
    bool failed;      /* there was no memory for the object */
    bool said_memory;
    report_memory memory; /* what a sequence may take */
    tracker *trackers;
    int n_sequences; /* of each tracker */
    step step;
    kept_slot *kept; /* [n_slots] what macattn_ggml_interface.keep remembered; NULL = nothing */
    int n_slots;
} group;

/* Where the query before RoPE is to be had from. */
typedef enum match_source { MATCH_NONE, MATCH_KEPT, MATCH_UNDO } match_source;

typedef struct trace {
    const struct ggml_tensor *node;
    const struct ggml_tensor *rope;
    const struct ggml_tensor *written; /* cells the new keys go to, I64 */
    group *group;
    int layer;
    bool plain;   /* the query is the ROPE node's output itself */
    bool checked; /* `source` is settled */
    match_source source;
} trace;

/* One a ggml backend, that is one a llama_context. */
typedef struct attention {
    plugin_settings settings;
    bool said_misfit;
    bool tracks; /* made for a policy that reuses; may compute exactly for now */
    int n_threads;
    pool *pool;
    group **groups;
    int n_groups;
    trace *traces;
    int n_traces, traces_capacity, next_trace;
    const struct ggml_tensor *masks[64]; /* of the graph being traced, in order */
    int n_masks;
    uint64_t division; /* that the traces belong to */
    uint64_t *sets[2]; /* what a query sees, and the query before it */
    int64_t set_words;
    float *scratch;
    size_t scratch_bytes;
    ggml_backend_t cpu;
    struct ggml_context *cpu_context;
    struct ggml_cgraph *cpu_graph;
    report_totals totals;
} attention;

/*! attention_scratch() : memory for one use, until the next call.  @return : NULL without
 *  memory. */
static inline float *attention_scratch(attention *a, size_t bytes)
{
    return array_room(&a->scratch, &a->scratch_bytes, bytes, 1) ? a->scratch : NULL;
}

#endif
