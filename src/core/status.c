/* SPDX-License-Identifier: Apache-2.0 */
/* Status codes and their texts, the version, sizes and names of types. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "object.h"

const char *macattn_version(void)
{
    return MACATTN_VERSION;
}

const char *macattn_status_string(macattn_status status)
{
    switch ((int)status) {
#define MAI_STATUS_CASE(name, value, text) \
    case value: return text;
        MACATTN_STATUS_MAP(MAI_STATUS_CASE)
#undef MAI_STATUS_CASE
    default: return "unknown status";
    }
}

macattn_status mai_fail(macattn *m, macattn_status code, const char *format, ...)
{
    if (m) {
        va_list args;
        va_start(args, format);
        vsnprintf(m->error, sizeof m->error, format, args);
        va_end(args);
    }
    return code;
}

const char *macattn_last_error(const macattn *m)
{
    return m ? m->error : "";
}

size_t mai_dtype_block_bytes(macattn_dtype dtype)
{
    switch ((int)dtype) {
    case MACATTN_DTYPE_Q8_0: return 34;
    case MACATTN_DTYPE_Q4_0:
    case MACATTN_DTYPE_IQ4_NL: return 18;
    case MACATTN_DTYPE_Q4_1: return 20;
    case MACATTN_DTYPE_Q5_0: return 22;
    case MACATTN_DTYPE_Q5_1: return 24;
    default: return 0;
    }
}

size_t macattn_dtype_row_bytes(macattn_dtype dtype, int64_t n)
{
    if (n < 0) return 0;
    const size_t block = mai_dtype_block_bytes(dtype);
    if (block > 0) return n % 32 == 0 ? (size_t)(n / 32) * block : 0;
    switch ((int)dtype) {
    case MACATTN_DTYPE_F32: return (size_t)n * 4;
    case MACATTN_DTYPE_F16:
    case MACATTN_DTYPE_BF16: return (size_t)n * 2;
    case MACATTN_DTYPE_F8_E4M3: return (size_t)n;
    default: return 0;
    }
}

static const char *const dtype_names[] = {
    [MACATTN_DTYPE_F32] = "f32",         [MACATTN_DTYPE_F16] = "f16",
    [MACATTN_DTYPE_BF16] = "bf16",       [MACATTN_DTYPE_Q8_0] = "q8_0",
    [MACATTN_DTYPE_F8_E4M3] = "f8_e4m3", [MACATTN_DTYPE_Q4_0] = "q4_0",
    [MACATTN_DTYPE_Q4_1] = "q4_1",       [MACATTN_DTYPE_Q5_0] = "q5_0",
    [MACATTN_DTYPE_Q5_1] = "q5_1",       [MACATTN_DTYPE_IQ4_NL] = "iq4_nl"};
enum { N_DTYPES = sizeof dtype_names / sizeof dtype_names[0] };

const char *macattn_dtype_name(macattn_dtype dtype)
{
    return (unsigned)dtype < N_DTYPES ? dtype_names[dtype] : NULL;
}

macattn_status macattn_dtype_find(const char *name, macattn_dtype *dtype)
{
    if (!name || !dtype) return MACATTN_E_ARG;
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(name, dtype_names[i]) != 0) continue;
        *dtype = (macattn_dtype)i;
        return MACATTN_OK;
    }
    return MACATTN_E_RANGE;
}
