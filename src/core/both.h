/* SPDX-License-Identifier: Apache-2.0 */
/* The former name of host_device.h, for src/cuda. */
#include "core/host_device.h"
#define MAI_BOTH MAI_HOST_DEVICE
