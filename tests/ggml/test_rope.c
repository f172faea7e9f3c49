/* SPDX-License-Identifier: Apache-2.0 */
/* rope_rotate gives what ggml's ROPE gives, and undoing it gives back what it was given: both
 * layouts, partial rotation, frequency factors, YaRN. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "host.h"
#include "rope.h"

enum { DIM = 96, HEADS = 3, TOKENS = 5 };

typedef struct kind {
    const char *name;
    int n_dims, mode, n_ctx_orig;
    float base, scale, ext, magnitude;
    int factors;
} kind;

static const kind kinds[] = {
    {"normal", DIM, GGML_ROPE_TYPE_NORMAL, 0, 10000.0f, 1.0f, 0.0f, 1.0f, 0},
    {"neox", DIM, GGML_ROPE_TYPE_NEOX, 0, 500000.0f, 1.0f, 0.0f, 1.0f, 0},
    {"partial normal", 64, GGML_ROPE_TYPE_NORMAL, 0, 10000.0f, 1.0f, 0.0f, 1.0f, 0},
    {"partial neox", 32, GGML_ROPE_TYPE_NEOX, 0, 10000.0f, 1.0f, 0.0f, 1.0f, 0},
    {"linear scaling", DIM, GGML_ROPE_TYPE_NORMAL, 0, 10000.0f, 0.25f, 0.0f, 1.0f, 0},
    {"frequency factors", DIM, GGML_ROPE_TYPE_NORMAL, 8192, 500000.0f, 1.0f, 0.0f, 1.0f, 1},
    {"yarn", DIM, GGML_ROPE_TYPE_NEOX, 4096, 10000.0f, 0.125f, 1.0f, 0.8f, 0},
    {"partial yarn with factors", 64, GGML_ROPE_TYPE_NORMAL, 4096, 10000.0f, 0.5f, 1.0f, 1.0f, 1},
};

static float noise(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / (float)(1 << 23) - 1.0f;
}

static float worst(const float *x, const float *y)
{
    float w = 0;
    for (int i = 0; i < DIM * HEADS * TOKENS; i++) w = fmaxf(w, fabsf(x[i] - y[i]));
    return w;
}

static int check(const kind *k)
{
    static char memory[1 << 20];
    struct ggml_init_params params = {sizeof memory, memory, false};
    struct ggml_context *c = ggml_init(params);
    struct ggml_tensor *x = ggml_new_tensor_3d(c, GGML_TYPE_F32, DIM, HEADS, TOKENS);
    struct ggml_tensor *pos = ggml_new_tensor_1d(c, GGML_TYPE_I32, TOKENS);
    struct ggml_tensor *factors =
        k->factors ? ggml_new_tensor_1d(c, GGML_TYPE_F32, k->n_dims / 2) : NULL;
    unsigned state = 7;
    for (int i = 0; i < DIM * HEADS * TOKENS; i++) ((float *)x->data)[i] = noise(&state);
    for (int i = 0; i < TOKENS; i++)
        ((int32_t *)pos->data)[i] = (int32_t[]){0, 1, 17, 4095, 30000}[i];
    for (int i = 0; factors && i < k->n_dims / 2; i++)
        ((float *)factors->data)[i] = 1.0f + 0.5f * (float)i;
    struct ggml_tensor *rope = ggml_rope_ext(c, x, pos, factors, k->n_dims, k->mode, k->n_ctx_orig,
                                             k->base, k->scale, k->ext, k->magnitude, 32.0f, 1.0f);
    struct ggml_cgraph *graph = ggml_new_graph(c);
    ggml_build_forward_expand(graph, rope);
    ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, NULL);
    ggml_backend_graph_compute(cpu, graph);
    ggml_backend_free(cpu);

    float turned[DIM * HEADS * TOKENS], back[DIM * HEADS * TOKENS];
    const size_t head = DIM * sizeof(float), token = HEADS * head;
    for (int i = 0; i < TOKENS; i++) {
        const int32_t p = ((int32_t *)pos->data)[i];
        rope_rotate(rope, p, false, HEADS, (char *)x->data + (size_t)i * token, head,
                    (char *)turned + (size_t)i * token, head);
        rope_rotate(rope, p, true, HEADS, (char *)rope->data + (size_t)i * token, head,
                    (char *)back + (size_t)i * token, head);
    }
    const float turn_error = worst(turned, rope->data), undo_error = worst(back, x->data);
    const int ok = rope_supported(rope) && turn_error < 2e-4f && undo_error < 2e-4f;
    printf("%-26s turned %.2g, undone %.2g%s\n", k->name, (double)turn_error, (double)undo_error,
           ok ? "" : "  FAILED");
    ggml_free(c);
    return ok;
}

/* Whether the search for the ROPE node goes through what keeps queries comparable, and stops
 * elsewhere. */
static int check_find(void)
{
    static char memory[1 << 20];
    struct ggml_init_params params = {sizeof memory, memory, true};
    struct ggml_context *c = ggml_init(params);
    struct ggml_tensor *x = ggml_new_tensor_3d(c, GGML_TYPE_F32, DIM, HEADS, TOKENS);
    struct ggml_tensor *rope =
        ggml_rope(c, x, ggml_new_tensor_1d(c, GGML_TYPE_I32, TOKENS), DIM, 0);
    struct ggml_tensor *hadamard = ggml_new_tensor_2d(c, GGML_TYPE_F32, DIM, DIM);
    ggml_set_name(hadamard, "attn_inp_k_rot");
    bool plain;
    int ok = rope_find(ggml_permute(c, rope, 0, 2, 1, 3), &plain) == rope && plain;
    ok &=
        rope_find(ggml_permute(c, ggml_scale(c, rope, 0.5f), 0, 2, 1, 3), &plain) == rope && !plain;
    ok &= rope_find(ggml_mul_mat(c, hadamard, rope), &plain) == rope && !plain;
    ok &= rope_find(ggml_mul_mat(c, ggml_new_tensor_2d(c, GGML_TYPE_F32, DIM, DIM), rope),
                    &plain) == NULL;
    ok &= rope_find(ggml_add(c, rope, rope), &plain) == NULL;
    ok &= rope_find(ggml_permute(c, x, 0, 2, 1, 3), &plain) == NULL;
    printf("finding the ROPE node%s\n", ok ? "" : "  FAILED");
    ggml_free(c);
    return ok;
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    ggml_backend_load_all_from_path(argv[1]);
    host.ggml_rope_yarn_corr_dims = ggml_rope_yarn_corr_dims;
    int ok = check_find();
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) ok &= check(&kinds[i]);
    return ok ? 0 : 1;
}
