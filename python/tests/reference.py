# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, written to be read."""
import numpy as np


def attend(q, k, v, *, n_tokens=None, scale=0.0, softcap=0.0, window=0, sinks=None):
    """One sequence: q [n_queries, n_heads, d], k [tokens, n_kv_heads, d], v likewise; query i is the token at
    n_tokens - n_queries + i. Returns out [n_queries, n_heads, dv] and lse [n_queries, n_heads]."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    n_tokens = len(k) if n_tokens is None else n_tokens
    share = q.shape[1] // k.shape[1]
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.zeros(q.shape[:2])
    for i in range(len(q)):
        end = n_tokens - len(q) + i + 1
        start = max(0, end - window) if window else 0
        for h in range(q.shape[1]):
            logits = k[start:end, h // share] @ q[i, h] * (scale or q.shape[2] ** -0.5)
            if softcap:
                logits = softcap * np.tanh(logits / softcap)
            top = max(logits.max(initial=-np.inf), -np.inf if sinks is None else sinks[h])
            weights = np.exp(logits - top)
            total = weights.sum() + (0 if sinks is None else np.exp(sinks[h] - top))
            out[i, h] = weights @ v[start:end, h // share] / total
            lse[i, h] = np.log(total) + top
    return out, lse
