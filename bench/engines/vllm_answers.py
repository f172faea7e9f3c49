#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A pretrained model's answers to long-context tasks in vLLM, by FlashAttention, by macattn exactly, and with budgets.

    macattn tasks generate --tasks niah_multikey_1,vt --length 16384 > 16k.jsonl
    vllm_answers.py qwen2.5-coder-0.5b-instruct-q4_k_m.gguf 16k.jsonl [MORE.jsonl.gz...] [--budgets 0.002 0.01]

The model is a GGUF of arch qwen2, made a folder in bf16 first (gguf_model.py). Prompts are computed once and come from the prefix
cache afterwards; then NEW tokens are decoded behind each, in batches of 8 and, of the first prompts, alone. An answer ends at
the model's end token; decoding goes on, so that all ways do the same work. Prints one JSON object a line:
  score     share of the expected answers that the texts hold, in percent
  same      answers whose text is that of the first way
  apart     of the others, how far into the answer (tokens) they part
  ms        a step's median wall time; cpu_us: of that, the median time in the model runner's execute_model
  hits      of (row, head) pairs; selected: of (row, KV head) pairs; read: bytes of K, V, rings and means, as a share of K and V
Needs vLLM, a GPU, and the package gguf.
"""
import argparse
import gzip
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import common
from common import row

BATCH, ALONE = 8, 2


def read_samples(path):
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as f:
        return [json.loads(line) for line in f]


def prepare(args, folder):
    """The model, and each sample's prompt as tokens."""
    from gguf_model import write_model
    from model import chat, stop_tokens, tokenizer
    start = time.perf_counter()
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        write_model(args.model, folder)
    words = tokenizer(args.model)
    prompts = [[words.encode(chat(s["input"], s.get("answer_prefix", "").strip())).ids for s in read_samples(path)]
               for path in args.samples]
    with open(os.path.join(folder, "prompts.json"), "w") as f:
        json.dump({"prompts": prompts, "stops": sorted(stop_tokens(words))}, f)
    row(event="prepared", seconds=round(time.perf_counter() - start, 1), samples=[len(p) for p in prompts],
        tokens=[[min(map(len, p)), max(map(len, p))] for p in prompts])


def decode(llm, prompts, new, name):
    """(tokens behind each prompt, a step's median ms, prompt tokens that were not cached)"""
    engine, found, ends = llm.llm_engine, {}, []
    for i, prompt in enumerate(prompts):
        engine.add_request(f"{name}-{i}", {"prompt_token_ids": prompt}, common.parameters(max_tokens=new))
    while engine.has_unfinished_requests():
        for out in engine.step():
            if out.finished:
                found[out.request_id] = (list(out.outputs[0].token_ids), len(out.prompt_token_ids) - (out.num_cached_tokens or 0))
        ends.append(time.perf_counter())
    rows = [found[f"{name}-{i}"] for i in range(len(prompts))]
    return [tokens for tokens, _ in rows], 1000 * statistics.median(b - a for a, b in zip(ends, ends[1:])), max(n for _, n in rows)


def shares(before, after, shape):
    """What of the work between two sets of counters was reused, selected and read."""
    found = {name: after[name] - before[name] for name in after}
    if not found["steps"]:
        return {}
    heads, kv_heads, dim = shape
    whole = found["tokens_total"] // heads * kv_heads * dim * 2 * 2
    return {"hits": round(found["hits"] / found["steps"], 4), "selected": round(found["groups_selected"] / found["groups"], 4),
            "read": round(found["bytes_read"] / whole, 4)}


