/* SPDX-License-Identifier: Apache-2.0 */
/* Whether summaries may be used, by the error they are expected to make: the rule, the same on
 * the CPU and on the GPU. Plain arithmetic, no state of its own.
 *
 * Let w be the share of the probability mass that a head's summary would carry in the result,
 * and D how far the query is from the one the summary was computed for. The head's output is
 * expected to be off by
 *
 *     c w' D',   w' = w + w0,  D'^2 = D^2 + D0^2 + before^2
 *
 * in units of the layer: of the root mean square of its heads' outputs. A head whose output is
 * small beside the others' adds little to what the layer does, and so does its error.
 *
 * w is what the summary carried in the result it was made for, which is
 * stored with it: so a candidate is judged before anything is read. `before` is the distance at
 * which the summary was itself reused: each reuse is one more step in some direction, so squares
 * add up. w0, a quarter of the head's usual weight, stands for mass that the old query did not
 * see where the new one does; D0, a twentieth of its usual distance, for what the distance does
 * not see, that positions have moved. c is the head's own: how far its results move with the
 * query depends on its keys and values. It is learnt. Whatever is refused is computed exactly,
 * which shows what the candidate would have given; c^2 is the mean square of those errors
 * divided by the mean square of w' D', over about the last 64. After 64 uses one is refused, of
 * one row of a batch, to keep learning. A prompt teaches before the first token is decoded: some
 * of its queries, whose exact results are known, are treated as if they were decoded.
 *
 * The heads of a group share keys and values, which are read as soon as one head needs them: so
 * the group is judged as one, and may be used if the mean square of its heads' errors, each in
 * units of the head's budget, is at most 1. Squares, because what a small error costs the
 * predictions grows with its square.
 *
 * A group whose candidates are refused step after step, in all rows, stops searching, tries once
 * after a while, and waits twice as long after each failure. Meanwhile it does not remember
 * either, but for the last few steps, and costs what exact attention costs. */
#ifndef MAI_JUDGE_H
#define MAI_JUDGE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/host_device.h"

/* What one head has learnt. All zero but the budget: nothing yet. */
typedef struct mai_record {
    float budget;                 /* error allowed in its output, in units of the layer */
    float error2, predicted2;     /* mean squares of samples: the errors, and w' D' of the same */
    float weight, distance;       /* means: share of the mass a summary would carry, distance */
    float output2;                /* mean of the squared norms of its outputs */
    int32_t n_samples, n_outputs; /* that these means are of, at most MAI_MEMORY */
} mai_record;

/* What one KV head's group of heads has made of its candidates. */
typedef struct mai_habit {
    int32_t unchecked; /* candidates used since the newest sample */
    int32_t refusals;  /* steps with nothing but refusals since the newest use */
    int32_t pause;     /* length of the newest rest; 0: candidates are used */
    int32_t rest;      /* steps still to pass without a search */
    int32_t turn;      /* of a batch's rows, whose the next check is, and whose output is noted */
} mai_habit;

/* What is expected of one candidate. */
typedef struct mai_judgement {
    float error;     /* of the output, as a multiple of the head's budget */
    float weight;    /* w */
    float moved;     /* D': distance over which the summary has been reused, this time included */
    float predicted; /* w' D' */
} mai_judgement;

enum {
    MAI_MIN_SAMPLES = 16, /* before anything is used */
    MAI_CHECK_EVERY = 64, /* uses of a group to one sample */
    MAI_MEMORY = 64,      /* samples, and outputs, that count */
    MAI_PATIENCE = 32,    /* such steps before the first rest */
    MAI_FIRST_REST = 8,
    MAI_LONGEST_REST = 64,
    MAI_WAKE = 4, /* last steps of a rest, which remember again: there is something to find then */
    MAI_PROMPT_SHARE = 8,    /* of a call's queries one in so many is remembered, the last ones */
    MAI_PROMPT_LEAST = 32,   /* but so many, if there are */
    MAI_PROMPT_SAMPLES = 16, /* most samples of one row in one call: enough to begin with */
    MAI_PROMPT_APART = 8,    /* remembered queries to one sample, at least: a sample costs a search
                                and the tokens since what it finds, so this bounds the cost */
};
#define MAI_USUAL_WEIGHT 0.25f
#define MAI_USUAL_DISTANCE 0.05f
#define MAI_WORST_ERROR 2.0f /* an output this far off is as wrong as can be */

/* ----------------------------------------------------------------------------------- a layer -- */

/* One more output of a head: its squared norm. What is not finite teaches nothing. */
MAI_HOST_DEVICE void mai_note_output(mai_record *record, float norm2)
{
    if (!isfinite(norm2)) return;
    if (record->n_outputs < MAI_MEMORY) record->n_outputs++;
    record->output2 += (norm2 - record->output2) / (float)record->n_outputs;
}

