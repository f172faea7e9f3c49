/* SPDX-License-Identifier: Apache-2.0 */
#include "interface.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>

#include "group.h"

static plugin_settings *defaults;
static _Atomic(attention *) newest;
static atomic_bool disabled;

/* A macattn_ggml is an `attention` under a name that belongs to the public header. */
static attention *of(macattn_ggml *m)
{
    return (attention *)(void *)m;
}

static const attention *of_const(const macattn_ggml *m)
{
    return (const attention *)(const void *)m;
}

void interface_init(plugin_settings *settings)
{
    defaults = settings;
}

bool interface_enabled(void)
{
    return !atomic_load(&disabled);
}

void interface_note_context(attention *a)
{
    atomic_store(&newest, a);
}

void interface_note_end(const attention *a)
{
    attention *expected = (attention *)(uintptr_t)a;
    atomic_compare_exchange_strong(&newest, &expected, NULL);
}

static void get_options(macattn_ggml_options *seen)
{
    settings_get(defaults, seen);
}

static macattn_status set_options(const macattn_ggml_options *seen, char *error, size_t error_size)
{
    return settings_set(defaults, seen, error, error_size);
}

static void enable(int on)
{
    atomic_store(&disabled, on == 0);
}

static macattn_ggml *get_newest(void)
{
    return (macattn_ggml *)(void *)atomic_load(&newest);
}

static macattn_status keep(macattn_ggml *m)
{
    return m ? attention_keep(of(m)) : MACATTN_E_ARG;
}

static macattn_status restart(macattn_ggml *m, const macattn_ggml_options *seen, char *error,
                              size_t error_size)
{
    plugin_settings settings = *defaults;
    if (!m) return MACATTN_E_ARG;
    macattn_status status = settings_set(&settings, seen, error, error_size);
    if (status != MACATTN_OK) return status;
    status = attention_restart(of(m), &settings);
    if (status != MACATTN_OK) {
        snprintf(error, error_size, "%s",
                 status == MACATTN_E_STATE
                     ? "the context was made with the policy exact, and cannot reuse"
                     : "no memory for another object");
    }
    return status;
}

static macattn_status set_budgets(macattn_ggml *m, const macattn_ggml_options *seen, char *error,
                                  size_t error_size)
{
    plugin_settings settings = *defaults;
    if (!m) return MACATTN_E_ARG;
    macattn_status status = settings_set(&settings, seen, error, error_size);
    if (status == MACATTN_OK) {
        status = attention_set_budgets(of(m), &settings);
        if (status != MACATTN_OK) snprintf(error, error_size, "the policy has no budget");
    }
    return status;
}

static int32_t n_layers(const macattn_ggml *m)
{
    return m ? attention_n_layers(of_const(m)) : 0;
}

static macattn_status get_layer(const macattn_ggml *m, int32_t l, macattn_ggml_layer *info)
{
    return m ? attention_layer(of_const(m), l, info) : MACATTN_E_ARG;
}

static macattn_status get_stats(macattn_ggml *m, int32_t l, int32_t head, macattn_stats *s)
{
    return m ? attention_stats(of(m), l, head, s) : MACATTN_E_ARG;
}

static macattn_status get_bytes(const macattn_ggml *m, int32_t l, macattn_ggml_bytes *b)
{
    return m ? attention_bytes(of_const(m), l, b) : MACATTN_E_ARG;
}

static macattn_status get_counts(const macattn_ggml *m, macattn_ggml_counts *c)
{
    if (!m || !c || c->struct_size != sizeof *c) return MACATTN_E_ARG;
    const report_totals *t = attention_totals(of_const(m));
    *c = (macattn_ggml_counts){.struct_size = sizeof *c,
                               .decode_calls = t->decode.calls,
                               .prefill_calls = t->prefill.calls,
                               .left_to_ggml = t->ggml.calls,
                               .decode_ns = t->decode.ns,
                               .prefill_ns = t->prefill.ns,
                               .prompts = t->tracked.prompts,
                               .changes = t->tracked.changes,
                               .mismatches = t->tracked.mismatches,
                               .rollbacks = t->tracked.rollbacks,
                               .forks = t->tracked.forks};
    return MACATTN_OK;
}

const macattn_ggml_interface *interface_get(int32_t version)
{
    static const macattn_ggml_interface interface = {.version = MACATTN_GGML_INTERFACE_VERSION,
                                                     .get_options = get_options,
                                                     .set_options = set_options,
                                                     .enable = enable,
                                                     .newest = get_newest,
                                                     .keep = keep,
                                                     .restart = restart,
                                                     .n_layers = n_layers,
                                                     .layer = get_layer,
                                                     .stats = get_stats,
                                                     .bytes = get_bytes,
                                                     .counts = get_counts,
                                                     .set_budgets = set_budgets};
    return version == MACATTN_GGML_INTERFACE_VERSION ? &interface : NULL;
}
