/* SPDX-License-Identifier: Apache-2.0 */
/* What vocabularies and bodies ask of the compiler. */
#ifndef MAI_COMPILER_H
#define MAI_COMPILER_H

#if defined(__clang__)
#    define MAI_UNROLL _Pragma("clang loop unroll(full)")
#else
#    define MAI_UNROLL _Pragma("GCC unroll 64")
#endif
#define MAI_INLINE static inline __attribute__((always_inline))

/* What the half bytes of iq4_nl stand for. */
#define IQ4_NL_TABLE -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113

/* A macro, not a function: gcc takes a function that only prefetches for one without effect, and drops
 * the calls. */
#define v_prefetch(p) __builtin_prefetch((p), 0, 3)

/* Keep a vector that is used several times in a register: compilers would rather have every use of it
 * load it again, and loads are what there are too few of. Of whole numbers it also keeps the order of sums,
 * which compilers would rather turn into sums of all products, more than there are registers. */
#if defined(__AVX512F__)
#    define IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__x86_64__)
#    define IN_REGISTER(x) __asm__("" : "+x"(x))
#elif defined(__aarch64__)
#    define IN_REGISTER(x) __asm__("" : "+w"(x))
#else
#    define IN_REGISTER(x) ((void)0)
#endif

/* acc += a * b, in place: left to choose among the forms of the instruction, GCC rotates accumulators through
 * other registers and keeps some of them in memory. */
#if defined(__AVX512F__)
#    define ADD_PRODUCT(acc, a, b) __asm__("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b))
#elif defined(__aarch64__)
#    define ADD_PRODUCT(acc, a, b) __asm__("fmla %0.4s, %1.4s, %2.4s" : "+w"(acc) : "w"(a), "w"(b))
#else
#    define ADD_PRODUCT(acc, a, b) ((acc) = v_fma((a), (b), (acc)))
#endif

/* The same for a pointer, so that what is read through it is addressed from it. */
#define POINTER_IN_REGISTER(p) __asm__("" : "+r"(p))

#endif
