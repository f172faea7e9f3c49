#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A pretrained model's answers to long-context tasks in vLLM, by FlashAttention, by macattn exactly, and with budgets.

    macattn tasks generate --tasks niah_multikey_1,vt --length 16384 > 16k.jsonl
    vllm_answers.py qwen2.5-coder-0.5b-instruct-q4_k_m.gguf 16k.jsonl [MORE.jsonl.gz...] [--ways flash exact 0.01 0.02]

The model is a GGUF of arch qwen2, made a folder in bf16 first (gguf_model.py). Every prompt is computed anew, so that the plug-in
sees of it what it would see of any prompt. NEW tokens are decoded behind each, 8 requests at a time, also past the answer's end,
so that all ways do the same work, and the first prompts once more alone. With --stop all are asked at once, --batch run at a
time, and an answer ends at the model's end token or after 48 tokens (niah_multivalue: 96). A budget's way may be written
0.02:SHOW, SHOW being the setting show_prompts. Prints one JSON object a line; of a way and a file:
  prompt_s  time in steps that computed prompts; shown: prompts whose newest queries the library saw, of all that it could see
  ms        a step's median wall time, of steps that only decode, with as many requests as there are at most; cpu_us: of that,
            the median time in the model runner's execute_model
  hits      of (row, head) pairs; selected: of (row, KV head) pairs; read: bytes of K, V, rings and means, as a share of K and V;
            all of decoding alone
and of the answers, for each task (`all`: of all tasks):
  score     share of the expected answers that the text holds, in percent; to_flash, to_exact: [difference, its standard error]
  same_...  share of answers with that way's text
  texts     a row of its own: tokens, and where texts part from the first way's (apart)
Needs vLLM, a GPU, and the package gguf.
"""
import argparse
import collections
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

ALONE = 2
MOST = {"niah_multivalue": 96}  # tokens of an answer that may stop; of the other tasks:
USUAL_MOST = 48


def read_samples(path, n):
    """The first n samples, as many of each task."""
    with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as f:
        by_task = collections.defaultdict(list)
        for sample in map(json.loads, f):
            by_task[sample["task"]].append(sample)
    turns = [s for turn in zip(*by_task.values()) for s in turn]
    rest = [s for found in by_task.values() for s in found[len(turns) // len(by_task):]]
    return (turns + rest)[:n]


def samples_of(args):
    return [read_samples(path, n) for path, n in zip(args.samples, args.first + [None] * len(args.samples))]


def prepare(args, folder):
    """The model, and each sample's prompt as tokens."""
    from gguf_model import write_model
    from model import chat, stop_tokens, tokenizer
    start = time.perf_counter()
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        write_model(args.model, folder)
    words = tokenizer(args.model)
    prompts = [[found.ids for found in words.encode_batch([chat(s["input"], s.get("answer_prefix", "").strip()) for s in samples])]
               for samples in samples_of(args)]
    with open(os.path.join(folder, "prompts.json"), "w") as f:
        json.dump({"prompts": prompts, "stops": sorted(stop_tokens(words))}, f)
    row(event="prepared", seconds=round(time.perf_counter() - start, 1), samples=[len(p) for p in prompts],
        tokens=[[min(map(len, p)), max(map(len, p))] for p in prompts])


class Steps:
    """The steps of vLLM's model runner: when each began, what it computed, and its time on the CPU."""

    def __init__(self):
        self.all = []
        common.watch_runner(self.record)

    def record(self, scheduled, start, seconds):
        tokens, rows = scheduled.total_num_scheduled_tokens, len(scheduled.num_scheduled_tokens)
        if tokens:
            self.all.append((start, rows, tokens, seconds))

    def summary(self):
        """(seconds in steps with prompts; median ms and CPU us of the largest that only decode; their rows), and begin anew."""
        steps, self.all = self.all, []
        spans = [(b[0] - a[0], *a[1:]) for a, b in zip(steps, steps[1:])]
        prompts = sum(s for s, rows, tokens, _ in spans if tokens > rows)
        plain = [(a, b, c) for a, b, c in zip(spans, spans[1:], spans[2:])
                 if all(tokens == rows for _, rows, tokens, _ in (a, b, c)) and a[1] == b[1] == c[1]]
        most = max((b[1] for _, b, _ in plain), default=0)
        found = [b for _, b, _ in plain if b[1] == most]
        if not found:
            return prompts, None, None, 0
        return prompts, 1e3 * statistics.median(b[0] for b in found), 1e6 * statistics.median(b[3] for b in found), most


