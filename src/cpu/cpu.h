/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine's processor and system support; 1 or 0. Thread-safe, no state. */
#ifndef MAI_CPU_H
#define MAI_CPU_H

int mai_cpu_has_avx2(void);       /* AVX2, FMA, F16C */
int mai_cpu_has_avx512(void);     /* AVX-512 F, BW, DQ, VL and all of the above */
int mai_cpu_has_avx512vnni(void); /* and VNNI */
int mai_cpu_has_avxvnni(void);    /* AVX2, FMA, F16C and AVX-VNNI */
int mai_cpu_has_neon(void);
int mai_cpu_has_neon_dotprod(void); /* NEON with dot products of bytes (FEAT_DotProd) */
int mai_cpu_has_neon_i8mm(void);    /* and with matrix products of bytes (FEAT_I8MM) */

#endif