/* Of `n_rows` rows of a decode step, the one whose outputs are noted for a group's heads: one is
 * enough, and the one that is checked next is as good as any. */
MAI_HOST_DEVICE int mai_noted_row(const mai_habit *habit, int n_rows)
{
    return habit->turn % n_rows;
}

/* The square of the layer's unit: the mean over its heads of the mean squared norm of their
 * outputs. `records`: of all the layer's heads. 0 while nothing is known: an error divided by it
 * is not finite, and teaches nothing, so nothing is used before either. Errors of a decode step
 * are in the unit as the step found it, before its own outputs are noted; those of a prompt in
 * the unit with the call's outputs noted. */
MAI_HOST_DEVICE float mai_layer_unit2(const mai_record *records, int n_heads)
{
    float sum = 0;
    for (int h = 0; h < n_heads; h++) sum += records[h].output2;
    return sum / (float)n_heads;
}

/* ------------------------------------------------------------------------------------ a head -- */

/* Share of the probability mass that a part with `lse` has in a result with `all`; natural
 * logarithms. */
MAI_HOST_DEVICE float mai_share(float lse, float all)
{
    return fminf(expf(lse - all), 1.0f);
}

/* A candidate at the square of a distance, whose summary carried `weight` of the mass and was
 * itself reused over a distance of `before`. */
MAI_HOST_DEVICE mai_judgement mai_expect(const mai_record *record, double distance2, float weight,
                                         float before)
{
    const float usual = MAI_USUAL_DISTANCE * record->distance;
    const float c = record->predicted2 > 0 ? sqrtf(record->error2 / record->predicted2) : 0.0f;
    mai_judgement j;
    j.weight = weight;
    j.moved = sqrtf((float)distance2 + usual * usual + before * before);
    j.predicted = (weight + MAI_USUAL_WEIGHT * record->weight) * j.moved;
    j.error = c * j.predicted / record->budget;
    return j;
}

/* The candidate was refused, and the exact result computed: the output it would have given was
 * off by `error`, in units of the layer. */
MAI_HOST_DEVICE void mai_record_sample(mai_record *record, const mai_judgement *j, double distance2,
                                       float error)
{
    const float distance = (float)sqrt(distance2), off = fminf(error, MAI_WORST_ERROR);
    /* What is not finite teaches nothing. */
    if (!isfinite(error) || !isfinite(j->predicted)) return;
    if (record->n_samples < MAI_MEMORY) record->n_samples++;
    const float rate = 1.0f / (float)record->n_samples;
    record->error2 += rate * (off * off - record->error2);
    record->predicted2 += rate * (j->predicted * j->predicted - record->predicted2);
    record->weight += rate * (j->weight - record->weight);
    record->distance += rate * (distance - record->distance);
}

/* The distance that a summary made from a reused one goes on with: what was moved, by its share. */
MAI_HOST_DEVICE float mai_moved_on(const mai_judgement *j, float used_lse, float summary_lse)
{
    return j->moved * mai_share(used_lse, summary_lse);
}

/* ---------------------------------------------------------------------------------- a prompt -- */

/* What one query of a prompt showed of one head, as if it had been decoded. */
typedef struct mai_prompt_sample {
    double distance2;     /* of the candidate; negative: there was none */
    float weight, before; /* as for mai_expect */
    float off2;  /* squared norm of the difference that using the candidate would have made */
    float norm2; /* squared norm of the exact output */
} mai_prompt_sample;

/* How many of a row's queries are remembered of one call that has n_queries of them: what is
 * remembered of a prompt costs half as much again as its attention, for the sums of keys. A prompt
 * that comes in pieces leaves some queries of each, and one that comes at once a whole ring. A policy that does
 * not judge remembers the newest, as many as there is room for. */
MAI_HOST_DEVICE int mai_prompt_remembers(bool judges, int n_queries, int ring)
{
    const int share = n_queries / MAI_PROMPT_SHARE, most = n_queries < ring ? n_queries : ring;
    const int n = share > MAI_PROMPT_LEAST ? share : MAI_PROMPT_LEAST;
    return judges && n < most ? n : most;
}

/* How many queries of a row are samples in one call that remembers `n_remembered` of them, and
 * which the i-th is: spread evenly, the last one included. */
MAI_HOST_DEVICE int mai_prompt_samples(int n_remembered)
{
    const int n = n_remembered / MAI_PROMPT_APART;
    return n < MAI_PROMPT_SAMPLES ? n : MAI_PROMPT_SAMPLES;
}

MAI_HOST_DEVICE int mai_prompt_sample_at(int i, int n_samples, int n_remembered)
{
    return (int)((int64_t)(i + 1) * n_remembered / n_samples) - 1;
}

