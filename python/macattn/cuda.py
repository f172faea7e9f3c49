# SPDX-License-Identifier: Apache-2.0
"""Attention on an NVIDIA GPU.

Shapes and meaning are those of `macattn.attention`; arrays lie in device memory: PyTorch tensors, CuPy arrays, anything
with DLPack or the CUDA array interface. Everything that changes from step to step is in device memory too (lengths, slots,
page tables), and a call only launches kernels, so that calls can be captured in a CUDA graph. Nothing is checked that would
need to look at device memory.
"""

from . import _abi
from ._arrays import distinct, expect, is_packed, view, writable
from ._library import SENTENCE, Owner, UnsupportedError, check, has_cuda, load, path, whole
from ._settings import dtypes, new_config, read
from .attention import Stats, fill_kv, kv_view, new_stats, sinks_view


class Batch:
    """One step for `CudaAttention`: device arrays, read when the kernels run.

    n_tokens    [rows] int32: tokens in the cache, the new one included; 0 gives 0 and -inf
    slots       [rows] int32: all different, or -1 for none; None: row i has slot i
    page_size   tokens a page, a power of two; 0: contiguous, row i is page pages[i] of K and V (None: i)
    pages       int32: with a page size [rows, width], a row's page numbers; or flat, with `page_indptr`
    page_indptr [rows + 1] int32: row i's pages start at pages[page_indptr[i]]
    """

    __slots__ = ("struct", "_keep", "n_rows", "device")

    def __init__(self, n_tokens, *, slots=None, page_size=0, pages=None, page_indptr=None):
        lengths = view(n_tokens)
        self.device = lengths.device
        expect(lengths, "n_tokens", "int32", 1, self.device)
        self.n_rows, page_size = lengths.shape[0], whole(page_size, "page_size")
        self._keep = [lengths]
        b = self.struct = _abi.sized(_abi.CudaBatch, n_rows=self.n_rows, n_tokens=lengths.pointer, page_size=page_size)
        if slots is not None:
            b.slots = self._array(slots, "slots", self.n_rows)
        if page_indptr is not None:
            b.page_indptr = self._array(page_indptr, "page_indptr", self.n_rows + 1)
        if pages is not None:
            table = view(pages)
            if page_size and page_indptr is None:
                expect(table, "pages", "int32", 2, self.device)
                if table.shape[0] < self.n_rows:
                    raise ValueError(f"pages has {table.shape[0]} rows, not {self.n_rows}")
                b.page_table_stride = table.strides[0] // 4
            else:
                expect(table, "pages", "int32", 1, self.device)
                if page_size == 0 and table.shape[0] != self.n_rows:
                    raise ValueError(f"pages has {table.shape[0]} values, not {self.n_rows}")
            b.pages = table.pointer
            self._keep.append(table)

    def _array(self, array, what, n):
        v = expect(view(array), what, "int32", 1, self.device)
        if v.shape[0] != n:
            raise ValueError(f"{what} has {v.shape[0]} values, not {n}")
        self._keep.append(v)
        return v.pointer