def answer(llm, prompts, most, stops, name):
    """The tokens behind each prompt."""
    engine, found = llm.llm_engine, {}
    for i, (prompt, n) in enumerate(zip(prompts, most)):
        engine.add_request(f"{name}-{i}", {"prompt_token_ids": prompt}, common.parameters(max_tokens=n, stop_token_ids=stops))
    while engine.has_unfinished_requests():
        for out in engine.step():
            if out.finished:
                found[out.request_id] = list(out.outputs[0].token_ids)
    return [found[f"{name}-{i}"] for i in range(len(prompts))]


def shares(before, after, shape):
    """What of the work between two sets of counters was shown, reused, selected and read."""
    found = {name: after[name] - before[name] for name in after}
    if not found["steps"]:
        return {}
    heads, kv_heads, dim = shape
    whole = found["tokens_total"] // heads * kv_heads * dim * 2 * 2
    return {"shown": [found["prompts_shown"], found["prompts"]], "hits": round(found["hits"] / found["steps"], 4),
            "selected": round(found["groups_selected"] / found["groups"], 4), "read": round(found["bytes_read"] / whole, 4)}


def settings_of(args, way):
    """(name in common.WAYS, settings)"""
    if way in common.WAYS:
        return way, {}
    budget, _, show = way.partition(":")
    found = {"budget": float(budget), **({"show_prompts": int(show)} if show else {})}
    if args.select is not None:
        found["select"] = args.select
    return "budget", found


