# SPDX-License-Identifier: Apache-2.0
"""Attention on the CPU.

Shapes, everywhere: queries and outputs [rows, n_heads, dim]; K and V [pages, tokens, n_kv_heads, dim], where a page is a
whole sequence unless a page size is given. Any strides, as long as the values of the last dimension are adjacent: a cache
laid out [batch, n_kv_heads, tokens, dim] is handed over as `k.transpose(0, 2, 1, 3)`. Arrays are NumPy's, or any with
`data_ptr()` (PyTorch) or DLPack, in host memory; nothing is copied. Results are float32.
"""
import dataclasses
import threading

import numpy as np

from . import _abi
from ._arrays import SHORT, byte_view, distinct, expect, is_packed, view, writable
from ._library import SENTENCE, ArgumentError, Owner, StateError, check, load, openmp as find_openmp, whole
from ._settings import dtypes, new_config, read


@dataclasses.dataclass(frozen=True)
class Stats:
    """Counters since an object was made, or they were reset; the fields of macattn_stats."""
    steps: int           # (row, head) pairs decoded
    hits: int            # of those, with reuse
    misses: int          # of those, without
    tokens_total: int    # tokens they attended to
    tokens_skipped: int  # of those, covered by a reused summary
    distance: tuple[int, ...]  # hits by ||q - p|| / sqrt(2 head_dim), in steps of 1/16
    match_ns: int        # wall time: searching the rings
    attend_ns: int       # reading K and V
    merge_ns: int        # merging and remembering
    judge_ns: int        # judging candidates, learning from them
    samples: int         # refused candidates that were compared with the exact result
    error2_layer: float  # sum over them of the squared error that using them would have made: in units of the layer,
    error2_head: float   # and relative to the head's own output
    groups: tuple[int, ...]      # (row, KV head) pairs decoded: by reuse, by a selection, in full
    kv_bytes: tuple[int, ...]    # bytes of K and V that they read
    run_bytes: tuple[int, ...]   # bytes of the means of runs
    ring_bytes: tuple[int, ...]  # bytes of the rings they searched, at most
    select_ns: int       # making means, scoring and choosing
    checks: int          # selections that were compared with the exact result
    error2_selected: float  # sum over them of the mean squared error of the heads, in units of the layer

    @classmethod
    def of(cls, c):
        fields = {f.name: getattr(c, f.name) for f in dataclasses.fields(cls)}
        return cls(**{name: tuple(x) if hasattr(x, "_length_") else x for name, x in fields.items()})


def new_stats():
    return _abi.sized(_abi.Stats)


def fill_kv(kv, k, v):
    """Pointers and strides of a layer's K and V."""
    kv.k, kv.v = k.pointer, v.pointer
    kv.k_page_stride, kv.k_token_stride, kv.k_head_stride = k.strides[:3]
    kv.v_page_stride, kv.v_token_stride, kv.v_head_stride = v.strides[:3]


def sinks_view(array, n_heads, device=None):
    """A further logit per head, checked."""
    v = expect(view(array), "sinks", "f32", 1, device)
    if v.shape[0] != n_heads:
        raise ValueError(f"sinks has {v.shape[0]} values, not {n_heads}")
    return v


def kv_view(array, what, dtype, n_kv_heads, dim, device=None):
    """K or V of a layer, checked. A type of blocks (q8_0) comes as uint8, whose last dimension is a head's bytes."""
    v = view(array)
    row_bytes, type_ = load().macattn_dtype_row_bytes, dtypes().index(dtype)
    if row_bytes(type_, 1) == 0:
        expect(v, what, "uint8", 4, device)
        room = row_bytes(type_, dim)
        if v.shape[-1] != room:
            raise ValueError(f"{what}'s last dimension is {v.shape[-1]} bytes, not the {room} of {dim} values in {dtype}")
        v = byte_view(v, dim)
    else:
        expect(v, what, dtype, 4, device)
    if v.shape[2:] != (n_kv_heads, dim):
        raise ValueError(f"{what} has shape {v.shape}, not [pages, tokens, {n_kv_heads}, {dim}]")
    return v


@dataclasses.dataclass(slots=True)
class _Plan:
    """What calls under a plan are checked against."""
    n_rows: int       # query rows
    pages: int        # K and V have at least so many,
    tokens: int       # of at least so many tokens each,
    page_size: int    # or exactly so many
    keep: object      # page tables, which the library borrows


def _for_rows(n, values, what):
    if len(values) != n:
        raise ValueError(f"{what} has {len(values)} entries for {n} rows")
    return values


