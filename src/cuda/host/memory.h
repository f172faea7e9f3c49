/* SPDX-License-Identifier: Apache-2.0 */
/* Device memory: taken here alone, and freed with the object. */
#ifndef MAI_CUDA_MEMORY_H
#define MAI_CUDA_MEMORY_H

#include "object.h"

/* Rings of one slot: one for each layer and head. */
size_t mai_cu_rings_per_slot(const macattn_config *c);
/* Values of a summary. */
size_t mai_cu_width(const macattn_config *c);
/* What m->params points to: the rings and decisions, what a policy that judges keeps beside them,
 * and what every object needs. On failure what was taken stays with the object. */
macattn_status mai_cu_take_rings(macattn_cuda *m);
macattn_status mai_cu_take_judge(macattn_cuda *m);
macattn_status mai_cu_take_runs(macattn_cuda *m); /* of one that selects */
macattn_status mai_cu_take_work(macattn_cuda *m);
void mai_cu_free_all(macattn_cuda *m);

#endif /* MAI_CUDA_MEMORY_H */
