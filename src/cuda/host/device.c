/* SPDX-License-Identifier: Apache-2.0 */
/* Errors of a call, and the device it works on. */
#include <cuda_runtime_api.h>
#include <stdarg.h>
#include <stdio.h>

#include "device.h"

macattn_status mai_cu_fail(macattn_cuda *m, macattn_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(m->error, sizeof m->error, format, args);
    va_end(args);
    return code;
}

macattn_status mai_cu_device_status(macattn_cuda *m, const char *what, int status)
{
    if (status == cudaSuccess) return MACATTN_OK;
    return mai_cu_fail(m, status == cudaErrorMemoryAllocation ? MACATTN_E_NOMEM : MACATTN_E_DEVICE,
                       "%s: %s", what, cudaGetErrorString((cudaError_t)status));
}

const char *macattn_cuda_last_error(const macattn_cuda *m)
{
    return m ? m->error : "";
}

macattn_status mai_cu_use_device(macattn_cuda *m, int *before)
{
    DEVICE_TRY(m, "current device", cudaGetDevice(before));
    if (*before != m->cuda.device) DEVICE_TRY(m, "set device", cudaSetDevice(m->cuda.device));
    return MACATTN_OK;
}

void mai_cu_restore_device(const macattn_cuda *m, int before)
{
    if (before != m->cuda.device) (void)cudaSetDevice(before);
}
