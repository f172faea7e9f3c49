# SPDX-License-Identifier: Apache-2.0
"""What policies change in a pretrained model's predictions, and what they read.

usage: fidelity.py MODEL.gguf [--text NAME,...] [--context N,...] [--tokens N] [--set JSON]... [--threads N] [--json FILE]
    --set   settings of macattn.Attention as JSON, for example '{"policy": "budget", "budget": 0.05}'; may be repeated

Every setting decodes the same tokens behind the same prompt (a chat: the model's own greedy answer under exact attention), each
from its own cache; KL is that of the next token's distribution from the one under exact attention. Bytes: all that is read of K
and V, of rings and of summaries, as a share of all K and V.
"""
import argparse
import json
import time

import torch

import macattn
from model import Decoder, Model, Prompt, divergence, stop_tokens, tokenizer
from texts import TEXTS, prompt


def answer(made, n, stops):
    """The model's greedy answer under exact attention."""
    d = Decoder(made, n + 1, [dict(policy="exact")])
    tokens, logits = [], made.logits
    while len(tokens) <= n:
        tokens.append(int(logits[0].argmax()))
        if tokens[-1] in stops:
            break
        logits = d.step(tokens[-1:])
    return tokens


def read_share(stats, exact):
    """Bytes read, as a share of all K and V."""
    return (sum(stats.kv_bytes) + sum(stats.run_bytes) + sum(stats.ring_bytes)) / exact


def root(sum2, n):
    """Root mean square of what refused candidates, or checked selections, would have been off by, in units of the layer."""
    return (sum2 / n) ** 0.5 if n else None


def measure(model, made, follows, settings, args):
    n = min(args.tokens, len(follows) - 1)
    d = Decoder(made, n + 1, [dict(policy="exact"), *settings], args.threads)
    kl, same, nll = [], [], []
    for i in range(n):
        logits = d.step([follows[i]] * len(d.objects))
        kl.append(divergence(logits[:1], logits))
        same.append((logits.argmax(-1) == logits[0].argmax()).double())
        nll.append(-logits.double().log_softmax(-1)[:, follows[i + 1]])
    kl, same, nll = (torch.stack(x) for x in (kl, same, nll))
    exact = sum(d.objects[0].stats().kv_bytes)
    for i, s in enumerate(settings, 1):
        stats, chosen = d.objects[i].stats(), d.objects[i].settings
        groups = [g / max(1, sum(stats.groups)) for g in stats.groups]
        yield dict(policy=chosen["policy"], setting=round(chosen["budget" if chosen["policy"] == "budget" else "tau"], 6),
                   lse_order=chosen["lse_order"], band=chosen["band"], ring=chosen["ring"], fresh=chosen["fresh_tokens"],
                   select=chosen.get("select", 0), positions=n, kl_mean=float(kl[:, i].mean()),
                   kl_p99=float(kl[:, i].quantile(0.99)), kl_max=float(kl[:, i].max()), top1_agreement=float(same[:, i].mean()),
                   ppl_exact=float(nll[:, 0].mean().exp()), ppl_policy=float(nll[:, i].mean().exp()),
                   bytes_read=read_share(stats, exact), reused=groups[0], selected=groups[1], exact=groups[2],
                   error_reuse=root(stats.error2_layer, stats.samples), error_selection=root(stats.error2_selected, stats.checks))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("--text", default="documents,code,chat")
    p.add_argument("--context", default="16384")
    p.add_argument("--tokens", type=int, default=192)
    p.add_argument("--set", action="append", type=json.loads, default=[])
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--json", default="/dev/null")
    args = p.parse_args()
    settings = args.set or [dict(policy="budget")]
    contexts = [int(c) for c in args.context.split(",")]
    words, model = tokenizer(args.model), Model(args.model, max(contexts) + args.tokens + 64)
    name = args.model.rsplit("/", 1)[-1].removesuffix(".gguf")
    with open(args.json, "a") as out:
        for context in contexts:
            for text in args.text.split(","):
                if text not in TEXTS:
                    raise SystemExit(f"fidelity.py: no text {text}; there are {', '.join(TEXTS)}")
                begin = time.time()
                tokens, follows = prompt(words, text, context)
                made = Prompt(model, tokens)
                if follows is None:
                    follows = answer(made, args.tokens + 1, stop_tokens(words))
                for row in measure(model, made, follows, settings, args):
                    row = dict(model=name, text=text, context=len(tokens), **row, version=macattn.version())
                    out.write(json.dumps(row) + "\n")
                    out.flush()
                    print(f"{name[:20]} {text:9s} {row['context']:6d} {row['policy']} {row['setting']} order {row['lse_order']} band {row['band']} "
                          f"select {row['select']}: KL {row['kl_mean']:.2e} p99 {row['kl_p99']:.1e} max {row['kl_max']:.1e} "
                          f"top-1 {row['top1_agreement']:.3f} read {row['bytes_read']:.3f} "
                          f"({row['reused']:.2f} {row['selected']:.2f} {row['exact']:.2f}) refused {row['error_reuse']} checked "
                          f"{row['error_selection']}", flush=True)
                print(f"    {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
