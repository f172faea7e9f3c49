/* SPDX-License-Identifier: Apache-2.0 */
/* The GPU in benchmarks: its memory, graphs and their times, and what it is. Failures end the program. */
#ifndef MACATTN_TOOLS_BENCH_CUDA_DEVICE_H
#define MACATTN_TOOLS_BENCH_CUDA_DEVICE_H

#include <cuda_runtime_api.h>

#include "bench.h"
#include "macattn/cuda.h"

void bench_cuda_expect(cudaError_t status, const char *what);
void bench_cuda_expect_ok(const macattn_cuda *m, macattn_status status, const char *what);

void *bench_cuda_alloc(size_t bytes);
void bench_cuda_free(void *memory);
void bench_cuda_upload(void *to, const void *from, size_t bytes);
/* Fill `bytes` with a block from the host, over and over. */
void bench_cuda_repeat(char *to, size_t bytes, const void *block, size_t block_bytes);
/* Pages 0 to n - 1, there. */
int32_t *bench_cuda_pages(size_t n);

/* n 16-bit values of a type. */
void bench_cuda_round(macattn_dtype dtype, const float *values, size_t n, uint16_t *out);

/* As many layers, of so many bytes, as it takes for one to be out of L2 when its turn comes again. */
int32_t bench_cuda_layers(const bench_session *session, size_t layer_bytes, int32_t most);

/* A stream, and events that time what it runs. */
typedef struct bench_cuda_clock {
    cudaStream_t stream;
    cudaEvent_t begin, end;
} bench_cuda_clock;

bench_cuda_clock bench_cuda_clock_make(void);
void bench_cuda_clock_destroy(const bench_cuda_clock *clock);
/* What is put into the stream between the two becomes a graph, to be destroyed. */
void bench_cuda_record(const bench_cuda_clock *clock);
cudaGraphExec_t bench_cuda_recorded(const bench_cuda_clock *clock);
/* Microseconds. */
double bench_cuda_replay(const bench_cuda_clock *clock, cudaGraphExec_t graph);

void bench_cuda_add_device(cJSON *row);

#endif /* MACATTN_TOOLS_BENCH_CUDA_DEVICE_H */
