/* SPDX-License-Identifier: Apache-2.0 */
/* The file that MACATTN_CONFIG names: settings found for one model, by `macattn tune` or by
 * hand. */
#ifndef MACATTN_PLUGIN_CONFIG_H
#define MACATTN_PLUGIN_CONFIG_H

#include "settings/settings.h"

/*! config_read() : take over what the file says. `file_scale`, if it says so, is the caller's to
 *  free.
 * @return : false, with a message on stderr, if it cannot be read or makes no sense. */
bool config_read(const char *path, plugin_settings *settings);

#endif
