# SPDX-License-Identifier: Apache-2.0
"""Shared by the programs for vLLM and SGLang: shapes, models without weights, a process for each engine, rows of JSON."""
import json
import multiprocessing
import os
import sys
import time
import traceback

for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine in this process: no start-up of a second one, errors stay readable
    "VLLM_USE_FLASHINFER_SAMPLER": "0",     # flashinfer is not needed
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # statistics are asked of ranks by a function
    "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}.items():
    os.environ.setdefault(name, value)

SHAPES = {  # of Llama
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 128},
    "small": {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
              "num_key_value_heads": 2, "vocab_size": 8000, "head_dim": 128},
    "tiny": {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8,
             "num_key_value_heads": 2, "vocab_size": 8000, "head_dim": 64},
}

# Backends and settings of macattn that are compared. "misses": the share of heads that find nothing, by a query far from all.
# Queries of random weights are tiny: with tau 0 each is near all others, so that without "misses" every head reuses.
WAYS = {
    "flash": {"backend": "FLASH_ATTN"},
    "triton": {"backend": "TRITON_ATTN"},
    "exact": {"backend": "CUSTOM"},
    "reuse": {"backend": "CUSTOM", "settings": {"policy": "paper", "tau": 0.0}},
    "hits95": {"backend": "CUSTOM", "settings": {"policy": "paper", "tau": 0.0}, "misses": 0.05},
    "budget": {"backend": "CUSTOM", "settings": {"policy": "budget"}},
}


def row(**fields):
    print(json.dumps(fields), flush=True)


def shape(name, layers=None):
    """A shape with fewer layers has as much less of a vocabulary: a step's parts keep their proportions."""
    found = dict(SHAPES[name])
    if layers:
        found["vocab_size"] = found["vocab_size"] * layers // found["num_hidden_layers"]
        found["num_hidden_layers"] = layers
    return found


def write_config(folder, shape, max_len):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": max_len,
              "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": False,
              "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, **shape}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)


def prompt(length, seed):
    """Prompts differ from the first token on, so no two share a cached prefix."""
    return [(i * 7 + seed * 13) % 7000 + 5 for i in range(length)]


def in_child(function, *arguments):
    """Run it in a process of its own, forked, so that what is imported already need not be again. Whether it succeeded."""
    def work():
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(1)
        sys.stdout.flush()
        os._exit(0)
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    if child.exitcode:
        row(event="failed", what=function.__name__, arguments=[str(a) for a in arguments], status=child.exitcode)
    return child.exitcode == 0


def import_vllm():
    """What every engine would import anew. It must leave the GPU alone, or no child could use it."""
    import importlib

    import torch
    for name in ("vllm", "vllm.v1.engine.core", "vllm.v1.worker.gpu_worker", "vllm.v1.worker.gpu.model_runner",
                 "vllm.model_executor.models.llama", "vllm.v1.attention.backends.flash_attn"):
        importlib.import_module(name)
    if torch.cuda.is_initialized():
        raise RuntimeError("importing vLLM has initialised the GPU")


def start_vllm(folder, way, **options):
    """An engine. The model's folder holds a config.json at least."""
    import vllm
    return vllm.LLM(model=folder, skip_tokenizer_init=True, attention_backend=WAYS[way]["backend"],
                    additional_config={"macattn": {**WAYS[way].get("settings", {}), **options.pop("settings", {})}}, **options)


def stop(llm):
    """End ranks in other processes, which would keep their memory while the next engine starts."""
    import torch
    torch.cuda.synchronize()
    if llm.llm_engine.vllm_config.parallel_config.world_size > 1:
        llm.llm_engine.engine_core.shutdown()


def versions():
    import torch
    import vllm
    return {"vllm": vllm.__version__, "torch": torch.__version__, "gpu": torch.cuda.get_device_name()}


def attention_of(llm):
    """The attention backends that the model's layers really use."""
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    found = {getattr(layer, "attn_backend", None) for layer in layers} - {None}
    return sorted(f"{c.__module__}.{c.__qualname__}" for c in found)


def parameters(**more):
    import vllm
    return vllm.SamplingParams(temperature=0, ignore_eos=True, detokenize=False, **more)


def watch_runner(record):
    """Call record(what vLLM scheduled, start, seconds) after each of the model runner's execute_model, which prepares and launches
    a step on the CPU; start is perf_counter's."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    plain = GPUModelRunner.execute_model

    def execute_model(self, scheduled, *arguments, **more):
        start = time.perf_counter()
        try:
            return plain(self, scheduled, *arguments, **more)
        finally:
            record(scheduled, start, time.perf_counter() - start)
    GPUModelRunner.execute_model = execute_model
