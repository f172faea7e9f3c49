/* SPDX-License-Identifier: Apache-2.0 */
#define MAI_FN(name) name##__neon_dotprod
#define MAI_ISA_NAME "neon-dotprod"
#define MAI_ISA_BACKEND mai_backend_neon_dotprod
#define MAI_ISA_SUPPORTED mai_cpu_has_neon_dotprod

#include "../cpu.h"
#include "vec_neon.h"

#include "../body/isa.h"
