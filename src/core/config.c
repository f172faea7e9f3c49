/* SPDX-License-Identifier: Apache-2.0 */
/* The settings: name, range and default of every field of a configuration, written down once; and
 * what else must hold of it. */
#include "config.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "policy/policy.h"

/* --------------------------------------------------------------------------------- the table -- */

enum { MAX_THREADS = 1024 };

typedef struct field {
    macattn_setting seen;
    size_t offset, bytes;
    bool running; /* how to run on a CPU: none of a GPU's business */
} field;

enum {
    PAPER = 1 << MACATTN_POLICY_PAPER,
    BUDGET = 1 << MACATTN_POLICY_BUDGET,
    REUSE = PAPER | BUDGET,
    ALL = REUSE | 1 << MACATTN_POLICY_EXACT,
};
#define FIELD(name, type, low, high, initial, policies, running, about)                     \
    {                                                                                       \
        {sizeof(macattn_setting),                                                           \
         #name,                                                                             \
         about,                                                                             \
         MACATTN_SETTING_##type,                                                            \
         low,                                                                               \
         high,                                                                              \
         initial,                                                                           \
         policies},                                                                         \
            offsetof(macattn_config, name), sizeof(((macattn_config *)NULL)->name), running \
    }
#define MODEL(name, type, low, high, initial, about) \
    FIELD(name, type, low, high, initial, ALL, false, about)
#define STATE(name, type, low, high, initial, policies, about) \
    FIELD(name, type, low, high, initial, policies, false, about)
#define RUNNING(name, type, low, high, initial, about) \
    FIELD(name, type, low, high, initial, ALL, true, about)

static const field fields[] = {
    MODEL(n_layers, INTEGER, 1, 65536, 0, "layers"),
    MODEL(n_heads, INTEGER, 1, MAI_MAX_HEADS, 0, "query heads"),
    MODEL(n_kv_heads, INTEGER, 1, MAI_MAX_HEADS, 0, "KV heads"),
    MODEL(head_dim, INTEGER, 1, MAI_MAX_DIM, 0, "dimension of q and K"),
    MODEL(v_head_dim, INTEGER, 0, MAI_MAX_DIM, 0, "dimension of V; 0: head_dim"),
    MODEL(q_dtype, DTYPE, MACATTN_DTYPE_F32, MACATTN_DTYPE_BF16, MACATTN_DTYPE_F32, "type of q"),
    MODEL(k_dtype, DTYPE, MACATTN_DTYPE_F32, MACATTN_DTYPE_IQ4_NL, MACATTN_DTYPE_F16, "type of K"),
    MODEL(v_dtype, DTYPE, MACATTN_DTYPE_F32, MACATTN_DTYPE_IQ4_NL, MACATTN_DTYPE_F16, "type of V"),
    MODEL(scale, REAL, -FLT_MAX, FLT_MAX, 0, "factor of q.k; 0: 1 / sqrt(head_dim)"),
    MODEL(softcap, REAL, 0, 1e6, 0, "soft cap of the logits; 0: none"),
    MODEL(window, INTEGER, 0, INT32_MAX, 0, "newest tokens a query sees; 0: all"),
    STATE(max_slots, INTEGER, 1, 65536, 1, ALL, "sequences held at a time"),
    STATE(max_tokens, INTEGER, 1, INT32_MAX, 131072, ALL, "tokens a sequence may have"),
    STATE(policy, POLICY, MACATTN_POLICY_EXACT, MACATTN_POLICY_BUDGET, MACATTN_POLICY_BUDGET, ALL,
          "when a summary may be reused"),
    STATE(ring, INTEGER, 0, 4096, 0, REUSE,
          "queries remembered per layer and head; 0: as the policy has it"),
    STATE(band, INTEGER, 0, INT32_MAX, 0, REUSE,
          "newest tokens in no summary; 0: as the policy has it"),
    STATE(fresh_tokens, INTEGER, 0, INT32_MAX / 2, 4, REUSE, "first tokens in no summary"),
    STATE(min_tokens, INTEGER, 0, 0x1p63, 2048, REUSE, "shorter sequences are computed in full"),
    STATE(tau, REAL, 0, 1, 0.45, PAPER, "similarity asked for"),
    STATE(budget, REAL, 0, 1, 0.01, BUDGET, "error allowed in an output, relative to the layer's"),
    RUNNING(n_threads, INTEGER, 0, MAX_THREADS, 0, "threads; 0: one per CPU"),
    RUNNING(spin_us, INTEGER, 0, 1000000, 100, "microseconds an idle thread spins"),
    STATE(lse_order, INTEGER, 0, 1, 1, REUSE, "whether a summary's lse follows the query; 0: not"),
    STATE(select, INTEGER, 0, 2, 2, BUDGET,
          "read a selection where nothing is reused, by runs' means and outliers; 1: by means; 0: "
          "read all"),
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };

