# SPDX-License-Identifier: Apache-2.0
"""attn_implementation="macattn" in Hugging Face transformers, on the CPU and on NVIDIA GPUs.

    import macattn.transformers
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="macattn")

What happens then:
- A model is prepared when it is first called: hooks on its attention modules tell which cache they write to, and keep the
  queries before RoPE.
- Caches that grow by concatenation (DynamicCache, what generate() makes) grow in blocks instead: their layers are replaced.
- Plain causal attention over a cache, also with left padding, is computed by the library. What it cannot express (other
  masks, sliding windows, gradients, dropout) is left to transformers' own "sdpa" (soft caps and sinks: to the model's
  "eager"), and counted by reason in `stats`.
- One thread at a time is in a model's forward; others wait, and go on between its steps.
- Each row of a cache is a sequence with a slot, unless the policy is exact. A slot is found by the cache and the row, never
  by lengths. Rolled back tokens (crop) take back what was remembered at them; whatever else a cache is put through
  (reordered beams, selected or repeated rows, a reset) makes its rows begin anew.
"""
import collections
import importlib.metadata
import itertools
import sys
import threading
import weakref

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .._arrays import SHORT, View
from .._library import ArgumentError, UnsupportedError
from .._settings import longest_ring, new_config
from .._settings import settings as all_settings
from ..attention import Attention
from ..cuda import Batch, CudaAttention
from ..sequences import Sequences

logger = transformers.utils.logging.get_logger(__name__)
NAME = "macattn"
LEAST = (5, 17)
if tuple(int(n) for n in importlib.metadata.version("transformers").split(".")[:2]) < LEAST:
    raise ImportError(f"macattn needs transformers {'.'.join(map(str, LEAST))} or later; this is {transformers.__version__}")

# ---------------------------------------------------------------------------------------------------------------- cache

BLOCK = 256  # tokens; a cache grows by at least so many, and by a quarter of what it holds


class GrowingLayer(DynamicLayer):
    """One layer's K and V, [batch, heads, tokens, dim], as views of storage with room for more.

    Everything but `update` is DynamicLayer's: what it does to `keys` and `values` (crop, reorder, select, ...) is noticed
    at the next update. A shorter view of the storage is a rollback; anything else is a new beginning.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._stores = None        # of K and V, [batch, heads, capacity, dim]
        self._kept, self._moved = 0, True  # since `history` was asked: tokens never taken back; whether rows moved
        self._asked_by = None      # Tokens: deep copies of a cache have copies of theirs
        self.reordered = False     # by a beam search, which moves rows in every step

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        self.dtype, self._stores = key_states.dtype, None

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        if before and not self._is_ours():
            self._moved = True
        self._kept = min(self._kept, before)
        end = before + key_states.shape[-2]
        old = (self.keys, self.values)
        if self._stores is None or not self._is_ours() or self._stores[0].shape[2] < end:
            room = -(-(end + max(BLOCK, end // 4)) // BLOCK) * BLOCK
            self._stores = tuple(s.new_empty(*s.shape[:2], room, s.shape[3]) for s in (key_states, value_states))
            if before:
                for store, tokens in zip(self._stores, old):
                    store[:, :, :before] = tokens
        for store, tokens in zip(self._stores, (key_states, value_states)):
            store[:, :, before:end] = tokens
        self.keys, self.values = (store[:, :, :end] for store in self._stores)
        return self.keys, self.values

    def _is_ours(self):
        """Whether keys and values still are beginnings of the storage."""
        return self._stores is not None and all(
            tokens.data_ptr() == store.data_ptr() and tokens.stride() == store.stride() and
            tokens.shape[:2] == store.shape[:2] for tokens, store in zip((self.keys, self.values), self._stores))

    def history(self, tokens):
        """(rows moved, tokens never taken back) since these Tokens last asked this."""
        told = self._moved or self._asked_by is not tokens, self._kept
        self._moved, self._kept, self._asked_by = False, self.get_seq_length(), tokens
        return told

    def __copy__(self):
        """Shares K and V, but not the room for more, which only one can write into."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__, _stores=None, _moved=True, _asked_by=None)
        return new

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        self._moved = self.reordered = True

    def reset(self):
        self.keys = self.values = self._stores = None
        self.is_initialized, self._moved, self._kept = False, True, 0

    @classmethod
    def of(cls, layer):
        """A layer with another's tokens."""
        new = cls()
        if layer.is_initialized and layer.get_seq_length():
            new.update(layer.keys, layer.values)
        return new


