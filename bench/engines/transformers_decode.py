#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time of a decoded token in transformers with a model of random weights: sdpa, macattn exact, macattn with reuse.

    transformers_decode.py --device cuda --context 4000 32000 --batch 1 8
    transformers_decode.py --device cpu --threads 2 --layers 4 --context 4000 16000

Prints one JSON object a line. The same token is fed in every step, so that with reuse nearly all heads find a match: this is
what reuse can save, not what it does for a text. The three take turns in every round; medians are given.
"""
import argparse
import json
import statistics
import time

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import macattn.transformers

WAYS = {"sdpa": ("sdpa", {}), "exact": ("macattn", {"policy": "exact"}),
        "reuse": ("macattn", {"policy": "paper", "tau": 0.0, "min_tokens": 0})}


def build(args):
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=args.hidden, intermediate_size=args.hidden * 2, num_hidden_layers=args.layers,
                         num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=1000,
                         max_position_embeddings=max(args.context) + 4096)
    return LlamaForCausalLM(config).to(args.device, torch.bfloat16).eval()


def fill(model, context, batch):
    """A cache of a prompt whose K and V are noise: its values do not matter, and computing them would take the time."""
    config, cache = model.config, DynamicCache(config=model.config)
    shape = batch, config.num_key_value_heads, context, config.head_dim
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, device=model.device, dtype=torch.bfloat16) for _ in "kv"), layer)
    return cache


def timed(model, cache, batch):
    ids = torch.full((batch, 1), 7, device=model.device)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.no_grad():
        model(ids, past_key_values=cache)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def measure(model, context, batch, rounds):
    times = {way: [] for way in WAYS}
    caches = {}
    for r in range(rounds + 1):
        for way, (name, settings) in WAYS.items():
            model.set_attn_implementation(name)
            if settings:
                macattn.transformers.settings(model, **settings)
            if way not in caches:
                caches[way] = fill(model, context, batch)
            for _ in range(3):  # settings have changed: what was remembered is gone
                timed(model, caches[way], batch)
            times[way] += [timed(model, caches[way], batch) for _ in range(5)] if r else []
    found = {way: round(statistics.median(t), 3) for way, t in times.items()}
    stats = macattn.transformers.stats(model)
    return {"ms": found, "sdpa_to_exact": round(found["sdpa"] / found["exact"], 3),
            "sdpa_to_reuse": round(found["sdpa"] / found["reuse"], 3),
            "hits": round(stats["hits"] / max(stats["steps"], 1), 3), "calls": stats["calls"]}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--device", default="cuda")
    a.add_argument("--threads", type=int)
    a.add_argument("--layers", type=int, default=8)
    a.add_argument("--hidden", type=int, default=1024)
    a.add_argument("--context", type=int, nargs="+", default=[4000, 32000])
    a.add_argument("--batch", type=int, nargs="+", default=[1])
    a.add_argument("--rounds", type=int, default=3)
    args = a.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = build(args)
    for context in args.context:
        for batch in args.batch:
            row = {"device": torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
                   "layers": args.layers, "heads": "32/8", "context": context, "batch": batch}
            print(json.dumps({**row, **measure(model, context, batch, args.rounds)}), flush=True)


main()
