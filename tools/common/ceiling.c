/* SPDX-License-Identifier: Apache-2.0 */
/* How fast this machine reads memory and multiplies, on a given number of threads.
 *
 * Reading: every thread sums up its own part of a buffer, with the widest loads there are. Which
 * prefetch distance and how many streams at a time are best depends on the machine, so all are
 * tried when the team is made and the fastest is kept: a ceiling must not be lower than it has
 * to be. Multiplying: sixteen independent accumulators, enough for two units with a latency of
 * eight. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ceiling.h"
#include "clock.h"
#include "machine.h"
#include "memory.h"
#include "samples.h"
#include "say.h"

#if defined(__x86_64__)
#    include <immintrin.h>
#elif defined(__aarch64__)
#    include <arm_neon.h>
#endif

#define BLOCK 256 /* bytes read from one stream before the next one's turn */
#define ACCUMULATORS 16
#define FMA_ROUNDS 200000

/* Sum of `bytes` at `base`, cut into `streams` parts that are read in turns. */
typedef uint64_t (*read_fn)(const char *base, size_t bytes, int streams, size_t ahead);
/* `rounds` multiply-adds on every accumulator. Returns the lanes of one in `*lanes`. */
typedef float (*fma_fn)(int rounds, float factor, int *lanes);

/* ----------------------------------------------------------------------------------- kernels -- */

static uint64_t read_plain(const char *base, size_t bytes, int streams, size_t ahead)
{
    uint64_t sums[4] = {0, 0, 0, 0};
    size_t part = bytes / (size_t)streams / BLOCK * BLOCK;
    (void)ahead;
    for (size_t at = 0; at < part; at += BLOCK) {
        for (int s = 0; s < streams; s++) {
            uint64_t words[BLOCK / 8];
            memcpy(words, base + (size_t)s * part + at, BLOCK);
            for (int i = 0; i < BLOCK / 8; i++) {
                sums[i & 3] += words[i];
            }
        }
    }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

static float fma_plain(int rounds, float factor, int *lanes)
{
    float sums[ACCUMULATORS];
    *lanes = 1;
    for (int i = 0; i < ACCUMULATORS; i++) {
        sums[i] = (float)i;
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            sums[i] = sums[i] * factor + 1.0f;
        }
    }
    float total = 0.0f;
    for (int i = 0; i < ACCUMULATORS; i++) {
        total += sums[i];
    }
    return total;
}

#if defined(__x86_64__)

__attribute__((target("avx512f"))) static uint64_t read_avx512(const char *base, size_t bytes,
                                                               int streams, size_t ahead)
{
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    size_t part = bytes / (size_t)streams / BLOCK * BLOCK;
    for (size_t at = 0; at < part; at += BLOCK) {
        for (int s = 0; s < streams; s++) {
            const char *p = base + (size_t)s * part + at;
            if (ahead) {
                for (size_t line = 0; line < BLOCK; line += 64) {
                    _mm_prefetch(p + ahead + line, _MM_HINT_T0);
                }
            }
            a = _mm512_add_epi64(a, _mm512_loadu_si512(p));
            b = _mm512_add_epi64(b, _mm512_loadu_si512(p + 64));
            c = _mm512_add_epi64(c, _mm512_loadu_si512(p + 128));
            d = _mm512_add_epi64(d, _mm512_loadu_si512(p + 192));
        }
    }
    /* Not _mm512_reduce_add_epi64: GCC's adds the lanes as signed numbers, which may overflow. */
    uint64_t words[8], sum = 0;
    _mm512_storeu_si512(words, _mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d)));
    for (int i = 0; i < 8; i++) {
        sum += words[i];
    }
    return sum;
}

__attribute__((target("avx2"))) static uint64_t read_avx2(const char *base, size_t bytes,
                                                          int streams, size_t ahead)
{
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                       _mm256_setzero_si256()};
    size_t part = bytes / (size_t)streams / BLOCK * BLOCK;
    for (size_t at = 0; at < part; at += BLOCK) {
        for (int s = 0; s < streams; s++) {
            const char *p = base + (size_t)s * part + at;
            if (ahead) {
                for (size_t line = 0; line < BLOCK; line += 64) {
                    _mm_prefetch(p + ahead + line, _MM_HINT_T0);
                }
            }
            for (int i = 0; i < BLOCK / 32; i++) {
                __m256i word = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32 * i));
                sums[i & 3] = _mm256_add_epi64(sums[i & 3], word);
            }
        }
    }
    uint64_t words[4];
    __m256i sum =
        _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
    _mm256_storeu_si256((__m256i *)(void *)words, sum);
    return words[0] + words[1] + words[2] + words[3];
}

__attribute__((target("avx512f"))) static float fma_avx512(int rounds, float factor, int *lanes)
{
    __m512 sums[ACCUMULATORS];
    __m512 by = _mm512_set1_ps(factor), plus = _mm512_set1_ps(1.0f);
    *lanes = 16;
    for (int i = 0; i < ACCUMULATORS; i++) {
        sums[i] = _mm512_set1_ps((float)i);
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            sums[i] = _mm512_fmadd_ps(sums[i], by, plus);
        }
    }
    __m512 total = sums[0];
    for (int i = 1; i < ACCUMULATORS; i++) {
        total = _mm512_add_ps(total, sums[i]);
    }
    return _mm512_reduce_add_ps(total);
}