class Tokens:
    """Names the rows of a cache, and frees their slots when the cache is gone. A copy of a cache has rows of its own,
    which begin with what the originals remember."""

    serials = itertools.count()

    def __init__(self, cache=None):
        self.cache = weakref.ref(cache) if cache is not None else lambda: None  # shallow copies have the same Tokens
        self.serial = next(Tokens.serials)
        self.users = weakref.WeakSet()  # the runners that know these rows
        weakref.finalize(self, Tokens._end, self.serial, self.users).atexit = False

    @staticmethod
    def _end(serial, users):
        for runner in tuple(users):
            runner.end(serial)

    def __deepcopy__(self, memo):
        new = Tokens(memo.get(id(self.cache())))
        for runner in tuple(self.users):
            runner.copy(self, new)
        return new

    def __getstate__(self):  # a cache that is saved or sent elsewhere takes no slots along
        return {}

    def __setstate__(self, state):
        self.__init__()


def growing(cache, index):
    """The cache's layer of that number as one that grows in blocks, and its Tokens; None, None for another kind of cache."""
    layers = getattr(cache, "layers", None)
    if layers is None or getattr(cache, "offloading", False):
        return None, None
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    if index >= len(layers):
        if getattr(cache, "layer_class_to_replicate", None) is not GrowingLayer:
            return None, None
        while len(layers) <= index:
            layers.append(GrowingLayer())
    if type(layers[index]) is DynamicLayer:
        layers[index] = GrowingLayer.of(layers[index])
    if type(layers[index]) is not GrowingLayer:
        return None, None
    tokens = cache.__dict__.get("_macattn_tokens")
    if tokens is None or tokens.cache() is not cache:
        tokens = cache._macattn_tokens = Tokens(cache)
    return layers[index], tokens


# ----------------------------------------------------------------------------------------------------------------- mask


class Rows:
    """What the rows of a step see: query i of row b is the token at end[b] - n_queries[b] + i of K's tokens, and sees
    the tokens from start[b] up to itself. Queries that are padding themselves come before the others, and are not computed."""

    def __init__(self, starts, ends, n_queries, queries):
        self.starts, self.ends, self.n_queries = starts, ends, n_queries
        self.lengths = [e - s for s, e in zip(starts, ends)]
        self.padded = any(n < queries for n in n_queries)


def read_mask(mask, batch, queries, tokens):
    """The Rows that a mask expresses, or None. `mask` is None or boolean [batch or 1, 1, queries, tokens]."""
    if mask is None:
        # transformers leaves out a mask where all tokens are seen, or all up to the query where there are as many
        # queries as tokens.
        if queries > 1 and queries != tokens:
            return None
        return Rows([0] * batch, [tokens] * batch, [queries] * batch, queries)
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[2:] != (queries, tokens):
        return None
    place = torch.arange(tokens, device=mask.device)
    last = mask[:, 0, -1]
    starts = last.to(torch.uint8).argmax(-1)
    ends = starts + last.sum(-1)
    position = ends[:, None] - queries + torch.arange(queries, device=mask.device)  # of each query, [batch, queries]
    expected = (place >= starts[:, None, None]) & (place <= position[..., None])
    if not torch.equal(mask[:, 0], expected):
        # Nobody looks at what queries give that are padding themselves. Those see nothing or, as transformers also has
        # it, everything; one that sees some tokens is no padding (but the first token of a row padded on the right).
        real, seen = position >= starts[:, None], mask[:, 0]
        some = seen.any(-1) & ~seen.all(-1)
        if not torch.equal(seen & real[..., None], expected & real[..., None]) or (some & ~real).any():
            return None
    starts, ends = (t.expand(batch).tolist() for t in (starts, ends))
    if min(e - s for s, e in zip(starts, ends)) < 1:
        return None
    return Rows(starts, ends, [min(queries, e - s) for s, e in zip(starts, ends)], queries)


class MaskReader:
    """All layers of a step are given the same mask: it is read once a step, and again in the next one, for which a caller
    may have written into it."""

    def __init__(self):
        self._of, self._shape, self._rows, self._last = None, None, None, 0

    def __call__(self, layer, mask, *shape):
        same = self._of() is mask if self._of else mask is None
        if not same or layer <= self._last or self._shape != shape or self._rows is None:
            self._of, self._shape = weakref.ref(mask) if mask is not None else None, shape
            self._rows = read_mask(mask, *shape)
        self._last = layer
        return self._rows