static double value_of(const macattn_config *config, const field *f)
{
    const char *at = (const char *)config + f->offset;
    switch (f->seen.type) {
    case MACATTN_SETTING_REAL: return (double)*(const float *)(const void *)at;
    case MACATTN_SETTING_POLICY: return (int)*(const macattn_policy *)(const void *)at;
    case MACATTN_SETTING_DTYPE: return (int)*(const macattn_dtype *)(const void *)at;
    default: break;
    }
    return f->bytes == sizeof(int64_t) ? (double)*(const int64_t *)(const void *)at
                                       : (double)*(const int32_t *)(const void *)at;
}

/* `value` is in its range. */
static void write_value(macattn_config *config, const field *f, double value)
{
    char *at = (char *)config + f->offset;
    switch (f->seen.type) {
    case MACATTN_SETTING_REAL: *(float *)(void *)at = (float)value; return;
    case MACATTN_SETTING_POLICY: *(macattn_policy *)(void *)at = (macattn_policy)value; return;
    case MACATTN_SETTING_DTYPE: *(macattn_dtype *)(void *)at = (macattn_dtype)value; return;
    default: break;
    }
    if (f->bytes == sizeof(int64_t)) {
        *(int64_t *)(void *)at = value < 0x1p63 ? (int64_t)value : INT64_MAX;
    } else {
        *(int32_t *)(void *)at = (int32_t)value;
    }
}

macattn_status macattn_config_init(macattn_config *config)
{
    if (!config) return MACATTN_E_ARG;
    *config = (macattn_config){.struct_size = sizeof *config};
    for (int i = 0; i < N_FIELDS; i++) write_value(config, &fields[i], fields[i].seen.initial);
    return MACATTN_OK;
}

/* --------------------------------------------------------------------------------- one value -- */

/* Where the sentence about a bad field goes. */
typedef struct verdict {
    char *error;
    size_t error_size;
} verdict;

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static macattn_status
reject(const verdict *v, macattn_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (v->error_size > 0) vsnprintf(v->error, v->error_size, format, args);
    va_end(args);
    return code;
}

/* "f32, f16, bf16": the names of the values in the range. */
static void list_names(const macattn_setting *s, char *out, size_t size)
{
    size_t n = 0;
    for (int i = (int)s->low; i <= (int)s->high && n < size; i++) {
        const char *name = s->type == MACATTN_SETTING_POLICY
                               ? macattn_policy_name((macattn_policy)i)
                               : macattn_dtype_name((macattn_dtype)i);
        n += (size_t)snprintf(out + n, size - n, "%s%s", i > (int)s->low ? ", " : "", name);
    }
}

/* A number that is none of the names' numbers. */
static macattn_status reject_choice(const verdict *v, const macattn_setting *s, double value)
{
    char names[64];
    list_names(s, names, sizeof names);
    if (s->type == MACATTN_SETTING_DTYPE && value >= 0 && value <= MACATTN_DTYPE_IQ4_NL &&
        value == floor(value)) {
        return reject(v, MACATTN_E_UNSUPPORTED, "%s %s is not supported; supported are %s", s->name,
                      macattn_dtype_name((macattn_dtype)value), names);
    }
    return reject(v, MACATTN_E_RANGE, "%s %g does not exist; there are %s", s->name, value, names);
}

static macattn_status check_value(const verdict *v, const macattn_setting *s, double value)
{
    const bool inside = value >= s->low && value <= s->high; /* false for NaN */
    if (inside && (s->type == MACATTN_SETTING_REAL || value == floor(value))) return MACATTN_OK;
    if (s->type == MACATTN_SETTING_POLICY || s->type == MACATTN_SETTING_DTYPE)
        return reject_choice(v, s, value);
    const int digits = s->type == MACATTN_SETTING_REAL ? 6 : 10;
    return reject(v, MACATTN_E_RANGE, "%s is %.*g; it must be %sin [%.*g, %.*g]", s->name, digits,
                  value, inside ? "a whole number " : "", digits, s->low, digits, s->high);
}

