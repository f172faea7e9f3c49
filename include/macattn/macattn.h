/* SPDX-License-Identifier: Apache-2.0 */
/*! \file macattn.h
 *  macattn: fast decode attention for long contexts, on the CPU. On a GPU: cuda.h.
 *
 *  Decoding one token reads the whole KV cache. macattn does that at the speed of memory, and avoids
 *  most of it where it may: it implements Match-Amend-Complete attention (MAC-Attention, arXiv
 *  2604.00235). Per sequence, layer and query head it keeps a ring of recent queries together with
 *  the attention summary (output and log-sum-exp) of the tokens far behind each of them. When a new
 *  query, before RoPE, is close to one of them (match), the old summary is reused, the tokens since
 *  then are computed (amend, complete) and both are merged by log-sum-exp. Otherwise attention is
 *  computed in full: a miss gives bit for bit what the policy `exact` gives.
 *
 *  How a program uses it:
 *
 *      macattn_config cfg;
 *      macattn_config_init(&cfg);                  // then fill in heads, dims, dtypes, layers, ...
 *      macattn_create(&cfg, &m, err, sizeof err);
 *      for each chunk of a prompt:
 *          macattn_plan(m, &batch);                // rows with n_queries > 1
 *          for each layer: macattn_prefill(m, layer, &io);
 *      for each token:
 *          macattn_plan(m, &batch);                // rows with n_queries = 1
 *          for each layer: macattn_decode(m, layer, &io);
 *      macattn_destroy(m);
 *
 *  Words. `n_heads` query heads share `n_kv_heads` KV heads in groups of n_heads / n_kv_heads
 *  consecutive heads (MHA, GQA, MQA). A *slot* holds the state of one sequence. A *row* is one
 *  sequence in one step. *lse* is the natural logarithm of the sum of the exponentials of the logits.
 *
 *  Rules that hold everywhere.
 *  - Every call that can fail returns a macattn_status; results come through pointers. A call that
 *    fails has changed nothing: neither the object, nor the caller's outputs.
 *  - The library never aborts, exits, prints, or reads the environment, and has no global state.
 *  - Memory is allocated in macattn_create, macattn_plan and macattn_slot_load alone.
 *  - Objects are independent of each other. One object is used by one thread at a time; it spreads
 *    the work over its own threads, or over the caller's.
 *  - Results do not depend on the number of threads.
 *  - All strides are in bytes, so that quantised rows and foreign tensors can be described.
 */
#ifndef MACATTN_MACATTN_H
#define MACATTN_MACATTN_H

#include <stddef.h>
#include <stdint.h>

#include "macattn/version.h"

#if defined(_WIN32)
#    if defined(MACATTN_BUILD)
#        define MACATTN_API __declspec(dllexport)
#    else
#        define MACATTN_API
#    endif
#elif defined(__GNUC__)
#    define MACATTN_API __attribute__((visibility("default")))
#else
#    define MACATTN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------ version -- */

/*! macattn_version() : the library's version, "MAJOR.MINOR.PATCH". Compare it with MACATTN_VERSION,
 *  the version of this header. Static storage; thread-safe. */
MACATTN_API const char *macattn_version(void);

/* ------------------------------------------------------------------------------------- status -- */

/*! Status codes. Values are stable; new ones may be added. 0 is success, failures are negative. */
#define MACATTN_STATUS_MAP(XX)                                      \
    XX(OK, 0, "success")                                            \
    XX(E_ARG, -10, "invalid argument")                              \
    XX(E_RANGE, -11, "value out of range")                          \
    XX(E_UNSUPPORTED, -20, "combination not supported")             \
    XX(E_ISA, -21, "instruction set not available on this machine") \
    XX(E_NOMEM, -30, "out of memory")                               \
    XX(E_SPACE, -31, "buffer too small")                            \
    XX(E_STATE, -40, "call not valid in this state")                \
    XX(E_DEVICE, -50, "device error")                               \
    XX(E_FORMAT, -60, "malformed or incompatible data")             \
    XX(E_SYSTEM, -70, "operating system error")