# -------------------------------------------------------------------------------------------------------------- runners


class Runner:
    """An object of the library for the layers of a model that have one shape, and its sequences."""

    def __init__(self, layers, shape, values, max_tokens, max_slots):
        self.sequences = None
        self.lengths = {}  # of what each row remembers, by the row's name
        self.rows = collections.defaultdict(set)  # names by cache
        settings = dict(n_layers=layers, max_tokens=max_tokens, max_slots=max_slots, **shape)
        self.attention = self.create({**settings, **values})
        self.reuses = self.attention.settings["policy"] != "exact"
        self.max_slots = self.attention.settings["max_slots"]
        self._step, self._last = None, 0

    def begin(self, layer, step, rows, tokens, cache_layer):
        """Prepare a step unless this layer goes on with it. Returns whether the step's rows have slots."""
        key = (step, tokens.serial if tokens else None, rows.starts, rows.ends, rows.n_queries)
        if self._step == key and layer > self._last and self._with_slots is not None:
            self._last = layer
            return self._with_slots
        self._step = None
        slots = self._take(rows, tokens, cache_layer) if tokens is not None and self.reuses else None
        self._with_slots = slots is not None
        self.plan(rows, slots, step)
        self._step, self._last = key, layer
        return self._with_slots

    def _take(self, rows, tokens, cache_layer):
        if cache_layer.reordered:
            return None
        moved, kept = cache_layer.history(tokens)
        tokens.users.add(self)
        names = [(tokens.serial, row, start) for row, start in enumerate(rows.starts)]
        slots = self.sequences.take(names)
        for name, slot, length, start in zip(names, slots, rows.lengths, rows.starts):
            if name not in self.rows[tokens.serial]:  # a slot that was just taken is empty
                self.rows[tokens.serial].add(name)
            elif moved:
                self.sequences.forget(name)
            elif self.lengths.get(name, 0) > max(kept - start, 0):
                self.sequences.truncate(name, max(kept - start, 0))
            self.lengths[name] = length
        return self.usable(slots)

    def end(self, serial):
        for name in self.rows.pop(serial, ()):
            self.sequences.free(name)
            self.lengths.pop(name, None)

    def copy(self, tokens, new):
        for name in tuple(self.rows.get(tokens.serial, ())):
            child = (new.serial, *name[1:])
            if self.sequences.fork(name, child):
                self.rows[new.serial].add(child)
                self.lengths[child] = self.lengths[name]
        new.users.add(self)


def of_rows(states):
    """[batch, heads, queries, dim] as [batch * queries, heads, dim], with adjacent values."""
    batch, heads, queries, dim = states.shape
    rows = states.transpose(1, 2).reshape(batch * queries, heads, dim)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def of_cache(states, rows):
    """K or V, [batch, heads, tokens, dim], as the library's pages: one row each, or, where rows begin at different
    tokens, one token each, so that a row can begin anywhere. Returns the view and the rows' page numbers."""
    size = states.element_size()
    stride = [n * size for n in states.stride()]
    batch, heads, tokens, dim = states.shape
    device = states.device.index if states.is_cuda else None
    dtype = SHORT.get(name := str(states.dtype).removeprefix("torch."), name)
    if not any(rows.starts):
        shape, strides, pages = (batch, tokens), (stride[0], stride[2]), list(range(batch))
    else:
        a_row = stride[0] // stride[2]
        pages = [row * a_row + start for row, start in enumerate(rows.starts)]
        shape, strides = (max(pages) + 1, max(rows.lengths)), (stride[2], stride[2])
    return View(states.data_ptr(), (*shape, heads, dim), (*strides, stride[1], size), dtype, size, device, states), pages


