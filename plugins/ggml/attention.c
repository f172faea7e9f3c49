/* SPDX-License-Identifier: Apache-2.0 */
#include "attention.h"

#include <string.h>
#include <time.h>

#include "audit.h"
#include "group.h"
#include "queries.h"
#include "rows.h"
#include "step.h"
#include "trace.h"

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static enum ggml_status compute_by_ggml(attention *a, struct ggml_tensor *node, int n_threads)
{
    if (!a->cpu_context) {
        struct ggml_init_params params = {host.ggml_graph_overhead_custom(16, false) + 1024, NULL,
                                          true};
        a->cpu_context = host.ggml_init(params);
        if (a->cpu_context) a->cpu_graph = host.ggml_new_graph_custom(a->cpu_context, 16, false);
        a->cpu = host.ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    }
    if (!a->cpu || !a->cpu_context) {
        host_say("there is no CPU backend to leave %s to", node->name);
        return GGML_STATUS_FAILED;
    }
    ggml_backend_reg_t reg =
        host.ggml_backend_dev_backend_reg(host.ggml_backend_get_device(a->cpu));
    void *function = host.ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    ggml_backend_set_n_threads_t set;
    memcpy(&set, &function, sizeof set);
    if (set) set(a->cpu, n_threads);
    host.ggml_graph_clear(a->cpu_graph);
    host.ggml_graph_add_node(a->cpu_graph, node);
    return host.ggml_backend_graph_compute(a->cpu, a->cpu_graph);
}

static bool decode(attention *a, group *g, int l, const macattn_io *io)
{
    const int every = a->settings.audit_every;
    const bool count = a->settings.count_bytes && g->step.n_rows == 1;
    if (every == 0 && !count) return macattn_decode(g->m, l, io) == MACATTN_OK;
    head_before before[1024], after[1024];
    audit_read_heads(g, l, before);
    if (macattn_decode(g->m, l, io) != MACATTN_OK) return false;
    audit_read_heads(g, l, after);
    if (count) audit_count_bytes(a, g, l, before, after);
    bool hit = false;
    for (int32_t h = 0; h < g->key.n_heads; h++) hit = hit || audit_reused(&before[h], &after[h]);
    if (every > 0 && hit && ++g->layers[l].n_decodes_with_hits % (uint64_t)every == 0) {
        audit_step(a, g, l, io, before, after);
    }
    return true;
}

static bool attend(attention *a, group *g, const trace *t, const macattn_io *io)
{
    if (macattn_attend(g->m, io) != MACATTN_OK) return false;
    const step *s = &g->step;
    if (t && a->settings.count_bytes && s->single && s->n_rows == 1) {
        audit_count_bytes(a, g, t->layer, NULL, NULL);
    }
    return true;
}

static bool compute_by_macattn(attention *a, group *g, trace *t, struct ggml_tensor *node)
{
    const struct ggml_tensor *k = node->src[1], *v = node->src[2];
    const step *s = &g->step;
    macattn_io io = {.struct_size = sizeof io,
                     .kv = {.k = k->data,
                            .v = v->data,
                            .k_page_stride = (int64_t)k->nb[1],
                            .k_token_stride = (int64_t)k->nb[1],
                            .k_head_stride = (int64_t)k->nb[2],
                            .v_page_stride = (int64_t)v->nb[1],
                            .v_token_stride = (int64_t)v->nb[1],
                            .v_head_stride = (int64_t)v->nb[2]},
                     .sinks = node->src[4] ? node->src[4]->data : NULL,
                     .out = node->data};
    if (!queries_set(a, node->src[0], &io)) return false;
    if (s->mode == STEP_EXACT) return attend(a, g, t, &io);
    queries_set_match(a, t, &io);
    if (s->single) return decode(a, g, t->layer, &io);
    return macattn_prefill(g->m, t->layer, &io) == MACATTN_OK;
}

static enum ggml_status compute(attention *a, group *g, trace *t, struct ggml_tensor *node,
                                report_calls **calls)
{
    step *s = &g->step;
    if (!step_continues(g, node, t)) step_begin(a, g, node, t);
    *calls = s->single ? &a->totals.decode : &a->totals.prefill;
    bool ok = s->mode != STEP_GGML && compute_by_macattn(a, g, t, node);
    if (!ok) {
        *calls = &a->totals.ggml;
        ok = compute_by_ggml(a, node, a->n_threads) == GGML_STATUS_SUCCESS;
    }
    if (t) s->done[t->layer] = 1;
    if (t && g->trackers && t->layer == g->n_layers - 1) rows_fingerprint(g);
    return ok ? GGML_STATUS_SUCCESS : GGML_STATUS_FAILED;
}

enum ggml_status attention_compute(attention *a, struct ggml_tensor *node)
{
    if (node->op != GGML_OP_FLASH_ATTN_EXT) return compute_by_ggml(a, node, 1);
    const uint64_t start = now_ns();
    report_calls *calls = &a->totals.ggml;
    enum ggml_status status;
    trace *t = trace_of(a, node);
    const group_key key = group_key_of(node);
    group *g = t ? t->group : group_get(a, &key);
    if (g && group_object_create(a, g)) {
        status = compute(a, g, t, node, &calls);
    } else {
        status = compute_by_ggml(a, node, a->n_threads);
    }
    calls->calls++;
    calls->ns += now_ns() - start;
    return status;
}
