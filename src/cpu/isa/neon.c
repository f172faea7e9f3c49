/* SPDX-License-Identifier: Apache-2.0 */
#define MAI_FN(name) name##__neon
#define MAI_ISA_NAME "neon"
#define MAI_ISA_BACKEND mai_backend_neon
#define MAI_ISA_SUPPORTED mai_cpu_has_neon

#include "../cpu.h"
#include "vec_neon.h"

#include "../body/isa.h"
