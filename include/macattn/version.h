/* SPDX-License-Identifier: Apache-2.0 */
/* The version of this header; the build reads the project's version from here. */
#ifndef MACATTN_VERSION_H
#define MACATTN_VERSION_H

#define MACATTN_VERSION_MAJOR 0
#define MACATTN_VERSION_MINOR 1
#define MACATTN_VERSION_PATCH 0
#define MACATTN_VERSION "0.1.0"

#endif /* MACATTN_VERSION_H */
