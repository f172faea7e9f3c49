/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_device.h"

#include <stdlib.h>

#include "common/memory.h"
#include "common/say.h"
#include "tensors.h"

void bench_cuda_expect(cudaError_t status, const char *what)
{
    if (status != cudaSuccess) die(EXIT_FAILED, "%s: %s", what, cudaGetErrorString(status));
}

void bench_cuda_expect_ok(const macattn_cuda *m, macattn_status status, const char *what)
{
    if (status == MACATTN_OK) return;
    die(EXIT_FAILED, "%s: %s: %s", what, macattn_status_string(status), macattn_cuda_last_error(m));
}

/* ------------------------------------------------------------------------------------ memory -- */

void *bench_cuda_alloc(size_t bytes)
{
    void *p = NULL;
    bench_cuda_expect(cudaMalloc(&p, bytes), "device memory");
    return p;
}

void bench_cuda_free(void *memory)
{
    (void)cudaFree(memory);
}

void bench_cuda_upload(void *to, const void *from, size_t bytes)
{
    bench_cuda_expect(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "copy to the device");
}

void bench_cuda_repeat(char *to, size_t bytes, const void *block, size_t block_bytes)
{
    size_t done = block_bytes < bytes ? block_bytes : bytes;
    bench_cuda_upload(to, block, done);
    while (done < bytes) {
        const size_t more = done < bytes - done ? done : bytes - done;
        bench_cuda_expect(cudaMemcpy(to + done, to, more, cudaMemcpyDeviceToDevice), "fill");
        done += more;
    }
}

int32_t *bench_cuda_pages(size_t n)
{
    int32_t *pages = memory_alloc(n * sizeof *pages), *to = bench_cuda_alloc(n * sizeof *to);
    for (size_t i = 0; i < n; i++) pages[i] = (int32_t)i;
    bench_cuda_upload(to, pages, n * sizeof *pages);
    free(pages);
    return to;
}

void bench_cuda_round(macattn_dtype dtype, const float *values, size_t n, uint16_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = dtype == MACATTN_DTYPE_BF16 ? tensors_bf16(values[i]) : tensors_f16(values[i]);
}

int32_t bench_cuda_layers(const bench_session *session, size_t layer_bytes, int32_t most)
{
    int l2 = 0, device = 0;
    bench_cuda_expect(cudaGetDevice(&device), "device");
    bench_cuda_expect(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device), "device");
    if (session->options->warm) return 1;
    const size_t n = ((size_t)l2 * 4 + layer_bytes - 1) / layer_bytes;
    return n > (size_t)most ? most : (int32_t)n;
}

/* -------------------------------------------------------------------------------------- time -- */

bench_cuda_clock bench_cuda_clock_make(void)
{
    bench_cuda_clock clock;
    bench_cuda_expect(cudaStreamCreate(&clock.stream), "stream");
    bench_cuda_expect(cudaEventCreate(&clock.begin), "event");
    bench_cuda_expect(cudaEventCreate(&clock.end), "event");
    return clock;
}

void bench_cuda_clock_destroy(const bench_cuda_clock *clock)
{
    (void)cudaEventDestroy(clock->begin);
    (void)cudaEventDestroy(clock->end);
    (void)cudaStreamDestroy(clock->stream);
}

void bench_cuda_record(const bench_cuda_clock *clock)
{
    bench_cuda_expect(cudaStreamBeginCapture(clock->stream, cudaStreamCaptureModeThreadLocal),
                      "capture");
}

cudaGraphExec_t bench_cuda_recorded(const bench_cuda_clock *clock)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    bench_cuda_expect(cudaStreamEndCapture(clock->stream, &graph), "capture");
    bench_cuda_expect(cudaGraphInstantiateWithFlags(&exec, graph, 0), "graph");
    (void)cudaGraphDestroy(graph);
    return exec;
}

double bench_cuda_replay(const bench_cuda_clock *clock, cudaGraphExec_t graph)
{
    float ms = 0;
    bench_cuda_expect(cudaEventRecord(clock->begin, clock->stream), "event");
    bench_cuda_expect(cudaGraphLaunch(graph, clock->stream), "graph");
    bench_cuda_expect(cudaEventRecord(clock->end, clock->stream), "event");
    bench_cuda_expect(cudaEventSynchronize(clock->end), "graph");
    bench_cuda_expect(cudaEventElapsedTime(&ms, clock->begin, clock->end), "event");
    return (double)ms * 1e3;
}

/* -------------------------------------------------------------------------------- what it is -- */

void bench_cuda_add_device(cJSON *row)
{
    struct cudaDeviceProp about;
    int device = 0, driver = 0, runtime = 0;
    (void)cudaGetDevice(&device);
    if (cudaGetDeviceProperties(&about, device) != cudaSuccess) return;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    report_add_text(row, "device", about.name);
    report_add_int(row, "multiprocessors", about.multiProcessorCount);
    report_add_int(row, "cuda_driver", driver);
    report_add_int(row, "cuda_runtime", runtime);
}
