/* SPDX-License-Identifier: Apache-2.0 */
/* Making the means of runs. */
#ifndef MAI_SUMMARISE_H
#define MAI_SUMMARISE_H

#include "run.h"

/* What every call that selects or shows selections begins with: make those of all rows' runs that
 * are still missing, from the cache, and find the segments they lie in. */
void mai_summarise_rows(mai_run *run);

#endif /* MAI_SUMMARISE_H */
