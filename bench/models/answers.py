# SPDX-License-Identifier: Apache-2.0
"""Answers to long-context tasks (macattn tasks generate), written greedily under exact attention and under settings.

usage: answers.py MODEL.gguf SAMPLES.jsonl [--set JSON]... [--part I/N] [--limit SECONDS] [--threads N] [--json FILE]
    --part   every N-th sample from I on, for several processes side by side

Prints for each task: score under exact attention and under each setting with the standard error of the difference, share of
answers with the same text, bytes read. The model's chat template is used.
"""
import argparse
import json
import time
from collections import defaultdict

import numpy as np

from fidelity import read_share
from model import Decoder, Model, Prompt, chat, stop_tokens, tokenizer


def score(text, sample):
    """Share of the expected answers that the text holds, as RULER scores (string_match_all)."""
    return sum(o.lower() in text.lower() for o in sample["outputs"]) / len(sample["outputs"])


def write(d, made, most, stops):
    """Greedy answers of all settings: lists of tokens."""
    n = len(d.objects)
    answers, logits, done = [[] for _ in range(n)], made.logits.expand(n, -1), [False] * n
    for _ in range(most):
        chosen = [int(t) for t in logits.argmax(-1)]
        for i, t in enumerate(chosen):
            done[i] = done[i] or t in stops
            if not done[i]:
                answers[i].append(t)
        if all(done):
            break
        logits = d.step(chosen)
    return answers


def summary(rows, n_settings):
    by_task = defaultdict(list)
    for r in rows:
        by_task[r["task"]].append(r)
        by_task["all"].append(r)
    for task, found in by_task.items():
        s = np.array([r["scores"] for r in found]) * 100
        line = f"{task:18s} n={len(found):3d} exact {s[:, 0].mean():5.1f}"
        for i in range(1, n_settings + 1):
            d = s[:, i] - s[:, 0]
            same = np.mean([r["texts"][i] == r["texts"][0] for r in found])
            line += (f" | {s[:, i].mean():5.1f} ({d.mean():+.1f} +- {d.std() / len(d) ** .5:.1f}) same {same:.2f} "
                     f"read {np.mean([r['read'][i] for r in found]):.3f}")
        print(line, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("samples")
    p.add_argument("--set", action="append", type=json.loads, default=[])
    p.add_argument("--part", default="0/1")
    p.add_argument("--limit", type=float, default=1e9)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--json", default="/dev/null")
    args = p.parse_args()
    begin, settings = time.time(), args.set or [dict(policy="budget")]
    first, step = (int(x) for x in args.part.split("/"))
    samples = [json.loads(line) for line in open(args.samples)][first::step]
    words = tokenizer(args.model)
    stops = stop_tokens(words)
    prompts = [words.encode(chat(s["input"], s.get("answer_prefix", "").strip())).ids for s in samples]
    model = Model(args.model, max(map(len, prompts)) + 256)
    rows = []
    with open(args.json, "a") as out:
        for tokens, sample in zip(prompts, samples):
            if time.time() - begin > args.limit:
                print(f"answers.py: out of time after {len(rows)} of {len(samples)} samples", flush=True)
                break
            made, most = Prompt(model, tokens, fast=True), 96 if len(sample["outputs"]) > 1 else 48
            d = Decoder(made, most + 1, [dict(policy="exact"), *settings], args.threads)
            texts = [words.decode(a) for a in write(d, made, most, stops)]
            exact = sum(d.objects[0].stats().kv_bytes)
            steps = [max(1, o.stats().steps) for o in d.objects]
            row = dict(task=sample["task"], context=len(tokens), texts=texts, scores=[score(t, sample) for t in texts],
                       read=[read_share(o.stats(), exact) * steps[0] / n for o, n in zip(d.objects, steps)], settings=settings)
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
    summary(rows, len(settings))


if __name__ == "__main__":
    main()
