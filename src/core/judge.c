/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a summary may be used, by the error it is expected to make.
 *
 * Let w be the share of the probability mass that the summary would carry in the result. If the summary
 * is off by eps, relative to the output, the output is off by w eps. Two things make eps: the query is
 * not the one the summary was made for, and the summary itself may be a reused one:
 *
 *     eps = c (D + D0) + inherited,     D = ||q - p|| before RoPE
 *
 * c is the head's own: how far its summaries move with the query depends on its keys and values. It is
 * learnt. Each refused candidate is a sample, since the exact result is computed then: what the candidate
 * would have given is compared with it. log(error / (w (D + D0))) has a mean and a variance; c is taken two
 * standard deviations above the mean, so that the many samples that are better pay for few that are
 * worse. D0, a twentieth of the head's typical distance, stands for what the distance does not see: that
 * positions have moved, too. Every 64th candidate that would be used is refused, to keep learning. */
#include "judge.h"

#include <math.h>

#define MIN_SAMPLES 8  /* before anything is used */
#define CHECK_EVERY 64 /* uses of a head to one sample */
#define MEMORY 64      /* samples that count */
#define DEVIATIONS 2.0f
#define LEAST_ERROR 1e-7f /* float32 knows no less */

macattn_status mai_records_create(macattn *m)
{
    if (!mai_policy_get(m->cfg.policy)->judges) return MACATTN_OK;
    const size_t n = (size_t)m->cfg.n_layers * (size_t)m->cfg.n_heads;
    m->records = mai_alloc_zero(&m->cfg, n * sizeof *m->records);
    return m->records ? MACATTN_OK : mai_fail(m, MACATTN_E_NOMEM, "no memory for the records");
}

void mai_records_destroy(macattn *m)
{
    mai_free(&m->cfg, m->records);
    m->records = NULL;
}

bool mai_judge(const macattn *m, const mai_record *record, float weight, float inherited,
               mai_decision *decision)
{
    const float distance = (float)sqrt(decision->distance2);
    const float moved = distance + 0.05f * (record->n_samples > 0 ? record->distance : distance);
    const float c = expf(record->mean + DEVIATIONS * sqrtf(record->variance));
    decision->moved = moved;
    decision->weight = weight;
    decision->error = c * moved + inherited;
    return m->cfg.budget > 0 && record->n_samples >= MIN_SAMPLES &&
           record->unchecked < CHECK_EVERY && weight * decision->error <= m->cfg.budget;
}

void mai_record_sample(mai_record *record, const mai_decision *decision, float error)
{
    const float distance = (float)sqrt(decision->distance2);
    const float predicted = decision->weight * decision->moved;
    record->unchecked = 0;
    /* Without weight there was nothing to see; and what is not finite teaches nothing. */
    if (!(predicted > 0) || !isfinite(error) || !isfinite(predicted)) return;
    const float ratio = logf(fmaxf(error, LEAST_ERROR)) - logf(predicted);
    if (record->n_samples < MEMORY) record->n_samples++;
    const float rate = 1.0f / (float)record->n_samples;
    const float off = ratio - record->mean;
    record->mean += rate * off;
    record->variance = (1.0f - rate) * (record->variance + rate * off * off);
    record->distance += rate * (distance - record->distance);
}

void mai_record_use(mai_record *record)
{
    record->unchecked++;
}
