/* SPDX-License-Identifier: Apache-2.0 */
/* A ggml backend with one accelerator device that takes FLASH_ATTN_EXT nodes on host memory. Its
 * buffers are the CPU's, so the scheduler hands it the nodes where they are, without copies. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "context.h"
#include "division.h"
#include "host.h"
#include "interface.h"
#include "node.h"
#include "pool.h"
#include "report.h"
#include "settings/environment.h"
#include "trace.h"
#include "writes.h"

#define DEVICE_NAME "MACATTN"

static plugin_settings settings;
static struct ggml_backend_device device;
static struct ggml_backend_reg registry;

/* Whether any device is a GPU, when a context is made. llama.cpp then gives the CPU the GPU's
 * kind of host memory, and the scheduler no longer moves attention from the CPU to a device that
 * has the CPU's. It does go on with a device that has the node before, so the device takes that
 * one, too: the new values' way into a cache in host memory. */
static atomic_bool beside_gpu;

/* From so many tokens on llama.cpp has a GPU compute the products of layers in host memory, and
 * their attention where nobody stands between. That is faster than any CPU, and left as it is. */
enum { GPU_BATCH = 32 };

/* A model's layers were put on the device itself (`--device MACATTN`). */
static atomic_bool holds_layers;

/* ----------------------------------------------------------------------------------- backend -- */

static const char *backend_name(ggml_backend_t backend)
{
    (void)backend;
    return DEVICE_NAME;
}

static void backend_free(ggml_backend_t backend)
{
    division_note_end();
    interface_note_end(backend->context);
    attention_free(backend->context);
    free(backend);
}

static enum ggml_status backend_compute(ggml_backend_t backend, struct ggml_cgraph *graph)
{
    const int n = host.ggml_graph_n_nodes(graph);
    for (int i = 0; i < n; i++) {
        struct ggml_tensor *node = host.ggml_graph_node(graph, i);
        const bool ours = node->op == GGML_OP_FLASH_ATTN_EXT || node->op == GGML_OP_SET_ROWS;
        if (!ours || !(node->flags & GGML_TENSOR_FLAG_COMPUTE)) continue;
        const enum ggml_status status = attention_compute(backend->context, node);
        if (status != GGML_STATUS_SUCCESS) return status;
    }
    return GGML_STATUS_SUCCESS;
}

static void backend_optimize(ggml_backend_t backend, struct ggml_cgraph *graph,
                             struct ggml_backend_graph_optimize_params *params)
{
    const int n = host.ggml_graph_n_nodes(graph);
    for (int i = 0; i < n; i++) {
        struct ggml_tensor *node = host.ggml_graph_node(graph, i);
        if (node->op == GGML_OP_FLASH_ATTN_EXT) trace_node(backend->context, node, params);
    }
}

static void set_n_threads(ggml_backend_t backend, int n_threads)
{
    attention_set_threads(backend->context, n_threads);
}

/* ------------------------------------------------------------------------------------ device -- */

static const char *device_name(ggml_backend_dev_t dev)
{
    (void)dev;
    return DEVICE_NAME;
}

static const char *device_description(ggml_backend_dev_t dev)
{
    (void)dev;
    return "macattn " MACATTN_VERSION;
}

static void device_memory(ggml_backend_dev_t dev, size_t *free_bytes, size_t *total_bytes)
{
    (void)dev;
    *free_bytes = *total_bytes = 0;
}

static enum ggml_backend_dev_type device_type(ggml_backend_dev_t dev)
{
    (void)dev;
    return GGML_BACKEND_DEVICE_TYPE_ACCEL;
}

static void device_props(ggml_backend_dev_t dev, struct ggml_backend_dev_props *props)
{
    memset(props, 0, sizeof *props);
    props->name = device_name(dev);
    props->description = device_description(dev);
    props->type = device_type(dev);
    props->caps.buffer_from_host_ptr = true;
    /* What is computed is there when the call returns, which is a case of both; without them
     * llama.cpp would give up pipelining between GPUs. */
    props->caps.async = true;
    props->caps.events = true;
}

static bool find_gpu(void)
{
    for (size_t i = 0; i < host.ggml_backend_dev_count(); i++) {
        const enum ggml_backend_dev_type type =
            host.ggml_backend_dev_type(host.ggml_backend_dev_get(i));
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU)
            return true;
    }
    return false;
}

static ggml_backend_t device_init(ggml_backend_dev_t dev, const char *params)
{
    static struct ggml_guid_bytes {
        uint8_t bytes[16];
    } guid = {"macattn-ggml-001"};
    (void)params;
    if (division_note_context() > 0 && atomic_load(&holds_layers)) {
        division_note_end();
        host_say("MACATTN is no device to put layers on: leave --device out. macattn computes the "
                 "attention of layers in host memory without it");
        return NULL;
    }
    atomic_store(&beside_gpu, find_gpu());
    struct ggml_backend *backend = calloc(1, sizeof *backend);
    attention *a = attention_create(&settings);
    if (!backend || !a) {
        division_note_end();
        free(backend);
        attention_free(a);
        return NULL;
    }
    backend->guid = (ggml_guid_t)(void *)&guid;
    backend->iface.get_name = backend_name;
    backend->iface.free = backend_free;
    backend->iface.graph_compute = backend_compute;
    backend->iface.graph_optimize = backend_optimize;
    backend->device = dev;
    backend->context = a;
    interface_note_context(a);
    return backend;
}

static ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t dev)
{
    (void)dev;
    return host.ggml_backend_cpu_buffer_type();
}

static ggml_backend_buffer_t device_buffer_from_ptr(ggml_backend_dev_t dev, void *ptr, size_t size,
                                                    size_t max_tensor_size)
{
    (void)dev;
    (void)max_tensor_size;
    return host.ggml_backend_cpu_buffer_from_ptr(ptr, size);
}

/* Of a layer that has attention behind it: with flash attention off, values are written one by
 * one. */
static bool takes_values(const struct ggml_tensor *node)
{
    const struct ggml_tensor *cache = node->view_src;
    return atomic_load(&beside_gpu) && cache && cache->buffer && node->ne[0] > 1 &&
           strncmp(cache->name, "cache_v_l", strlen("cache_v_l")) == 0 &&
           node->src[1]->ne[0] < GPU_BATCH &&
           host.ggml_backend_buft_is_host(host.ggml_backend_buffer_get_type(cache->buffer));
}

static bool supports_node(const struct ggml_tensor *node)
{
    division_note_node();
    switch (node->op) {
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE: return true;
    case GGML_OP_FLASH_ATTN_EXT:
        return !division_hidden() && interface_enabled() && node_supported(node);
    case GGML_OP_SET_ROWS:
        writes_note(node);
        return !division_hidden() && interface_enabled() && takes_values(node);
    default: writes_note(node); return false;
    }
}

static bool device_supports_op(ggml_backend_dev_t dev, const struct ggml_tensor *node)
{
    (void)dev;
    if (node->op != GGML_OP_NONE) return supports_node(node);
    division_note_leaf();
    return true;
}

static bool device_supports_buffer_type(ggml_backend_dev_t dev, ggml_backend_buffer_type_t type)
{
    (void)dev;
    return host.ggml_backend_buft_is_host(type);
}

/* ---------------------------------------------------------------------------------- registry -- */

static const char *registry_name(ggml_backend_reg_t reg)
{
    (void)reg;
    return DEVICE_NAME;
}

static size_t registry_device_count(ggml_backend_reg_t reg)
{
    (void)reg;
    return 1;
}

static ggml_backend_dev_t registry_device(ggml_backend_reg_t reg, size_t index)
{
    (void)reg;
    return index == 0 ? &device : NULL;
}

static void *registry_function(ggml_backend_reg_t reg, const char *name)
{
    (void)reg;
    void *function = NULL;
    ggml_backend_set_n_threads_t set = set_n_threads;
    macattn_ggml_interface_t interface = interface_get;
    /* Asked of devices that hold layers, and of the CPU. */
    if (strcmp(name, "ggml_backend_dev_get_extra_bufts") == 0) atomic_store(&holds_layers, true);
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) memcpy(&function, &set, sizeof function);
    if (strcmp(name, MACATTN_GGML_INTERFACE) == 0) memcpy(&function, &interface, sizeof function);
    return function;
}

static void at_exit(void)
{
    report_write(&settings);
}

static void announce(void)
{
    const char *isa = "";
    for (int i = 0; macattn_isa_name(i); i++) {
        if (macattn_isa_supported(macattn_isa_name(i))) {
            isa = macattn_isa_name(i);
            break;
        }
    }
    char policy[96] = "exact";
    if (settings.config.policy != MACATTN_POLICY_EXACT) {
        const bool budget = settings.config.policy == MACATTN_POLICY_BUDGET;
        snprintf(policy, sizeof policy, "%s, %s %g, ring %d, band %d",
                 macattn_policy_name(settings.config.policy), budget ? "budget" : "tau",
                 (double)(budget ? settings.config.budget : settings.config.tau),
                 (int)settings_ring(&settings), (int)settings_band(&settings));
    }
    host_say("%s for ggml %s, %s, %s threads, policy %s%s%s", macattn_version(),
             MACATTN_GGML_VERSION, isa, pool_kind(), policy, settings.config_path ? ", from " : "",
             settings.config_path ? settings.config_path : "");
}

static void fill_interfaces(void)
{
    device.iface.get_name = device_name;
    device.iface.get_description = device_description;
    device.iface.get_memory = device_memory;
    device.iface.get_type = device_type;
    device.iface.get_props = device_props;
    device.iface.init_backend = device_init;
    device.iface.get_buffer_type = device_buffer_type;
    device.iface.buffer_from_host_ptr = device_buffer_from_ptr;
    device.iface.supports_op = device_supports_op;
    device.iface.supports_buft = device_supports_buffer_type;
    device.reg = &registry;
    registry.api_version = GGML_BACKEND_API_VERSION;
    registry.iface.get_name = registry_name;
    registry.iface.get_device_count = registry_device_count;
    registry.iface.get_device = registry_device;
    registry.iface.get_proc_address = registry_function;
}

__attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void);
__attribute__((visibility("default"))) int ggml_backend_score(void);

ggml_backend_reg_t ggml_backend_init(void)
{
    static bool loaded;
    if (loaded) return &registry;
    if (!host_find(__builtin_return_address(0)) || !environment_read(&settings)) return NULL;
    fill_interfaces();
    pool_init();
    interface_init(&settings);
    atexit(at_exit);
    announce();
    loaded = true;
    return &registry;
}

int ggml_backend_score(void)
{
    return 1;
}