def run(args, folder, way, budget, results):
    start = time.perf_counter()
    with open(os.path.join(folder, "prompts.json")) as f:
        sets = json.load(f)["prompts"]
    with open(os.path.join(folder, "config.json")) as f:
        c = json.load(f)
    shape = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"]
    token_bytes = c["num_hidden_layers"] * shape[1] * shape[2] * 2 * 2
    room = sum(len(p) + args.new + 64 for prompts in sets for p in prompts) * token_bytes
    longest = max(len(p) for prompts in sets for p in prompts) + args.new
    llm = common.start_vllm(
        folder, way, max_model_len=min(longest + 16, c["max_position_embeddings"]), max_num_seqs=BATCH,
        max_num_batched_tokens=8192, kv_cache_memory_bytes=room + (2 << 30), enable_prefix_caching=True,
        settings={"max_slots": BATCH, **({"budget": budget} if budget else {})},
        compilation_config={"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8]})
    ours, cpu, texts = common.WAYS[way]["backend"] == "CUSTOM", [], []
    common.time_runner(cpu)
    started = time.perf_counter()
    for name, prompts in zip(args.samples, sets):
        filled = time.perf_counter()
        llm.generate([{"prompt_token_ids": p} for p in prompts], common.parameters(max_tokens=1), use_tqdm=False)
        filled = time.perf_counter() - filled
        before, answers, ms, us, fresh = counters(ours), [], [], [], 0
        for i in range(0, len(prompts), BATCH):
            cpu.clear()
            tokens, step, n = decode(llm, prompts[i:i + BATCH], args.new, f"{name}-{i}")
            answers, fresh = answers + tokens, max(fresh, n)
            ms.append(step)
            us.append(1e6 * statistics.median(cpu))
        found = shares(before, counters(ours), shape) if ours else {}
        cpu.clear()
        alone = [decode(llm, [p], args.new, f"{name}-alone-{i}")[1] for i, p in enumerate(prompts[:ALONE])]
        texts.append(answers)
        row(way=way, budget=budget, samples=os.path.basename(name), n=len(prompts), new=args.new, prompts_s=round(filled, 2),
            not_cached=fresh, ms_8=round(statistics.median(ms), 4), rounds_8=[round(x, 4) for x in ms],
            cpu_us_8=round(statistics.median(us), 1), ms_1=round(statistics.median(alone), 4),
            cpu_us_1=round(1e6 * statistics.median(cpu), 1), **found)
    row(event="ran", way=way, budget=budget, classes=common.attention_of(llm), start_s=round(started - start, 1),
        run_s=round(time.perf_counter() - started, 1), **common.versions())
    with open(results, "w") as f:
        json.dump(texts, f)


def counters(ours):
    if not ours:
        return {}
    import macattn.vllm
    return macattn.vllm.stats()


def compare(args, folder, done):
    """Scores, and whose text is the first way's."""
    from answers import score
    from model import tokenizer
    words = tokenizer(args.model)
    with open(os.path.join(folder, "prompts.json")) as f:
        stops = set(json.load(f)["stops"])

    def answer(tokens):
        return tokens[:next((i for i, t in enumerate(tokens) if t in stops), len(tokens))]
    details, first = [], None
    for name, results in done:
        with open(results) as f:
            sets = [[answer(tokens) for tokens in answers] for answers in json.load(f)]
        first = first or sets
        for path, answers, expected in zip(args.samples, sets, first):
            samples = read_samples(path)
            texts = [words.decode(a) for a in answers]
            scores = [score(t, s) for t, s in zip(texts, samples)]
            other = [score(words.decode(a), s) for a, s in zip(expected, samples)]
            apart = [next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                     for a, b in zip(answers, expected) if a != b]
            tasks = sorted({s["task"] for s in samples})
            row(event="answers", way=name, samples=os.path.basename(path), n=len(samples), score=round(100 * statistics.mean(scores), 1),
                by_task={t: round(100 * statistics.mean(x for x, s in zip(scores, samples) if s["task"] == t), 1) for t in tasks},
                same=sum(a == b for a, b in zip(answers, expected)), same_scores=sum(x == y for x, y in zip(scores, other)),
                apart=apart, tokens=sum(map(len, answers)))
            details.append({"way": name, "samples": os.path.basename(path), "texts": texts, "scores": scores})
    if args.json:
        with open(args.json, "w") as f:
            json.dump(details, f)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("samples", nargs="+")
    a.add_argument("--budgets", type=float, nargs="*", default=[0.002, 0.01])
    a.add_argument("--new", type=int, default=256)
    a.add_argument("--folder", help="where the model is, or is to be written; else a temporary one")
    a.add_argument("--json", help="file for the texts")
    args = a.parse_args()
    sys.path.insert(1, str(pathlib.Path(__file__).parents[1] / "models"))
    common.import_vllm()
    with tempfile.TemporaryDirectory() as temporary:
        folder, done = args.folder or temporary, []
        if not common.in_child(prepare, args, folder):
            return 1
        plans = [("flash", None), ("exact", None), *(("budget", b) for b in args.budgets)]
        for way, budget in plans:
            results = os.path.join(temporary, f"{way}-{budget}.json")
            if common.in_child(run, args, folder, way, budget, results):
                done.append((way + (f" {budget}" if budget else ""), results))
        if done:
            compare(args, folder, done)
    return 0 if len(done) == len(plans) else 1


if __name__ == "__main__":
    sys.exit(main())
