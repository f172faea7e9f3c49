#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_model.py GGUF_PY ARCHITECTURE OUT.gguf [WIDTH]: a tiny random model of 4 heads. GGUF_PY is llama.cpp's folder
`gguf-py`.

gpt2 has no RoPE; stablelm rotates the first quarter of each head only; bert is an encoder, without a cache.
"""
import sys

import numpy as np

sys.path.insert(0, sys.argv[1])
import gguf  # noqa: E402

LAYERS, HEADS, KV_HEADS, FEED_FORWARD, CONTEXT = 2, 4, 2, 256, 4096
WIDTH = int(sys.argv[4]) if len(sys.argv) > 4 else 128
HEAD_DIM = WIDTH // HEADS


def vocabulary(w):
    kind = gguf.TokenType
    tokens = [b'<unk>', b'<s>', b'</s>'] + [b'<0x%02X>' % i for i in range(256)]
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256
    scores = [0.0] * len(tokens)
    for c in ['\u2581'] + [chr(i) for i in range(33, 127)]:
        tokens.append(c.encode())
        kinds.append(kind.NORMAL)
        scores.append(-float(len(tokens)))
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model('llama')
    w.add_tokenizer_pre('default')
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(kinds)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    return len(tokens)


def bert(w, matrix, norm):
    """What it has in another way than the others."""
    w.add_causal_attention(False)
    w.add_token_type_count(1)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    matrix('position_embd', CONTEXT, WIDTH)
    matrix('token_types', 1, WIDTH)
    norm('token_embd_norm')
    for layer in range(LAYERS):
        block = f'blk.{layer}.'
        norm(block + 'attn_output_norm')
        norm(block + 'layer_output_norm')
        for name in ('attn_q', 'attn_k', 'attn_v', 'attn_output'):
            matrix(block + name, WIDTH, WIDTH)
        matrix(block + 'ffn_up', FEED_FORWARD, WIDTH)
        matrix(block + 'ffn_down', WIDTH, FEED_FORWARD)


def main():
    architecture, path = sys.argv[2:4]
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, architecture)
    w.add_context_length(CONTEXT)
    w.add_embedding_length(WIDTH)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FEED_FORWARD)
    w.add_head_count(HEADS)
    w.add_layer_norm_eps(1e-5)
    gpt2 = architecture == 'gpt2'
    encoder = architecture == 'bert'
    kv_heads = HEADS if gpt2 else KV_HEADS
    if not gpt2 and not encoder:
        w.add_head_count_kv(kv_heads)
        w.add_rope_dimension_count(HEAD_DIM // 4)
        w.add_rope_freq_base(10000.0)
        w.add_parallel_residual(False)
    n_tokens = vocabulary(w)

    def matrix(name, rows, columns, scale=1.0):
        w.add_tensor(name + '.weight', (rng.standard_normal((rows, columns)) * scale / columns ** 0.5).astype(np.float32))
        if gpt2 and name.startswith('blk'):
            w.add_tensor(name + '.bias', np.zeros(rows, np.float32))

    def norm(name):
        w.add_tensor(name + '.weight', np.ones(WIDTH, np.float32))
        w.add_tensor(name + '.bias', np.zeros(WIDTH, np.float32))

    matrix('token_embd', n_tokens, WIDTH, WIDTH ** 0.5)
    if gpt2:
        matrix('position_embd', CONTEXT, WIDTH, WIDTH ** 0.5 / 4)
    if encoder:
        bert(w, matrix, norm)
        return finish(w)
    norm('output_norm')
    matrix('output', n_tokens, WIDTH, 4)
    for layer in range(LAYERS):
        block = f'blk.{layer}.'
        norm(block + 'attn_norm')
        norm(block + 'ffn_norm')
        if gpt2:
            matrix(block + 'attn_qkv', 3 * WIDTH, WIDTH, 1.5)
        else:
            matrix(block + 'attn_q', WIDTH, WIDTH, 0.5)
            matrix(block + 'attn_k', kv_heads * HEAD_DIM, WIDTH)
            matrix(block + 'attn_v', kv_heads * HEAD_DIM, WIDTH)
            matrix(block + 'ffn_gate', FEED_FORWARD, WIDTH)
        matrix(block + 'attn_output', WIDTH, WIDTH)
        matrix(block + 'ffn_up', FEED_FORWARD, WIDTH)
        matrix(block + 'ffn_down', WIDTH, FEED_FORWARD)
    finish(w)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == '__main__':
    main()