typedef enum macattn_status {
#define MACATTN_STATUS_ENUM(name, value, text) MACATTN_##name = (value),
    MACATTN_STATUS_MAP(MACATTN_STATUS_ENUM)
#undef MACATTN_STATUS_ENUM
        MACATTN_STATUS_FORCE_INT = 0x7fffffff
} macattn_status;

/*! macattn_status_string() : the text of a status code; "unknown status" for any other number.
 *  Static storage; thread-safe. */
MACATTN_API const char *macattn_status_string(macattn_status status);

/* -------------------------------------------------------------------------------------- types -- */

/*! Element types. The last seven are for K and V only. F8_E4M3 (one byte a value) is for a GPU only
 *  (cuda.h). The other six are ggml's blocks of 32 values, for a CPU only, and need a head_dim that is
 *  a multiple of 32. A block begins with an f16 scale d; Q4_1 and Q5_1 have an f16 m next:
 *    Q8_0   : 32 int8 x              value = d x           34 bytes
 *    Q4_0   : 16 bytes of halves x   value = d (x - 8)     18
 *    Q4_1   : the same               value = d x + m       20
 *    Q5_0   : 4 bytes, 16 bytes      value = d (x - 16)    22
 *    Q5_1   : the same               value = d x + m       24
 *    IQ4_NL : 16 bytes of halves x   value = d table[x]    18
 *  Byte i's low half is value i, its high half value 16 + i; of a type of 5 bits, bit i of the 4 bytes
 *  (the lowest first) is bit 4 of value i. The table: -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53
 *  69 89 113. */
typedef enum macattn_dtype {
    MACATTN_DTYPE_F32 = 0,
    MACATTN_DTYPE_F16 = 1,
    MACATTN_DTYPE_BF16 = 2,
    MACATTN_DTYPE_Q8_0 = 3,
    MACATTN_DTYPE_F8_E4M3 = 4,
    MACATTN_DTYPE_Q4_0 = 5,
    MACATTN_DTYPE_Q4_1 = 6,
    MACATTN_DTYPE_Q5_0 = 7,
    MACATTN_DTYPE_Q5_1 = 8,
    MACATTN_DTYPE_IQ4_NL = 9
} macattn_dtype;

/*! macattn_dtype_row_bytes() : bytes of `n` consecutive elements, 0 if the type does not exist or
 *  `n` is negative or no whole number of its blocks. Thread-safe. */
MACATTN_API size_t macattn_dtype_row_bytes(macattn_dtype dtype, int64_t n);

/*! When a summary may be reused.
 *  EXACT : never. Rings are neither kept nor read.
 *  PAPER : reuse iff ||q - p|| < sqrt(2 head_dim) (1 - tau), p being the nearest query in the ring
 *          (squared L2 distance before RoPE; ties to the newest), and the row has at least
 *          `min_tokens` tokens. MAC-Attention section 3 (match).
 *  BUDGET: reuse iff the error this is expected to make in the outputs of the heads that share a
 *          KV head is at most `budget` (root mean square over these heads). The unit of a head's
 *          error, ||o - exact||, is the root mean square of the outputs of the layer's heads, a
 *          running mean: an error counts by what it does to the layer. The nearest query in the
 *          ring is the candidate, whatever its distance; the error is estimated from the share of
 *          the probability mass its summary carried in the result it was made for (known before
 *          anything is read), from the distance, also that at which the summary was itself
 *          reused, and from what such reuse was seen to cost this head of this layer: each
 *          refused candidate is compared with the exact result, which is computed anyway, and a
 *          prompt shows it of some of its queries. Nothing is reused before a head has shown
 *          enough of these. Heads whose candidates are refused time after time stop searching and
 *          try again now and then. A head's own budget, if it is to have one:
 *          macattn_set_head_budget.
 *          Heads that may not reuse select (`select`): of each 16 neighbouring tokens, a run, the
 *          mean key and value are kept, and the key farthest from the mean. Of the tokens before the
 *          band, a KV head's heads read the runs whose keys promise a share of the mass above a
 *          threshold to any of them; the others count as 16 times their mean value. The threshold is the largest with which the error
 *          is expected to stay within the budgets, as some of the prompt's queries have shown; one
 *          in 64 selections is computed in full, to keep learning. Where no threshold will do, all
 *          is read. */
