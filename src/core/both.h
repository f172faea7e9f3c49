/* SPDX-License-Identifier: Apache-2.0 */
/* MAI_BOTH: a function that the host (C) and the GPU (CUDA C++) share, in a header. */
#ifndef MAI_BOTH_H
#define MAI_BOTH_H

#ifdef __CUDACC__
#    define MAI_BOTH __host__ __device__ __forceinline__
#else
#    define MAI_BOTH static inline
#endif

#endif /* MAI_BOTH_H */
