#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time of a decode step in vLLM with a model of random weights: FlashAttention, macattn exact, with reuse, with misses.

    vllm_decode.py --layers 12 --context 32000 131000 --batch 1 8
    vllm_decode.py --ways flash exact --tp 2

Prints one JSON object a line; logs go to stderr. Each way has a process of its own, on the same GPU, one after the other. No
prompt is computed: vLLM's DecodeBenchConnector fills the KV cache instead, so that only decoding takes time. `ms`: a step's
median wall time between outputs, `cpu_us`: of that, the median time in the model runner's execute_model, which prepares and
launches a step. `hits`: of (row, head) pairs in the timed steps. Queries of random weights are meaningless: this shows what
hits and misses cost, not how often a model hits. Needs vLLM and a GPU; no model files and no network.
"""
import argparse
import statistics
import sys
import tempfile
import time

import common
from common import row

SHORT = 8  # tokens before the clock starts


def scatter_misses(share):
    """From now on a share of heads gets queries that are near none. Called before any graph is captured."""
    import itertools

    import macattn.engines.vllm as plugin
    from vllm.triton_utils import tl, triton

    @triton.jit(do_not_specialize=["call"])
    def kernel(q, out, lengths, q_row, q_head, out_row, out_head, call, share, dim: tl.constexpr):
        i, head = tl.program_id(0), tl.program_id(1)
        seed = tl.load(lengths + i) * 64 + i
        x = tl.arange(0, dim)
        value = tl.load(q + i.to(tl.int64) * q_row + head * q_head + x).to(tl.float32)
        far = tl.randn(seed, (call * 64 + head) * dim + x) * 50
        draw = tl.rand(seed, call * 64 + head + tl.zeros([dim], tl.int32) + (1 << 24))
        tl.store(out + i.to(tl.int64) * out_row + head * out_head + x, tl.where(draw < share, far, value))

    calls = itertools.count()

    def unrotate(q, out, table, lengths, neox):
        rows, heads, dim = q.shape
        kernel[rows, heads](q, out, lengths, q.stride(0), q.stride(1), out.stride(0), out.stride(1), next(calls) % 4096, share,
                            dim)
    plugin.unrotate = unrotate


def counters():
    import macattn.vllm
    return macattn.vllm.stats()


def measure(llm, context, batch, tokens, ours, cpu):
    """One run: [(time, tokens of the first request)], and macattn's counters over the timed part."""
    engine = llm.llm_engine
    for i in range(batch):
        engine.add_request(f"{context}-{i}", {"prompt_token_ids": common.prompt(context, i)},
                           common.parameters(max_tokens=SHORT + tokens))
    times, before = [], {}
    while engine.has_unfinished_requests():
        for out in engine.step():
            if out.request_id.startswith(f"{context}-0"):
                times.append((time.perf_counter(), len(out.outputs[0].token_ids)))
                if times[-1][1] == SHORT:
                    before, times[:], cpu[:] = counters() if ours else {}, [(time.perf_counter(), SHORT)], []
    after = counters() if ours else {}
    steps = [1000 * (b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(times, times[1:]) if b[1] > a[1]]
    return steps, {name: after[name] - before.get(name, 0) for name in after}


def run(args, way):
    start = time.perf_counter()
    if "misses" in common.WAYS[way]:
        scatter_misses(common.WAYS[way]["misses"])
    with tempfile.TemporaryDirectory() as folder:
        model = common.shape(args.model, args.layers)
        common.write_config(folder, model, max(args.context) + 4096)
        graphs = {"mode": 3, "cudagraph_mode": "FULL_AND_PIECEWISE"} if args.compile else {
            "mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
        llm = common.start_vllm(
            folder, way, load_format="dummy", max_model_len=max(args.context) + SHORT + args.tokens + 16,
            max_num_seqs=max(args.batch), max_num_batched_tokens=2048, gpu_memory_utilization=args.memory,
            enable_prefix_caching=False, tensor_parallel_size=args.tp, settings={"max_slots": max(args.batch)},
            compilation_config={**graphs, "cudagraph_capture_sizes": sorted({1, 2, 4, *args.batch})},
            kv_transfer_config={"kv_connector": "DecodeBenchConnector", "kv_role": "kv_both"})
        same = {"way": way, "model": args.model, "layers": model["num_hidden_layers"], "vocabulary": model["vocab_size"],
                "tp": args.tp}
        config = llm.llm_engine.vllm_config
        row(event="start", **same, classes=common.attention_of(llm) if args.tp == 1 else None,
            seconds=round(time.perf_counter() - start, 1), **common.versions(), misses=common.WAYS[way].get("misses", 0),
            cudagraph_mode=str(config.compilation_config.cudagraph_mode), settings=config.additional_config)
        ours, cpu = common.WAYS[way]["backend"] == "CUSTOM" and args.tp == 1, []
        if args.tp == 1:
            common.watch_runner(lambda scheduled, start, seconds: cpu.append(seconds))
        for context in args.context:
            for batch in args.batch:
                measured, found = [], {}
                for _ in range(args.rounds):
                    steps, found = measure(llm, context, batch, args.tokens, ours, cpu)
                    measured.append(statistics.median(steps))
                row(**same, context=context, batch=batch, ms=round(statistics.median(measured), 4),
                    rounds=[round(ms, 4) for ms in measured],
                    cpu_us=round(1e6 * statistics.median(cpu), 1) if cpu else None,
                    hits=round(found["hits"] / found["steps"], 4) if found.get("steps") else 0,
                    skipped=round(found["tokens_skipped"] / found["tokens_total"], 4) if found.get("tokens_total") else 0)
        common.stop(llm)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--ways", nargs="+", choices=sorted(common.WAYS), default=["flash", "exact", "reuse", "hits95"])
    a.add_argument("--model", choices=sorted(common.SHAPES), default="8b")
    a.add_argument("--layers", type=int, help="fewer than the model's; its vocabulary shrinks as much")
    a.add_argument("--context", type=int, nargs="+", default=[32000, 131000])
    a.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    a.add_argument("--tokens", type=int, default=64, help="decode steps that are timed")
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--tp", type=int, default=1, help="GPUs")
    a.add_argument("--memory", type=float, default=0.9, help="part of the GPU's memory that vLLM may take")
    a.add_argument("--compile", action="store_true", help="with torch.compile, as by default in vLLM: a minute more")
    args = a.parse_args()
    common.import_vllm()
    return 0 if all([common.in_child(run, args, way) for way in args.ways]) else 1


if __name__ == "__main__":
    sys.exit(main())