def _numbers(n, values, what, bits=32):
    """One number for all rows, or one for each, as a list."""
    if np.ndim(values) == 0:
        return [whole(values, what, bits)] * n
    return _for_rows(n, [whole(x, what, bits) for x in values], what)


def _page_table(pages):
    """A row's page numbers, copied: the library checks them once, and reads them until the next plan."""
    table, fits = np.asarray(pages).reshape(-1), np.iinfo(np.int32)
    if table.dtype.kind not in "iu" or (table.size and not fits.min <= table.min() <= table.max() <= fits.max):
        table = [whole(p, "a page") for p in table.tolist()]  # says which is none, and why
    return np.array(table, np.int32)


class Attention(Owner):
    """Attention with reuse on the CPU: the object of macattn.h, with its slots, rings and threads.

    Arguments are the library's settings (`macattn.settings()` lists names, ranges and defaults). `n_layers`, `n_heads`,
    `n_kv_heads` and `head_dim` have to be given. `isa` names an instruction set; None is the best of this machine. `openmp`:
    run on the threads of the OpenMP runtime in this process (PyTorch's), if there is one, instead of own ones, which would
    have to fight them for the cores.

    One thread at a time uses an object: a second one gets a StateError. Every method raises an `Error` with the library's
    sentence, and then has changed nothing. An object does not outlive a fork of its process, in the child, unless it has
    no threads of its own.
    """

    def __init__(self, *, isa: str | None = None, openmp: bool = False, **settings):
        library = load()
        config = new_config(settings)
        if not isinstance(isa, (str, type(None))):
            raise TypeError(f"isa is {isa!r}, not the name of an instruction set")
        config.isa = isa.encode() if isa else None
        if openmp and find_openmp():
            self._n_threads = _abi.i32()  # read at every call
            config.parallel_for, config.parallel_user = find_openmp(), _abi.address_of(self._n_threads)
        handle, words = _abi.address(), _abi.buffer(SENTENCE)
        check(library.macattn_create(_abi.byref(config), _abi.byref(handle), words, SENTENCE), lambda: words.value)
        self._own(library, handle)
        self._plan = None
        resolved = _abi.sized(_abi.Config)
        self._check(library.macattn_get_config(handle, _abi.byref(resolved)))
        self.settings = read(resolved)
        self.isa = resolved.isa.decode()
        self.openmp = bool(resolved.parallel_for)
        if self.openmp:
            self._n_threads.value = self.settings["n_threads"]
        s = self.settings
        self._survives_forks = s["n_threads"] == 1 or self.openmp
        self._io = _abi.sized(_abi.Io)
        self._q_shape = (s["n_heads"], s["head_dim"])
        self._out_shape = (s["n_heads"], s["v_head_dim"])
        self._q_dtype, self._k_dtype, self._v_dtype = s["q_dtype"], s["k_dtype"], s["v_dtype"]

    # ------------------------------------------------------------------------------------------------ plan

    def plan(self, n_tokens, *, slots=None, n_queries=1, pages=None, page_size=0):
        """Prepare one step, shared by all layers.

        n_tokens   tokens in the cache of each row (one sequence each), the new ones included
        slots      the slot of each row, -1 for none; None: row i has slot i
        n_queries  new tokens of each row, a number for all or one for each; 1 to decode
        pages      page_size 0: which page of K and V each row is (None: row i is page i);
                   else for each row its page numbers, in order
        page_size  tokens a page, a power of two; 0: every row is one contiguous run

        A row must continue its slot: `truncate` first if tokens were taken back.
        """
        if np.ndim(n_tokens) == 0:
            raise TypeError(f"n_tokens is {n_tokens!r}, not a number for each row")
        n_tokens = [whole(n, "n_tokens", 64) for n in n_tokens]
        n = len(n_tokens)
        n_queries = _numbers(n, n_queries, "n_queries")
        slots = range(n) if slots is None else _for_rows(n, [whole(s, "a slot") for s in slots], "slots")
        page_size = whole(page_size, "page_size")
        keep = None
        rows = (_abi.Row * n)()
        if page_size:
            if pages is None:
                raise ArgumentError(_abi.E_ARG, f"pages of {page_size} tokens, but not which: `pages` is missing")
            keep = _for_rows(n, [_page_table(p) for p in pages], "pages")
            for t, p in zip(n_tokens, keep):
                if p.size * page_size < t:
                    raise ArgumentError(_abi.E_ARG, f"{p.size} pages of {page_size} tokens do not hold {t}")
            n_pages = max((int(p.max()) + 1 for p in keep if p.size), default=1)
        else:
            pages = range(n) if pages is None else _for_rows(n, [whole(p, "a page") for p in pages], "pages")
            n_pages = max(pages, default=0) + 1
        for i, (row, slot, q, t) in enumerate(zip(rows, slots, n_queries, n_tokens)):
            row.slot, row.n_queries, row.n_tokens = slot, q, t
            if page_size:
                row.pages = keep[i].ctypes.data
            else:
                row.page = pages[i]
        batch = _abi.sized(_abi.Batch, n_rows=n, rows=rows, page_size=page_size, n_pages=max(n_pages, 1))
        self._call("plan", _abi.byref(batch))
        self._plan = _Plan(sum(n_queries), n_pages, max(n_tokens, default=0), page_size, keep)

    # ------------------------------------------------------------------------------------------- attention

    def _fill(self, q, k, v, q_match, sinks, out, lse):
        plan, io, s = self._plan, self._io, self.settings
        if plan is None:
            raise StateError(_abi.E_STATE, "no plan: call plan() first")
        q = distinct(expect(view(q), "q", self._q_dtype, 3), "q")
        if q.shape != (plan.n_rows, *self._q_shape):
            raise ValueError(f"q has shape {q.shape}, not {(plan.n_rows, *self._q_shape)}")
        io.q, io.q_row_stride, io.q_head_stride = q.pointer, q.strides[0], q.strides[1]
        io.q_match = None
        if q_match is not None:
            m = distinct(expect(view(q_match), "q_match", self._q_dtype, 3), "q_match")
            if m.shape != q.shape:
                raise ValueError(f"q_match has shape {m.shape}, not {q.shape}")
            io.q_match, io.q_match_row_stride, io.q_match_head_stride = m.pointer, m.strides[0], m.strides[1]
        k = kv_view(k, "k", self._k_dtype, s["n_kv_heads"], s["head_dim"])
        v = kv_view(v, "v", self._v_dtype, s["n_kv_heads"], s["v_head_dim"])
        for name, a in (("k", k), ("v", v)):
            if a.shape[0] < plan.pages or (a.shape[1] != plan.page_size if plan.page_size else a.shape[1] < plan.tokens):
                raise ValueError(f"{name} has shape {a.shape}; the plan needs {plan.pages} pages of "
                                 f"{plan.page_size or plan.tokens} tokens")
        fill_kv(io.kv, k, v)
        io.sinks = None
        if sinks is not None:
            sinks = sinks_view(sinks, s["n_heads"])
            io.sinks = sinks.pointer
        o = writable(distinct(expect(view(out), "out", "f32", 3), "out"), "out")
        if o.shape != (plan.n_rows, *self._out_shape):
            raise ValueError(f"out has shape {o.shape}, not {(plan.n_rows, *self._out_shape)}")
        io.out, io.out_row_stride, io.out_head_stride = o.pointer, o.strides[0], o.strides[1]
        io.lse = None
        if lse is not None:
            e = writable(expect(view(lse), "lse", "f32", 2), "lse")
            if e.shape != (plan.n_rows, s["n_heads"]) or not is_packed(e):
                raise ValueError(f"lse must be packed and have shape {(plan.n_rows, s['n_heads'])}")
            io.lse = e.pointer
        return (q, k, v, q_match, sinks)

    def _run(self, name, layer, q, k, v, q_match, sinks, out, lse):
        self._enter()
        try:
            n_rows = self._plan.n_rows if self._plan else 0
            out = np.empty((n_rows, *self._out_shape), np.float32) if out is None else out
            lse = None if lse is False else np.empty((n_rows, self._out_shape[0]), np.float32) if lse is True else lse
            keep = self._fill(q, k, v, q_match, sinks, out, lse)
            self._check(getattr(self._library, name)(self._handle, *layer, _abi.byref(self._io)))
            del keep
        finally:
            self._lock.release()
        return out if lse is None else (out, lse)

    def attend(self, q, k, v, *, sinks=None, out=None, lse=None):
        """Exact attention of the planned rows. Uses and changes no slot.

        q [query rows, n_heads, head_dim], of `q_dtype`, after RoPE; query i of a row sees the tokens up to itself
        sinks  [n_heads] float32: a further logit per head, without a value
        out    [query rows, n_heads, v_head_dim] float32, or None: a new NumPy array
        lse    [query rows, n_heads] float32, or True: natural logarithm of the sum of exponentials; then (out, lse) is
               returned, else out
        """
        return self._run("macattn_attend", (), q, k, v, None, sinks, out, lse)

    def decode(self, layer, q, k, v, *, q_match=None, sinks=None, out=None, lse=None):
        """Attention of one token a row with reuse as the policy allows, remembering the queries. Once per layer and plan.

        q_match: q before RoPE; None: nothing is reused or remembered in this call. Otherwise as `attend`.
        """
        return self._run("macattn_decode", (whole(layer, "layer"),), q, k, v, q_match, sinks, out, lse)

    def prefill(self, layer, q, k, v, *, q_match=None, sinks=None, out=None, lse=None):
        """Exact causal attention of any number of queries a row, remembering the last `ring` of them (under budget an eighth, at
        least 32 and at most `ring`). As `decode`."""
        return self._run("macattn_prefill", (whole(layer, "layer"),), q, k, v, q_match, sinks, out, lse)

    def set_head_budget(self, layer, head, budget):
        """Policy budget: the relative error allowed in a head's output, 0 to 1; -1 stands for all layers or heads."""
        self._call("set_head_budget", whole(layer, "layer"), whole(head, "head"), budget)

    # ----------------------------------------------------------------------------------------------- slots

    def reset(self, slot):
        """Forget the sequence: needed whenever tokens it has seen move, change or are shifted."""
        self._call("slot_reset", whole(slot, "slot"))

    def truncate(self, slot, n_tokens):
        """Keep the first `n_tokens` tokens."""
        self._call("slot_truncate", whole(slot, "slot"), whole(n_tokens, "n_tokens", 64))

    def fork(self, source, target):
        """Make slot `target` a copy of slot `source` (a shared prefix)."""
        self._call("slot_fork", whole(source, "source"), whole(target, "target"))

    def length(self, slot) -> int:
        """Tokens of the sequence as of the newest decode or prefill."""
        n = _abi.i64()
        self._call("slot_length", whole(slot, "slot"), _abi.byref(n))
        return n.value

    def save(self, slot) -> bytes:
        """The slot's state."""
        size, slot = _abi.size(), whole(slot, "slot")
        self._call("slot_save", slot, None, _abi.byref(size))
        buffer = _abi.buffer(size.value)
        self._call("slot_save", slot, buffer, _abi.byref(size))
        return buffer.raw[:size.value]

    def load(self, slot, data):
        """Replace the slot's state by a saved one, which is checked in full first."""
        data = bytes(memoryview(data))
        self._call("slot_load", whole(slot, "slot"), data, len(data))

    # ------------------------------------------------------------------------------------------ statistics

    def stats(self, layer=-1, head=-1) -> Stats:
        """Counters of one layer and head; -1 sums over all."""
        stats = new_stats()
        self._call("stats_get", whole(layer, "layer"), whole(head, "head"), _abi.byref(stats))
        return Stats.of(stats)

    def reset_stats(self):
        self._call("stats_reset")


