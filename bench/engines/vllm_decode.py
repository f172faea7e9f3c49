#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure vLLM's decode time per token with a model of random weights, for one or several attention backends.

    vllm_decode.py                                       tiny model, default backend
    vllm_decode.py --model 8b --context 4000 32000 125000 --batch 1 4 --backend FLASH_ATTN CUSTOM \\
             --additional-config '{"macattn": {"policy": "exact"}}'

Prints one JSON object a line on stdout; logs go to stderr. With several backends each runs in its own process, one after
the other on the same GPU, and rows with the ratio to the first backend follow.

How decode alone is timed: the prompts run once, which fills the prefix cache. Then the same prompts run with SHORT and
with SHORT + TOKENS new tokens, in turn, ROUNDS times. Both skip the cached prefill, so the difference of the two times is
TOKENS decode steps. A row whose prefix was not really cached holds an error and no figure.

Random weights give meaningless queries: this shows that a plug-in runs and what a miss costs, not its hit rate or quality;
"hits" are of all runs so far. `tokens_like_first`: how many of the first new tokens are those of the first backend, of all
(where two tokens are nearly as likely they may differ, and from there on everything).
Needs vLLM and one GPU; no model files and no network. A plug-in is any folder on PYTHONPATH with its *.dist-info.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

for name, value in {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine in this process: no start-up of a second one, errors stay readable
    "VLLM_USE_FLASHINFER_SAMPLER": "0",     # flashinfer is not carried
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}.items():
    os.environ.setdefault(name, value)

MODELS = {
    "tiny": {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
             "num_key_value_heads": 2, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}
SHORT = 8  # new tokens of the shorter run


def row(**fields):
    print(json.dumps(fields), flush=True)


def write_config(folder, shape, max_len):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": 128, "max_position_embeddings": max_len,
              "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": False,
              "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, **shape}
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)


def prompts(context, batch):
    """Rows differ from the first token on, so no two share a cached prefix."""
    return [{"prompt_token_ids": [(i * 7 + j * 13) % 31000 + 5 for i in range(context)]} for j in range(batch)]


def classes(config):
    """The attention backends that the model's layers really use."""
    layers = config.compilation_config.static_forward_context.values()
    found = {getattr(layer, "attn_backend", None) for layer in layers} - {None}
    return sorted(f"{c.__module__}.{c.__qualname__}" for c in found)


def measure(llm, sampling, context, batch, tokens, rounds, block):
    """One row: times of a decode step in ms, or an error."""
    requests = prompts(context, batch)

    def timed(new):
        parameters = sampling(max_tokens=new, ignore_eos=True, temperature=0, detokenize=False)
        start = time.perf_counter()
        out = llm.generate(requests, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        if any(len(o.outputs[0].token_ids) != new for o in out):
            raise RuntimeError(f"asked for {new} new tokens, got {[len(o.outputs[0].token_ids) for o in out]}")
        found[:] = [list(o.outputs[0].token_ids) for o in out]
        return seconds, min(o.num_cached_tokens or 0 for o in out)

    found = []
    first, _ = timed(SHORT)
    timed(SHORT + tokens)
    steps = []
    for _ in range(rounds):
        short, cached_short = timed(SHORT)
        long, cached_long = timed(SHORT + tokens)
        cached = min(cached_short, cached_long)
        if context - cached > block:
            return {"error": f"prefix not cached ({cached} of {context} tokens): the time would hold prefill"}
        steps.append(1000 * (long - short) / tokens)
    median = statistics.median(steps)
    return {"ms_per_token": round(median, 4), "min": round(min(steps), 4), "max": round(max(steps), 4), "rounds": rounds,
            "tokens": tokens, "tokens_per_s": round(1000 * batch / median, 1) if median > 0 else None,
            "first_s": round(first, 2), "new_tokens": [tokens[:32] for tokens in found], **reuse(llm)}


def reuse(llm):
    """macattn's counters, if it is the backend."""
    if not any(name.startswith("macattn") for name in classes(llm.llm_engine.vllm_config)):
        return {}
    import macattn.vllm
    s = macattn.vllm.stats()
    share = s["hits"] / s["steps"] if s.get("steps") else 0
    return {"hits": round(share, 4), "skipped": round(s["tokens_skipped"] / max(s.get("tokens_total", 0), 1), 4) if s else 0}


def run(args, backend):
    """Start the engine, print its row and one row per context and batch. Returns whether a row failed."""
    with tempfile.TemporaryDirectory() as folder:  # kept while the engine lives: it may read the configuration again
        return run_in(folder, args, backend)


def run_in(folder, args, backend):
    start = time.perf_counter()
    import torch
    import vllm
    max_len = max(args.context) + SHORT + args.tokens + 16
    write_config(folder, MODELS[args.model], max_len)
    options = {}
    if backend != "default":
        options["attention_backend"] = backend
    if args.compilation:
        options["compilation_config"] = args.compilation
    llm = vllm.LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, max_model_len=max_len,
                   max_num_seqs=max(args.batch), max_num_batched_tokens=16384, gpu_memory_utilization=args.memory,
                   enforce_eager=args.eager, enable_prefix_caching=True, additional_config=args.additional_config, **options)
    config = llm.llm_engine.vllm_config
    room, block = config.cache_config.kv_cache_size_tokens, config.cache_config.block_size
    same = {"model": args.model, "backend": backend}
    row(event="start", **same, classes=classes(config), seconds=round(time.perf_counter() - start, 1), vllm=vllm.__version__,
        torch=torch.__version__, gpu=torch.cuda.get_device_name(), eager=args.eager,
        cudagraph_mode=str(config.compilation_config.cudagraph_mode), block_size=block, kv_cache_tokens=room,
        additional_config=args.additional_config)
    failed = False
    for context in args.context:
        for batch in args.batch:
            need = batch * (context + SHORT + args.tokens + block)
            if room and need > room:
                result = {"error": f"needs {need} tokens of KV cache, there are {room}"}
            else:
                result = measure(llm, vllm.SamplingParams, context, batch, args.tokens, args.rounds, block)
            failed |= "error" in result
            row(**same, context=context, batch=batch, **result)
    return failed


