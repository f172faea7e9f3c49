/* SPDX-License-Identifier: Apache-2.0 */
/* The former place of policy/judge.h, for src/cuda. */
#include "core/policy/judge.h"