typedef enum macattn_policy {
    MACATTN_POLICY_EXACT = 0,
    MACATTN_POLICY_PAPER = 1,
    MACATTN_POLICY_BUDGET = 2
} macattn_policy;

/*! Queries remembered, unless the configuration says otherwise. BUDGET needs no more: what it may
 *  reuse is recent. */
#define MACATTN_DEFAULT_RING(policy) ((policy) == MACATTN_POLICY_BUDGET ? 256 : 512)

/*! Newest tokens that no summary covers, unless the configuration says otherwise: the same under
 *  every policy. */
#define MACATTN_DEFAULT_BAND(policy) (256 + 0 * (int)(policy))

/* ------------------------------------------------------------------------------------- config -- */

/*! One call of a caller's parallel-for: run task(arg, i) once for every i in [0, n_tasks), on any
 *  threads, in any order, and return when all have finished. Tasks never wait for one another. */
typedef void (*macattn_parallel_for)(void *user, int n_tasks, void (*task)(void *arg, int i),
                                     void *arg);

/*! Configuration of an object. Fill with macattn_config_init, then set the fields. */
typedef struct macattn_config {
    size_t struct_size; /*!< set by macattn_config_init */

    /* Shape of the model. Required: n_layers, n_heads, n_kv_heads, head_dim. */
    int32_t n_layers;      /*!< layers, >= 1 */
    int32_t n_heads;       /*!< query heads, a multiple of n_kv_heads, <= 1024 */
    int32_t n_kv_heads;    /*!< KV heads, >= 1 */
    int32_t head_dim;      /*!< of q and K; a multiple of 8, <= 1024 */
    int32_t v_head_dim;    /*!< of V and the output; 0 = head_dim */
    macattn_dtype q_dtype; /*!< F32 (default), F16, BF16: of q and q_match */
    macattn_dtype k_dtype; /*!< default F16 */
    macattn_dtype v_dtype; /*!< default F16; may differ from k_dtype */
    float scale;           /*!< logit = scale * q.k; 0 = 1/sqrt(head_dim) */
    float softcap;         /*!< > 0: logit = softcap * tanh(logit / softcap); 0 = off */
    int64_t window;        /*!< > 0: a query sees its newest `window` tokens, itself included, and
                                 no reuse takes place; 0 = all tokens */

    /* State. */
    int32_t max_slots;     /*!< sequences held at a time, >= 1 (default 1) */
    int64_t max_tokens;    /*!< tokens a row may have, <= 2^31 - 1 (default 131072) */
    macattn_policy policy; /*!< default BUDGET */
    int32_t ring;          /*!< K: queries remembered per slot, layer and head, up to 4096;
                                 0 (default) = MACATTN_DEFAULT_RING(policy) */
    int32_t band;          /*!< r: newest tokens never covered by a summary; 0 (default) =
                                 MACATTN_DEFAULT_BAND(policy) */
    int32_t fresh_tokens;  /*!< F: first tokens (attention sinks) computed in every step (4) */
    int64_t min_tokens;    /*!< rows with fewer tokens are computed in full (2048) */
    float tau;             /*!< PAPER: similarity asked for, in [0, 1] (0.45) */
    float budget;          /*!< BUDGET: error allowed in a head's output, relative to the root mean
                                 square of the outputs of the layer's heads, in [0, 1] (0.01) */

    /* How to run. */
    int32_t n_threads; /*!< 0 = as many as there are CPUs this process may use; 1 to 1024 */
    int32_t spin_us;   /*!< how long an idle thread of the own pool spins before it sleeps, in
                                 microseconds, 0 to 1000000 (100). Sleeping threads cost nothing. */
    macattn_parallel_for parallel_for; /*!< not NULL: used instead of the own pool; n_threads then
                                             says how many threads it is expected to run on */
    void *parallel_user;               /*!< handed to parallel_for */
    const char *isa;                   /*!< NULL = the best this machine has, else a name from
                                 macattn_isa_name(); read during macattn_create only */

    /* Allocator: both or neither. Alignment is the library's own affair. */
    void *(*alloc)(void *user, size_t bytes); /*!< NULL on failure; contents undefined */
    void (*free)(void *user, void *ptr);      /*!< ptr is never NULL */
    void *alloc_user;

    /* State, continued. */
    int32_t lse_order; /*!< how the lse of a summary follows the query that reuses it, p being
                                 the one it was made for, both after RoPE:
                                 0  as published: not at all, lse(q) = lse(p)
                                 1  (default) to first order: lse(q) = lse(p) + scale (q - p).kbar,
                                    kbar being the mean of the keys that the summary covers,
                                    weighted as the summary weights them. It costs head_dim floats
                                    an entry, and a product of weights and keys where something is
                                    remembered */
    int32_t select;    /*!< BUDGET: where a KV head's heads may not reuse, they read
                                 0  all
                                 1  a selection of the far tokens, if what that costs is within
                                    their budgets, too: by the mean key of each run
                                 2  (default) the same, by the mean key and the outlier, the key
                                    farthest from the mean: half as many bytes again, for a better
                                    choice */
} macattn_config;

