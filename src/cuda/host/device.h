/* SPDX-License-Identifier: Apache-2.0 */
/* Errors of a call, and the device it works on. */
#ifndef MAI_CUDA_DEVICE_H
#define MAI_CUDA_DEVICE_H

#include "object.h"

/* Write the sentence for macattn_cuda_last_error and return the code. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
macattn_status
mai_cu_fail(macattn_cuda *m, macattn_status code, const char *format, ...);
/* The same of a cudaError_t; `what` was being done. */
macattn_status mai_cu_device_status(macattn_cuda *m, const char *what, int status);
/* Calls work on the object's device and leave the thread's as it was. */
macattn_status mai_cu_use_device(macattn_cuda *m, int *before);
void mai_cu_restore_device(const macattn_cuda *m, int before);

#define DEVICE_TRY(m, what, call) MAI_TRY(mai_cu_device_status(m, what, (int)(call)))

#endif /* MAI_CUDA_DEVICE_H */
