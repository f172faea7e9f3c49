/* SPDX-License-Identifier: Apache-2.0 */
/* usage: arm_step ISA TYPE HEADS KV_HEADS DIM TOKENS
 * One step of exact attention, for bench/arm.sh to count its instructions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/backend.h"

#include "macattn/macattn.h"

static macattn_dtype type_of(const char *name)
{
    for (int i = 0; macattn_dtype_name((macattn_dtype)i); i++) {
        if (strcmp(name, macattn_dtype_name((macattn_dtype)i)) == 0) return (macattn_dtype)i;
    }
    return MACATTN_DTYPE_F32;
}

/* Zeroed; the program ends before it is freed. */
static void *room(size_t bytes)
{
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) exit(2);
    return memset(p, 0, bytes);
}

int main(int argc, char **argv)
{
    const mai_backend *backend = argc == 7 ? mai_backend_find(argv[1]) : NULL;
    if (!backend) {
        fprintf(stderr, "usage: arm_step ISA TYPE HEADS KV_HEADS DIM TOKENS\n");
        return 2;
    }
    const macattn_dtype type = type_of(argv[2]);
    const int heads = atoi(argv[3]), kv_heads = atoi(argv[4]), d = atoi(argv[5]);
    const int tokens = atoi(argv[6]);
    const mai_shape shape = {.n_heads = heads,
                             .n_kv_heads = kv_heads,
                             .group = heads / kv_heads,
                             .d = d,
                             .dv = d,
                             .q_dtype = MACATTN_DTYPE_F32,
                             .k_dtype = type,
                             .v_dtype = type,
                             .scale = 0.1f};
    const mai_ring_dims no_ring = {0};
    const size_t row = macattn_dtype_row_bytes(type, d), floats = (size_t)heads * (size_t)d;
    const int64_t head = (int64_t)row, token = head * kv_heads;
    const macattn_kv kv = {.k = room(row * (size_t)(kv_heads * tokens)),
                           .v = room(row * (size_t)(kv_heads * tokens)),
                           .k_token_stride = token,
                           .v_token_stride = token,
                           .k_head_stride = head,
                           .v_head_stride = head};
    float *q = room(floats * sizeof(float));
    for (size_t i = 0; i < floats; i++) q[i] = (float)(i % 7) - 3;
    backend->attend(&(mai_attend_args){.shape = &shape,
                                       .tokens = {.kv = &kv},
                                       .t1 = tokens,
                                       .kv1 = kv_heads,
                                       .q = q,
                                       .out = room(floats * sizeof(float)),
                                       .out_stride = d,
                                       .lse = room((size_t)heads * sizeof(float)),
                                       .scratch = room(backend->scratch_bytes(&shape, &no_ring))});
    return 0;
}