/*! macattn_config_init() : fill `config` with the defaults named above and zeros.
 * @return : E_ARG if `config` is NULL. Thread-safe. */
MACATTN_API macattn_status macattn_config_init(macattn_config *config);

/*! macattn_config_state_bytes() : bytes of ring state one slot needs over all layers, once its rings
 *  are full; 0 under EXACT or with a window. (Pages that are never touched are not resident.)
 * @return : what macattn_create would say of the configuration. Thread-safe. */
MACATTN_API macattn_status macattn_config_state_bytes(const macattn_config *config, size_t *bytes);

/*! macattn_config_run_bytes() : bytes of the means of runs (see BUDGET) that one slot of `n_tokens`
 *  tokens needs over all layers, beside its rings; 0 where none are kept. They grow by segments of
 *  16384 tokens. (Pages that are never touched are not resident.)
 * @return : as macattn_config_state_bytes; E_RANGE if `n_tokens` is negative or above max_tokens.
 *           Thread-safe. */
MACATTN_API macattn_status macattn_config_run_bytes(const macattn_config *config, int64_t n_tokens,
                                                    size_t *bytes);

/* ------------------------------------------------------------------------------------- object -- */

/*! The object: rings of all slots, plan, threads, statistics. */
typedef struct macattn macattn;

/*! macattn_create() : make an object. `config` is copied.
 *  `error`, `error_size` : room for a sentence that says what is wrong; may be NULL, 0.
 * @return : OK and the object in `*out`, to be given to macattn_destroy; else `*out` is NULL, and
 *           E_ARG / E_RANGE    a field is missing, inconsistent or out of its range,
 *           E_UNSUPPORTED      the combination of types and sizes has no kernel,
 *           E_ISA              `isa` is unknown or this machine lacks it,
 *           E_NOMEM, E_SYSTEM  no memory, no thread. */
MACATTN_API macattn_status macattn_create(const macattn_config *config, macattn **out, char *error,
                                          size_t error_size);

/*! macattn_destroy() : end the threads, free everything. NULL is allowed. */
MACATTN_API void macattn_destroy(macattn *m);

/*! macattn_last_error() : one sentence about the newest failure of a call on this object, "" if there
 *  was none. Valid until the next call on the object. NULL is allowed. */
MACATTN_API const char *macattn_last_error(const macattn *m);

/*! macattn_get_config() : the configuration in force, all defaults resolved (`v_head_dim`, `scale`,
 *  `n_threads`, and `isa` as a name with static storage). */
MACATTN_API macattn_status macattn_get_config(macattn *m, macattn_config *config);

/* --------------------------------------------------------------------------------------- plan -- */

