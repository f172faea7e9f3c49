/* SPDX-License-Identifier: Apache-2.0 */
#define MAI_FN(name) name##__avx2
#define MAI_ISA_NAME "avx2"
#define MAI_ISA_BACKEND mai_backend_avx2
#define MAI_ISA_SUPPORTED mai_cpu_has_avx2

#include "../cpu.h"
#include "vec_avx2.h"

#include "../body/isa.h"
