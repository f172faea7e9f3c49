/* SPDX-License-Identifier: Apache-2.0 */
#define MAI_FN(name) name##__scalar
#define MAI_ISA_NAME "scalar"
#define MAI_ISA_BACKEND mai_backend_scalar
#define MAI_ISA_SUPPORTED mai_always_supported

static int mai_always_supported(void)
{
    return 1;
}

#include "vec_scalar.h"

#include "../body/isa.h"