class CpuRunner(Runner):
    def create(self, settings):
        settings.setdefault("n_threads", torch.get_num_threads())
        attention = Attention(openmp=True, **settings)
        self.sequences = Sequences(attention)
        return attention

    def usable(self, slots):
        return slots if min(slots) >= 0 else None  # the CPU's decode wants a slot for every row

    def plan(self, rows, slots, step):
        self.attention.plan(rows.lengths, slots=slots or [-1] * len(rows.lengths), n_queries=rows.n_queries, pages=step)

    def run(self, layer, rows, with_slots, query, key, value, q_match, sinks):
        batch, heads, queries, _ = query.shape
        q = of_rows(query)
        match = of_rows(q_match) if q_match is not None else None
        real = None
        if rows.padded:
            real = torch.cat([torch.arange(b * queries + queries - n, (b + 1) * queries)
                              for b, n in enumerate(rows.n_queries)])
            q, match = q[real], match[real] if match is not None else None
        k, v = of_cache(key, rows)[0], of_cache(value, rows)[0]
        out = torch.empty(len(q), heads, value.shape[-1], dtype=torch.float32)
        if not with_slots or match is None:
            self.attention.attend(q, k, v, sinks=sinks, out=out)
        else:
            call = self.attention.decode if max(rows.n_queries) == 1 else self.attention.prefill
            call(layer, q, k, v, q_match=match, sinks=sinks, out=out)
        out = out.to(query.dtype)
        if real is not None:
            whole = out.new_zeros(batch * queries, *out.shape[1:])
            whole[real] = out
            out = whole
        return out.view(batch, queries, *out.shape[1:])


class CudaRunner(Runner):
    def create(self, settings):
        device = settings.pop("device")
        self.max_rows = 1024
        attention = CudaAttention(device=device.index, max_rows=self.max_rows, out_dtype=settings["q_dtype"], **settings)
        self.device, self.sequences = device, Sequences(attention)
        return attention

    def stream(self):
        return torch.cuda.current_stream(self.device).cuda_stream

    def usable(self, slots):
        return slots if max(slots) >= 0 else None  # rows without a slot are computed exactly

    def _take(self, *arguments):
        self.sequences.call = {"stream": self.stream()}
        return super()._take(*arguments)

    def plan(self, rows, slots, step):
        number = dict(dtype=torch.int32, device=self.device)
        self.batch = Batch(torch.tensor(rows.lengths, **number), pages=torch.tensor(step, **number),
                           slots=torch.tensor(slots or [-1] * len(rows.lengths), **number))

    def run(self, layer, rows, with_slots, query, key, value, q_match, sinks):
        q = of_rows(query)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        k, v = of_cache(key, rows)[0], of_cache(value, rows)[0]
        if not with_slots or q_match is None:
            self.attention.attend(self.batch, q, k, v, sinks=sinks, out=out, stream=self.stream())
        else:
            self.attention.decode(layer, self.batch, q, k, v, q_match=of_rows(q_match), sinks=sinks, out=out,
                                  stream=self.stream())
        return out[:, None]

    def prefill(self, layer, rows, query, key, value, q_match, scaling):
        """A whole prompt by torch's flash attention, which also gives the lse; the newest queries are remembered."""
        group = query.shape[1] // key.shape[1]
        wide = [s.repeat_interleave(group, 1) if group > 1 else s for s in (key, value)]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, *wide, 0.0, True, False, scale=scaling)[:2]
        n = min(query.shape[2], self.attention.settings["ring"] or longest_ring())
        k, v = of_cache(key, rows)[0], of_cache(value, rows)[0]
        out = out.transpose(1, 2).contiguous()
        for row in range(query.shape[0]):
            q, match = (s[row, :, -n:].transpose(0, 1).contiguous() for s in (query, q_match))
            self.attention.capture(layer, self.batch, row, q, k, v, q_match=match, out=out[row, -n:],
                                   lse=lse[row, :, query.shape[2] - n:query.shape[2]].t().contiguous(),
                                   stream=self.stream())
        return out


# -------------------------------------------------------------------------------------------------------------- engines

# Settings that the model decides.
MODELS_OWN = {"n_layers", "n_heads", "n_kv_heads", "head_dim", "v_head_dim", "q_dtype", "k_dtype", "v_dtype", "scale",
              "softcap", "window"}
DEFAULTS = {"policy": "exact"}  # for models without their own; what is not here is the library's


