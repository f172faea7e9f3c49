/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments of a call: checked, and as the kernels want them. */
#ifndef MAI_CUDA_ARGUMENTS_H
#define MAI_CUDA_ARGUMENTS_H

#include "object.h"

macattn_status mai_cu_check_batch(macattn_cuda *m, const macattn_cuda_batch *b);
/* After the batch. `io` gets all of `in`, with the packed strides where it has 0. */
macattn_status mai_cu_check_io(macattn_cuda *m, const macattn_cuda_batch *b,
                               const macattn_cuda_io *in, macattn_cuda_io *io);
/* The parameters of a call with a checked io, but for what tells one kind of call from another. */
mai_cu_params mai_cu_params_of(const macattn_cuda *m, const macattn_cuda_batch *b,
                               const macattn_cuda_io *io);

#endif /* MAI_CUDA_ARGUMENTS_H */
