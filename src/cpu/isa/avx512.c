/* SPDX-License-Identifier: Apache-2.0 */
#define MAI_FN(name) name##__avx512
#define MAI_ISA_NAME "avx512"
#define MAI_ISA_BACKEND mai_backend_avx512
#define MAI_ISA_SUPPORTED mai_cpu_has_avx512

#include "../cpu.h"
#include "vec_avx512.h"

#include "../body/isa.h"