# ------------------------------------------------------------------------------------------------------- functions

_recent = threading.local()  # .objects: this thread's objects of the newest calls of attend(), by configuration
KEPT = 4


def _object(**settings):
    objects = getattr(_recent, "objects", None)
    if objects is None:
        objects = _recent.objects = {}
    key = tuple(settings.items())
    found = objects.pop(key, None)
    if found is None or found._handle is None:  # closed: kept from before a fork
        found = Attention(policy="exact", **settings)
    objects[key] = found
    while len(objects) > KEPT:
        objects.pop(next(iter(objects))).close()
    return found


def _batched(q, k, v):
    """Views with a dimension for the sequences, and whether they came without one."""
    q, k, v = view(q), view(k), view(v)
    single = len(q.shape) == 3
    if len(q.shape) not in (3, 4) or {len(k.shape), len(v.shape)} != {len(q.shape)}:
        raise ValueError(f"q, k, v have {len(q.shape)}, {len(k.shape)}, {len(v.shape)} dimensions, not 3 each or 4 each")
    for what, a in (("q", q), ("k", k), ("v", v)):
        if single:
            a.shape, a.strides = (1, *a.shape), (0, *a.strides)
        if a.dtype not in SHORT.values():
            raise TypeError(f"{what} has type {a.dtype}, not f32, f16 or bf16")
    if len({q.shape[0], k.shape[0], v.shape[0]}) != 1:
        raise ValueError(f"q, k, v hold {q.shape[0]}, {k.shape[0]}, {v.shape[0]} sequences")
    return q, k, v, single


