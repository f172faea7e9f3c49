/* SPDX-License-Identifier: Apache-2.0 */
/* What a group of heads that may not reuse its summaries reads of the far tokens: the rule, the
 * same on the CPU and on the GPU. Plain arithmetic, no state of its own.
 *
 * Far tokens are cut into runs of 16, of which the mean key and value are kept. A head's score of a
 * run, scale q.mean key + log 16, estimates the logarithm of the mass it would have (an estimate from
 * below: the mean of exponentials is above the exponential of the mean). The sum over all runs, and
 * the share of the far tokens in the result that the newest summary was made for, give an estimate of
 * the whole; the run's share of that is compared with a threshold. A run is read if it reaches the
 * threshold for any head of the group, whose heads share keys and values; each of the others is taken
 * for 16 tokens that all have the mean key and the mean value.
 *
 * The threshold is one of 2^-5 .. 2^-16, the group's own, and learnt. Some of a prompt's queries show
 * what each of them would have cost: e2 is the mean square of the error, in units of the layer
 * (judge.h), over about the last 64 queries and all heads of the group. What is seen while decoding is
 * off by a factor f2 from that, which is learnt as well: of 64 selections one is computed in full, and
 * compared. The group takes the largest threshold of which, and of all smaller ones, the mean square
 * of the heads' errors, each in units of the head's budget, is expected to be at most 1: the bound
 * that a candidate for reuse has to meet, too. If there is none, or too much would be read, all is
 * read. */
#ifndef MAI_SELECT_H
#define MAI_SELECT_H

#include "judge.h"

enum {
    MAI_THETAS = 12,
    MAI_SELECT_MIN = 8,          /* samples before anything is selected */
    MAI_SELECT_MEMORY = 64,      /* samples, and checks, that count */
    MAI_SELECT_CHECK_EVERY = 64, /* selections of a group to one check */
    MAI_SELECT_REST = 64,        /* steps without, once nearly all would be read: so that looking
                                    costs next to nothing where it does not help */
    MAI_SELECT_SAMPLES = 8,      /* most samples of one row in one call of prefill */
    MAI_SELECT_APART = 128,      /* queries of the call to one sample: it costs about what a
                                    decoded token costs */
};
#define MAI_SELECT_LEAST_SHARE 1e-6f
#define MAI_SELECT_WORST_RATIO 16.0f /* no single check says more against a group */

/* What one group has learnt. */
typedef struct mai_selector {
    float e2[MAI_THETAS]; /* from the largest threshold, 2^-5, to the smallest */
    float f2;             /* errors seen, squared, to e2; 1 at first */
    int32_t n_samples, n_checks;
    int32_t unchecked; /* selections since the newest check */
    int32_t rest;      /* steps still to pass without a selection */
    int32_t turn;      /* of a batch's rows, whose the next check is */
} mai_selector;

MAI_HOST_DEVICE void mai_selector_init(mai_selector *s)
{
    const mai_selector none = {{0}, 1.0f, 0, 0, 0, 0, 0};
    *s = none;
}

/* The first run that a threshold is put to. Those before it hold the first tokens, and are read
 * from the fresh_tokens-th token on. */
MAI_HOST_DEVICE int32_t mai_select_first(int64_t fresh_tokens, int32_t run_tokens)
{
    return fresh_tokens == 0 ? 1 : (int32_t)((fresh_tokens + run_tokens - 1) / run_tokens);
}

/* The k-th threshold's logarithm. */
MAI_HOST_DEVICE float mai_select_log(int k)
{
    return (float)(-5 - k) * 0.693147180559945309f;
}

/* The lse of a head's whole result, as estimated: `runs_lse` of all scores, `share` of the head's
 * newest summary in the result it was made for, 1 if there is none. Natural logarithms. */
MAI_HOST_DEVICE float mai_select_total(float runs_lse, float share)
{
    return runs_lse - logf(fmaxf(share, MAI_SELECT_LEAST_SHARE));
}

/* A run is read unless its score is below this for all heads of the group: what is not a number is
 * not. */
MAI_HOST_DEVICE float mai_select_least(float total, int k)
{
    return total + mai_select_log(k);
}

/* Whether so much is read that nothing is gained. */
MAI_HOST_DEVICE bool mai_select_too_much(int32_t n_read, int32_t n_runs)
{
    return (int64_t)4 * n_read > (int64_t)3 * n_runs;
}

/* By how much the mean of few samples is taken for larger than it is: errors are heavy-tailed, and
 * the largest threshold that seems to do is mostly one that seems better than it is. */
