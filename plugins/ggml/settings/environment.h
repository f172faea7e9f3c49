/* SPDX-License-Identifier: Apache-2.0 */
/* What the environment says. docs/llama.cpp.md lists the variables for users. */
#ifndef MACATTN_PLUGIN_ENVIRONMENT_H
#define MACATTN_PLUGIN_ENVIRONMENT_H

#include "settings/settings.h"

/*! environment_read() : defaults, then the configuration file, then the environment, which
 *  overrides it.
 * @return : false, with a message on stderr, if a variable or the file makes no sense. */
bool environment_read(plugin_settings *settings);

#endif