/* What replacing a head's exact summary of [F, b) by another estimate of it does to its output:
 *     o_hit - o = in (o_used - o) - out (o_far - o)
 * with o_far, far_lse the exact summary, o_used, used_lse the estimate (the candidate's summary
 * merged with the tokens since), o, lse the exact output, all natural logarithms, the sink
 * included in lse alone. */
typedef struct mai_swap {
    float in, out;
} mai_swap;

MAI_HOST_DEVICE mai_swap mai_swap_far(float far_lse, float used_lse, float lse)
{
    const float top = fmaxf(used_lse - lse, 0.0f); /* so that nothing overflows */
    const float far = expf(far_lse - lse - top), used = expf(used_lse - lse - top);
    const float all = fmaxf(expf(-top) - far, 0.0f) + used;
    mai_swap s;
    s.in = used / all;
    s.out = far / all;
    return s;
}

/* Learn one head's sample that has a candidate. Samples are learnt in the order of rows and
 * queries. Returns the square of its error in units of the budget. */
MAI_HOST_DEVICE float mai_record_prompt(mai_record *record, const mai_prompt_sample *s, float unit2)
{
    const mai_judgement j = mai_expect(record, s->distance2, s->weight, s->before);
    const float error = sqrtf(s->off2 / unit2);
    mai_record_sample(record, &j, s->distance2, error);
    return error * error / (record->budget * record->budget);
}

/* After a call whose `n` samples of a group's heads had squares of errors, in units of the
 * budgets, that sum up to error2: where they are within the budget, a rest ends. */
MAI_HOST_DEVICE void mai_habit_prompt(mai_habit *habit, float error2, int n)
{
    if (n > 0 && error2 <= (float)n) habit->refusals = habit->pause = habit->rest = 0;
}

/* ----------------------------------------------------------------------------------- a group -- */

/* Whether a group remembers its queries at all, as it does those of a prompt: not where a head
 * has no budget. `records`: of its heads. */
MAI_HOST_DEVICE bool mai_group_remembers(const mai_record *records, int n_heads)
{
    for (int h = 0; h < n_heads; h++) {
        if (!(records[h].budget > 0)) return false;
    }
    return true;
}

/* Whether it remembers those of this decode step, too: not while it rests, but for its end. */
MAI_HOST_DEVICE bool mai_group_remembers_step(const mai_record *records, int n_heads,
                                              const mai_habit *habit)
{
    return habit->rest <= MAI_WAKE && mai_group_remembers(records, n_heads);
}

/* Whether it searches in this step. Where it does, it remembers. */
MAI_HOST_DEVICE bool mai_group_searches(const mai_record *records, int n_heads,
                                        const mai_habit *habit)
{
    return habit->rest == 0 && mai_group_remembers(records, n_heads);
}

/* Whether a group's candidate is to be refused to keep learning: row `row` of `n_rows`. The rows
 * of a batch share what is learnt, and one of them is enough. */
MAI_HOST_DEVICE bool mai_is_check(const mai_habit *habit, int row, int n_rows)
{
    return habit->unchecked >= MAI_CHECK_EVERY && row == habit->turn % n_rows;
}

/* Whether a group's candidates may be used that are not to be checked. error2: the sum of the
 * squares of mai_expect's errors. */
MAI_HOST_DEVICE bool mai_group_accepts(const mai_record *records, int n_heads, float error2)
{
    for (int h = 0; h < n_heads; h++) {
        if (records[h].n_samples < MAI_MIN_SAMPLES) return false;
    }
    return error2 <= (float)n_heads;
}

/* After a step in which the group's candidates were used in n_used rows and refused in n_refused,
 * in n_compared of which the exact result was computed, too. */
MAI_HOST_DEVICE void mai_habit_note_step(mai_habit *habit, int n_used, int n_refused,
                                         int n_compared)
{
    /* Nothing was wrong with what was refused. */
    const bool check = habit->unchecked >= MAI_CHECK_EVERY;
    if (habit->rest > 0) habit->rest--;
    if (check) habit->turn = (habit->turn + 1) & 0xffff;
    habit->unchecked = n_compared > 0 ? 0 : habit->unchecked + n_used;
    if (n_used > 0) {
        habit->refusals = habit->pause = 0;
    } else if (n_refused > 0 && !check && (++habit->refusals >= MAI_PATIENCE || habit->pause > 0)) {
        habit->pause = habit->pause == 0 ? MAI_FIRST_REST : 2 * habit->pause;
        if (habit->pause > MAI_LONGEST_REST) habit->pause = MAI_LONGEST_REST;
        habit->rest = habit->pause;
    }
}

/* The same where all that is refused is compared. */
MAI_HOST_DEVICE void mai_habit_note(mai_habit *habit, int n_used, int n_refused)
{
    mai_habit_note_step(habit, n_used, n_refused, n_refused);
}

#endif /* MAI_JUDGE_H */