/*! One sequence in one step. */
typedef struct macattn_row {
    int32_t slot;         /*!< [0, max_slots), different in each row; -1 = none (attend only) */
    int32_t n_queries;    /*!< new tokens, >= 1: query i is at position n_tokens - n_queries + i
                                 and sees the tokens up to and including itself */
    int64_t n_tokens;     /*!< tokens in the KV cache, the new ones included: n_queries to
                                 max_tokens. 0 with n_queries 1 is allowed in macattn_attend: the
                                 output is then 0 and the lse -inf */
    int32_t page;         /*!< contiguous KV (page_size 0): which sequence of the KV tensor, i.e.
                                 how many page strides from its start */
    const int32_t *pages; /*!< paged KV: [ceil(n_tokens / page_size)] page numbers, each in
                                 [0, n_pages). Borrowed: unchanged until the next macattn_plan */
} macattn_row;

/*! One step: which sequences, how long they are, where their tokens lie. */
typedef struct macattn_batch {
    size_t struct_size;      /*!< sizeof(macattn_batch) */
    int32_t n_rows;          /*!< >= 1 */
    const macattn_row *rows; /*!< [n_rows]; copied */
    int32_t page_size; /*!< tokens a page, a power of two; 0 = every row is one contiguous run */
    int32_t n_pages;   /*!< pages (page_size 0: sequences) in the KV tensors, for checking */
} macattn_batch;

/*! macattn_plan() : prepare one step; shared by all layers. Divides the work by bytes over the
 *  threads, and allocates if the step is larger than any before.
 *  A row of a slot must continue it: n_tokens - n_queries >= the slot's length (see
 *  macattn_slot_length). Tokens may be added behind the library's back (computed elsewhere), never
 *  replaced: call macattn_slot_truncate first if tokens were taken back.
 * @return : OK; E_ARG, E_RANGE, E_STATE (a row does not continue its slot), E_NOMEM. On failure
 *           the former plan stays in force. */
MACATTN_API macattn_status macattn_plan(macattn *m, const macattn_batch *batch);

/* ---------------------------------------------------------------------------------- attention -- */

/*! K and V of one layer. Element (page p, token t within it, kv_head h) starts at
 *  k + p*k_page_stride + t*k_token_stride + h*k_head_stride; its head_dim values are adjacent. */
typedef struct macattn_kv {
    const void *k;
    const void *v;
    int64_t k_page_stride, k_token_stride, k_head_stride; /*!< bytes */
    int64_t v_page_stride, v_token_stride, v_head_stride; /*!< bytes */
} macattn_kv;

/*! Inputs and outputs of one layer. Query row i counts the queries of all batch rows in order.
 *  A stride of 0 stands for the packed one: [query row][head][dim]. */
typedef struct macattn_io {
    size_t struct_size; /*!< sizeof(macattn_io) */
    const void *q;      /*!< queries after RoPE, q_dtype */
    int64_t q_row_stride, q_head_stride;
    const void *q_match; /*!< queries before RoPE, q_dtype. NULL: this call neither reuses
                                     nor remembers anything */
    int64_t q_match_row_stride, q_match_head_stride;
    macattn_kv kv;
    const float *sinks; /*!< [n_heads] a further logit per head that adds to the denominator
                                     and has no value; NULL = none */
    float *out;         /*!< [query row][head][v_head_dim] f32 */
    int64_t out_row_stride, out_head_stride;
    float *lse; /*!< [query row][n_heads] packed, or NULL. Includes the sink */
} macattn_io;

/*! macattn_attend() : exact attention for the planned rows. Uses and changes no slot.
 * @return : OK; E_ARG (NULL pointer, bad stride, misaligned f32), E_STATE (no plan). */
MACATTN_API macattn_status macattn_attend(macattn *m, const macattn_io *io);

