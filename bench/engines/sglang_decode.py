#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""SGLang with a model of random weights: time of a decoded token, and the tokens, by its Triton backend and by macattn.

    sglang_decode.py --layers 12 --context 32000 --batch 1 8
    sglang_decode.py --model small --context 500 3000 --ways triton exact reuse --eager

Prints one JSON object a line. The prompts run once, which fills the prefix cache; then they run with SHORT and with SHORT +
TOKENS new tokens, in turn: the difference of the times is TOKENS decode steps. `same`: how many new tokens are those of the
first way, and where a text parts from its, how much more likely the first way's token was, in logarithms. Needs SGLang and a GPU.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time

import common
from common import row

SHORT = 8
WAYS = {"triton": ("triton", {}), "exact": ("macattn", {}),
        "reuse": ("macattn", {"policy": "paper", "tau": 0.0, "min_tokens": 64}), "budget": ("macattn", {"policy": "budget"})}
SCALES = {"self_attn.q_proj": 0.25, "self_attn.k_proj": 4.0}


def write_weights(folder, shape):
    """Large enough that attention looks somewhere and tokens differ in likelihood. Queries are short and keys are long: with tau 0
    every query is near all others."""
    import torch
    from safetensors.torch import save_file
    g = torch.Generator("cuda").manual_seed(1)
    h, inner, d = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv, std = shape["num_attention_heads"] * d, shape["num_key_value_heads"] * d, 1.2 * h**-0.5

    def noise(*size, by=1.0):
        return (torch.randn(*size, generator=g, device="cuda") * (std * by)).to(torch.bfloat16).cpu()
    names = {"self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, q),
             "mlp.gate_proj": (inner, h), "mlp.up_proj": (inner, h), "mlp.down_proj": (h, inner)}
    weights = {"model.embed_tokens.weight": noise(shape["vocab_size"], h), "lm_head.weight": noise(shape["vocab_size"], h),
               "model.norm.weight": torch.ones(h, dtype=torch.bfloat16)}
    for i in range(shape["num_hidden_layers"]):
        weights |= {f"model.layers.{i}.{name}.weight": noise(*size, by=SCALES.get(name, 1.0)) for name, size in names.items()}
        weights |= {f"model.layers.{i}.{name}.weight": torch.ones(h, dtype=torch.bfloat16)
                    for name in ("input_layernorm", "post_attention_layernorm")}
    save_file(weights, os.path.join(folder, "model.safetensors"), {"format": "pt"})


def generate(engine, context, batch, new):
    """(seconds, [(token, its logprob, gap to the second)] of each prompt, prompt tokens that were cached)"""
    ids = [common.prompt(context, i) for i in range(batch)]
    parameters = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
    start = time.perf_counter()
    out = engine.generate(input_ids=ids, sampling_params=parameters)
    seconds = time.perf_counter() - start
    if any(len(o["output_ids"]) != new for o in out):
        raise RuntimeError(f"asked for {new} new tokens, got {[len(o['output_ids']) for o in out]}")
    return seconds, min(o["meta_info"]["cached_tokens"] for o in out)


def texts(engine, context, batch, new):
    """Of each prompt: its new tokens, their logprobs, and {token: logprob} of the likeliest at each place."""
    ids = [common.prompt(context, i) for i in range(batch)]
    out = engine.generate(input_ids=ids, sampling_params={"temperature": 0, "max_new_tokens": new, "ignore_eos": True},
                          return_logprob=True, top_logprobs_num=5)
    return [(list(o["output_ids"]), [step[0] for step in o["meta_info"]["output_token_logprobs"]],
             [{str(token): logprob for logprob, token, _ in step} for step in o["meta_info"]["output_top_logprobs"]]) for o in out]


