/* SPDX-License-Identifier: Apache-2.0 */
/* Whether summaries may be used, by the error they are expected to make.
 *
 * Let w be the share of the probability mass that a head's summary would carry in the result, and D how
 * far the query is from the one the summary was computed for. The head's output is expected to be off by
 *
 *     c w' D',   w' = w + w0,  D'^2 = D^2 + D0^2 + before^2
 *
 * relative to the output. `before` is the distance at which the summary was itself reused: each reuse is
 * one more step in some direction, so squares add up. w0, a quarter of the head's usual weight, stands for
 * mass that the old query did not see where the new one does; D0, a twentieth of its usual distance, for
 * what the distance does not see, that positions have moved. c is the head's own: how far its results move
 * with the query depends on its keys and values. It is learnt. Whatever is refused is computed exactly,
 * which shows what the candidate would have given; c^2 is the mean square of those errors divided by the
 * mean square of w' D', over about the last 64. Every 64th use is refused, to keep learning.
 *
 * The heads of a group share keys and values, which are read as soon as one head needs them: so the group is
 * judged as one, and may be used if the mean square of its heads' errors, each in units of the head's
 * budget, is at most 1. Squares, because what a small error costs the predictions grows with its square.
 *
 * A group whose candidates are refused time after time stops searching, tries once after a while, and
 * waits twice as long after each failure. Meanwhile it costs what exact attention costs. */
#include "judge.h"

#include <math.h>

#define MIN_SAMPLES 16 /* before anything is used */
#define CHECK_EVERY 64 /* uses of a group to one sample */
#define MEMORY 64      /* samples that count */
#define USUAL_WEIGHT 0.25f
#define USUAL_DISTANCE 0.05f
#define WORST_ERROR 2.0f /* an output this far off is as wrong as can be */
#define PATIENCE 32      /* refusals in a row before the first rest */
#define FIRST_REST 8
#define LONGEST_REST 64

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
    if (!m->records || !m->habits) {
        return mai_fail(m, MACATTN_E_NOMEM, "no memory for the records");
    }
    for (size_t i = 0; i < n_records(m); i++) m->records[i].budget = m->cfg.budget;
    return MACATTN_OK;
}

void mai_records_destroy(macattn *m)
{
    mai_free(&m->cfg, m->records);
    mai_free(&m->cfg, m->habits);
    m->records = NULL;
    m->habits = NULL;
}

macattn_status macattn_set_head_budget(macattn *m, int32_t layer, int32_t head, float budget)
{
    if (!m) return MACATTN_E_ARG;
    if (!m->records) return mai_fail(m, MACATTN_E_STATE, "the policy is not BUDGET");
    if (layer < -1 || layer >= m->cfg.n_layers) {
        return mai_fail(m, MACATTN_E_RANGE, "layer %d; there are %d", (int)layer,
                        (int)m->cfg.n_layers);
    }
    if (head < -1 || head >= m->cfg.n_heads) {
        return mai_fail(m, MACATTN_E_RANGE, "head %d; there are %d", (int)head,
                        (int)m->cfg.n_heads);
    }
    if (!(budget >= 0 && budget <= 1)) { /* NaN, too */
        return mai_fail(m, MACATTN_E_RANGE, "budget is %g; it must be in [0, 1]", (double)budget);
    }
    const int32_t n_heads = m->cfg.n_heads;
    for (int32_t l = layer < 0 ? 0 : layer; l < (layer < 0 ? m->cfg.n_layers : layer + 1); l++) {
        for (int32_t h = head < 0 ? 0 : head; h < (head < 0 ? n_heads : head + 1); h++) {
            m->records[(size_t)l * (size_t)n_heads + (size_t)h].budget = budget;
        }
    }
    return MACATTN_OK;
}

/* ------------------------------------------------------------------------------------- a group -- */

bool mai_group_remembers(const mai_record *records, int n_heads)
{
    for (int h = 0; h < n_heads; h++) {
        if (!(records[h].budget > 0)) return false;
    }
    return true;
}

bool mai_group_searches(const mai_record *records, int n_heads, const mai_habit *habit)
{
    return habit->rest == 0 && mai_group_remembers(records, n_heads);
}

bool mai_group_accepts(const mai_record *records, int n_heads, const mai_habit *habit, float sum2)
{
    for (int h = 0; h < n_heads; h++) {
        if (records[h].n_samples < MIN_SAMPLES) return false;
    }
    return habit->unchecked < CHECK_EVERY && sum2 <= (float)n_heads;
}

void mai_habit_note(mai_habit *habit, mai_outcome outcome)
{
    if (outcome == MAI_USED) {
        habit->unchecked++;
        habit->refusals = habit->pause = 0;
    } else if (outcome == MAI_REFUSED) {
        const bool check = habit->unchecked >= CHECK_EVERY; /* nothing was wrong with it */
        habit->unchecked = 0;
        if (check || (++habit->refusals < PATIENCE && habit->pause == 0)) return;
        habit->pause = habit->pause == 0 ? FIRST_REST : 2 * habit->pause;
        if (habit->pause > LONGEST_REST) habit->pause = LONGEST_REST;
        habit->rest = habit->pause;
    }
}

/* -------------------------------------------------------------------------------------- a head -- */

float mai_expect(const mai_record *record, float weight, float before, mai_decision *decision)
{
    const float usual = USUAL_DISTANCE * record->distance;
    decision->moved = sqrtf((float)decision->distance2 + usual * usual + before * before);
    decision->predicted = (weight + USUAL_WEIGHT * record->weight) * decision->moved;
    decision->weight = weight;
    const float c = record->predicted2 > 0 ? sqrtf(record->error2 / record->predicted2) : 0.0f;
    return c * decision->predicted / record->budget;
}

void mai_record_sample(mai_record *record, const mai_decision *decision, float error)
{
    const float distance = (float)sqrt(decision->distance2);
    const float off = fminf(error, WORST_ERROR), predicted = decision->predicted;
    /* What is not finite teaches nothing. */
    if (!isfinite(error) || !isfinite(predicted)) return;
    if (record->n_samples < MEMORY) record->n_samples++;
    const float rate = 1.0f / (float)record->n_samples;
    record->error2 += rate * (off * off - record->error2);
    record->predicted2 += rate * (predicted * predicted - record->predicted2);
    record->weight += rate * (decision->weight - record->weight);
    record->distance += rate * (distance - record->distance);
}
