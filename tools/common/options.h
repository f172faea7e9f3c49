/* SPDX-License-Identifier: Apache-2.0 */
/* Names that options of several commands take. */
#ifndef MACATTN_TOOLS_COMMON_OPTIONS_H
#define MACATTN_TOOLS_COMMON_OPTIONS_H

#include <stdbool.h>

#include "macattn/macattn.h"

const char *option_policy_name(macattn_policy policy);

/* False if there is no such policy. */
bool option_parse_policy(const char *name, macattn_policy *policy);

#endif /* MACATTN_TOOLS_COMMON_OPTIONS_H */