/*! macattn_decode() : attention of one token per row (all n_queries = 1) with reuse as the policy
 *  allows, and remember the new queries. Once per layer and plan.
 *  Per query head, n tokens, b = max(F, n - r):
 *   match      the ring entry nearest to q_match, among those that end at e <= b
 *   decide     hit: take its summary of [F, e), with the lse it has for q (lse_order); miss: e = F,
 *              nothing to take
 *   amend, complete   compute [0, F), [e, b) and [b, n)
 *   output     the merge of all; the new ring entry is q_match with the summary of [F, b)
 *  BUDGET with `select`: heads that miss may read a selection of [F, b), with the runs' means for the
 *  rest, where the above says: compute. Means that are still missing are made first, from the cache.
 *  A head whose q_match, or whose summary, is not finite is not remembered.
 *  Entries that would cover nothing (b = F) are not made.
 * @return : OK; E_ARG; E_RANGE (layer); E_STATE: no plan, a row without slot or with several
 *           queries, the layer was already computed under this plan, or a slot was reset,
 *           truncated, forked or loaded since the plan was made. */
MACATTN_API macattn_status macattn_decode(macattn *m, int32_t layer, const macattn_io *io);

/*! macattn_set_head_budget() : BUDGET: the error allowed, in units of the layer, in the output of
 *  one head of one layer, in [0, 1]; -1 = all layers, all heads. Heads differ in how much their
 *  error changes what the model predicts, so one number for all spends too much on some and too
 *  little on others (`macattn tune` measures it). From the next macattn_decode or macattn_prefill
 *  on, for all slots; saved states know nothing of it. Until then every head has the
 *  configuration's `budget`.
 *  0 : the head's whole group, which shares a KV head, neither searches nor remembers: it costs what
 *  exact attention costs, and gives it bit for bit. What it remembered before is kept. If its budget
 *  is raised later it goes on with that, and with what it remembers from then on: a prompt that
 *  was computed at 0 has left it nothing.
 * @return : E_STATE (the policy is another), E_RANGE (layer, head, budget). */
MACATTN_API macattn_status macattn_set_head_budget(macattn *m, int32_t layer, int32_t head,
                                                   float budget);

/*! macattn_prefill() : exact causal attention for the planned rows, any n_queries each; remembers the
 *  last `ring` queries of every row, with their summaries. Under BUDGET these are an eighth of the
 *  row's queries, at least 32 and at most `ring`, so that a prompt in pieces costs little, and some of
 *  them show what reuse would have cost, so that it may begin with the first token. Once per layer and
 *  plan.
 * @return : as macattn_decode, but any n_queries. */
MACATTN_API macattn_status macattn_prefill(macattn *m, int32_t layer, const macattn_io *io);

/*! macattn_merge() : merge attention over two disjoint token ranges x and y:
 *      l = log(exp(lx) + exp(ly)),  o = ox*exp(lx - l) + oy*exp(ly - l).
 *  `n` results of `v_head_dim` values each, packed; lse -inf stands for an empty range. `out` may be
 *  `ox` or `oy`, `lse` may be `lx` or `ly`. Thread-safe.
 * @return : E_ARG for a NULL pointer or a size < 1. */
MACATTN_API macattn_status macattn_merge(int64_t n, int32_t v_head_dim, const float *ox,
                                         const float *lx, const float *oy, const float *ly,
                                         float *out, float *lse);

/* -------------------------------------------------------------------------------------- slots -- */

/*! macattn_slot_reset() : forget the sequence; the slot is empty. Needed whenever tokens it has seen
 *  move, change, or are shifted. */
MACATTN_API macattn_status macattn_slot_reset(macattn *m, int32_t slot);

/*! macattn_slot_truncate() : keep the first `n_tokens` tokens. Ring entries made at a later position
 *  are dropped, as if those tokens had never been.
 * @return : E_RANGE if `n_tokens` is negative or more than the slot's length. Never allocates. */
MACATTN_API macattn_status macattn_slot_truncate(macattn *m, int32_t slot, int64_t n_tokens);

/*! macattn_slot_fork() : make slot `to` a copy of slot `from` (a shared prefix). Means of runs stay
 *  shared, but for the newest segment once a side goes on. The rings are shared
 *  until one side writes; a layer's ring is then copied at its next decode. Never allocates. */
MACATTN_API macattn_status macattn_slot_fork(macattn *m, int32_t from, int32_t to);

/*! macattn_slot_length() : tokens of the sequence as of the newest decode or prefill. */
MACATTN_API macattn_status macattn_slot_length(macattn *m, int32_t slot, int64_t *n_tokens);