/* Sixteen registers, of which two hold the operands. */
#    define AVX2_ACCUMULATORS 12

__attribute__((target("avx2,fma"))) static float fma_avx2(int rounds, float factor, int *lanes)
{
    __m256 sums[AVX2_ACCUMULATORS];
    __m256 by = _mm256_set1_ps(factor), plus = _mm256_set1_ps(1.0f);
    *lanes = 8;
    for (int i = 0; i < AVX2_ACCUMULATORS; i++) {
        sums[i] = _mm256_set1_ps((float)i);
    }
    /* As many operations in all as the other kernels do. */
    for (int round = 0; round < rounds * (ACCUMULATORS / 4) / (AVX2_ACCUMULATORS / 4); round++) {
        for (int i = 0; i < AVX2_ACCUMULATORS; i++) {
            sums[i] = _mm256_fmadd_ps(sums[i], by, plus);
        }
    }
    __m256 total = sums[0];
    for (int i = 1; i < AVX2_ACCUMULATORS; i++) {
        total = _mm256_add_ps(total, sums[i]);
    }
    float parts[8];
    _mm256_storeu_ps(parts, total);
    return parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5] + parts[6] + parts[7];
}

#elif defined(__aarch64__)

static uint64_t read_neon(const char *base, size_t bytes, int streams, size_t ahead)
{
    uint64x2_t sums[4] = {vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0), vdupq_n_u64(0)};
    size_t part = bytes / (size_t)streams / BLOCK * BLOCK;
    for (size_t at = 0; at < part; at += BLOCK) {
        for (int s = 0; s < streams; s++) {
            const char *p = base + (size_t)s * part + at;
            if (ahead) {
                for (size_t line = 0; line < BLOCK; line += 64) {
                    __builtin_prefetch(p + ahead + line);
                }
            }
            for (int i = 0; i < BLOCK / 16; i++) {
                uint8x16_t word = vld1q_u8((const uint8_t *)p + 16 * i);
                sums[i & 3] = vaddq_u64(sums[i & 3], vreinterpretq_u64_u8(word));
            }
        }
    }
    uint64x2_t sum = vaddq_u64(vaddq_u64(sums[0], sums[1]), vaddq_u64(sums[2], sums[3]));
    return vgetq_lane_u64(sum, 0) + vgetq_lane_u64(sum, 1);
}

static float fma_neon(int rounds, float factor, int *lanes)
{
    float32x4_t sums[ACCUMULATORS];
    float32x4_t by = vdupq_n_f32(factor), plus = vdupq_n_f32(1.0f);
    *lanes = 4;
    for (int i = 0; i < ACCUMULATORS; i++) {
        sums[i] = vdupq_n_f32((float)i);
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < ACCUMULATORS; i++) {
            sums[i] = vfmaq_f32(plus, sums[i], by);
        }
    }
    float32x4_t total = sums[0];
    for (int i = 1; i < ACCUMULATORS; i++) {
        total = vaddq_f32(total, sums[i]);
    }
    return vaddvq_f32(total);
}

#endif

static read_fn best_read(const char **name)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        *name = "512-bit";
        return read_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        *name = "256-bit";
        return read_avx2;
    }
#elif defined(__aarch64__)
    *name = "128-bit";
    return read_neon;
#endif
    *name = "64-bit";
    return read_plain;
}

static fma_fn best_fma(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        return fma_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return fma_avx2;
    }
#elif defined(__aarch64__)
    return fma_neon;
#endif
    return fma_plain;
}

/* Of an instruction set that this machine has. */
static fma_fn fma_of(const char *isa)
{
#if defined(__x86_64__)
    if (strncmp(isa, "avx512", 6) == 0) {
        return fma_avx512;
    }
    if (strncmp(isa, "avx", 3) == 0) {
        return fma_avx2;
    }
#elif defined(__aarch64__)
    if (strncmp(isa, "neon", 4) == 0) {
        return fma_neon;
    }
#endif
    (void)isa;
    return fma_plain;
}

/* -------------------------------------------------------------------------------------- team -- */

typedef void (*team_work)(machine_team *team, int thread);

struct machine_team {
    int n_threads;
    pthread_t *threads; /* [n_threads - 1]: the caller is thread 0 */
    struct team_member *members;
    pthread_barrier_t barrier;
    team_work work; /* NULL: end */
    char *buffer;
    size_t bytes;
    read_fn read;
    fma_fn fma;
    int streams;
    size_t ahead;
    char variant[96];
    atomic_uint_fast64_t sink; /* so that no result is unused */
    int lanes;
};

struct team_member {
    machine_team *team;
    int thread;
};

