/* SPDX-License-Identifier: Apache-2.0 */
/*! \file ggml.h The plug-in for llama.cpp, as a program sees it that has loaded it: settings of one
 *  context after another in one process, going back to a point of a sequence, and statistics by
 *  layer and head. (Programs that only want attention computed need none of this: see
 *  docs/llama.cpp.md.)
 *
 *      ggml_backend_reg_t reg = ggml_backend_load(".../libggml-macattn.so");
 *      macattn_ggml_interface_t get;   // ggml_backend_reg_get_proc_address(reg,
 *      MACATTN_GGML_INTERFACE)
 *      const macattn_ggml_interface *plugin = get(MACATTN_GGML_INTERFACE_VERSION);
 *      macattn_ggml_options o = {.struct_size = sizeof o};
 *      plugin->get_options(&o);                         // as the environment says
 *      o.policy = MACATTN_POLICY_PAPER;
 *      plugin->set_options(&o, error, sizeof error);    // of contexts made from now on
 *      struct llama_context *ctx = llama_init_from_model(model, params);
 *      macattn_ggml *m = plugin->newest();              // what computes its attention
 *
 *  A macattn_ggml belongs to its llama_context: it is used by one thread at a time, not while
 *  the context computes, and is gone once the context is freed. */
#ifndef MACATTN_GGML_H
#define MACATTN_GGML_H

#include "macattn/macattn.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MACATTN_GGML_INTERFACE "macattn_ggml_interface"
#define MACATTN_GGML_INTERFACE_VERSION 1

/*! Told of every head of an audited step that reused a summary or selected: how far its output was
 *  from exact attention on the same inputs, `own` relative to the head's own exact output,
 *  ||o - exact|| / ||exact||, and `unit` relative to the root mean square of the outputs of the
 *  layer's heads (of up to 64 audited steps), as macattn_config.budget is meant. `layer` counts
 *  as in macattn_ggml_layer. */
typedef void (*macattn_ggml_audit)(void *user, int32_t layer, int32_t head, double own,
                                   double unit);

/*! Settings of a context. */
typedef struct macattn_ggml_options {
    size_t struct_size;    /*!< sizeof(macattn_ggml_options), set by the caller */
    macattn_policy policy; /*!< EXACT keeps no rings: a context made so stays exact */
    float tau, budget;
    const float *budget_scale; /*!< [scale_layers][scale_heads] factors of `budget` by the model's
                                number of the layer and by head, >= 0 (macattn_set_head_budget;
                                larger products than 1 count as 1); layers beyond, or of another
                                number of heads, have 1. NULL = all 1. Must last as long as the
                                context */
    int32_t scale_layers, scale_heads;
    int32_t ring, band; /*!< 0 = MACATTN_DEFAULT_RING(policy), MACATTN_DEFAULT_BAND(policy) */
    int32_t fresh_tokens, lse_order, select; /*!< as in macattn_config */
    int64_t min_tokens;
    int32_t audit_every; /*!< in every layer, compute every n-th step that reused anything again,
                                exactly; 0 = none */
    int32_t count_bytes; /*!< not 0: count the bytes of steps with one sequence, see
                                macattn_ggml_bytes */
    const char *isa;             /*!< as in macattn_config; must last as long as the context */
    macattn_ggml_audit on_audit; /*!< may be NULL */
    void *audit_user;
} macattn_ggml_options;

/*! What one layer is. */
typedef struct macattn_ggml_layer {
    size_t struct_size; /*!< sizeof(macattn_ggml_layer), set by the caller */
    int32_t number;     /*!< in the model, as llama.cpp names its cache; -1 = unknown */
    int32_t group;      /*!< layers of the same shape under the same mask form a group */
    int32_t n_heads, n_kv_heads, head_dim, v_head_dim;
    int32_t reuses; /*!< 0: the queries before RoPE cannot be had here, it is always exact */
} macattn_ggml_layer;

/*! Bytes of one layer's decode steps. A row of K and V is read as soon as one query head of its
 *  KV head needs it. */
