# SPDX-License-Identifier: Apache-2.0
"""Prompts, which engines compute themselves, shown to the library: it learns from their queries what reuse and selection cost,
and remembers the newest. Prompts are not in full CUDA graphs, so this is Python, row by row; nothing waits for the GPU."""
import torch

from .layers import stream
from .rotate import unrotate

# The newest queries of a prompt that are shown at most: of more, the library looks at no more (src/core/policy/select.h: 8
# samples, one to 128 queries).
MOST = 1024
ENOUGH = 32  # samples after which the library needs no more to begin with: of selection, in the mean of the last 64


class Prompts:
    """Which prompts are shown. What they teach is the model's, and serves all requests; showing takes time that grows with the
    prompt's. So the first are shown until enough was learnt, and then one in `every`: 1 shows all, 0 none."""

    def __init__(self, every, min_tokens):
        self.every, self.min_tokens = every, min_tokens
        self.samples = self.since = 0
        self.ended = self.shown = 0  # prompts that were long enough, and that were shown

    def queries(self, start, end, length):
        """How many of the newest queries are to be shown of tokens [start, end) of a prompt of `length`."""
        first = max(start, length - MOST)
        if self.every == 0 or start >= length or end <= first or end < self.min_tokens:
            return 0
        self.ended += end >= length
        self.since += end >= length
        if self.samples >= ENOUGH and self.since < self.every:
            return 0
        if end >= length:
            self.since, self.shown = 0, self.shown + 1
        self.samples += max(1, (end - first) * 8 // MOST)
        return end - first

    def stats(self):
        return {"prompts": self.ended, "prompts_shown": self.shown}


class Shown:
    """Work memory of one shape of layers for showing a prompt: what is read of queries, but for them and their results."""

    def __init__(self, heads, dim, ring, dtype, device):
        self.remembered = min(ring, MOST)
        self.match = torch.empty(MOST, heads, dim, dtype=dtype, device=device)
        self.lse = torch.empty(MOST, heads, dtype=torch.float32, device=device)

    def show(self, attention, layer, batch, row, q, k, v, out, lse, rope, lengths):
        """q, out [n, heads, dim] of the newest queries of a row, lse [n, heads] in any order of memory; `rope`: its table of cos
        and sin, and neox; `lengths` [n]: tokens that each query sees."""
        n = q.shape[0]
        old = max(n - self.remembered, 0)  # the library reads but those it remembers
        unrotate(q[old:], self.match[old:n], rope[0], lengths[old:], rope[1])
        self.lse[old:n].copy_(lse[old:])
        attention.capture(layer, batch, row, q, k, v, q_match=self.match[:n], out=out, lse=self.lse[:n], stream=stream())


def positions(device):
    """To be added to a row's length: the tokens that its newest MOST queries see."""
    return torch.arange(1 - MOST, 1, dtype=torch.int32, device=device)
