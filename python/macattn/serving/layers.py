# SPDX-License-Identifier: Apache-2.0
"""What the plug-ins for serving engines share: settings, and an object of the library for the layers of one shape."""
import collections
import collections.abc

import torch

from .._arrays import SHORT
from .._library import load
from .._settings import longest_ring, new_config, read
from ..cuda import CudaAttention, run_bytes, state_bytes

ROPES = {"RotaryEmbedding", "Llama3RotaryEmbedding", "YaRNScalingRotaryEmbedding"}  # a row of cos_sin_cache a position
HEAD_SIZES = (64, 128, 256)  # that the GPU side has kernels for
SHOW_PROMPTS = 32  # one in so many; docs/vllm.md has what one costs
OURS = {"run_tokens", "show_prompts"}  # settings of these plug-ins, not of the library
# The model decides these.
MODELS_OWN = {"n_layers", "n_heads", "n_kv_heads", "head_dim", "v_head_dim", "q_dtype", "k_dtype", "v_dtype", "scale",
              "softcap", "window", "max_tokens"}


def read_settings(asked, max_tokens, show_prompts=SHOW_PROMPTS):
    """All settings but the model's own, from those that were asked for; exact is what nobody has to ask for. `run_tokens` is
    CudaAttention's: tokens of all requests together whose means of runs there is room for. `show_prompts`: see Prompts."""
    if not isinstance(asked, collections.abc.Mapping):
        raise ValueError(f"macattn: the settings are {asked!r}, not names with values")
    asked = dict(asked)
    run_tokens, show = asked.pop("run_tokens", None), asked.pop("show_prompts", show_prompts)
    if not isinstance(show, int) or show < 0:
        raise ValueError(f"macattn: show_prompts is {show!r}; it must be a whole number, 0 or above")
    if run_tokens is not None and (not isinstance(run_tokens, int) or run_tokens < 1):
        raise ValueError(f"macattn: run_tokens is {run_tokens!r}; it must be a whole number above 0")
    for name in sorted(MODELS_OWN & asked.keys()):
        raise ValueError(f"macattn: {name} is the model's")
    config = read(new_config({"policy": "exact", **asked}))
    settings = {name: v for name, v in config.items() if name not in MODELS_OWN}
    settings["max_tokens"] = max(max_tokens, 2)
    settings["run_tokens"], settings["show_prompts"] = run_tokens, show
    return settings


def memory(settings, run_tokens):
    """Bytes of device memory that rings and means of runs take."""
    slots, tokens = settings["max_slots"], settings["max_tokens"]
    runs = slots * run_bytes(tokens, **settings)
    if run_tokens is not None:
        runs = runs * min(run_tokens, slots * tokens) // (slots * tokens)
    return slots * state_bytes(**settings) + runs


class Group:
    """The layers of one shape."""

    def __init__(self, n_layers, shape, settings, max_rows, dtype, device):
        """shape: heads, KV heads, dimension, scale, soft cap"""
        heads, kv_heads, dim, scale, softcap = shape
        name = SHORT[str(dtype).removeprefix("torch.")]
        model = dict(n_layers=n_layers, n_heads=heads, n_kv_heads=kv_heads, head_dim=dim, scale=scale, softcap=float(softcap),
                     q_dtype=name, k_dtype=name, v_dtype=name)
        config = model | {name: v for name, v in settings.items() if name not in OURS}
        run_tokens = settings["run_tokens"]
        self.attention = CudaAttention(device=device.index, max_rows=max_rows, out_dtype=name, run_tokens=run_tokens, **config)
        self.n_layers = n_layers
        self.reuses = self.attention.settings["policy"] != "exact"
        self.state = memory(config, run_tokens) if self.reuses else 0
        self.match = torch.empty(max_rows, heads, dim, dtype=dtype, device=device) if self.reuses else None
        self.shown = None
        if self.reuses and settings["show_prompts"]:
            from .prompts import Shown
            self.shown = Shown(heads, dim, settings["ring"] or longest_ring(), dtype, device)


def by_shape(layers, shape):
    """{shape: its layers, in order}"""
    found = collections.defaultdict(list)
    for layer in layers:
        found[shape(layer)].append(layer)
    return found


def summary(groups, n_layers, engine, settings, exact):
    """The one line at the start."""
    n, state = sum(g.n_layers for g in groups), sum(g.state for g in groups)
    return (f"macattn {load().macattn_version().decode()} for {engine}: policy {settings['policy']}, decodes {n} of {n_layers} layers"
            + (f", remembers {settings['max_slots']} requests in {state / 1e9:.2f} GB" if state else "")
            + "".join(f"; exact because of {what} ({why})" for what, why in exact.items()))


def stats(groups):
    """Counters of all layers of this process: (row, head) pairs, the tokens they attended to; (row, KV head) pairs, and how many
    of them read a selection; bytes read of K, V, rings and means."""
    total = collections.Counter()
    for group in groups:
        s = group.attention.stats()
        total.update({name: getattr(s, name) for name in ("steps", "hits", "misses", "tokens_total", "tokens_skipped")})
        total.update(groups=sum(s.groups), groups_selected=s.groups[1], bytes_read=sum(s.kv_bytes + s.run_bytes + s.ring_bytes))
    return dict(total)


def stream():
    return torch.cuda.current_stream().cuda_stream