class Engine:
    """A model's settings, runners and counters."""

    def __init__(self, model, modules):
        self.own = model.__dict__.setdefault("_macattn_settings", {})  # where copies of the model take them along
        self.lock = threading.RLock()
        self.runners = {}
        self.read_mask = MaskReader()
        self.calls = collections.Counter()
        self.refused = {}  # as `runners`, with why there is none
        self.layers = len(modules)
        text = model.config.get_text_config(decoder=True)
        self.max_positions = getattr(text, "max_position_embeddings", 0) or 0

    def values(self):
        return {**DEFAULTS, **self.own}

    def runner(self, query, key, value, scaling, softcap):
        """The object for tensors of this shape, or a sentence that says why there is none."""
        shape = dict(n_heads=query.shape[1], n_kv_heads=key.shape[1], head_dim=query.shape[3], v_head_dim=value.shape[3],
                     scale=scaling or 0.0, softcap=softcap or 0.0)
        for name, states in (("q_dtype", query), ("k_dtype", key), ("v_dtype", value)):
            shape[name] = SHORT.get(kind := str(states.dtype).removeprefix("torch."), kind)
        values, batch = self.values(), query.shape[0]
        name = (query.device, tuple(shape.values()))
        if self.refused.get(name, (None,))[0] == values:
            return self.refused[name][1]
        known = self.runners.get(name)
        if known and known[1] == values and (known[0].max_slots >= batch or not known[0].reuses or "max_slots" in values):
            return known[0]
        default = next(s.initial for s in all_settings() if s.name == "max_tokens")
        most = values.pop("max_tokens", max(self.max_positions, int(default)))
        slots = values.pop("max_slots", max(batch, known[0].max_slots if known else 1))
        kind, place = (CudaRunner, {"device": query.device}) if query.is_cuda else (CpuRunner, {})
        try:
            runner = kind(self.layers, {**shape, **place}, values, most, slots)
        except (UnsupportedError, ArgumentError) as e:
            self.refused[name] = self.values(), str(e)
            return str(e)
        self.runners[name] = runner, self.values()
        return runner


ENGINES = weakref.WeakKeyDictionary()  # model: Engine
SITES = weakref.WeakKeyDictionary()    # attention module: Site


class Site:
    """An attention module: where it is in the model (None: nowhere the library computes, its calls are but counted), and what
    its hooks saw in the call under way."""

    def __init__(self, engine, layer):
        self.engine, self.layer = engine, layer
        self.cache_layer = self.tokens = self.rope = self.query = None
        self.trusted = None  # whether `query` was seen to be the query before RoPE

    def before_rope(self, module, query):
        """The query before RoPE, [batch, heads, queries, dim], or None. Before it is used for the first time it is put
        through the model's own RoPE, and must come out as the query that attention was given."""
        raw, self.query = self.query, None
        rope, self.rope = self.rope, None
        if raw is None or self.trusted is False:
            return None
        batch, heads, queries, dim = query.shape
        if raw.dim() == 3 and raw.shape[-1] >= heads * dim:  # more: a projection that makes q, k and v at once
            raw = raw[..., :heads * dim].unflatten(-1, (heads, dim))
        if raw.dim() == 4 and raw.shape == (batch, queries, heads, dim):
            raw = raw.transpose(1, 2)
        if raw.shape != query.shape or raw.dtype != query.dtype:
            self.trusted = False
            return None
        if self.trusted is None:
            self.trusted = is_rope_of(raw, query, rope, module)
        return raw if self.trusted else None


def is_rope_of(raw, query, rope, module):
    if rope is None:
        return torch.equal(raw, query)
    rotate = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        return False
    try:
        turned = rotate(raw, raw, *rope)[0]
    except (TypeError, RuntimeError, ValueError):
        return False
    return turned.shape == query.shape and torch.allclose(turned.float(), query.float(), rtol=0.02, atol=0.02)


def is_attention(module):
    return isinstance(getattr(module, "layer_idx", None), int) and "Attention" in type(module).__name__


def source_of_queries(module):
    """The module in an attention module that gives the queries before RoPE, or None: then nothing can be reused."""
    found = (getattr(module, name, None) for name in ("q_norm", "q_proj", "qkv_proj"))
    return next((m for m in found if isinstance(m, torch.nn.Module)), None)


def prepare(model):
    """Give a model an engine and its attention modules hooks."""
    windows, modules = [], []
    for m in filter(is_attention, model.modules()):
        (modules if getattr(m, "sliding_window", None) is None else windows).append(m)
    engine = next((SITES[m].engine for m in modules + windows if m in SITES), None) or Engine(model, modules)
    ENGINES[model] = engine
    for module in windows:
        SITES.setdefault(module, Site(engine, None))
    for layer, module in enumerate(modules):
        if module in SITES:
            continue
        SITES[module] = Site(engine, layer)
        source = source_of_queries(module)
        if before_attention not in module._forward_pre_hooks.values():  # a copy of a model comes with its hooks
            module.register_forward_pre_hook(before_attention, with_kwargs=True)
        if source is not None and not any(isinstance(hook, QueryHook) for hook in source._forward_hooks.values()):
            source.register_forward_hook(QueryHook(module))