typedef struct macattn_ggml_bytes {
    uint64_t total;   /*!< of K and V of all tokens attended to */
    uint64_t far;     /*!< of those, behind the band: what can be left out at most */
    uint64_t skipped; /*!< of those, not read */
    uint64_t rings;   /*!< read beside them: remembered queries, in the search for matches */
    uint64_t runs;    /*!< and means of runs, to select */
} macattn_ggml_bytes;

/*! What a context computed, and why sequences started over. If decode_calls and prefill_calls
 *  stay 0 while the context computes, no attention came to the plug-in (all of it on a GPU,
 *  flash attention off), and whatever is measured is not macattn's. */
typedef struct macattn_ggml_counts {
    size_t struct_size;                                    /*!< sizeof, set by the caller */
    uint64_t decode_calls, prefill_calls, left_to_ggml;    /*!< attention nodes */
    uint64_t decode_ns, prefill_ns;                        /*!< wall time of those */
    uint64_t prompts, changes, mismatches, rollbacks, forks; /*!< of sequences */
} macattn_ggml_counts;

/*! The attention of one llama_context. */
typedef struct macattn_ggml macattn_ggml;

/*! The plug-in's functions. */
typedef struct macattn_ggml_interface {
    int32_t version; /*!< MACATTN_GGML_INTERFACE_VERSION */

    /*! The settings of contexts made from now on; at first those of the environment.
     *  set_options: E_ARG or E_RANGE and a sentence in `error` if they make no sense; nothing
     *  has changed then. */
    void (*get_options)(macattn_ggml_options *options);
    macattn_status (*set_options)(const macattn_ggml_options *options, char *error,
                                  size_t error_size);

    /*! 0: graphs divided from now on leave attention to ggml; 1 (at first): they do not. */
    void (*enable)(int on);

    /*! The context that was made last, NULL if there is none. */
    macattn_ggml *(*newest)(void);

    /*! Remember what every sequence has to reuse at this point. E_NOMEM: nothing is remembered. */
    macattn_status (*keep)(macattn_ggml *m);

    /*! Go on under other settings; statistics start at 0. If keep was called, with what was
     *  remembered then (call it as often as wanted; take the later tokens out of llama.cpp's
     *  cache, too), else with nothing. What the policy BUDGET has learnt of the heads' errors is
     *  not kept: the part of the prompt that is computed after this teaches it again. A context
     *  that was made with EXACT cannot reuse: E_STATE. A change of `ring` or `band` does not
     *  change what was remembered under the old ones, which other `fresh_tokens` or another
     *  `lse_order` cannot use. Also E_ARG, E_RANGE, E_NOMEM, with a sentence in `error`. */
    macattn_status (*restart)(macattn_ggml *m, const macattn_ggml_options *options, char *error,
                              size_t error_size);

    /*! Layers known so far, in the order in which they were first computed: 0 before the first
     *  graph. */
    int32_t (*n_layers)(const macattn_ggml *m);
    macattn_status (*layer)(const macattn_ggml *m, int32_t layer, macattn_ggml_layer *info);
    /*! Counters of a head; -1 sums over all heads. */
    macattn_status (*stats)(macattn_ggml *m, int32_t layer, int32_t head, macattn_stats *stats);
    macattn_status (*bytes)(const macattn_ggml *m, int32_t layer, macattn_ggml_bytes *bytes);
    macattn_status (*counts)(const macattn_ggml *m, macattn_ggml_counts *counts);

    /*! Go on with the budgets of `options` (budget, budget_scale); nothing else of them is looked
     *  at, and what was learnt and remembered stays. E_STATE: the policy is not BUDGET. Also E_ARG,
     *  E_RANGE, with a sentence in `error`. */
    macattn_status (*set_budgets)(macattn_ggml *m, const macattn_ggml_options *options, char *error,
                                  size_t error_size);
} macattn_ggml_interface;

/*! Found under the name MACATTN_GGML_INTERFACE.
 * @return : NULL if the plug-in has no such version. */
typedef const macattn_ggml_interface *(*macattn_ggml_interface_t)(int32_t version);

#ifdef __cplusplus
}
#endif

#endif /* MACATTN_GGML_H */