static void *team_loop(void *arg)
{
    struct team_member *member = arg;
    machine_team *team = member->team;
    for (;;) {
        pthread_barrier_wait(&team->barrier);
        if (!team->work) {
            return NULL;
        }
        team->work(team, member->thread);
        pthread_barrier_wait(&team->barrier);
    }
}

static double team_run_us(machine_team *team, team_work work)
{
    team->work = work;
    pthread_barrier_wait(&team->barrier);
    double start = clock_now_us();
    work(team, 0);
    pthread_barrier_wait(&team->barrier);
    return clock_now_us() - start;
}

static void read_part(machine_team *team, int thread)
{
    size_t part = team->bytes / (size_t)team->n_threads / 4096 * 4096;
    atomic_fetch_add(&team->sink, team->read(team->buffer + (size_t)thread * part, part,
                                             team->streams, team->ahead));
}

static void touch_part(machine_team *team, int thread)
{
    size_t part = team->bytes / (size_t)team->n_threads / 4096 * 4096;
    memset(team->buffer + (size_t)thread * part, thread + 1, part);
}

static void multiply(machine_team *team, int thread)
{
    /* Below 1, so that the sums stay finite; not known to the compiler. */
    volatile float factor = 0.5f;
    int lanes;
    float sum = team->fma(FMA_ROUNDS, factor, &lanes);
    atomic_fetch_add(&team->sink, (uint64_t)(sum > 0.0f));
    if (thread == 0) {
        team->lanes = lanes;
    }
}

double machine_read_gbps(machine_team *team)
{
    size_t part = team->bytes / (size_t)team->n_threads / 4096 * 4096;
    double us = team_run_us(team, read_part);
    return (double)(part * (size_t)team->n_threads) / us * 1e-3;
}

const char *machine_read_variant(const machine_team *team)
{
    return team->variant;
}

double machine_fma_gflops(machine_team *team, const char *isa)
{
    team->fma = isa ? fma_of(isa) : best_fma();
    double us = team_run_us(team, multiply);
    return 2.0 * ACCUMULATORS * FMA_ROUNDS * (double)team->lanes * team->n_threads / us * 1e-3;
}

static void choose_variant(machine_team *team)
{
    static const size_t distances[] = {0, 512, 1024, 2048, 4096};
    static const int streams[] = {1, 2, 4};
    const char *name;
    double best = 0.0;
    int best_streams = 1;
    size_t best_ahead = 0;
    team->read = best_read(&name);
    for (size_t i = 0; i < sizeof distances / sizeof distances[0]; i++) {
        for (size_t j = 0; j < sizeof streams / sizeof streams[0]; j++) {
            team->ahead = distances[i];
            team->streams = streams[j];
            sample_list rates = {0};
            for (int pass = 0; pass < 3; pass++) {
                sample_list_add(&rates, machine_read_gbps(team));
            }
            if (sample_list_median(&rates) > best) {
                best = sample_list_median(&rates);
                best_streams = team->streams;
                best_ahead = team->ahead;
            }
            sample_list_free(&rates);
        }
    }
    team->streams = best_streams;
    team->ahead = best_ahead;
    snprintf(team->variant, sizeof team->variant,
             "%s loads, %d stream%s a thread, prefetch %zu bytes ahead", name, best_streams,
             best_streams == 1 ? "" : "s", best_ahead);
}

machine_team *machine_team_create(int n_threads)
{
    machine_info info;
    machine_describe(&info);
    machine_team *team = memory_alloc(sizeof *team);
    team->n_threads = n_threads;
    team->threads = memory_alloc((size_t)n_threads * sizeof *team->threads);
    team->members = memory_alloc((size_t)n_threads * sizeof *team->members);
    /* A last-level cache may be larger than a virtual machine is told: far larger is safe. */
    team->bytes = MACHINE_COLD_BYTES > 8 * info.llc ? MACHINE_COLD_BYTES : 8 * info.llc;
    if (team->bytes > info.memory / 8) {
        team->bytes = (size_t)(info.memory / 8);
    }
    team->buffer = memory_map(team->bytes, false);
    if (pthread_barrier_init(&team->barrier, NULL, (unsigned)n_threads) != 0) {
        die(EXIT_FAILED, "cannot make a barrier for %d threads", n_threads);
    }
    for (int i = 1; i < n_threads; i++) {
        team->members[i] = (struct team_member){team, i};
        if (pthread_create(&team->threads[i - 1], NULL, team_loop, &team->members[i]) != 0) {
            die(EXIT_FAILED, "cannot start thread %d", i);
        }
    }
    (void)team_run_us(team, touch_part);
    choose_variant(team);
    return team;
}

void machine_team_destroy(machine_team *team)
{
    if (!team) {
        return;
    }
    team->work = NULL;
    pthread_barrier_wait(&team->barrier);
    for (int i = 1; i < team->n_threads; i++) {
        pthread_join(team->threads[i - 1], NULL);
    }
    pthread_barrier_destroy(&team->barrier);
    memory_unmap(team->buffer, team->bytes);
    free(team->threads);
    free(team->members);
    free(team);
}
