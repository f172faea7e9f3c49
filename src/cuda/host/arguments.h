/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments of a call: checked, and as the kernels want them. */
#ifndef MAI_CUDA_ARGUMENTS_H
#define MAI_CUDA_ARGUMENTS_H

#include "object.h"

macattn_status mai_cu_check_batch(macattn_cuda *m, const macattn_cuda_batch *b);
macattn_status mai_cu_check_io(macattn_cuda *m, const macattn_cuda_io *io);
/* Strides of [row][head][dim]: what is given, or packed. */
void mai_cu_row_strides(const macattn_cuda *m, macattn_dtype dtype, int64_t row, int64_t head,
                        int64_t *row_out, int64_t *head_out);
/* The parameters of a call, but for what tells one kind of call from another. */
mai_cu_params mai_cu_params_of(const macattn_cuda *m, const macattn_cuda_batch *b,
                               const macattn_cuda_io *io);

#endif /* MAI_CUDA_ARGUMENTS_H */
