/* SPDX-License-Identifier: Apache-2.0 */
/* The budget policy's judgement of a candidate, and what it learns from (judge.c). */
#ifndef MAI_JUDGE_H
#define MAI_JUDGE_H

#include "plan.h"

/* Judge a candidate whose summary would carry `weight` of the probability mass and has itself an
 * estimated error of `inherited`. Fills the decision's judgement; returns whether it may be used. */
bool mai_judge(const macattn *m, const mai_record *record, float weight, float inherited,
               mai_decision *decision);

/* A candidate was refused, and the exact result computed: the output it would have given was off by
 * `error`, relatively. */
void mai_record_sample(mai_record *record, const mai_decision *decision, float error);

/* A candidate was used: nothing is known of its error. */
void mai_record_use(mai_record *record);

#endif /* MAI_JUDGE_H */
