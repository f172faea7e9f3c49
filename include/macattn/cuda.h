/* SPDX-License-Identifier: Apache-2.0 */
/*! \file cuda.h
 *  macattn on an NVIDIA GPU: the computation of macattn.h with device pointers and a stream.
 *
 *  Read macattn.h first; the words and the meaning of hits, summaries and slots are the same. What
 *  is different here:
 *  - Everything that changes from step to step lies in device memory: lengths, slots, page tables.
 *    A call only launches kernels (one for exact attention, two with reuse, three with selection). It never synchronises,
 *    never allocates and copies nothing from the host, so it can be captured in a CUDA graph, and
 *    the graph replayed while lengths, tables and hit patterns change. There is no plan: the work
 *    is divided on the device, by bytes, over all multiprocessors.
 *  - Device memory is taken in macattn_cuda_create alone.
 *  - A miss is exact attention up to rounding: its sums are split at the band, so it is not bit for
 *    bit what macattn_cuda_attend gives. Neither depends on which block finishes first.
 *  - K and V: f16, bf16 or fp8 e4m3, both the same; head_dim 64, 128 or 256, of K and of V alike.
 *  - Queries and outputs: f32, f16 or bf16. Products are computed on tensor cores in K's type (fp8:
 *    in f16) and summed in f32; ring summaries and their means of keys are f32.
 *  - Selection: for f16 and bf16. With fp8 `select` is taken as 0; where it is 0, BUDGET's default band
 *    is 2048. A group's means of runs, and with `select` 2 their outliers, are made when it first looks at
 *    them, and in macattn_cuda_capture. They lie in a pool that all slots share; a sequence for whose runs there is no
 *    room left selects nothing.
 *  - Since lengths are on the device, what macattn_plan would reject cannot be: a row must continue
 *    its slot. A row whose slot is -1 is computed in full and not remembered; a row of length 0
 *    gives 0 and -inf, with a sink 0 and the sink. Use either to pad a captured batch.
 *
 *  Needs compute capability 8.0 or later. Calls on one object must not run at the same time,
 *  neither on the host nor, on different streams, on the device: they share work memory. `stream`
 *  is a cudaStream_t; this header includes none of CUDA's.
 *
 *  Available if the library was built with MACATTN_CUDA=ON.
 */
#ifndef MACATTN_CUDA_H
#define MACATTN_CUDA_H

#include "macattn/macattn.h"

