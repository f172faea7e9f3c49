/* SPDX-License-Identifier: Apache-2.0 */
#define MAI_FN(name) name##__neon_i8mm
#define MAI_ISA_NAME "neon-i8mm"
#define MAI_ISA_BACKEND mai_backend_neon_i8mm
#define MAI_ISA_SUPPORTED mai_cpu_has_neon_i8mm

#include "../cpu.h"
#include "vec_neon.h"

#include "../body/isa.h"
