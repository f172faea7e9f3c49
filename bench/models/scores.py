# SPDX-License-Identifier: Apache-2.0
"""What selection's scores of runs are worth: what has to be read at a given error, by what is kept of each run of 16 tokens.

usage: scores.py MODEL.gguf [--text NAME] [--context N] [--queries N] [--errors X,...] [--json FILE]

Of the last queries of a prompt every second one chooses a threshold for each group of heads, the largest of 2^-5 .. 2^-18 at which
the root mean square of its errors is at most X, in units of the layer (docs/algorithm.md#selection); the others are what is
reported. Whoever would read more than 3/4 reads all. Everything in float32 but what is kept of a run, which is in 8 bits.
"""
import argparse
import json
import math

import torch

from model import Model, Prompt, tokenizer
from texts import prompt

RUN, BAND, READ_ALL = 16, 256, 0.75
THRESHOLDS = [2.0 ** -k for k in range(5, 19)]


def rounded(x):
    """As q8_0 keeps it: 8 bits and a scale for 32 values."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (torch.round(blocks / scale) * scale).flatten(-2)


class Runs:
    """Keys [runs, 16, d] of a KV head, and queries [n, d] times the scale: each score is the logarithm of the mass it promises."""

    def __init__(self, keys, queries):
        self.keys, self.q, self.mean = keys, queries, keys.mean(1)
        self.common = self.mean[0]

    def logit(self, key):
        return self.q @ (self.common + rounded(key - self.common)).t()

    def means(self):
        return self.logit(self.mean) + math.log(RUN)

    def halves(self):
        a, b = (self.logit(half.mean(1)) for half in self.keys.split(RUN // 2, 1))
        return torch.logaddexp(a, b) + math.log(RUN // 2)

    def variance(self):
        return self.means() + 0.5 * self.q.pow(2) @ self.keys.var(1, unbiased=False).t()

    def outliers(self, n=1):
        far = (self.keys - self.mean[:, None]).norm(dim=-1).topk(n, 1).indices
        kept = self.keys.gather(1, far[:, :, None].expand(-1, -1, self.keys.shape[-1]))
        logits = [self.logit(kept[:, i]) for i in range(n)]
        rest = (RUN * self.logit(self.mean) - sum(logits)) / (RUN - n) + math.log(RUN - n)
        return torch.logsumexp(torch.stack([rest, *logits]), 0)

    def two_outliers(self):
        return self.outliers(2)

    def mass(self):
        return torch.logsumexp(torch.einsum("qd,rtd->qrt", self.q, self.keys), -1)


# What is kept, and its bytes as a share of K and V in f16.
SCORES = {"means": 1 / 32, "halves": 2 / 32, "variance": 1.5 / 32, "outliers": 1.5 / 32, "two_outliers": 2 / 32, "mass": 0}


def exact_layer(model, layer):
    """Logits [heads, queries, tokens] and outputs [heads, queries, d] of the prompt's last queries."""
    k, v, _, q = layer
    queries, n = len(q), len(k)
    later = torch.arange(n) > torch.arange(n - queries, n)[:, None]
    logits = torch.stack([q[:, h] @ k[:, h // model.group].float().t() for h in range(model.n_heads)]) * model.head_dim ** -0.5
    logits.masked_fill_(later, -math.inf)
    return logits, torch.stack([logits[h].softmax(-1) @ v[:, h // model.group].float() for h in range(model.n_heads)])


def group_errors(model, layer, group, logits, outputs, unit, name):
    """[thresholds, queries]: root mean square error over the group's heads, and the share of runs that is read."""
    k, v, _, q = layer
    heads = range(group * model.group, (group + 1) * model.group)
    n_runs = (len(k) - len(q) - BAND) // RUN
    keys, values = (x[:n_runs * RUN, group].float().unflatten(0, (n_runs, RUN)) for x in (k, v))
    scores = [getattr(Runs(keys, q[:, h] * model.head_dim ** -0.5), name)() for h in heads]
    lse = [logits[h].logsumexp(-1) for h in heads]
    mean_value = rounded(values.mean(1))
    errors, shares = [], []
    for threshold in THRESHOLDS:
        read = torch.stack([s - l[:, None] >= math.log(threshold) for s, l in zip(scores, lse)]).any(0)
        read[:, 0] = True
        square = 0
        for h, s, l in zip(heads, scores, lse):
            share = (logits[h] - l[:, None]).exp()
            far = share[:, :n_runs * RUN].unflatten(1, (n_runs, RUN)) * read[:, :, None]
            stand_in = (s - l[:, None]).exp() * ~read
            near = share[:, n_runs * RUN:]
            out = far.flatten(1) @ values.flatten(0, 1) + stand_in @ mean_value + near @ v[n_runs * RUN:, group].float()
            out = out / (far.sum((1, 2)) + stand_in.sum(1) + near.sum(1))[:, None]
            square = square + ((out - outputs[h]).norm(dim=-1) / unit).pow(2)
        errors.append((square / model.group).sqrt())
        shares.append(read.float().mean(1))
    return torch.stack(errors), torch.stack(shares)


def chosen(errors, shares, most):
    """What the queries that did not choose see."""
    fits = (errors[:, ::2].pow(2).mean(1).sqrt() <= most).flip(0).cummin(0).values.flip(0)
    k = int(fits.int().argmax())
    if not fits[k] or shares[k, ::2].mean() > READ_ALL:
        return torch.zeros_like(errors[0, 1::2]), torch.ones_like(shares[0, 1::2])
    return errors[k, 1::2], shares[k, 1::2]


def measure(model, made, name, limits):
    found = {x: ([], []) for x in limits}
    for layer in made.layers:
        logits, outputs = exact_layer(model, layer)
        unit = outputs.norm(dim=-1).pow(2).mean(0).sqrt()
        for group in range(model.n_kv_heads):
            errors, shares = group_errors(model, layer, group, logits, outputs, unit, name)
            for x in limits:
                for to, value in zip(found[x], chosen(errors, shares, x)):
                    to.append(value)
    for x in limits:
        errors, shares = (torch.stack(y) for y in found[x])
        yield dict(kept=name, error=x, read=float(shares.mean()) + SCORES[name], rms=float(errors.pow(2).mean().sqrt()),
                   p99=float(errors.quantile(0.99)), p999=float(errors.quantile(0.999)), max=float(errors.max()))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("--text", default="documents")
    p.add_argument("--context", type=int, default=4096)
    p.add_argument("--queries", type=int, default=64)
    p.add_argument("--errors", default="0.01,0.02,0.03,0.05")
    p.add_argument("--json", default="/dev/null")
    args = p.parse_args()
    words, model = tokenizer(args.model), Model(args.model, args.context + 64)
    tokens, _ = prompt(words, args.text, args.context)
    made = Prompt(model, tokens, args.queries)
    with open(args.json, "a") as out:
        for name in SCORES:
            for row in measure(model, made, name, [float(x) for x in args.errors.split(",")]):
                row = dict(model=args.model.rsplit("/", 1)[-1].removesuffix(".gguf"), text=args.text, context=len(tokens), **row)
                out.write(json.dumps(row) + "\n")
                out.flush()
                print("{model:.20} {kept:13} {error:5}  read {read:.3f}  rms {rms:.4f}  p99 {p99:.3f}  p999 {p999:.3f}  max {max:.3f}"
                      .format(**row), flush=True)


if __name__ == "__main__":
    main()
