#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""vLLM with macattn computes what vLLM computes: the tokens of FlashAttention, and no request ever meets another's memory.

    vllm_check.py same        a model of random weights, prompts of many lengths: eagerly and in CUDA graphs, exact and with a
                              budget, against FlashAttention. Where the first token differs, the two must have been as likely
                              but for rounding
    vllm_check.py requests    random requests that come, are cancelled, preempted, share prefixes and slots; what the library
                              decides is checked on the GPU in every step, and ended requests leave poison behind

Prints one JSON object a line; the exit status is 0 if all is well. Needs vLLM and a GPU.
"""
import argparse
import functools
import random
import sys
import tempfile
import time

import common
from common import row

LENGTHS = [5, 100, 700, 1000, 2500, 3000, 33, 2048]
EAGER = {"enforce_eager": True}
GRAPHS = {}  # vLLM's own choice: torch.compile, FULL_AND_PIECEWISE
DECODES = {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}


def make_model(folder):
    """Weights large enough that attention looks somewhere and tokens differ in likelihood."""
    import torch
    import transformers
    common.write_config(folder, common.SHAPES["small"], 8192)
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.initializer_range = 0.05
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def texts(args, folder, way, name, tp, options, more, results):
    """[(tokens, logprob of each, gap to the second)] of every prompt, into the file `results`."""
    import json
    start = time.perf_counter()
    llm = common.start_vllm(folder, way, max_model_len=4096, max_num_seqs=8, max_num_batched_tokens=1024,
                            kv_cache_memory_bytes=4 << 30, tensor_parallel_size=tp, settings=more, **options)
    started = time.perf_counter()
    rng = random.Random(5)
    prompts = [{"prompt_token_ids": [rng.randrange(3, 7990) for _ in range(n)]} for n in LENGTHS]
    out = llm.generate(prompts, common.parameters(max_tokens=args.tokens, logprobs=2), use_tqdm=False)
    found = []
    for o in out:
        steps = [sorted((x.logprob for x in step.values()), reverse=True) for step in o.outputs[0].logprobs]
        found.append((list(o.outputs[0].token_ids), [s[0] for s in steps], [s[0] - s[1] for s in steps]))
    with open(results, "w") as f:
        json.dump(found, f)
    stats = None
    if common.WAYS[way]["backend"] == "CUSTOM":
        import macattn.vllm
        stats = macattn.vllm.stats() if tp == 1 else llm.collective_rpc(lambda worker: __import__("macattn.vllm").vllm.stats())
    row(event="ran", name=name, way=way, tp=tp, start_s=round(started - start, 1), run_s=round(time.perf_counter() - started, 2),
        classes=common.attention_of(llm) if tp == 1 else None, stats=stats,
        cudagraph_mode=str(llm.llm_engine.vllm_config.compilation_config.cudagraph_mode), **common.versions())
    common.stop(llm)


def compare(name, first, second, strict):
    """Whether two runs are the same but for rounding."""
    same, differ, worst, gap = 0, 0, 0.0, 0.0
    for (a, la, ga), (b, lb, _) in zip(first, second):
        n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
        same += n
        worst = max([worst, *(abs(x - y) for x, y in zip(la[:n], lb[:n]))])
        if n < len(a):
            differ += 1
            gap = max(gap, ga[n])
    ok = gap < 0.1 and worst < 0.2 if strict else True
    row(event="same", name=name, tokens_same=same, tokens=sum(len(a) for a, _, _ in first), requests_that_part=differ,
        largest_gap_where_they_part=round(gap, 4), largest_logprob_difference=round(worst, 4), ok=ok)
    return ok


def same(args):
    import json
    import os
    plans = {"flash": ("flash", EAGER, {}), "exact, eager": ("exact", EAGER, {}), "exact, graphs": ("exact", GRAPHS, {}),
             "paper, graphs": ("reuse", DECODES, {"min_tokens": 64, "tau": 0.45, "max_slots": 8}),
             "budget, graphs": ("budget", DECODES, {"min_tokens": 64, "max_slots": 8, "show_prompts": 1})}
    ok, found = True, {}
    with tempfile.TemporaryDirectory() as folder:
        common.in_child(make_model, folder)
        for name in args.plans or plans:
            way, options, more = plans[name]
            results = os.path.join(folder, "results.json")
            tp = args.tp if way != "flash" else 1
            if not common.in_child(texts, args, folder, way, name, tp, options, more, results):
                ok = False
                continue
            with open(results) as f:
                found[name] = json.load(f)
            if "flash" in found and name != "flash":
                ok &= compare(name, found["flash"], found[name], "exact" in name)
    return ok


# ------------------------------------------------------------------------------------------------------------ requests


def watch_of(plugin, poisons):
    """The watch of the only object; who gives a slot back leaves poison in it."""
    import torch
    from watch import Watch
    group = plugin.engine.groups[0]
    watch, sequences = Watch(group.attention), group.sequences
    plain_free = sequences.free

    def batch_of(slot, page, tokens):
        ints = dict(dtype=torch.int32, device="cuda")
        return plugin.Batch(torch.tensor([tokens], **ints), slots=torch.tensor([slot], **ints), page_size=page,
                            pages=torch.zeros(1, -(-tokens // page), **ints))

    def free(request):
        slot = sequences.slot(request)
        plain_free(request)
        if slot >= 0 and poisons:
            k, v = plugin.engine.impls[0]._cache[1]
            watch.poison(slot, functools.partial(batch_of, slot, k.shape[1]), k, v, plugin.stream())
    sequences.free = free
    return watch


def serve(llm, n, seed, tokens=60):
    """n random requests. Returns what became of them."""
    engine, rng = llm.llm_engine, random.Random(seed)
    shared = [rng.randrange(3, 7990) for _ in range(256)]
    live, done, cancelled, wrong, asked, steps = {}, 0, 0, 0, 0, 0
    while asked < n or engine.has_unfinished_requests():
        while asked < n and len(live) < 40 and rng.random() < 0.6:
            prompt = [rng.randrange(3, 7990) for _ in range(rng.choice([3, 40, 200, 700]) + rng.randrange(20))]
            if rng.random() < 0.3:
                prompt = shared[:rng.choice([64, 256])] + prompt
            name, new = f"{seed}-{asked}", rng.randrange(1, tokens)
            engine.add_request(name, {"prompt_token_ids": prompt}, common.parameters(max_tokens=new))
            live[name], asked = new, asked + 1
        if live and rng.random() < 0.03:
            name = rng.choice(sorted(live))
            engine.abort_request([name])
            cancelled += live.pop(name) > 0
        for out in engine.step():
            if out.finished and out.request_id in live:
                wrong += len(out.outputs[0].token_ids) != live.pop(out.request_id)
                done += 1
        steps += 1
    return {"requests": n, "finished": done, "cancelled": cancelled, "wrong_lengths": wrong, "steps": steps}


def requests_of(args, policy, n, options):
    import vllm.v1.core.sched.scheduler as scheduler
    preempted = []
    plain = scheduler.Scheduler._preempt_request

    def preempt(self, request, *arguments, **more):
        preempted.append(request.request_id)
        return plain(self, request, *arguments, **more)
    scheduler.Scheduler._preempt_request = preempt
    import macattn.engines.vllm as plugin
    made = []
    plain_make = plugin.engine.make

    def make(*arguments):
        plain_make(*arguments)
        made.append(watch_of(plugin, policy == "paper"))
    plugin.engine.make = make
    with tempfile.TemporaryDirectory() as folder:
        common.write_config(folder, common.SHAPES["tiny"], 2048)
        settings = {"policy": policy, "min_tokens": 16, "band": 8, "ring": 64, "max_slots": 6, "show_prompts": 2}
        if policy == "paper":
            settings["tau"] = 0.0
        start = time.perf_counter()
        llm = common.start_vllm(folder, "exact", load_format="dummy", max_model_len=1200, max_num_seqs=32,
                                max_num_batched_tokens=512, num_gpu_blocks_override=500, kv_cache_memory_bytes=1 << 30,
                                enable_prefix_caching=True, settings=settings, **options)
        started = time.perf_counter()
        found = serve(llm, n, 1)
        watch, stats = made[0], plugin.stats()
        bad = watch.found()
        seconds = time.perf_counter() - started
        ok = not any(bad.values()) and stats["hits"] > 0 and watch.captures and preempted and found["wrong_lengths"] == 0
        # The check sees what it should: without resets a request does meet another's memory.
        watch.allow_stale()
        serve(llm, 60, 2)
        sees = sum(watch.found().values()) > 0
        row(event="requests", policy=policy, options=str(options), **found, preempted=len(preempted), **bad, hits=stats["hits"],
            heads=stats["steps"], prompts=stats["prompts"], prompts_shown=stats["prompts_shown"],
            start_s=round(started - start, 1), run_s=round(seconds, 1), check_sees_missing_resets=sees, ok=bool(ok and sees), **common.versions())
    if not (ok and sees):
        raise SystemExit(1)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("part", choices=["same", "requests"])
    a.add_argument("--tokens", type=int, default=64)
    a.add_argument("--tp", type=int, default=1, help="GPUs of macattn, in `same`; FlashAttention has one")
    a.add_argument("--plans", nargs="+", help="some of `same`'s")
    a.add_argument("--n", type=int, default=2000, help="requests under budget")
    args = a.parse_args()
    common.import_vllm()
    if args.part == "same":
        return 0 if same(args) else 1
    ok = common.in_child(requests_of, args, "budget", args.n, DECODES)
    ok &= common.in_child(requests_of, args, "paper", min(args.n, 600), DECODES)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
