/* SPDX-License-Identifier: Apache-2.0 */
/* Dividing a budget of error among heads. */
#ifndef MACATTN_TOOLS_EVAL_BUDGETS_H
#define MACATTN_TOOLS_EVAL_BUDGETS_H

/* Factors of the budget for n groups of heads, from the divergence that reuse in each of them
 * alone made, and the squared errors that made it. They are inverse to the root of kl / error2
 * and have a geometric mean of 1, but for those that would be below 1/16 or above 16. Where
 * error2 is 0 nothing is known: 1. */
void budgets_factors(int n, const double *kl, const double *error2, double *factors);

#endif /* MACATTN_TOOLS_EVAL_BUDGETS_H */
