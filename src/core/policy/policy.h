/* SPDX-License-Identifier: Apache-2.0 */
/* When a summary may be reused. */
#ifndef MAI_POLICY_H
#define MAI_POLICY_H

#include "core/base.h"

/* Whether slots keep rings at all: not under EXACT, not with a window. */
bool mai_keeps_rings(const macattn_config *cfg);
/* Whether they keep runs, too: where the policy judges, and select is on. */
bool mai_keeps_runs(const macattn_config *cfg);
/* And of each its outlier. */
bool mai_keeps_outliers(const macattn_config *cfg);

/* What a policy has to say before any key is read. A new policy is one more of these. */
typedef struct mai_policy {
    const char *name;
    /* Largest distance at which an entry may be reused (exclusive); < 0: never. `n` = tokens. */
    double (*radius)(const macattn_config *cfg, int64_t n_tokens);
    bool judges; /* what the search found is a candidate, to be judged (judge.h) */
} mai_policy;
const mai_policy *mai_policy_get(macattn_policy policy); /* NULL if unknown */

/* judge.c: what policies that judge have learnt (judge.h, select.h). */
macattn_status mai_records_create(macattn *m);
void mai_records_destroy(macattn *m);

/* Whose budget macattn_set_head_budget sets: layers [layer0, layer1), heads [head0, head1). On
 * failure the sentence is in `error`. */
typedef struct mai_heads {
    int32_t layer0, layer1, head0, head1;
} mai_heads;
macattn_status mai_budget_heads(const macattn_config *cfg, int32_t layer, int32_t head,
                                float budget, mai_heads *heads, char *error, size_t error_size);

#endif /* MAI_POLICY_H */