def attend(q, k, v, *, n_tokens=None, scale=0.0, softcap=0.0, window=0, sinks=None, out=None, lse=None):
    """Exact attention of new queries over a cache, in one call.

    q  [n_queries, n_heads, head_dim] or [batch, n_queries, n_heads, head_dim]; f32, f16 or bf16
    k  [tokens, n_kv_heads, head_dim] or [batch, tokens, n_kv_heads, head_dim]; f32, f16 or bf16
    v  likewise with v_head_dim
    n_tokens  tokens of each sequence that are there, the new ones included: a number for all or one for each (None: all
              tokens of k). Query i is the token at n_tokens - n_queries + i and sees the tokens up to and including itself
    scale     logit = scale * q.k; 0: 1 / sqrt(head_dim)
    softcap   > 0: logit = softcap * tanh(logit / softcap)
    window    > 0: a query sees its newest `window` tokens
    sinks     [n_heads] float32, a further logit per head
    out, lse  as in `Attention.attend`, with q's leading dimensions: a float32 NumPy array unless given. Empty for a batch
              of none

    No gradients are computed: a tensor that requires them is refused. The library's threads are kept for the next call of this
    thread with the same sizes.
    """
    q, k, v, single = _batched(q, k, v)
    batch, n_queries, n_heads, head_dim = q.shape
    tokens = _numbers(batch, k.shape[1] if n_tokens is None else n_tokens, "n_tokens", 64)
    if batch > 1 and n_queries > 1 and q.strides[0] != n_queries * q.strides[1]:
        raise ValueError("q's sequences and queries have no common stride: make it contiguous")
    m = _object(n_layers=1, n_heads=n_heads, n_kv_heads=k.shape[2], head_dim=head_dim, v_head_dim=v.shape[3],
                q_dtype=q.dtype, k_dtype=k.dtype, v_dtype=v.dtype, scale=scale, softcap=softcap, window=window,
                max_tokens=max([131072, *tokens]), max_slots=1)
    if batch:
        m.plan(tokens, slots=[-1] * batch, n_queries=n_queries)
    q.shape = (batch * n_queries, n_heads, head_dim)
    q.strides = (q.strides[1] if n_queries > 1 else q.strides[0], *q.strides[2:])
    leading = (n_queries,) if single else (batch, n_queries)
    wanted = (*leading, n_heads, v.shape[3])
    if out is None:
        out = np.empty(wanted, np.float32)
    lse = None if lse is False else np.empty((*leading, n_heads), np.float32) if lse is True else lse
    o, e = view(out), None if lse is None else view(lse)
    if o.shape != wanted or (e and e.shape != wanted[:-1]):
        raise ValueError(f"out and lse must have shapes {wanted} and {wanted[:-1]}")
    for a in filter(None, (o, e)):
        if not single:
            if a.strides[0] != n_queries * a.strides[1] and batch > 1 and n_queries > 1:
                raise ValueError("out's and lse's sequences and queries need a common stride")
            a.shape = (batch * n_queries, *a.shape[2:])
            a.strides = (a.strides[1] if n_queries > 1 else a.strides[0], *a.strides[2:])
    if batch:
        m.attend(q, k, v, sinks=sinks, out=o, lse=e)
    return out if lse is None else (out, lse)