/*! macattn_slot_save() : write the slot's state to `buffer`, or ask how large it is.
 *  `buffer` NULL : only `*size` is set. Otherwise `*size` is the room on entry, the bytes written on
 *  return. The format is little-endian, versioned and checksummed.
 * @return : E_SPACE if the room is too small (`*size` says what is needed). */
MACATTN_API macattn_status macattn_slot_save(macattn *m, int32_t slot, void *buffer, size_t *size);

/*! macattn_slot_load() : replace the slot's state by a saved one. The data may come from anywhere: it
 *  is checked in full before anything changes.
 * @return : E_FORMAT if it is truncated, corrupt, of another version, or was saved under a
 *           configuration whose summaries mean something else; E_NOMEM. */
MACATTN_API macattn_status macattn_slot_load(macattn *m, int32_t slot, const void *data,
                                             size_t size);

/* --------------------------------------------------------------------------------- statistics -- */

#define MACATTN_DISTANCE_BINS 16

/*! How a KV head's heads came to their results in one row of a decode step: all by reuse, by a selection,
 *  or reading all that some of them needs (also to keep learning). */
typedef enum macattn_way {
    MACATTN_REUSED = 0,
    MACATTN_SELECTED = 1,
    MACATTN_EXACT = 2
} macattn_way;
#define MACATTN_WAYS 3

/*! Counters of macattn_decode since the object was made or they were reset. */
typedef struct macattn_stats {
    size_t struct_size;                       /*!< sizeof(macattn_stats) */
    uint64_t steps;                           /*!< (row, head) pairs decoded */
    uint64_t hits, misses;                    /*!< of those, with and without reuse */
    uint64_t tokens_total;                    /*!< tokens they attended to */
    uint64_t tokens_skipped;                  /*!< of those, covered by a reused summary */
    uint64_t distance[MACATTN_DISTANCE_BINS]; /*!< hits by ||q - p|| / sqrt(2 head_dim), in steps of
                                  1/16; the last bin takes all from 15/16 on */
    uint64_t match_ns, attend_ns, merge_ns;   /*!< wall time of the decode calls of the layers asked
                                  for, all heads: searching the rings; reading K and V; merging and
                                  remembering */
    uint64_t
        judge_ns; /*!< BUDGET: of attend_ns, judging candidates; of merge_ns, learning from them */
    uint64_t samples; /*!< BUDGET: refused candidates that were compared with the exact result */
    double error2_layer, error2_head; /*!< sums over the samples of the square of the error that
                                  using the candidate would have made: in units of the layer, as
                                  judged, and relative to the head's own exact output; each at
                                  most 2^2 */
    /* By macattn_way; of one head: of the KV head that it reads. */
    uint64_t groups[MACATTN_WAYS];     /*!< (row, KV head) pairs decoded */
    uint64_t kv_bytes[MACATTN_WAYS];   /*!< rows of K and V that they read */
    uint64_t run_bytes[MACATTN_WAYS];  /*!< means of runs */
    uint64_t ring_bytes[MACATTN_WAYS]; /*!< the rings they searched, at most */
    uint64_t
        select_ns;   /*!< BUDGET: of match_ns and attend_ns, making means, scoring and choosing */
    uint64_t checks; /*!< BUDGET: selections that were compared with the exact result */
    double error2_selected; /*!< sum over the checks of the mean over the KV head's heads of the
                                  square of the error that the selection would have made, in units
                                  of the layer */
} macattn_stats;

/*! macattn_stats_get() : counters of one layer and head; -1 sums over all layers, or heads. */
MACATTN_API macattn_status macattn_stats_get(macattn *m, int32_t layer, int32_t head,
                                             macattn_stats *stats);

/*! macattn_stats_reset() : set all counters to 0. */
MACATTN_API macattn_status macattn_stats_reset(macattn *m);

/* ------------------------------------------------------------------------------ introspection -- */

/*! macattn_isa_name() : name of the `index`-th instruction set compiled into the library, best first
 *  ("avx512vnni", "avx512", "avxvnni", "avx2"; "neon-i8mm", "neon-dotprod", "neon"; "scalar"); NULL
 *  past the last. Thread-safe. */