def run(args, folder, way, results):
    start = time.perf_counter()
    with open(os.path.join(folder, "prompts.json")) as f:
        made = json.load(f)
    with open(os.path.join(folder, "config.json")) as f:
        c = json.load(f)
    sets, stops = made["prompts"], made["stops"] if args.stop else None
    shape = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"]
    token_bytes = c["num_hidden_layers"] * shape[1] * shape[2] * 2 * 2
    longest = max(len(p) for prompts in sets for p in prompts) + max(args.new, *MOST.values())
    name, settings = settings_of(args, way)
    sizes = [1, 2, 4, *range(8, args.batch + 1, 8)]
    llm = common.start_vllm(
        folder, name, max_model_len=min(longest + 16, c["max_position_embeddings"]), max_num_seqs=args.batch,
        max_num_batched_tokens=8192, kv_cache_memory_bytes=args.batch * (longest + 64) * token_bytes + (1 << 30),
        enable_prefix_caching=False, settings={"max_slots": args.batch, **settings},
        compilation_config={"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sizes})
    ours, texts, steps = common.WAYS[name]["backend"] == "CUSTOM", [], Steps()
    started = time.perf_counter()
    for path, samples, prompts in zip(args.samples, samples_of(args), sets):
        began, before, answers, parts = time.perf_counter(), counters(ours), [], []
        most = [MOST.get(s["task"], USUAL_MOST) if args.stop else args.new for s in samples]
        size = len(prompts) if args.stop else args.batch
        for i in range(0, len(prompts), size):
            answers += answer(llm, prompts[i:i + size], most[i:i + size], stops, f"{path}-{i}")
            parts.append(steps.summary())
        seconds, found = time.perf_counter() - began, shares(before, counters(ours), shape) if ours else {}
        texts.append(answers)
        timed = [p for p in parts if p[1]]
        fields = {"prompt_s": round(sum(p[0] for p in parts), 3), "seconds": round(seconds, 2)}
        if timed:
            fields |= {"rows": max(p[3] for p in timed), "ms": round(statistics.median(p[1] for p in timed), 4),
                       "rounds": [round(p[1], 4) for p in timed], "cpu_us": round(statistics.median(p[2] for p in timed), 1)}
        if not args.stop:
            for i, prompt in enumerate(prompts[:ALONE]):
                answer(llm, [prompt], [args.new], None, f"{path}-alone-{i}")
            _, ms, us, _ = steps.summary()
            fields |= {"ms_alone": round(ms, 4), "cpu_us_alone": round(us, 1)}
        row(way=way, settings=settings, samples=os.path.basename(path), n=len(prompts), **fields, **found)
    row(event="ran", way=way, classes=common.attention_of(llm), start_s=round(started - start, 1),
        run_s=round(time.perf_counter() - started, 1), **common.versions())
    with open(results, "w") as f:
        json.dump(texts, f)


def counters(ours):
    if not ours:
        return {}
    import macattn.vllm
    return {"prompts": 0, "prompts_shown": 0, **macattn.vllm.stats()}


def difference(scores, others):
    """[mean difference, its standard error], in percent."""
    d = [100 * (a - b) for a, b in zip(scores, others)]
    return [round(statistics.mean(d), 2), round(statistics.stdev(d) / len(d) ** 0.5, 2) if len(d) > 1 else None]


class Answers:
    """Scores of ways one after another, and whose text is flash's and exact's. Rows come after each way, so that a run that is
    cut off has those of the ways it finished."""

    def __init__(self, args, folder):
        from answers import score
        from model import tokenizer
        self.args, self.samples, self.score, self.words = args, samples_of(args), score, tokenizer(args.model)
        self.details, self.known, self.first = [], {}, None
        with open(os.path.join(folder, "prompts.json")) as f:
            self.stops = set(json.load(f)["stops"])

    def until_end(self, tokens):
        return tokens[:next((i for i, t in enumerate(tokens) if t in self.stops), len(tokens))]

    def add(self, way, results):
        self.first = self.first or way
        with open(results) as f:
            sets = [[self.until_end(tokens) for tokens in answers] for answers in json.load(f)]
        for path, samples, answers in zip(self.args.samples, self.samples, sets):
            texts = [self.words.decode(a) for a in answers]
            scores = [self.score(t, s) for t, s in zip(texts, samples)]
            self.known[way, path] = answers, scores
            self.details.append({"way": way, "samples": os.path.basename(path), "texts": texts, "scores": scores})
            for task in [*sorted({s["task"] for s in samples}), "all"]:
                mine = [i for i, s in enumerate(samples) if task in (s["task"], "all")]
                row(event="answers", way=way, samples=os.path.basename(path), task=task, n=len(mine), **self.fields(way, path, mine))
            row(event="texts", way=way, samples=os.path.basename(path), tokens=sum(map(len, answers)), apart=self.apart(path, answers))
        if self.args.json:
            with open(self.args.json, "w") as f:
                json.dump(self.details, f)

    def fields(self, way, path, mine):
        """Of some samples: the score, and how it and the texts differ from the other ways'."""
        answers, scores = self.known[way, path]
        found = {"score": round(100 * statistics.mean(scores[i] for i in mine), 2)}
        for other in ("flash", "exact"):
            if (other, path) not in self.known or other == way:
                continue
            theirs, their_scores = self.known[other, path]
            found[f"to_{other}"] = difference([scores[i] for i in mine], [their_scores[i] for i in mine])
            found[f"same_{other}"] = round(statistics.mean(answers[i] == theirs[i] for i in mine), 3)
        return found

    def apart(self, path, answers):
        """Where texts part from the first way's (tokens)."""
        first = self.known[self.first, path][0]
        return [next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                for a, b in zip(answers, first) if a != b]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("samples", nargs="+")
    a.add_argument("--ways", nargs="+", default=["flash", "exact", "0.01", "0.02"])
    a.add_argument("--select", type=int, help="the setting; by default the library's")
    a.add_argument("--first", type=int, nargs="*", default=[], help="samples of each file")
    a.add_argument("--new", type=int, default=256)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--stop", action="store_true")
    a.add_argument("--folder", help="where the model is, or is to be written; else a temporary one")
    a.add_argument("--json", help="file for the texts")
    args = a.parse_args()
    sys.path.insert(1, str(pathlib.Path(__file__).parents[1] / "models"))
    common.import_vllm()
    with tempfile.TemporaryDirectory() as temporary:
        folder, done = args.folder or temporary, 0
        if not common.in_child(prepare, args, folder):
            return 1
        answers = Answers(args, folder)
        for i, way in enumerate(args.ways):
            results = os.path.join(temporary, f"{i}.json")
            if common.in_child(run, args, folder, way, results):
                answers.add(way, results)
                done += 1
    return 0 if done == len(args.ways) else 1


if __name__ == "__main__":
    sys.exit(main())
