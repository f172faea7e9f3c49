/* SPDX-License-Identifier: Apache-2.0 */
/* The ggml of the program that loads the plug-in.
 *
 * The plug-in links no ggml library: programs carry ggml as shared libraries of any name, inside
 * a Python package, or statically. Its functions are looked up in the object that called
 * ggml_backend_init, and what that object reports as its version must be the one whose headers
 * the plug-in was compiled with, because ggml's backend interface has changed its layout without
 * changing its number. */
#ifndef MACATTN_PLUGIN_HOST_H
#define MACATTN_PLUGIN_HOST_H

#include <stdbool.h>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml.h"

#define HOST_FUNCTIONS(XX)                                                                    \
    XX(const char *, ggml_version, (void))                                                    \
    XX(struct ggml_context *, ggml_init, (struct ggml_init_params))                           \
    XX(void, ggml_free, (struct ggml_context *))                                              \
    XX(size_t, ggml_graph_overhead_custom, (size_t, bool))                                    \
    XX(struct ggml_cgraph *, ggml_new_graph_custom, (struct ggml_context *, size_t, bool))    \
    XX(void, ggml_graph_clear, (struct ggml_cgraph *))                                        \
    XX(void, ggml_graph_add_node, (struct ggml_cgraph *, struct ggml_tensor *))               \
    XX(int, ggml_graph_n_nodes, (struct ggml_cgraph *))                                       \
    XX(struct ggml_tensor *, ggml_graph_node, (struct ggml_cgraph *, int))                    \
    XX(void, ggml_rope_yarn_corr_dims, (int, int, float, float, float, float *))              \
    XX(ggml_backend_buffer_type_t, ggml_backend_cpu_buffer_type, (void))                      \
    XX(ggml_backend_buffer_t, ggml_backend_cpu_buffer_from_ptr, (void *, size_t))             \
    XX(bool, ggml_backend_buft_is_host, (ggml_backend_buffer_type_t))                         \
    XX(ggml_backend_buffer_type_t, ggml_backend_buffer_get_type, (ggml_backend_buffer_t))     \
    XX(ggml_backend_t, ggml_backend_init_by_type, (enum ggml_backend_dev_type, const char *)) \
    XX(void, ggml_backend_free, (ggml_backend_t))                                             \
    XX(enum ggml_status, ggml_backend_graph_compute, (ggml_backend_t, struct ggml_cgraph *))  \
    XX(ggml_backend_dev_t, ggml_backend_get_device, (ggml_backend_t))                         \
    XX(size_t, ggml_backend_dev_count, (void))                                                \
    XX(ggml_backend_dev_t, ggml_backend_dev_get, (size_t))                                    \
    XX(enum ggml_backend_dev_type, ggml_backend_dev_type, (ggml_backend_dev_t))               \
    XX(ggml_backend_dev_t, ggml_backend_dev_by_type, (enum ggml_backend_dev_type))            \
    XX(ggml_backend_reg_t, ggml_backend_dev_backend_reg, (ggml_backend_dev_t))                \
    XX(void *, ggml_backend_reg_get_proc_address, (ggml_backend_reg_t, const char *))

typedef struct host_functions {
#define HOST_MEMBER(type, name, args) type(*name) args;
    HOST_FUNCTIONS(HOST_MEMBER)
#undef HOST_MEMBER
} host_functions;

/*! The host's functions; set by host_find. */
extern host_functions host;

/*! host_find() : look up the functions in the object that contains `caller` and check the version.
 * @return : false, with a message on stderr, if anything is missing or differs. */
bool host_find(const void *caller);

/*! host_say() : one line on stderr, "macattn: " first. */
void host_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
