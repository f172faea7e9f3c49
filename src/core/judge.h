/* SPDX-License-Identifier: Apache-2.0 */
/* Policies that judge a candidate after the tokens since then are computed (judge.c). */
#ifndef MAI_JUDGE_H
#define MAI_JUDGE_H

#include "plan.h"

/* Whether a group searches its rings in this step, and whether it remembers its queries. `records` are
 * those of its heads. */
bool mai_group_searches(const mai_record *records, int n_heads, const mai_habit *habit);
bool mai_group_remembers(const mai_record *records, int n_heads);

/* What is expected of a candidate whose summary would carry `weight` of the probability mass and was
 * itself reused over a distance of `before`: fills the decision's judgement, and returns the error of
 * the output as a multiple of the head's budget. */
float mai_expect(const mai_record *record, float weight, float before, mai_decision *decision);

/* Whether a group may use its candidates, given the sum of the squares of what mai_expect returned. */
bool mai_group_accepts(const mai_record *records, int n_heads, const mai_habit *habit, float sum2);

/* A candidate was refused, and the exact result computed: the output it would have given was off by
 * `error`, relatively. */
void mai_record_sample(mai_record *record, const mai_decision *decision, float error);

/* After a step: what became of the group's candidates. */
typedef enum mai_outcome { MAI_NO_CANDIDATE, MAI_USED, MAI_REFUSED } mai_outcome;
void mai_habit_note(mai_habit *habit, mai_outcome outcome);

#endif /* MAI_JUDGE_H */