def compare(first, second):
    """How alike two runs are; where a text parts, how much likelier the first run found its token than the second's."""
    same, worst, gap, parts = 0, 0.0, 0.0, 0
    for (a, la, top), (b, lb, _) in zip(first, second):
        n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
        same, worst = same + n, max([worst, *(abs(x - y) for x, y in zip(la[:n], lb[:n]))])
        if n < len(a):
            parts, gap = parts + 1, max(gap, la[n] - top[n].get(str(b[n]), min(top[n].values())))
    return {"tokens_same": same, "tokens": sum(len(a) for a, _, _ in first), "requests_that_part": parts,
            "largest_gap_where_they_part": round(gap, 4), "largest_logprob_difference": round(worst, 4)}


def run(args, way, folder):
    import sglang
    import torch
    import macattn.sglang
    start = time.perf_counter()
    backend, settings = WAYS[way]
    if settings:
        settings = {"max_slots": max(args.batch), **settings}
    engine = sglang.Engine(
        model_path=folder, attention_backend=backend, sampling_backend="pytorch", skip_tokenizer_init=True,
        max_running_requests=max(args.batch), cuda_graph_max_bs_decode=max(args.batch), disable_prefill_cuda_graph=True,
        disable_cuda_graph=args.eager, context_length=max(args.context) + 512, mem_fraction_static=0.7, log_level="info",
        max_total_tokens=3 * max(args.batch) * (max(args.context) + 512) // 2 + 8192,
        chunked_prefill_size=8192, json_model_override_args=json.dumps({"macattn": settings}))
    same = {"way": way, "model": args.model, "layers": args.layers, "eager": args.eager}
    row(event="start", **same, backend=backend, seconds=round(time.perf_counter() - start, 1), sglang=sglang.__version__,
        torch=torch.__version__, gpu=args.gpu, settings=settings)
    for context in args.context:
        for batch in args.batch:
            first, _ = generate(engine, context, batch, SHORT)
            generate(engine, context, batch, SHORT + args.tokens)
            steps = []
            before = macattn.sglang.stats(engine)
            for _ in range(args.rounds):
                short, cached = generate(engine, context, batch, SHORT)
                long, _ = generate(engine, context, batch, SHORT + args.tokens)
                steps.append(1000 * (long - short) / args.tokens)
            after = macattn.sglang.stats(engine)
            found = {name: after[name] - before.get(name, 0) for name in after}
            tokens = texts(engine, context, batch, args.tokens)
            name = os.path.join(folder, f"{context}-{batch}.json")
            if way == args.ways[0]:
                with open(name, "w") as f:
                    json.dump(tokens, f)
                likeness = None
            else:
                with open(name) as f:
                    likeness = compare(json.load(f), tokens)
            row(**same, context=context, batch=batch, ms=round(statistics.median(steps), 4), cached=cached,
                rounds=[round(ms, 4) for ms in steps], first_s=round(first, 2), same=likeness,
                hits=round(found["hits"] / found["steps"], 4) if found.get("steps") else 0, steps=found.get("steps", 0))
    engine.shutdown()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=["triton", "exact", "reuse"])
    a.add_argument("--model", choices=sorted(common.SHAPES), default="8b")
    a.add_argument("--layers", type=int, help="fewer than the model's; its vocabulary shrinks as much")
    a.add_argument("--context", type=int, nargs="+", default=[32000])
    a.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    a.add_argument("--tokens", type=int, default=64)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--eager", action="store_true", help="no CUDA graphs")
    a.add_argument("--folder", help="where the model is, or is to be written; else a temporary one")
    a.add_argument("--way", help=argparse.SUPPRESS)
    a.add_argument("--gpu", help=argparse.SUPPRESS)
    args = a.parse_args()
    if args.way:
        return run(args, args.way, args.folder)
    import subprocess
    args.gpu = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True,
                              text=True).stdout.splitlines()[0]
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        shape = common.shape(args.model, args.layers)
        if not os.path.exists(os.path.join(folder, "model.safetensors")):
            os.makedirs(folder, exist_ok=True)
            common.write_config(folder, shape, 131072)
            if not common.in_child(write_weights, folder, shape):
                return 1
        for way in args.ways:  # SGLang's own processes are spawned, and import this file again: nothing here may be forked
            failed |= subprocess.run([sys.executable, __file__, *sys.argv[1:], "--folder", folder, "--way", way, "--gpu",
                                      args.gpu]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
