/* SPDX-License-Identifier: Apache-2.0 */
/* Which backends are compiled in, which of them this machine can run, which one is taken. */
#if defined(__x86_64__)
#    include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#    include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#    include <sys/sysctl.h>
#endif
#include <string.h>

#include "core/backend.h"
#include "cpu.h"

/* The one list of instruction sets, best first. Adding one: a vocabulary isa/vec_NAME.h, a file
 * isa/NAME.c, a feature test below, its flags in cmake/Isa.cmake, and a line here. */
#if defined(MAI_COMPILES_AVXVNNI)
#    define MAI_ISA_LIST(XX) XX(avx512vnni) XX(avx512) XX(avxvnni) XX(avx2) XX(scalar)
#elif defined(__x86_64__)
#    define MAI_ISA_LIST(XX) XX(avx512vnni) XX(avx512) XX(avx2) XX(scalar)
#elif defined(MAI_COMPILES_NEON_I8MM)
#    define MAI_ISA_LIST(XX) XX(neon_i8mm) XX(neon_dotprod) XX(neon) XX(scalar)
#elif defined(__aarch64__)
#    define MAI_ISA_LIST(XX) XX(neon_dotprod) XX(neon) XX(scalar)
#else
#    define MAI_ISA_LIST(XX) XX(scalar)
#endif

#define MAI_ISA_DECLARE(isa) extern const mai_backend mai_backend_##isa;
MAI_ISA_LIST(MAI_ISA_DECLARE)

static const mai_backend *const backends[] = {
#define MAI_ISA_ENTRY(isa) &mai_backend_##isa,
    MAI_ISA_LIST(MAI_ISA_ENTRY)};

const mai_backend *mai_backend_at(int index)
{
    const int n = (int)(sizeof backends / sizeof backends[0]);
    return index >= 0 && index < n ? backends[index] : NULL;
}

const mai_backend *mai_backend_find(const char *name)
{
    for (int i = 0; mai_backend_at(i); i++) {
        if ((!name || strcmp(name, backends[i]->name) == 0) && backends[i]->supported()) {
            return backends[i];
        }
    }
    return NULL;
}

const char *macattn_isa_name(int index)
{
    const mai_backend *backend = mai_backend_at(index);
    return backend ? backend->name : NULL;
}

int macattn_isa_supported(const char *name)
{
    return name && mai_backend_find(name) != NULL;
}

#if defined(__x86_64__)
/* The builtin knows this one from GCC 11 and Clang 15 on only. */
static int has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}

/* The builtins ask the processor, and the system whether it saves the wide registers. */
int mai_cpu_has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

/* Not every compiler's builtin knows this one. */
int mai_cpu_has_avxvnni(void)
{
    unsigned eax, ebx, ecx, edx;
    return mai_cpu_has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) &&
           (eax & 1u << 4) != 0;
}

int mai_cpu_has_avx512(void)
{
    return mai_cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}

int mai_cpu_has_avx512vnni(void)
{
    return mai_cpu_has_avx512() && __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
int mai_cpu_has_neon(void)
{
    return 1;
}

/* Bits of the system's answer, by their place in Linux's interface for 64-bit Arm, as headers of older systems
 * do not name them all. */
#    if defined(__linux__)
int mai_cpu_has_neon_dotprod(void)
{
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0;
}

int mai_cpu_has_neon_i8mm(void)
{
    return mai_cpu_has_neon_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1) != 0;
}
#    elif defined(__APPLE__)
static int has_feature(const char *name)
{
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}

int mai_cpu_has_neon_dotprod(void)
{
    return has_feature("hw.optional.arm.FEAT_DotProd");
}

int mai_cpu_has_neon_i8mm(void)
{
    return mai_cpu_has_neon_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM");
}
#    else /* a system that is not asked */
int mai_cpu_has_neon_dotprod(void)
{
    return 0;
}

int mai_cpu_has_neon_i8mm(void)
{
    return 0;
}
#    endif
#endif