static macattn_status check_fields(const verdict *v, const macattn_config *config, bool running)
{
    for (int i = 0; i < N_FIELDS; i++) {
        if (fields[i].running != running) continue;
        MAI_TRY(check_value(v, &fields[i].seen, value_of(config, &fields[i])));
    }
    return MACATTN_OK;
}

/* ---------------------------------------------------------------------------------- settings -- */

const macattn_setting *macattn_setting_at(int index)
{
    return index >= 0 && index < N_FIELDS ? &fields[index].seen : NULL;
}

static const field *find_field(const char *name)
{
    for (int i = 0; name && i < N_FIELDS; i++) {
        if (strcmp(name, fields[i].seen.name) == 0) return &fields[i];
    }
    return NULL;
}

const macattn_setting *macattn_setting_find(const char *name)
{
    const field *f = find_field(name);
    return f ? &f->seen : NULL;
}

/* The field of that name, which the configuration has. */
static macattn_status field_in(const verdict *v, const macattn_config *config, const char *name,
                               const field **out)
{
    if (!config || !name) return reject(v, MACATTN_E_ARG, "config or name is NULL");
    *out = find_field(name);
    if (!*out) return reject(v, MACATTN_E_RANGE, "there is no setting %s", name);
    if (config->struct_size < (*out)->offset + (*out)->bytes) {
        return reject(v, MACATTN_E_ARG, "struct_size is %zu, which leaves no room for %s",
                      config->struct_size, name);
    }
    return MACATTN_OK;
}

macattn_status macattn_setting_get(const macattn_config *config, const char *name, double *value)
{
    const verdict nobody = {NULL, 0};
    const field *f;
    if (!value) return MACATTN_E_ARG;
    MAI_TRY(field_in(&nobody, config, name, &f));
    *value = value_of(config, f);
    return MACATTN_OK;
}

macattn_status macattn_setting_set(macattn_config *config, const char *name, double value,
                                   char *error, size_t error_size)
{
    const verdict v = {error, error ? error_size : 0};
    const field *f;
    MAI_TRY(field_in(&v, config, name, &f));
    MAI_TRY(check_value(&v, &f->seen, value));
    write_value(config, f, value);
    return MACATTN_OK;
}

/* By name where it has names. */
static macattn_status read_value(const verdict *v, const macattn_setting *s, const char *text,
                                 double *value)
{
    char *end, names[64];
    macattn_policy policy;
    macattn_dtype dtype;
    if (s->type == MACATTN_SETTING_POLICY && macattn_policy_find(text, &policy) == MACATTN_OK) {
        *value = policy;
        return MACATTN_OK;
    }
    if (s->type == MACATTN_SETTING_DTYPE && macattn_dtype_find(text, &dtype) == MACATTN_OK) {
        *value = dtype;
        return MACATTN_OK;
    }
    if (s->type == MACATTN_SETTING_POLICY || s->type == MACATTN_SETTING_DTYPE) {
        list_names(s, names, sizeof names);
        return reject(v, MACATTN_E_RANGE, "%s %s is none of %s", s->name, text, names);
    }
    *value = strtod(text, &end);
    if (end == text || *end != '\0' || strchr(" \t\n\v\f\r", text[0])) {
        return reject(v, MACATTN_E_RANGE, "%s is \"%s\", which is no number", s->name, text);
    }
    return MACATTN_OK;
}

macattn_status macattn_setting_parse(macattn_config *config, const char *name, const char *text,
                                     char *error, size_t error_size)
{
    const verdict v = {error, error ? error_size : 0};
    const field *f;
    double value = 0;
    MAI_TRY(field_in(&v, config, name, &f));
    if (!text) return reject(&v, MACATTN_E_ARG, "the text for %s is NULL", name);
    MAI_TRY(read_value(&v, &f->seen, text, &value));
    return macattn_setting_set(config, name, value, error, error_size);
}

/* ----------------------------------------------------------------------------- configuration -- */

/* An older caller's struct is shorter: what it lacks takes its default. A newer caller's may be
 * longer, if it leaves at zero what this library does not know. */