#ifdef __cplusplus
extern "C" {
#endif

/*! What the GPU needs to know beyond macattn_config. Fill with macattn_cuda_config_init. */
typedef struct macattn_cuda_config {
    size_t struct_size;      /*!< set by macattn_cuda_config_init */
    int32_t device;          /*!< ordinal; -1 (default) = the calling thread's current device */
    int32_t max_rows;        /*!< rows a batch may have, 1 to 65535 (default 256) */
    macattn_dtype out_dtype; /*!< of `out`: F32 (default), F16, BF16 */
    int64_t run_tokens;      /*!< BUDGET with selection: tokens of all slots together whose means (and
                                  outliers) of runs there is room for, in whole segments of 1024 of each slot.
                                  0 (default): max_slots times max_tokens, the most there can be;
                                  an engine with a pool of pages gives the tokens of that */
} macattn_cuda_config;

/*! macattn_cuda_config_init() : the defaults. @return : E_ARG if `config` is NULL. Thread-safe. */
MACATTN_API macattn_status macattn_cuda_config_init(macattn_cuda_config *config);

/*! The object: rings of all slots, work memory, statistics, all in device memory. */
typedef struct macattn_cuda macattn_cuda;

/*! macattn_cuda_state_bytes() : bytes of device memory one slot's rings take over all layers; 0
 *  under EXACT or with a window. @return : as macattn_cuda_create, without touching a device. */
MACATTN_API macattn_status macattn_cuda_state_bytes(const macattn_config *config, size_t *bytes);

/*! macattn_cuda_run_bytes() : bytes of device memory that the means, and outliers, of runs of `n_tokens`
 *  tokens of one slot take over all layers, beside its rings; 0 where none are kept. The object takes as much for
 *  run_tokens of them, and one float a query head for each 16.
 * @return : as macattn_cuda_state_bytes; E_RANGE if `n_tokens` is negative or above max_tokens. */
MACATTN_API macattn_status macattn_cuda_run_bytes(const macattn_config *config, int64_t n_tokens,
                                                  size_t *bytes);

/*! macattn_cuda_create() : make an object. Of `config`, what concerns threads, instruction sets and
 *  the allocator is ignored; k_dtype and v_dtype may be MACATTN_DTYPE_F8_E4M3. `cuda` may be NULL:
 *  the defaults. `error`, `error_size`: room for a sentence that says what is wrong, or NULL, 0.
 * @return : OK and the object in `*out`; else `*out` is NULL, and
 *           E_ARG / E_RANGE / E_UNSUPPORTED   as macattn_create,
 *           E_NOMEM    host or device memory ran out (the rings of all slots are allocated here),
 *           E_DEVICE   no such device, one too old, or the driver refused. */
MACATTN_API macattn_status macattn_cuda_create(const macattn_config *config,
                                               const macattn_cuda_config *cuda, macattn_cuda **out,
                                               char *error, size_t error_size);

/*! macattn_cuda_destroy() : free everything. The device must have finished with the object. NULL is
 *  allowed. */
MACATTN_API void macattn_cuda_destroy(macattn_cuda *m);

/*! macattn_cuda_last_error() : one sentence about the newest failure of a call on this object. */
MACATTN_API const char *macattn_cuda_last_error(const macattn_cuda *m);

/*! One step. Arrays are device pointers, read when the kernels run. */
typedef struct macattn_cuda_batch {
    size_t struct_size;      /*!< sizeof(macattn_cuda_batch) */
    int32_t n_rows;          /*!< 1 to max_rows */
    const int32_t *slots;    /*!< [n_rows] slot of each row, all different, or -1; NULL: row i
                                  has slot i, for which there must be slots */
    const int32_t *n_tokens; /*!< [n_rows] tokens in the cache, the new one included */
    /* Where the tokens lie. Paged: token t of row i is in page pages[start + t / page_size], with
     * start = page_indptr[i] (FlashInfer, SGLang) or i * page_table_stride (a rectangular block
     * table, vLLM). Contiguous (page_size 0): row i is the run pages[i]; `pages` NULL: i. */
    int32_t page_size;          /*!< tokens a page, a power of two; 0 = contiguous */
    const int32_t *pages;       /*!< page numbers */
    const int32_t *page_indptr; /*!< [n_rows + 1] or NULL */
    int64_t page_table_stride;  /*!< used if page_indptr is NULL */
} macattn_cuda_batch;

/*! Inputs and outputs of one layer; all pointers are device pointers, strides are in bytes. q,
 *  q_match, k, v and out must be aligned to 16 bytes, their strides multiples of 16 and no shorter
 *  than a row of head_dim values. A stride of 0 stands for the packed one:
 *  [n_rows][n_heads][head_dim] of queries and outputs, [page][token][n_kv_heads][head_dim] of K and
 *  V, a page being page_size tokens. How long contiguous runs are (page_size 0) is not known here:
 *  their page stride has to be given, unless there is one row and no `pages`. */
typedef struct macattn_cuda_io {
    size_t struct_size; /*!< sizeof(macattn_cuda_io) */
    const void *q;      /*!< [n_rows][n_heads][head_dim] after RoPE, q_dtype */
    int64_t q_row_stride, q_head_stride;
    const void *q_match; /*!< before RoPE; NULL: neither reuse nor remember */
    int64_t q_match_row_stride, q_match_head_stride;
    macattn_kv kv;
    float k_scale, v_scale; /*!< fp8: K = k_scale * stored, likewise V; 0 stands for 1 */
    const float *sinks;     /*!< [n_heads] or NULL */
    void *out;              /*!< [n_rows][n_heads][head_dim], out_dtype */
    int64_t out_row_stride, out_head_stride;
    float *lse; /*!< [n_rows][n_heads] natural logarithm, or NULL */
} macattn_cuda_io;

/*! macattn_cuda_attend() : exact attention of one query per row. Uses and changes no slot.
 *  One launch.
 * @return : OK; E_ARG (NULL, alignment, a stride), E_RANGE (n_rows, page_size), E_DEVICE. */
MACATTN_API macattn_status macattn_cuda_attend(macattn_cuda *m, const macattn_cuda_batch *batch,
                                               const macattn_cuda_io *io, void *stream);

/*! macattn_cuda_decode() : as macattn_decode: attention of one token per row, with reuse as the
 *  policy allows, and remember the queries. Three launches with selection, two without (one under
 *  EXACT, with a window, or without q_match).
 * @return : as macattn_cuda_attend, and E_RANGE (layer). */
MACATTN_API macattn_status macattn_cuda_decode(macattn_cuda *m, int32_t layer,
                                               const macattn_cuda_batch *batch,
                                               const macattn_cuda_io *io, void *stream);

/*! macattn_cuda_capture() : fill a slot's ring from a prompt that an engine has computed, or from a part
 *  of one: its last min(ring, n_queries) queries with their summaries, which are computed here. Under
 *  BUDGET these are an eighth of the queries, at least 32, as in macattn_prefill, and some of them show, with the
 *  engine's results, what reuse would have cost, and what selection would; the means and outliers of the prompt's runs
 *  are made. Heads whose group has a budget of 0 remember nothing.
 *  `row` : the batch row (host number) whose sequence it is; its n_tokens includes all the queries, the
 *  last of which is the newest token.
 *  `io`  : q, q_match, out and lse of the `n_queries` queries of that row; out and lse (natural log, not
 *  NULL) are read, not written. out must have out_dtype.
 * @return : as macattn_cuda_decode; E_STATE under EXACT or with a window, which remember nothing. */
MACATTN_API macattn_status macattn_cuda_capture(macattn_cuda *m, int32_t layer,
                                                const macattn_cuda_batch *batch, int32_t row,
                                                int32_t n_queries, const macattn_cuda_io *io,
                                                void *stream);

/*! macattn_cuda_slot_reset() : forget a sequence. In the stream's order, like all slot calls. */
MACATTN_API macattn_status macattn_cuda_slot_reset(macattn_cuda *m, int32_t slot, void *stream);
/*! macattn_cuda_slot_truncate() : keep what was remembered at the first `n_tokens` positions. */
MACATTN_API macattn_status macattn_cuda_slot_truncate(macattn_cuda *m, int32_t slot,
                                                      int64_t n_tokens, void *stream);
/*! macattn_cuda_slot_fork() : make slot `to` a copy of slot `from`. Copies the rings. */
MACATTN_API macattn_status macattn_cuda_slot_fork(macattn_cuda *m, int32_t from, int32_t to,
                                                  void *stream);

/*! What became of one (row, head) in the newest decode. */
typedef struct macattn_cuda_decision {
    int32_t start;   /*!< first token computed after the fresh ones: [F, start) was covered */
    int32_t entry;   /*!< ring entry reused; -1: a miss */
    float distance2; /*!< squared distance of the nearest entry; infinity if there was none */
    int32_t next;    /*!< ring entry that remembers this query; -1: it is not remembered */
} macattn_cuda_decision;

/*! macattn_cuda_set_head_budget() : as macattn_set_head_budget, for the steps that come later in
 *  the stream's order. -1 stands for all layers or heads.
 * @return : OK; E_STATE (the policy is not BUDGET), E_RANGE, E_DEVICE. */
MACATTN_API macattn_status macattn_cuda_set_head_budget(macattn_cuda *m, int32_t layer,
                                                        int32_t head, float budget, void *stream);

/*! macattn_cuda_decisions() : where the decisions of the newest decode call lie: device memory,
 *  [n_rows][n_heads], overwritten by the next call. NULL if the object keeps no rings. */
MACATTN_API const macattn_cuda_decision *macattn_cuda_decisions(const macattn_cuda *m);

/*! macattn_cuda_stats_get() : counters of one layer and head, -1 for all, as macattn_stats_get
 *  (times and ring_bytes are 0; what is counted by macattn_way is BUDGET's). Copies from the device on a stream of its own: neither waits for the caller's
 *  streams nor stops them; steps under way may be counted in part. */
MACATTN_API macattn_status macattn_cuda_stats_get(macattn_cuda *m, int32_t layer, int32_t head,
                                                  macattn_stats *stats);
/*! macattn_cuda_stats_reset() : set all counters to 0, in the stream's order. */
MACATTN_API macattn_status macattn_cuda_stats_reset(macattn_cuda *m, void *stream);

#ifdef __cplusplus
}
#endif

#endif /* MACATTN_CUDA_H */
