/* SPDX-License-Identifier: Apache-2.0 */
/* Checking a configuration. */
#ifndef MAI_CONFIG_H
#define MAI_CONFIG_H

#include "backend.h"
#include "base.h"

/* Check shape and policy of a configuration, and fill in their defaults: for any device. What is a
 * CPU's affair (threads, allocator, instruction set) is copied as it is. */
macattn_status mai_config_resolve(const macattn_config *in, macattn_config *out, char *error,
                                  size_t error_size);
/* The rest of a resolved configuration, for this CPU. */
macattn_status mai_config_resolve_cpu(macattn_config *config, const mai_backend **backend,
                                      char *error, size_t error_size);

#endif /* MAI_CONFIG_H */