static macattn_status copy_config(const verdict *v, const macattn_config *in, macattn_config *out)
{
    const size_t first = offsetof(macattn_config, n_kv_heads); /* no caller is older than that */
    if (in->struct_size < first || in->struct_size > 65536) {
        return reject(v, MACATTN_E_ARG, "struct_size is %zu; call macattn_config_init first",
                      in->struct_size);
    }
    for (size_t i = sizeof *in; i < in->struct_size; i++) {
        if (((const unsigned char *)in)[i] != 0) {
            return reject(v, MACATTN_E_ARG,
                          "the configuration has a field set that version %s does not know",
                          MACATTN_VERSION);
        }
    }
    macattn_config_init(out);
    memcpy(out, in, in->struct_size < sizeof *out ? in->struct_size : sizeof *out);
    out->struct_size = sizeof *out;
    return MACATTN_OK;
}

static macattn_status check_dim(const verdict *v, const char *name, int32_t dim,
                                macattn_dtype dtype)
{
    if (dim % 8 != 0) {
        return reject(v, MACATTN_E_UNSUPPORTED,
                      "%s %d is not supported; supported are the multiples of 8", name, (int)dim);
    }
    if (mai_dtype_block_bytes(dtype) > 0 && dim % 32 != 0) {
        return reject(v, MACATTN_E_UNSUPPORTED,
                      "%s %d is not supported with %s; supported are the multiples of 32", name,
                      (int)dim, macattn_dtype_name(dtype));
    }
    return MACATTN_OK;
}

static macattn_status check_model(const verdict *v, macattn_config *c)
{
    if (c->n_kv_heads > c->n_heads) {
        return reject(v, MACATTN_E_RANGE, "n_kv_heads is %d; there are %d heads",
                      (int)c->n_kv_heads, (int)c->n_heads);
    }
    if (c->n_heads % c->n_kv_heads != 0) {
        return reject(v, MACATTN_E_ARG, "n_heads %d is not a multiple of n_kv_heads %d",
                      (int)c->n_heads, (int)c->n_kv_heads);
    }
    if (c->v_head_dim == 0) c->v_head_dim = c->head_dim;
    MAI_TRY(check_dim(v, "head_dim", c->head_dim, c->k_dtype));
    MAI_TRY(check_dim(v, "v_head_dim", c->v_head_dim, c->v_dtype));
    if (c->scale == 0) c->scale = (float)(1.0 / sqrt((double)c->head_dim));
    return MACATTN_OK;
}

macattn_status mai_config_resolve(const macattn_config *in, macattn_config *out, char *error,
                                  size_t error_size)
{
    const verdict v = {error, error_size};
    if (!in) return reject(&v, MACATTN_E_ARG, "config is NULL");
    MAI_TRY(copy_config(&v, in, out));
    MAI_TRY(check_fields(&v, out, false));
    MAI_TRY(check_model(&v, out));
    if (out->ring == 0) out->ring = MACATTN_DEFAULT_RING(out->policy);
    if (out->band == 0) out->band = MACATTN_DEFAULT_BAND(out->policy);
    return MACATTN_OK;
}

static macattn_status check_cpu_dtype(const verdict *v, const char *name, macattn_dtype dtype)
{
    if (dtype != MACATTN_DTYPE_F8_E4M3) return MACATTN_OK;
    return reject(v, MACATTN_E_UNSUPPORTED,
                  "%s f8_e4m3 is not supported on a CPU; all other types are", name);
}

macattn_status mai_config_resolve_cpu(macattn_config *c, const mai_backend **backend, char *error,
                                      size_t error_size)
{
    const verdict v = {error, error_size};
    MAI_TRY(check_cpu_dtype(&v, "k_dtype", c->k_dtype));
    MAI_TRY(check_cpu_dtype(&v, "v_dtype", c->v_dtype));
    MAI_TRY(check_fields(&v, c, true));
    if (c->n_threads == 0) c->n_threads = mai_threads_default();
    if (c->n_threads > MAX_THREADS) c->n_threads = MAX_THREADS;
    if (!c->alloc != !c->free) {
        return reject(&v, MACATTN_E_ARG, "alloc and free must both be set, or neither");
    }
    *backend = mai_backend_find(c->isa);
    if (!*backend) {
        return reject(&v, MACATTN_E_ISA,
                      "instruction set \"%s\" does not exist or is not supported here",
                      c->isa ? c->isa : "(any)");
    }
    c->isa = (*backend)->name;
    return MACATTN_OK;
}
