/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest use of macattn: one sequence, one layer, a prompt and some decoded tokens.
 *
 * A stand-in for a model makes the numbers: keys and values are noise, and queries go around a few
 * topics, as those of real heads do. It has no RoPE, so `q` and `q_match` are the same; a model
 * with RoPE hands over the rotated query as `q` and the one before rotation as `q_match`. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "macattn/macattn.h"

enum { HEADS = 4, KV_HEADS = 2, DIM = 64, TOPICS = 8, PROMPT = 1024, DECODE = 64 };

static float keys[PROMPT + DECODE][KV_HEADS][DIM];
static float values[PROMPT + DECODE][KV_HEADS][DIM];
static float queries[PROMPT + DECODE][HEADS][DIM];
static float out[PROMPT][HEADS][DIM];
static float exact[HEADS][DIM];

static float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) * (2.0f / 16777216.0f) - 1.0f;
}

static void make_numbers(void)
{
    static float topics[TOPICS][HEADS][DIM];
    uint32_t state = 1;
    float *topic = &topics[0][0][0];
    for (int i = 0; i < TOPICS * HEADS * DIM; i++) {
        topic[i] = noise(&state);
    }
    for (int t = 0; t < PROMPT + DECODE; t++) {
        for (int i = 0; i < KV_HEADS * DIM; i++) {
            keys[t][i / DIM][i % DIM] = noise(&state);
            values[t][i / DIM][i % DIM] = noise(&state);
        }
        for (int i = 0; i < HEADS * DIM; i++) {
            queries[t][i / DIM][i % DIM] =
                topics[t % TOPICS][i / DIM][i % DIM] + 0.02f * noise(&state);
        }
    }
}

static void check(const macattn *m, macattn_status status)
{
    if (status != MACATTN_OK) {
        fprintf(stderr, "%s: %s\n", macattn_status_string(status), macattn_last_error(m));
        exit(1);
    }
}

int main(void)
{
    make_numbers();

    macattn_config cfg;
    macattn_config_init(&cfg);
    cfg.n_layers = 1;
    cfg.n_heads = HEADS;
    cfg.n_kv_heads = KV_HEADS;
    cfg.head_dim = DIM;
    cfg.k_dtype = cfg.v_dtype = MACATTN_DTYPE_F32;
    cfg.budget = 0.02f;   /* relative error that reuse may make */
    cfg.band = 64;        /* tokens that are always computed */
    cfg.min_tokens = 512; /* shorter sequences are computed in full */

    macattn *m = NULL;
    char error[256];
    if (macattn_create(&cfg, &m, error, sizeof error) != MACATTN_OK) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }

    /* Where the KV cache lies: one contiguous run of tokens, all heads of a token in one row. */
    macattn_row row = {.slot = 0};
    macattn_batch batch = {.struct_size = sizeof batch, .n_rows = 1, .rows = &row, .n_pages = 1};
    macattn_io io = {.struct_size = sizeof io, .out = &out[0][0][0]};
    io.kv.k = keys;
    io.kv.v = values;
    io.kv.k_page_stride = io.kv.v_page_stride = sizeof keys;
    io.kv.k_token_stride = io.kv.v_token_stride = sizeof keys[0];
    io.kv.k_head_stride = io.kv.v_head_stride = sizeof keys[0][0];

    /* The prompt: all its queries at once. Its last queries fill the ring. */
    row.n_queries = PROMPT;
    row.n_tokens = PROMPT;
    io.q = io.q_match = queries;
    check(m, macattn_plan(m, &batch));
    check(m, macattn_prefill(m, 0, &io));

    /* Then token by token. */
    float largest = 0.0f;
    for (int t = PROMPT; t < PROMPT + DECODE; t++) {
        row.n_queries = 1;
        row.n_tokens = t + 1;
        io.q = io.q_match = queries[t];
        io.out = &out[0][0][0];
        check(m, macattn_plan(m, &batch));
        check(m, macattn_decode(m, 0, &io));

        io.out = &exact[0][0]; /* only to see how far a reused summary is from exact attention */
        check(m, macattn_attend(m, &io));
        for (int i = 0; i < HEADS * DIM; i++) {
            largest = fmaxf(largest, fabsf(out[0][i / DIM][i % DIM] - exact[i / DIM][i % DIM]));
        }
    }

    macattn_stats stats = {.struct_size = sizeof stats};
    check(m, macattn_stats_get(m, -1, -1, &stats));
    printf("macattn %s: %d tokens decoded, %.0f%% of the heads' steps reused a summary, "
           "%.0f%% of the tokens skipped, largest difference from exact %.1e\n",
           macattn_version(), DECODE, 100.0 * (double)stats.hits / (double)stats.steps,
           100.0 * (double)stats.tokens_skipped / (double)stats.tokens_total, (double)largest);

    macattn_destroy(m);
    return stats.hits > 0 && largest < 0.05f ? 0 : 1;
}
