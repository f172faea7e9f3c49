# SPDX-License-Identifier: Apache-2.0
"""What CudaAttention checks before it calls the library; without a GPU, on arrays in host memory."""
import types

import numpy as np
import pytest

import macattn
from macattn import _abi

SETTINGS = dict(n_heads=8, n_kv_heads=2, head_dim=64, v_head_dim=64, q_dtype="f32", k_dtype="f16", v_dtype="f16")
ROWS = np.ones(2, np.int32)
READ_ONLY = np.zeros((2, 8, 64), np.float32)
READ_ONLY.flags.writeable = False


class Library:
    """Stands in for the library's GPU side: notes the calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        assert name.startswith("macattn_cuda_")
        return lambda handle, *arguments: self.calls.append((name.removeprefix("macattn_cuda_"), *arguments)) or 0


@pytest.fixture
def m():
    m = macattn.CudaAttention.__new__(macattn.CudaAttention)
    m._own(Library(), 1)
    m.settings, m.out_dtype = SETTINGS, "f32"
    m._io = _abi.sized(_abi.CudaIo)
    return m


def arrays(**changed):
    q, k = np.zeros((2, 8, 64), np.float32), np.zeros((4, 16, 2, 64), np.float16)
    return types.SimpleNamespace(**{**dict(q=q, k=k, v=k.copy(), out=q.copy(), sinks=None, lse=None), **changed})


def decode(m, a, **batch):
    m.decode(1, macattn.Batch(ROWS, **batch), a.q, a.k, a.v, q_match=a.q, sinks=a.sinks, out=a.out, lse=a.lse, stream=0)


def test_what_fits_is_handed_on(m):
    table, a = np.zeros((3, 4), np.int32), arrays(sinks=np.zeros(8, np.float32), lse=np.zeros((2, 8), np.float32))
    decode(m, a)
    decode(m, a, page_size=16, pages=table)
    decode(m, a, page_size=16, pages=table[0], page_indptr=np.array([0, 1, 4], np.int32))
    m.capture(1, macattn.Batch(ROWS), 1, a.q, a.k, a.v, q_match=a.q, out=a.out, lse=a.lse, stream=0)
    m.reset(3)
    assert [call[0] for call in m._library.calls] == ["decode"] * 3 + ["capture", "slot_reset"]
    assert m._library.calls[3][3:5] == (1, 2) and m._library.calls[4][1:] == (3, 0)
    m.close()
    with pytest.raises(macattn.StateError, match="closed"):
        decode(m, a)


@pytest.mark.parametrize("change, batch, words", [
    (dict(sinks=np.zeros(7, np.float32)), {}, "sinks has 7 values, not 8"),
    (dict(q=np.lib.stride_tricks.as_strided(np.zeros(64, np.float32), (2, 8, 64), (0, 0, 4))), {}, "q is expanded"),
    (dict(k=np.broadcast_to(np.zeros((1, 16, 2, 64), np.float16), (4, 16, 2, 64))), {}, "k is expanded"),
    (dict(k=np.zeros((1, 16, 2, 64), np.float16)), {}, "k has 1 sequences, the batch 2"),
    ({}, dict(page_size=32, pages=np.zeros((2, 1), np.int32)), "k has pages of 16 tokens, the batch of 32"),
    ({}, dict(page_size=16, pages=np.zeros((1, 4), np.int32)), "pages has 1 rows, not 2"),
    ({}, dict(pages=np.zeros(1, np.int32)), "pages has 1 values, not 2"),
    (dict(lse=np.zeros((2, 16), np.float32)[:, :8]), {}, "lse must be packed"),
    ({}, dict(slots=np.zeros(3, np.int32)), "slots has 3 values, not 2"),
    (dict(out=READ_ONLY), {}, "out is read-only"),
    (dict(lse=np.broadcast_to(np.zeros((2, 8), np.float32), (2, 8))), {}, "lse is read-only"),
])
def test_what_would_be_read_or_written_where_it_must_not_is_refused(m, change, batch, words):
    with pytest.raises(ValueError, match=words):
        decode(m, arrays(**change), **batch)
    assert not m._library.calls


def test_what_is_only_read_may_be_read_only(m):
    a, lse = arrays(q=READ_ONLY), np.zeros((2, 8), np.float32)
    lse.flags.writeable = False
    m.capture(1, macattn.Batch(ROWS), 1, a.q, a.k, a.v, q_match=READ_ONLY, out=READ_ONLY, lse=lse, stream=0)
    assert m._library.calls


def test_numbers_are_not_cut_off(m):
    a = arrays()
    for call in (lambda: m.reset(1 << 32), lambda: m.fork(0, 1 << 32), lambda: m.truncate(0, 1 << 64),
                 lambda: m.decode(1 << 32, macattn.Batch(ROWS), a.q, a.k, a.v, out=a.out, stream=0)):
        with pytest.raises(macattn.ArgumentError, match="it must be a number of"):
            call()
    assert not m._library.calls


def test_a_batch_has_rows():
    with pytest.raises(ValueError, match="n_tokens has 0 dimensions"):
        macattn.Batch(np.array(3, np.int32))