MAI_HOST_DEVICE float mai_select_doubt(const mai_selector *s)
{
    return 1.0f + (float)MAI_SELECT_MIN / (float)s->n_samples;
}

/* The largest threshold a group may use, -1: none. `records`: of its heads. */
MAI_HOST_DEVICE int mai_select_threshold(const mai_selector *s, const mai_record *records,
                                         int n_heads)
{
    float per_error2 = 0;
    int found = -1;
    if (s->n_samples < MAI_SELECT_MIN) return -1;
    for (int h = 0; h < n_heads; h++) per_error2 += 1.0f / (records[h].budget * records[h].budget);
    per_error2 *= s->f2 * mai_select_doubt(s) / (float)n_heads;
    for (int k = MAI_THETAS - 1; k >= 0 && s->e2[k] * per_error2 <= 1.0f; k--) found = k;
    return found;
}

/* The error expected of threshold k, in units of the layer. */
MAI_HOST_DEVICE float mai_select_error(const mai_selector *s, int k)
{
    return sqrtf(s->f2 * s->e2[k]);
}

/* The distance that makes the judge expect that error of a summary made by selection, with `share`
 * of its result's mass: mai_expect's `before`. */
MAI_HOST_DEVICE float mai_select_moved(const mai_record *record, float error, float share)
{
    const float weight = share + MAI_USUAL_WEIGHT * record->weight;
    if (!(record->predicted2 > 0 && record->error2 > 0 && weight > 0)) return 0.0f;
    const float moved = error / (weight * sqrtf(record->error2 / record->predicted2));
    return isfinite(moved) ? moved : 0.0f;
}

/* ---------------------------------------------------------------------------------- learning -- */

/* How many queries of a row are samples in a prefill call of n_queries, `n_remembered` of which,
 * the last, are remembered. Which: mai_prompt_sample_at. */
MAI_HOST_DEVICE int mai_select_samples(int n_queries, int n_remembered)
{
    int n = n_queries / MAI_SELECT_APART;
    if (n < 1 && n_queries > 1) n = 1;
    if (n > MAI_SELECT_SAMPLES) n = MAI_SELECT_SAMPLES;
    return n < n_remembered ? n : n_remembered;
}

/* One query of a prompt: for each threshold the mean over the group's heads of the square of the
 * error, in units of the layer. What is not finite teaches nothing. */
MAI_HOST_DEVICE void mai_select_sample(mai_selector *s, const float *error2)
{
    for (int k = 0; k < MAI_THETAS; k++) {
        if (!isfinite(error2[k])) return;
    }
    if (s->n_samples < MAI_SELECT_MEMORY) s->n_samples++;
    for (int k = 0; k < MAI_THETAS; k++) {
        const float off2 = fminf(error2[k], MAI_WORST_ERROR * MAI_WORST_ERROR);
        s->e2[k] += (off2 - s->e2[k]) / (float)s->n_samples;
    }
    /* What was seen earlier says less and less of the present. */
    s->f2 += (1.0f - s->f2) / (float)MAI_SELECT_MEMORY;
}

/* Whether a group's selection is to be computed in full: row `row` of n_rows. */
MAI_HOST_DEVICE bool mai_select_is_check(const mai_selector *s, int row, int n_rows)
{
    return s->unchecked >= MAI_SELECT_CHECK_EVERY && row == s->turn % n_rows;
}

/* A check at threshold k showed this mean square of the error, in units of the layer. */
MAI_HOST_DEVICE void mai_select_checked(mai_selector *s, int k, float error2)
{
    const float ratio = fminf(error2 / s->e2[k], MAI_SELECT_WORST_RATIO);
    if (!isfinite(error2) || !isfinite(ratio)) return;
    if (s->n_checks < MAI_SELECT_MEMORY) s->n_checks++;
    s->f2 += (ratio - s->f2) / (float)(s->n_checks + 1); /* what it begins with is one, too */
}

/* After a step in which the group selected in n_selected rows, was checked in n_checked, and would
 * have read too much in a row. */
MAI_HOST_DEVICE void mai_select_note(mai_selector *s, int n_selected, int n_checked, bool too_much)
{
    if (s->unchecked >= MAI_SELECT_CHECK_EVERY) s->turn = (s->turn + 1) & 0xffff;
    s->unchecked = n_checked > 0 ? 0 : s->unchecked + n_selected;
    if (s->rest > 0) s->rest--;
    if (too_much) s->rest = MAI_SELECT_REST;
}

#endif /* MAI_SELECT_H */
