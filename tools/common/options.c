/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <stddef.h>
#include <string.h>

static const char *const policy_names[] = {[MACATTN_POLICY_EXACT] = "exact",
                                           [MACATTN_POLICY_PAPER] = "paper",
                                           [MACATTN_POLICY_BUDGET] = "budget"};

const char *option_policy_name(macattn_policy policy)
{
    return policy_names[policy];
}

bool option_parse_policy(const char *name, macattn_policy *policy)
{
    for (size_t i = 0; i < sizeof policy_names / sizeof policy_names[0]; i++) {
        if (strcmp(name, policy_names[i]) == 0) {
            *policy = (macattn_policy)i;
            return true;
        }
    }
    return false;
}