def site_of(module):
    """The module's Site, while its model uses macattn."""
    site = SITES.get(module)
    return site if site is not None and getattr(getattr(module, "config", None), "_attn_implementation", NAME) == NAME else None


class QueryHook:
    """Keeps what a module's query projection gave, for the attention that follows in the same call."""

    def __init__(self, module):
        self.module = weakref.ref(module)

    def __call__(self, source, arguments, output):
        site = site_of(self.module())
        if site is not None:
            site.query = output

    def __deepcopy__(self, memo):
        return QueryHook(memo.get(id(self.module()), self.module()))

    def __getstate__(self):
        return {"module": self.module()}

    def __setstate__(self, state):
        self.module = weakref.ref(state["module"])


def before_attention(module, arguments, kwargs):
    site = site_of(module)
    if site is None:
        return
    site.rope = kwargs.get("position_embeddings")
    cache = kwargs.get("past_key_values", kwargs.get("cache"))
    site.cache_layer, site.tokens = growing(cache, module.layer_idx) if cache is not None else (None, None)


plain_call = PreTrainedModel.__call__


def call(self, *arguments, **kwargs):
    """PreTrainedModel.__call__: prepares a model that is to use macattn, once; its forwards are one at a time."""
    if self.config._attn_implementation != NAME:
        return plain_call(self, *arguments, **kwargs)
    if self not in ENGINES:
        prepare(self)
    with ENGINES[self].lock:
        return plain_call(self, *arguments, **kwargs)


# ------------------------------------------------------------------------------------------------------------ attention


def why_not(site, module, query, key, value, dropout, is_causal, kwargs):
    """Why a call is left to transformers, or None."""
    if query.device.type not in ("cpu", "cuda"):
        return f"device {query.device.type}"
    if dropout:
        return "dropout"
    if torch.is_grad_enabled():
        if any(t is not None and t.requires_grad for t in (query, key, value, kwargs.get("s_aux"))):
            return "gradients"
    if site.layer is None or kwargs.get("sliding_window") is not None:
        return "sliding window"
    if not causal(module, is_causal):
        return "not causal"
    if kwargs.get("position_bias") is not None:
        return "position bias"
    return None


def causal(module, is_causal):
    return is_causal if is_causal is not None else getattr(module, "is_causal", True)


def left_to(module, kwargs):
    """("sdpa" or "eager", the function): transformers' own attention that can express a call."""
    if kwargs.get("softcap") is None and kwargs.get("s_aux") is None:
        return "sdpa", sdpa_attention_forward
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise NotImplementedError(f"{type(module).__name__} has a soft cap or sinks, and neither macattn nor sdpa can compute "
                                  'this call: use attn_implementation="eager"')

    def eager(module, query, key, value, mask, is_causal=None, **kwargs):
        """The model's own, which wants masks that are added; sdpa's are boolean, and left out where they are causal."""
        queries, tokens = query.shape[2], key.shape[2]
        if mask is None and queries > 1 and causal(module, is_causal):
            mask = torch.ones(1, 1, queries, tokens, dtype=torch.bool, device=query.device).tril()
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill_(
                ~mask, torch.finfo(query.dtype).min)
        return function(module, query, key, value, mask, **kwargs)[0], None
    return "eager", eager


@torch.compiler.disable
def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
    """query [batch, heads, queries, dim], key and value [batch, KV heads, tokens, dim]; gives [batch, queries, heads, dim]."""
    site, out = SITES.get(module), None
    if kwargs.get("output_attentions"):
        logger.warning_once("macattn gives no attention weights: output_attentions=True wants attn_implementation=\"eager\"")
    if site is not None:
        reason = why_not(site, module, query, key, value, dropout, is_causal, kwargs)
        if reason is None:
            out, reason = compute(site, module, query, key, value, attention_mask, scaling, kwargs)
        site.query = site.rope = site.cache_layer = site.tokens = None
    if out is not None:
        site.engine.calls["macattn"] += 1
        return out, None
    name, function = left_to(module, kwargs)
    if site is not None:
        site.engine.calls[f"{name}: {reason}"] += 1
    return function(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)