def compare(argv, backends):
    """Each backend in a process of its own; then ratios to the first."""
    times, texts, failed = {}, {}, False
    for backend in backends:
        command = [sys.executable, os.path.abspath(__file__), *argv, "--backend", backend]  # the last --backend counts
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                print(line, end="", flush=True)
                try:
                    r = json.loads(line)
                except ValueError:
                    continue
                if "ms_per_token" in r:
                    times[backend, r["context"], r["batch"]] = r["ms_per_token"]
                    texts[backend, r["context"], r["batch"]] = sum(r["new_tokens"], [])
        failed |= child.returncode != 0
        if child.returncode:
            row(event="failed", backend=backend, exit_status=child.returncode)
    base = backends[0]
    for (backend, context, batch), ms in times.items():
        if backend != base and times.get((base, context, batch)):
            row(event="ratio", backend=backend, to=base, context=context, batch=batch,
                ratio=round(ms / times[base, context, batch], 4),
                tokens_like_first=sum(a == b for a, b in zip(texts[backend, context, batch], texts[base, context, batch])),
                tokens=len(texts[base, context, batch]))
    return failed


def json_object(text):
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"is not JSON: {e}")
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", choices=sorted(MODELS), default="tiny")
    a.add_argument("--context", type=positive, nargs="+", default=[4000], help="prompt lengths in tokens")
    a.add_argument("--batch", type=positive, nargs="+", default=[1], help="requests at once")
    a.add_argument("--tokens", type=positive, default=64, help="decode steps that are timed")
    a.add_argument("--rounds", type=positive, default=5, help="repetitions; the median is reported with minimum and maximum")
    a.add_argument("--backend", nargs="+", default=["default"], metavar="NAME",
                   help="attention_backend: FLASH_ATTN, TRITON_ATTN, CUSTOM (a plug-in), ...; 'default' is vLLM's own choice")
    a.add_argument("--additional-config", type=json_object, default={}, metavar="JSON", help="handed to the plug-in")
    a.add_argument("--compilation", type=json_object, metavar="JSON", help="compilation_config, for example "
                   '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}')
    a.add_argument("--eager", action="store_true", help="no CUDA graphs, no torch.compile")
    a.add_argument("--memory", type=float, default=0.85, help="part of the GPU's memory that vLLM may take")
    args = a.parse_args()
    return compare(sys.argv[1:], args.backend) if len(args.backend) > 1 else run(args, args.backend[0])


if __name__ == "__main__":
    sys.exit(main())
