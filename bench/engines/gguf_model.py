# SPDX-License-Identifier: Apache-2.0
"""A GGUF model of arch qwen2 as a folder that vLLM and SGLang load: config.json and bf16 weights.

usage: gguf_model.py MODEL.gguf FOLDER

The quantised values are kept, rounded to bf16. Prompts are given as tokens, so there is no tokenizer in the folder.
"""
import json
import os
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(1, str(pathlib.Path(__file__).parents[1] / "models"))
from gguf_file import File  # noqa: E402

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_A_LAYER = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
              "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
              "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def name_of(name):
    """A tensor's name in Hugging Face's models."""
    *block, name, kind = name.split(".")
    if block:
        return f"model.layers.{block[1]}.{IN_A_LAYER[name]}.{kind}"
    return f"{NAMES[name]}.{kind}"


def config_of(file):
    field, shapes = file.field, file.shapes()
    if field("general.architecture") != "qwen2":
        raise SystemExit(f"gguf_model.py: arch {field('general.architecture')}; this program knows qwen2")
    theta = field("qwen2.rope.freq_base", 10000.0)
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "torch_dtype": "bfloat16",
            "hidden_size": field("qwen2.embedding_length"), "intermediate_size": field("qwen2.feed_forward_length"),
            "num_hidden_layers": field("qwen2.block_count"), "num_attention_heads": field("qwen2.attention.head_count"),
            "num_key_value_heads": field("qwen2.attention.head_count_kv"),
            "max_position_embeddings": field("qwen2.context_length"),
            "rms_norm_eps": field("qwen2.attention.layer_norm_rms_epsilon"), "vocab_size": shapes["token_embd.weight"][0],
            "rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}, "use_sliding_window": False,
            "tie_word_embeddings": "output.weight" not in shapes, "bos_token_id": field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": field("tokenizer.ggml.eos_token_id")}


def write_model(path, folder):
    import torch
    from safetensors.torch import save_file
    file = File(path)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config_of(file), f, indent=1)

    def convert(name, values):
        return name_of(name), torch.from_numpy(values).to(torch.bfloat16)
    with ThreadPoolExecutor() as pool:
        save_file(dict(file.tensors(convert, pool.map)), os.path.join(folder, "model.safetensors"), {"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: gguf_model.py MODEL.gguf FOLDER")
    write_model(*sys.argv[1:])