def compute(site, module, query, key, value, mask, scaling, kwargs):
    """(result, None), or (None, why not)."""
    engine = site.engine
    batch, _, queries, _ = query.shape
    rows = engine.read_mask(site.layer, mask, batch, queries, key.shape[2])
    if rows is None:
        return None, "mask"
    runner = engine.runner(query, key, value, scaling, kwargs.get("softcap"))
    if isinstance(runner, str):
        return None, runner
    if max(rows.lengths) > runner.attention.settings["max_tokens"]:
        return None, "more tokens than max_tokens"
    key, value = (s if s.stride(-1) == 1 else s.contiguous() for s in (key, value))
    pages = of_cache(key, rows)[1]
    if pages != of_cache(value, rows)[1]:
        key, value = key.contiguous(), value.contiguous()
        pages = of_cache(key, rows)[1]
    # Whose tokens these are is known only where they are the whole of a cache of ours.
    ours = site.cache_layer is not None and key.data_ptr() == site.cache_layer.keys.data_ptr()
    tokens = site.tokens if ours else None
    match = site.before_rope(module, query) if runner.reuses and tokens is not None else None
    sinks = kwargs.get("s_aux")
    sinks = sinks.float() if sinks is not None else None
    if query.is_cuda:
        return compute_on_gpu(runner, site, rows, pages, tokens, query, key, value, match, sinks, scaling, mask, kwargs)
    with_slots = runner.begin(site.layer, pages, rows, tokens, site.cache_layer)
    return runner.run(site.layer, rows, with_slots, query, key, value, match, sinks), None


def compute_on_gpu(runner, site, rows, pages, tokens, query, key, value, match, sinks, scaling, mask, kwargs):
    if query.shape[0] > runner.max_rows:
        return None, "more rows than max_rows"
    if query.shape[2] == 1:
        with_slots = runner.begin(site.layer, pages, rows, tokens, site.cache_layer)
        return runner.run(site.layer, rows, with_slots, query, key, value, match, sinks), None
    whole = mask is None and match is not None and sinks is None and kwargs.get("softcap") is None
    if not whole:
        return None, "prompt on a GPU"
    if not runner.begin(site.layer, pages, rows, tokens, site.cache_layer):
        return None, "prompt on a GPU"
    return runner.prefill(site.layer, rows, query, key, value, match, scaling), None


# ------------------------------------------------------------------------------------------------------------ interface


def engine_of(model):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{model!r} is no model of transformers")
    if model not in ENGINES:
        if model.config._attn_implementation != NAME:
            raise ValueError(f'this model does not use macattn: load it with attn_implementation="{NAME}", or call '
                             f'model.set_attn_implementation("{NAME}")')
        prepare(model)
    return ENGINES[model]


def settings(model=None, **values):
    """Settings of a model, or without one of all models that have no own: policy="budget", budget=0.01, ... Names, ranges
    and defaults are `macattn.settings()`'s, except that the policy is exact unless asked otherwise, `max_tokens` is the
    model's, `n_threads` torch's, and `max_slots` (rows of caches remembered at a time) the largest batch so far. The model
    decides sizes and types itself. A change takes effect with the next call; what was remembered is then forgotten.

    Returns what is set, as a dict.
    """
    for name in sorted(MODELS_OWN & values.keys()):
        raise TypeError(f"{name} is the model's")
    new_config(values)  # says what is wrong with a name or a value
    chosen = DEFAULTS if model is None else engine_of(model).own
    chosen.update(values)
    return {**DEFAULTS, **chosen}


def stats(model):
    """What became of a model's calls since it was loaded, as a dict: "calls" by who computed them (macattn, or sdpa or eager
    and why), counted per layer; and the library's counters, see `macattn.Stats`: hits, misses, tokens_total, tokens_skipped, ..."""
    engine = engine_of(model)
    total = collections.Counter()
    for runner, _ in engine.runners.values():
        s = runner.attention.stats()
        total.update({name: getattr(s, name) for name in ("steps", "hits", "misses", "tokens_total", "tokens_skipped",
                                                          "match_ns", "attend_ns", "merge_ns", "judge_ns")})
    return {"calls": dict(engine.calls), **total}


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
PreTrainedModel.__call__ = call
