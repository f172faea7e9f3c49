/* SPDX-License-Identifier: Apache-2.0 */
/* When a summary may be reused. */
#include <math.h>
#include <string.h>

#include "policy.h"

bool mai_keeps_rings(const macattn_config *cfg)
{
    return cfg->policy != MACATTN_POLICY_EXACT && cfg->window == 0;
}

bool mai_keeps_runs(const macattn_config *cfg)
{
    return mai_keeps_rings(cfg) && cfg->select > 0 && mai_policy_get(cfg->policy)->judges;
}

bool mai_keeps_outliers(const macattn_config *cfg)
{
    return mai_keeps_runs(cfg) && cfg->select > 1;
}

static double exact_radius(const macattn_config *cfg, int64_t n_tokens)
{
    (void)cfg, (void)n_tokens;
    return -1;
}

/* MAC-Attention, section 3: queries of unit variance are sqrt(2 d) apart when they have nothing
 * to do with each other. */
static double paper_radius(const macattn_config *cfg, int64_t n_tokens)
{
    if (n_tokens < cfg->min_tokens) return -1;
    return sqrt(2.0 * (double)cfg->head_dim) * (1.0 - (double)cfg->tau);
}

/* Any distance: what it would cost is judged later. Its square must not overflow. */
static double budget_radius(const macattn_config *cfg, int64_t n_tokens)
{
    return n_tokens < cfg->min_tokens ? -1 : 1e18;
}

const mai_policy *mai_policy_get(macattn_policy policy)
{
    static const mai_policy exact = {"exact", exact_radius, false},
                            paper = {"paper", paper_radius, false},
                            budget = {"budget", budget_radius, true};
    switch ((int)policy) {
    case MACATTN_POLICY_EXACT: return &exact;
    case MACATTN_POLICY_PAPER: return &paper;
    case MACATTN_POLICY_BUDGET: return &budget;
    default: return NULL;
    }
}

const char *macattn_policy_name(macattn_policy policy)
{
    const mai_policy *p = mai_policy_get(policy);
    return p ? p->name : NULL;
}

macattn_status macattn_policy_find(const char *name, macattn_policy *policy)
{
    if (!name || !policy) return MACATTN_E_ARG;
    for (int i = 0; mai_policy_get((macattn_policy)i); i++) {
        if (strcmp(name, mai_policy_get((macattn_policy)i)->name) != 0) continue;
        *policy = (macattn_policy)i;
        return MACATTN_OK;
    }
    return MACATTN_E_RANGE;
}
