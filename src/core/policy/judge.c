/* SPDX-License-Identifier: Apache-2.0 */
/* What is kept of the policies that judge: records, habits and selectors, and budgets by head. The
 * rules are judge.h and select.h. */
#include <stdio.h>

#include "core/object.h"

static size_t n_records(const macattn *m)
{
    return (size_t)m->cfg.n_layers * (size_t)m->cfg.n_heads;
}

macattn_status mai_records_create(macattn *m)
{
    if (!mai_policy_get(m->cfg.policy)->judges) return MACATTN_OK;
    const size_t n_habits = (size_t)m->cfg.n_layers * (size_t)m->cfg.n_kv_heads;
    m->records = mai_alloc_zero(&m->cfg, n_records(m) * sizeof *m->records);
    m->habits = mai_alloc_zero(&m->cfg, n_habits * sizeof *m->habits);
    m->selectors = mai_alloc_zero(&m->cfg, n_habits * sizeof *m->selectors);
    if (!m->records || !m->habits || !m->selectors) {
        return mai_fail(m, MACATTN_E_NOMEM, "no memory for the records");
    }
    for (size_t i = 0; i < n_habits; i++) mai_selector_init(&m->selectors[i]);
    for (size_t i = 0; i < n_records(m); i++) m->records[i].budget = m->cfg.budget;
    return MACATTN_OK;
}

void mai_records_destroy(macattn *m)
{
    mai_free(&m->cfg, m->records);
    mai_free(&m->cfg, m->habits);
    mai_free(&m->cfg, m->selectors);
    m->records = NULL;
    m->habits = NULL;
    m->selectors = NULL;
}

macattn_status mai_budget_heads(const macattn_config *cfg, int32_t layer, int32_t head,
                                float budget, mai_heads *heads, char *error, size_t error_size)
{
    const int32_t n_layers = cfg->n_layers, n_heads = cfg->n_heads;
    if (layer < -1 || layer >= n_layers) {
        snprintf(error, error_size, "layer %d; there are %d", (int)layer, (int)n_layers);
        return MACATTN_E_RANGE;
    }
    if (head < -1 || head >= n_heads) {
        snprintf(error, error_size, "head %d; there are %d", (int)head, (int)n_heads);
        return MACATTN_E_RANGE;
    }
    if (!(budget >= 0 && budget <= 1)) { /* NaN, too */
        snprintf(error, error_size, "budget is %g; it must be in [0, 1]", (double)budget);
        return MACATTN_E_RANGE;
    }
    *heads = (mai_heads){.layer0 = layer < 0 ? 0 : layer,
                         .layer1 = layer < 0 ? n_layers : layer + 1,
                         .head0 = head < 0 ? 0 : head,
                         .head1 = head < 0 ? n_heads : head + 1};
    return MACATTN_OK;
}

macattn_status macattn_set_head_budget(macattn *m, int32_t layer, int32_t head, float budget)
{
    mai_heads x;
    if (!m) return MACATTN_E_ARG;
    if (!m->records) return mai_fail(m, MACATTN_E_STATE, "the policy is not BUDGET");
    MAI_TRY(mai_budget_heads(&m->cfg, layer, head, budget, &x, m->error, sizeof m->error));
    for (int32_t l = x.layer0; l < x.layer1; l++) {
        for (int32_t h = x.head0; h < x.head1; h++) {
            m->records[(size_t)l * (size_t)m->cfg.n_heads + (size_t)h].budget = budget;
        }
    }
    return MACATTN_OK;
}
