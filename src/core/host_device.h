/* SPDX-License-Identifier: Apache-2.0 */
/* MAI_HOST_DEVICE: a function that the host (C) and the GPU (CUDA C++) share, in a header. */
#ifndef MAI_HOST_DEVICE_H
#define MAI_HOST_DEVICE_H

#ifdef __CUDACC__
#    define MAI_HOST_DEVICE __host__ __device__ __forceinline__
#else
#    define MAI_HOST_DEVICE static inline
#endif

#endif /* MAI_HOST_DEVICE_H */