MACATTN_API const char *macattn_isa_name(int index);

/*! macattn_isa_supported() : 1 if this machine can run the named instruction set, else 0 (also for
 *  a name that does not exist, or NULL). Thread-safe. */
MACATTN_API int macattn_isa_supported(const char *name);

/* ------------------------------------------------------------------------------------- names -- */

/*! macattn_policy_name(), macattn_dtype_name() : "exact", "paper", "budget"; "f32", "f16", "bf16",
 *  "q8_0", "f8_e4m3", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl". NULL if there is no such policy, or
 *  type. Static storage; thread-safe. */
MACATTN_API const char *macattn_policy_name(macattn_policy policy);
MACATTN_API const char *macattn_dtype_name(macattn_dtype dtype);

/*! macattn_policy_find(), macattn_dtype_find() : the one of that name.
 * @return : E_ARG if a pointer is NULL, E_RANGE if none is called so; then nothing is written.
 *           Thread-safe. */
MACATTN_API macattn_status macattn_policy_find(const char *name, macattn_policy *policy);
MACATTN_API macattn_status macattn_dtype_find(const char *name, macattn_dtype *dtype);

/* ---------------------------------------------------------------------------------- settings -- */

/*! What a setting's values are. A policy or a type counts as its number, and is written by name. */
typedef enum macattn_setting_type {
    MACATTN_SETTING_INTEGER = 0,
    MACATTN_SETTING_REAL = 1,
    MACATTN_SETTING_POLICY = 2,
    MACATTN_SETTING_DTYPE = 3
} macattn_setting_type;

/*! One field of macattn_config, for programs that offer it to their users: as an option of a command,
 *  a variable, a key of a file, an argument. Every number and choice of the configuration has one; what
 *  is a pointer has none. A value within the range may still not go with the others, or not with
 *  this machine: macattn_create says so. */
typedef struct macattn_setting {
    size_t struct_size; /*!< bytes of it that this version of the library knows; more may be
                             added at the end */
    const char *name;   /*!< of the field: "budget" */
    const char *about;  /*!< what it is, in a few words, for a usage text */
    macattn_setting_type type;
    double low, high;  /*!< smallest and largest value, both allowed */
    double initial;    /*!< what macattn_config_init sets. Below `low`: it has to be set */
    uint32_t policies; /*!< bit 1 << policy: that policy looks at it */
} macattn_setting;

/*! macattn_setting_at(), macattn_setting_find() : the `index`-th setting, in the order of the fields,
 *  or the one of that name; NULL if there is none. Static storage; thread-safe. */
MACATTN_API const macattn_setting *macattn_setting_at(int index);
MACATTN_API const macattn_setting *macattn_setting_find(const char *name);

/*! macattn_setting_get() : the value of a configuration's field.
 * @return : E_ARG if a pointer is NULL or `config` too old to have the field; E_RANGE if there is no
 *           such setting. Thread-safe. */
MACATTN_API macattn_status macattn_setting_get(const macattn_config *config, const char *name,
                                               double *value);

/*! macattn_setting_set(), macattn_setting_parse() : set a configuration's field, to a number, or to what
 *  a text says: the name of a policy or type, else a number as strtod reads it (the program's
 *  locale decides what a decimal point is), with nothing before or behind it.
 *  `error`, `error_size` : room for a sentence that says what is wrong; may be NULL, 0.
 * @return : as macattn_setting_get; E_RANGE also if the value is out of its range, not whole where
 *           it must be, or no number or name; E_UNSUPPORTED for a type that this field cannot have.
 *           Then the configuration is unchanged. Thread-safe. */
MACATTN_API macattn_status macattn_setting_set(macattn_config *config, const char *name,
                                               double value, char *error, size_t error_size);
MACATTN_API macattn_status macattn_setting_parse(macattn_config *config, const char *name,
                                                 const char *text, char *error, size_t error_size);

#ifdef __cplusplus
}
#endif

#endif /* MACATTN_MACATTN_H */
