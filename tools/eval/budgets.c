/* SPDX-License-Identifier: Apache-2.0 */
#include "budgets.h"

#include <math.h>

#define LARGEST_FACTOR 16.0
#define LEAST_KL 1e-8 /* smaller differences are not worth telling apart */

/* What an error costs grows with its square: cost = s e^2. The most is skipped for a given sum
 * of costs where the next use costs the same in all groups, which their budgets do for e =
 * constant / sqrt(s). */
void budgets_factors(int n, const double *kl, const double *error2, double *factors)
{
    double sum = 0.0;
    int known = 0;
    for (int i = 0; i < n; i++) {
        if (error2[i] > 0.0) {
            factors[i] = -0.5 * log(fmax(kl[i], LEAST_KL) / error2[i]);
            sum += factors[i];
            known++;
        }
    }
    const double mean = known > 0 ? sum / known : 0.0, most = log(LARGEST_FACTOR);
    for (int i = 0; i < n; i++) {
        factors[i] = error2[i] > 0.0 ? exp(fmin(fmax(factors[i] - mean, -most), most)) : 1.0;
    }
}
