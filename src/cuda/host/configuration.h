/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration: checked, all defaults resolved. */
#ifndef MAI_CUDA_CONFIGURATION_H
#define MAI_CUDA_CONFIGURATION_H

#include "object.h"

/* Check a configuration into m->cfg; `cuda`, which may be NULL, into m->cuda. */
macattn_status mai_cu_resolve(macattn_cuda *m, const macattn_config *config);
macattn_status mai_cu_resolve_cuda(macattn_cuda *m, const macattn_cuda_config *cuda);
/* Whether what a search finds is a candidate, to be judged. */
bool mai_cu_judges(const macattn_config *c);

#endif /* MAI_CUDA_CONFIGURATION_H */
