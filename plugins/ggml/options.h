/* SPDX-License-Identifier: Apache-2.0 */
/* What the environment says. docs/llama.cpp.md lists the variables for users. */
#ifndef MACATTN_PLUGIN_OPTIONS_H
#define MACATTN_PLUGIN_OPTIONS_H

#include <stdbool.h>

#include "macattn/macattn.h"

typedef struct plugin_options {
    macattn_policy policy; /*!< MACATTN_POLICY: exact (default), paper, budget */
    float budget;          /*!< MACATTN_BUDGET, in [0, 1] */
    float tau;             /*!< MACATTN_TAU, in [0, 1] */
    int32_t ring;          /*!< MACATTN_RING, 1 to 4096 */
    int32_t band;          /*!< MACATTN_BAND, >= 1 */
    int64_t min_tokens;    /*!< MACATTN_MIN_TOKENS, >= 0 */
    int audit_every; /*!< MACATTN_AUDIT: recompute every n-th decode that reused anything; 0 = none */
    const char *stats; /*!< MACATTN_STATS: a file for the statistics, "-" for stderr; NULL = none */
} plugin_options;

/*! options_read() : read the environment.
 * @return : false, with a message on stderr, if a variable makes no sense. */
bool options_read(plugin_options *options);

/*! options_policy_name() : as MACATTN_POLICY names it. */
const char *options_policy_name(macattn_policy policy);

#endif
