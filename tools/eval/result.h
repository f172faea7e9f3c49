/* SPDX-License-Identifier: Apache-2.0 */
/* What is measured of a setting, and the rows that say it. */
#ifndef MACATTN_TOOLS_EVAL_RESULT_H
#define MACATTN_TOOLS_EVAL_RESULT_H

#include "common/report.h"
#include "common/samples.h"
#include "metrics.h"
#include "model.h"

typedef struct eval_result eval_result;

/* What is measured at every setting. */
typedef struct eval_plan eval_plan;
struct eval_plan {
    int64_t context;       /* tokens of the prompt */
    int64_t n_tokens;      /* decoded after it, each of which is compared */
    bool chat;             /* the prompt is a chat, which the model answers under exact attention */
    bool free_run;         /* the policy writes the tokens; else they are the text's, or the answer's */
    bool ggml_baseline;    /* the baseline is llama.cpp's own attention, else exact macattn */
    double temperature;    /* free_run: 0 = greedy */
    uint64_t seed;
    const char *what;      /* for the progress line */
    /* Told of every setting as soon as its window is done; NULL = nobody. */
    void (*on_result)(void *user, const eval_plan *plan, const macattn_ggml_options *setting,
                      const eval_result *result);
    void *user;
};

/* One query head of one layer. */
typedef struct eval_head {
    uint64_t steps, hits;
    sample_list errors; /* of audited steps that hit: relative to the head's own output, */
    sample_list layer_errors; /* and to those of the layer's heads */
    uint64_t refused; /* candidates that were compared with the exact result; sums of squares: */
    double refused_error2, refused_layer_error2;
} eval_head;

/* What one setting gave, over all windows. */
struct eval_result {
    metrics all, first, last; /* all positions, the first and the last `n_edge` of each window */
    metrics floor; /* exact attention that rounds otherwise; empty where that was not measured */
    int64_t n_edge;
    int n_windows;
    int n_layers, n_heads; /* n_heads: of the layer that has most */
    eval_head *heads;      /* [n_layers][n_heads]; steps 0 where a layer has fewer */
    macattn_ggml_bytes bytes;
    uint64_t groups[MACATTN_WAYS]; /* of heads that share a KV head */
    uint64_t left_to_ggml, changes;
    sample_list us, us_baseline; /* wall time of each token */
};

void eval_result_free(eval_result *r);

/* Of the heads that hit: mean, quantile and largest error, in units of the layer or relative to
 * the head's own output. NAN if none was audited. */
void eval_result_errors(const eval_result *r, bool of_layer, double *mean, double *p99,
                        double *max);
/* Shares, in [0, 1]; NAN if there is nothing to take a share of. */
double eval_result_hit_ratio(const eval_result *r);
double eval_result_groups(const eval_result *r, macattn_way way);
double eval_result_skipped(const eval_result *r); /* of the bytes behind the band */
double eval_result_read(const eval_result *r);    /* of all, with what reuse reads of its own */

/* The same of any count. */
double eval_bytes_read(const macattn_ggml_bytes *bytes);

/* The value that a policy is set by: tau or budget; NAN for exact. */
double eval_setting_value(const macattn_ggml_options *setting);

/* A row with all that is known of a result; scripts rely on its names. */
cJSON *eval_result_row(const eval_model *m, const eval_plan *plan,
                       const macattn_ggml_options *setting, const eval_result *r);

/* The table's columns, and a grid of layers and heads. */
extern const report_column eval_columns[];
void eval_print_heads(const eval_result *r);

#endif /* MACATTN_TOOLS_EVAL_RESULT_H */
