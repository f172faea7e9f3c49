/* SPDX-License-Identifier: Apache-2.0 */
/* Checking a configuration. */
#ifndef MAI_CONFIG_H
#define MAI_CONFIG_H

#include "backend.h"
#include "base.h"

/* Check and resolve a configuration; used by create and by macattn_config_state_bytes. */
macattn_status mai_config_resolve(const macattn_config *in, macattn_config *out,
                                  const mai_backend **backend, char *error, size_t error_size);

#endif /* MAI_CONFIG_H */
