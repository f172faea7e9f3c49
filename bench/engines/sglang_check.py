#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""In SGLang no request ever meets another's memory: random requests that come, are cancelled, retracted (preempted), computed in
chunks, share prefixes and slots; what the library decides is checked on the GPU in every step, in CUDA graphs.

    sglang_check.py [--n 2000]    requests under the policy budget; a third of them under paper, where slots that change hands
                                  hold poison

Prints one JSON object a line; the exit status is 0 if all is well. Needs SGLang and a GPU.
"""
import argparse
import asyncio
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import common
from common import row

RETRACT = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "30"}  # every 30 steps someone is retracted


async def serve(engine, n, seed, tokens=60):
    """n random requests, 40 at a time. What became of them."""
    rng, turn = random.Random(seed), asyncio.Semaphore(40)
    shared = [rng.randrange(3, 7990) for _ in range(256)]
    found = {"requests": n, "finished": 0, "cancelled": 0, "wrong_lengths": 0}

    async def ask(name, prompt, new, cancel):
        async with turn:
            parameters = {"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
            asked = asyncio.ensure_future(engine.async_generate(input_ids=prompt, sampling_params=parameters, rid=name))
            if cancel:
                await asyncio.sleep(cancel)
                engine.tokenizer_manager.abort_request(name)
            try:
                out = await asked
            except ValueError:
                if not cancel:
                    raise
                out = {"meta_info": {"finish_reason": {"type": "abort"}}}
        reason = out["meta_info"]["finish_reason"]["type"]
        found["cancelled" if reason == "abort" else "finished"] += 1
        found["wrong_lengths"] += reason != "abort" and len(out["output_ids"]) != new

    def draw(i):
        prompt = [rng.randrange(3, 7990) for _ in range(rng.choice([3, 40, 200, 700]) + rng.randrange(20))]
        if rng.random() < 0.3:
            prompt = shared[:rng.choice([64, 256])] + prompt
        return f"{seed}-{i}", prompt, rng.randrange(1, tokens), rng.random() * 0.1 if rng.random() < 0.08 else 0
    await asyncio.gather(*(ask(*draw(i)) for i in range(n)))
    return found


def state(engine):
    return engine.get_server_info()["internal_states"][0]


def run(args):
    import sglang
    import torch
    start, folder = time.perf_counter(), args.folder
    settings = {"policy": args.policy, "min_tokens": 16, "band": 8, "ring": 64, "max_slots": 6, "show_prompts": 2}
    if args.policy == "paper":
        settings["tau"] = 0.0  # near are all: queries of such weights are tiny
    engine = sglang.Engine(
        model_path=folder, load_format="dummy", attention_backend="macattn_watched", sampling_backend="pytorch",
        skip_tokenizer_init=True, max_running_requests=32, cuda_graph_max_bs_decode=32, disable_prefill_cuda_graph=True,
        context_length=1200, mem_fraction_static=0.6, max_total_tokens=12000, chunked_prefill_size=256, log_level="warning",
        json_model_override_args=json.dumps({"macattn": settings}))
    started = time.perf_counter()
    found = engine.loop.run_until_complete(serve(engine, args.n, 1))
    now, seconds = state(engine), time.perf_counter() - started
    watch, stats = now["watch"], now["macattn"]
    bad = {name: watch[name] for name in ("stale", "nans", "shrunk")}
    ok = (not any(bad.values()) and stats["hits"] > 0 and watch["retracted"] > 0 and watch["captures"] > 0 and
          not found["wrong_lengths"] and found["cancelled"])
    # The check sees what it should: without resets a request does meet another's memory.
    pathlib.Path(os.environ["MACATTN_ALLOW_STALE"]).touch()
    state(engine)
    engine.loop.run_until_complete(serve(engine, 100, 2))
    sees = {name: state(engine)["watch"][name] for name in bad}
    row(event="requests", policy=args.policy, **found, **bad, retracted=watch["retracted"], slots_given=watch["slots_given"],
        hits=stats["hits"], heads=stats["steps"], prompts=stats["prompts"], prompts_shown=stats["prompts_shown"],
        start_s=round(started - start, 1), run_s=round(seconds, 1),
        without_resets=sees, ok=bool(ok and sum(sees.values())), sglang=sglang.__version__, torch=torch.__version__, gpu=args.gpu)
    engine.shutdown()
    return 0 if ok and sum(sees.values()) else 1


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--n", type=int, default=2000, help="requests under budget")
    for hidden in ("--policy", "--folder", "--gpu"):
        a.add_argument(hidden, help=argparse.SUPPRESS)
    args = a.parse_args()
    if args.policy:
        return run(args)
    gpu = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True).stdout
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        common.write_config(folder, common.SHAPES["small"], 2048)
        meta = pathlib.Path(folder, "watch-0.dist-info")  # how SGLang's processes find the plug-in sglang_watch
        meta.mkdir()
        (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: watch\nVersion: 0\n")
        (meta / "entry_points.txt").write_text("[sglang.srt.plugins]\nmacattn_watch = sglang_watch:register\n")
        path = [folder, os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH", "")]
        for policy, n in (("budget", args.n), ("paper", min(args.n, 600))):
            more = {"PYTHONPATH": os.pathsep.join(path), "MACATTN_POISON": str(int(policy == "paper")),
                    "MACATTN_ALLOW_STALE": os.path.join(folder, f"stale-{policy}"), **RETRACT}
            failed |= subprocess.run([sys.executable, __file__, "--policy", policy, "--n", str(n), "--folder", folder, "--gpu",
                                      gpu.split("\n")[0]], env={**os.environ, **more}).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
