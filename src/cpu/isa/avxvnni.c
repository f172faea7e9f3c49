/* SPDX-License-Identifier: Apache-2.0 */
#define MAI_FN(name) name##__avxvnni
#define MAI_ISA_NAME "avxvnni"
#define MAI_ISA_BACKEND mai_backend_avxvnni
#define MAI_ISA_SUPPORTED mai_cpu_has_avxvnni

#include "../cpu.h"
#include "vec_avx2.h"

#include "../body/isa.h"
