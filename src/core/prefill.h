/* SPDX-License-Identifier: Apache-2.0 */
/* Prefill: causal attention of chunks of queries. */
#ifndef MAI_PREFILL_H
#define MAI_PREFILL_H

#include "run.h"

/* Rows with several queries, or all of them. */
void mai_prefill_rows(mai_run *run, bool single_rows_too);

#endif /* MAI_PREFILL_H */