class CudaAttention(Owner):
    """Attention with reuse on a GPU: the object of cuda.h. Device memory is taken here alone.

    Arguments are the library's settings, as for `Attention`, and
      device     ordinal; None: the current device
      max_rows   rows a batch may have
      out_dtype  of outputs: "f32", "f16", "bf16"
      run_tokens tokens of all slots together whose means and outliers of runs there is room for; None: the most there can be
    `stream` of every call is a cudaStream_t as an integer (torch.cuda.current_stream().cuda_stream); 0 is the default one.
    Calls on one object must not run at the same time, neither here nor, on different streams, on the device.
    """

    _prefix = "macattn_cuda"

    def __init__(self, *, device=None, max_rows=None, out_dtype=None, run_tokens=None, **settings):
        library = load()
        if not has_cuda():
            raise UnsupportedError(_abi.E_UNSUPPORTED, f"{path()} was built without its GPU side: it needs nvcc when the "
                                                       "package is built")
        config, cuda = new_config(settings), _abi.CudaConfig()
        check(library.macattn_cuda_config_init(_abi.byref(cuda)))
        if device is not None:
            cuda.device = whole(device, "device")
        if max_rows is not None:
            cuda.max_rows = whole(max_rows, "max_rows")
        if run_tokens is not None:
            cuda.run_tokens = whole(run_tokens, "run_tokens", 64)
        if out_dtype is not None:
            if out_dtype not in dtypes():
                raise TypeError(f"out_dtype is {out_dtype!r}, none of {', '.join(dtypes())}")
            cuda.out_dtype = dtypes().index(out_dtype)
        handle, words = _abi.address(), _abi.buffer(SENTENCE)
        check(library.macattn_cuda_create(_abi.byref(config), _abi.byref(cuda), _abi.byref(handle), words, SENTENCE),
              lambda: words.value)
        self._own(library, handle)
        s = self.settings = read(config)
        s["v_head_dim"] = s["v_head_dim"] or s["head_dim"]
        self.max_rows, self.out_dtype = cuda.max_rows, dtypes()[cuda.out_dtype]
        self._io = _abi.sized(_abi.CudaIo)

    def _fill(self, batch, n, writes, q, k, v, q_match, sinks, out, lse, k_scale, v_scale):
        io, s, where = self._io, self.settings, batch.device
        shape = (n, s["n_heads"], s["head_dim"])
        for name, array, dtype in (("q", q, s["q_dtype"]), ("q_match", q_match, s["q_dtype"]), ("out", out, self.out_dtype)):
            if array is None:
                setattr(io, name, None)
                continue
            a = distinct(expect(view(array), name, dtype, 3, where), name)
            if a.shape != shape:
                raise ValueError(f"{name} has shape {a.shape}, not {shape}")
            if name == "out" and writes:
                writable(a, name)
            setattr(io, name, a.pointer)
            setattr(io, name + "_row_stride", a.strides[0])
            setattr(io, name + "_head_stride", a.strides[1])
        views = (distinct(kv_view(k, "k", s["k_dtype"], s["n_kv_heads"], s["head_dim"], where), "k"),
                 distinct(kv_view(v, "v", s["v_dtype"], s["n_kv_heads"], s["v_head_dim"], where), "v"))
        for name, a in zip("kv", views):
            if batch.struct.page_size and a.shape[1] != batch.struct.page_size:
                raise ValueError(f"{name} has pages of {a.shape[1]} tokens, the batch of {batch.struct.page_size}")
            if not batch.struct.page_size and not batch.struct.pages and a.shape[0] < batch.n_rows:
                raise ValueError(f"{name} has {a.shape[0]} sequences, the batch {batch.n_rows}")
        fill_kv(io.kv, *views)
        io.k_scale, io.v_scale = k_scale, v_scale
        io.sinks = io.lse = None
        if sinks is not None:
            io.sinks = sinks_view(sinks, s["n_heads"], where).pointer
        if lse is not None:
            e = expect(view(lse), "lse", "f32", 2, where)
            if e.shape != shape[:2] or not is_packed(e):
                raise ValueError(f"lse must be packed and have shape {shape[:2]}")
            io.lse = (writable(e, "lse") if writes else e).pointer
        return _abi.byref(io)

    def _run(self, name, before, batch, after, n, *arguments):
        *arrays, stream = arguments
        self._enter()
        try:
            io = self._fill(batch, n, name != "capture", *arrays)
            call = getattr(self._library, "macattn_cuda_" + name)
            self._check(call(self._handle, *before, _abi.byref(batch.struct), *after, io, stream))
        finally:
            self._lock.release()

    def attend(self, batch, q, k, v, *, out, stream, sinks=None, lse=None, k_scale=1.0, v_scale=1.0):
        """Exact attention of one query a row. Uses and changes no slot. One launch.

        q    [rows, n_heads, head_dim] of `q_dtype`, after RoPE
        out  [rows, n_heads, head_dim] of `out_dtype`, written
        lse  [rows, n_heads] float32, written, or None
        k_scale, v_scale  fp8 only: K = k_scale * stored, likewise V
        """
        self._run("attend", (), batch, (), batch.n_rows, q, k, v, None, sinks, out, lse, k_scale, v_scale, stream)
        return out

    def decode(self, layer, batch, q, k, v, *, out, stream, q_match=None, sinks=None, lse=None, k_scale=1.0, v_scale=1.0):
        """Attention of one token a row with reuse as the policy allows, remembering the queries. Two launches.

        q_match: q before RoPE; None: nothing is reused or remembered. Otherwise as `attend`.
        """
        layer = whole(layer, "layer")
        self._run("decode", (layer,), batch, (), batch.n_rows, q, k, v, q_match, sinks, out, lse, k_scale, v_scale, stream)
        return out

    def capture(self, layer, batch, row, q, k, v, *, q_match, out, lse, stream, sinks=None, k_scale=1.0, v_scale=1.0):
        """Remember the queries of a prompt that was computed elsewhere: its last min(ring, n) with their summaries.

        row     the batch row (a number) whose sequence it is; its n_tokens includes all n queries
        q, q_match, out [n, n_heads, head_dim], lse [n, n_heads]: the queries and their results; all are read
        """
        layer, row, n = whole(layer, "layer"), whole(row, "row"), view(q).shape[0]
        self._run("capture", (layer,), batch, (row, n), n, q, k, v, q_match, sinks, out, lse, k_scale, v_scale, stream)

    def set_head_budget(self, layer, head, budget, *, stream=0):
        """Policy budget: the relative error allowed in a head's output; -1 stands for all layers or heads."""
        self._call("set_head_budget", whole(layer, "layer"), whole(head, "head"), budget, stream)

    def reset(self, slot, *, stream=0):
        """Forget a sequence. In the stream's order, as all calls on slots."""
        self._call("slot_reset", whole(slot, "slot"), stream)

    def truncate(self, slot, n_tokens, *, stream=0):
        """Keep what was remembered at the first `n_tokens` positions."""
        self._call("slot_truncate", whole(slot, "slot"), whole(n_tokens, "n_tokens", 64), stream)

    def fork(self, source, target, *, stream=0):
        """Make slot `target` a copy of slot `source`. Copies the rings."""
        self._call("slot_fork", whole(source, "source"), whole(target, "target"), stream)

    def decisions(self) -> int:
        """Device address of the newest decode's decisions, [rows, n_heads] of (start int32, entry int32, distance2
        float32, next int32); 0 if the object keeps no rings."""
        self._enter()
        try:
            return self._library.macattn_cuda_decisions(self._handle) or 0
        finally:
            self._lock.release()

    def stats(self, layer=-1, head=-1) -> Stats:
        """Counters of one layer and head, -1 for all; times are 0. Waits for no stream of the caller's."""
        stats = new_stats()
        self._call("stats_get", whole(layer, "layer"), whole(head, "head"), _abi.byref(stats))
        return Stats.of(stats)

    def reset_stats(self, *, stream=0):
        self._call("stats_reset", stream)


def state_bytes(**settings) -> int:
    """Bytes of device memory that one slot's rings take over all layers. Needs no device."""
    config, size = new_config(settings), _abi.size()
    check(load().macattn_cuda_state_bytes(_abi.byref(config), _abi.byref(size)))
    return size.value


def run_bytes(n_tokens, **settings) -> int:
    """Bytes of device memory that the means of runs of `n_tokens` tokens of one slot take over all layers."""
    config, size = new_config(settings), _abi.size()
    check(load().macattn_cuda_run_bytes(_abi.byref(config), whole(n_tokens, "n_tokens", 64), _abi.byref(size)))
    return size.value