def merge(ox, lx, oy, ly, *, out=None, lse=None):
    """Merge attention over two disjoint ranges of tokens: lse = log(exp(lx) + exp(ly)), and the outputs by their shares.

    ox, oy [..., v_head_dim] and lx, ly [...], float32, packed; lse -inf is an empty range. Returns (out, lse).
    `out` may be `ox` or `oy`, `lse` may be `lx` or `ly`.
    """
    views = [view(a) for a in (ox, lx, oy, ly)]
    shapes = views[0].shape, views[1].shape
    if shapes[0][:-1] != shapes[1] or not shapes[0]:
        raise ValueError(f"outputs of shape {shapes[0]} do not go with lse of shape {shapes[1]}")
    out = np.empty(shapes[0], np.float32) if out is None else out
    lse = np.empty(shapes[1], np.float32) if lse is None else lse
    views += [writable(view(out), "out"), writable(view(lse), "lse")]
    for a, shape in zip(views, shapes * 3):
        if a.dtype != "f32" or a.device is not None or a.shape != shape or not is_packed(a):
            raise ValueError("merge needs packed float32 arrays of equal shapes in host memory")
    n = int(np.prod(shapes[1], dtype=np.int64))
    if n:
        check(load().macattn_merge(n, shapes[0][-1], *(a.pointer for a in views)))
    return out, lse
