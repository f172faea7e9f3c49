# SPDX-License-Identifier: Apache-2.0
"""Attention on the CPU through NumPy, against float64."""
import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import reference

import macattn

RANDOM = np.random.default_rng(1)


def noise(*shape, dtype=np.float32):
    return RANDOM.standard_normal(shape).astype(dtype)


def poison(*shape):
    return np.full(shape, np.nan, np.float32)


def close(out, lse, expected):
    np.testing.assert_allclose(out, expected[0], atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(lse, expected[1], atol=2e-5, rtol=2e-5)


# -------------------------------------------------------------------------------------------------------- attend


@pytest.mark.parametrize("case", [
    dict(), dict(scale=0.3), dict(softcap=5.0), dict(window=17), dict(sinks=noise(8)), dict(heads=(4, 4)), dict(dv=24),
    dict(dtype=np.float32), dict(n_queries=1), dict(n_queries=40),
], ids=str)
def test_attend(case):
    case = dict(case)
    heads, kv_heads = case.pop("heads", (8, 2))
    n, dv, dtype = case.pop("n_queries", 3), case.pop("dv", 64), case.pop("dtype", np.float16)
    q, k, v = noise(n, heads, 64), noise(100, kv_heads, 64, dtype=dtype), noise(100, kv_heads, dv, dtype=dtype)
    out, lse = macattn.attend(q, k, v, out=poison(n, heads, dv), lse=poison(n, heads), **case)
    close(out, lse, reference.attend(q, k, v, **case))


def test_attend_batch_of_lengths_and_foreign_strides():
    q = noise(3, 2, 8, 64)
    k, v = noise(3, 2, 60, 64, dtype=np.float16), noise(3, 2, 60, 64, dtype=np.float16)  # heads before tokens
    lengths = [60, 2, 33]
    out, lse = macattn.attend(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), n_tokens=lengths, lse=True)
    for i, n in enumerate(lengths):
        close(out[i], lse[i], reference.attend(q[i], k[i].transpose(1, 0, 2)[:n], v[i].transpose(1, 0, 2)[:n]))


def test_merge_of_two_ranges_is_attention_over_both():
    q, k, v = noise(1, 4, 64), noise(90, 4, 64), noise(90, 4, 64)
    parts = [macattn.attend(q, k[a:b], v[a:b], lse=True) for a, b in ((0, 50), (50, 90))]
    out, lse = macattn.merge(*parts[0], *parts[1], out=poison(1, 4, 64), lse=poison(1, 4))
    close(out, lse, reference.attend(q, k, v))
    again = macattn.merge(*parts[0], parts[1][0], np.full((1, 4), -np.inf, np.float32))
    assert np.array_equal(again[0], parts[0][0]) and np.array_equal(again[1], parts[0][1])


# ------------------------------------------------------------------------------------------------------- objects

SHAPE = dict(n_layers=2, n_heads=8, n_kv_heads=2, head_dim=64, n_threads=2)


def test_paged_plan():
    q = noise(2, 8, 64)
    k, v = noise(10, 16, 2, 64, dtype=np.float16), noise(10, 16, 2, 64, dtype=np.float16)
    pages, lengths = [[7, 2, 9], [0, 4]], [40, 17]
    with macattn.Attention(max_slots=2, policy="exact", **SHAPE) as m:
        m.plan(lengths, pages=pages, page_size=16)
        out, lse = m.attend(q, k, v, out=poison(2, 8, 64), lse=poison(2, 8))
        for i, (table, n) in enumerate(zip(pages, lengths)):
            ks, vs = (np.concatenate([a[p] for p in table])[:n] for a in (k, v))
            expected = reference.attend(q[i:i + 1], ks, vs)
            close(out[i:i + 1], lse[i:i + 1], expected)
        with pytest.raises(ValueError, match="the plan needs"):
            m.attend(q, k[:9], v)
        with pytest.raises(macattn.ArgumentError, match="do not hold"):
            m.plan([33], pages=[[1, 2]], page_size=16)


def test_q8_0_keys():
    d = 64
    scale = RANDOM.uniform(0.01, 0.02, (1, 50, 2, d // 32)).astype(np.float16)
    value = RANDOM.integers(-127, 128, (1, 50, 2, d // 32, 32), dtype=np.int8)
    k = np.concatenate([scale[..., None].view(np.uint8).reshape(1, 50, 2, d // 32, 2), value.view(np.uint8)], -1)
    k = np.ascontiguousarray(k.reshape(1, 50, 2, -1))
    exact = (scale[..., None].astype(np.float64) * value).reshape(50, 2, d)
    q, v = noise(1, 8, d), noise(1, 50, 2, d, dtype=np.float16)
    with macattn.Attention(k_dtype="q8_0", policy="exact", **SHAPE) as m:
        m.plan([50])
        out, lse = m.attend(q, k, v, lse=True)
    expected = reference.attend(q, exact, v[0])
    np.testing.assert_allclose(out, expected[0], atol=0.02)
    np.testing.assert_allclose(lse, expected[1], atol=0.02)


def decode(m, k, v, queries, first):
    """Decode queries [n, heads, d] of one sequence that has `first` tokens before them; layer 0."""
    results = []
    for i, q in enumerate(queries):
        m.plan([first + i + 1])
        results.append(m.decode(0, q[None], k, v, q_match=q[None], out=poison(1, 8, 64))[0])
    return np.array(results)


def test_reuse_and_its_statistics():
    topics = noise(4, 8, 64)
    queries = (topics[np.arange(64) % 4] + 0.01 * noise(64, 8, 64)).astype(np.float32)
    k, v = noise(1, 600, 2, 64, dtype=np.float16), noise(1, 600, 2, 64, dtype=np.float16)
    exact = np.array([reference.attend(q[None], k[0, :500 + i + 1], v[0, :500 + i + 1])[0][0] for i, q in enumerate(queries)])
    with macattn.Attention(policy="paper", min_tokens=0, band=64, **SHAPE) as m:
        out = decode(m, k, v, queries, 500)
        stats = m.stats()
        assert stats.steps == 64 * 8 == stats.hits + stats.misses
        assert stats.hits == 60 * 8 and sum(stats.distance) == stats.hits  # all but each topic's first
        assert 0.75 < stats.tokens_skipped / stats.tokens_total < 0.85  # all but the band, and what came since
        assert m.stats(layer=1).steps == 0 and m.stats(head=3).hits == 60
        np.testing.assert_allclose(out, exact, atol=0.01)
        m.reset_stats()
        assert m.stats().steps == 0


def test_slots():
    topics = noise(1, 8, 64)
    k, v = noise(1, 600, 2, 64, dtype=np.float16), noise(1, 600, 2, 64, dtype=np.float16)
    with macattn.Attention(policy="paper", min_tokens=0, band=64, max_slots=3, **SHAPE) as m:
        def hits(slot, n):
            before = m.stats().hits
            m.plan([n], slots=[slot])
            m.decode(0, topics, k, v, q_match=topics, out=poison(1, 8, 64))
            return m.stats().hits - before
        assert hits(0, 500) == 0 and hits(0, 501) == 8
        m.fork(0, 1)
        assert m.length(1) == 501 and hits(1, 502) == 8
        saved = m.save(0)
        m.truncate(0, 499)
        assert m.length(0) == 499 and hits(0, 500) == 0
        m.reset(1)
        assert m.length(1) == 0 and hits(1, 502) == 0
        m.load(2, saved)
        assert hits(2, 502) == 8
        with pytest.raises(macattn.FormatError):
            m.load(2, saved[:-1])
        with pytest.raises(macattn.StateError, match="slot"):
            m.plan([400], slots=[2])
        with pytest.raises(macattn.ArgumentError) as error:
            m.reset(3)
        assert error.value.status == -11 and isinstance(error.value, ValueError)


def test_prefill_is_causal_and_remembers():
    q, k, v = noise(500, 8, 64), noise(1, 600, 2, 64, dtype=np.float16), noise(1, 600, 2, 64, dtype=np.float16)
    with macattn.Attention(policy="paper", min_tokens=0, band=64, **SHAPE) as m:
        m.plan([500], n_queries=500)
        out = m.prefill(0, q, k, v, q_match=q, out=poison(500, 8, 64))
        for i in range(0, 500, 50):
            expected = reference.attend(q[i:i + 1], k[0, :i + 1], v[0, :i + 1])[0]
            np.testing.assert_allclose(out[i:i + 1], expected, atol=2e-5)
        m.plan([501])
        m.decode(0, q[400:401], k, v, q_match=q[400:401])
        assert m.stats().hits == 8


# -------------------------------------------------------------------------------------------- settings and errors


def test_settings_are_the_librarys():
    table = {s.name: s for s in macattn.settings()}
    assert table["policy"].type == "policy" and table["tau"].policies == ("paper",)
    assert table["k_dtype"].type == "dtype" and table["budget"].high == 1
    with macattn.Attention(policy="paper", tau=0.7, k_dtype="bf16", **SHAPE) as m:
        assert m.settings["policy"] == "paper" and m.settings["k_dtype"] == "bf16"
        assert m.settings["tau"] == pytest.approx(0.7) and m.settings["v_head_dim"] == 64
        assert m.isa in macattn.isas()


@pytest.mark.parametrize("values, words", [
    (dict(ring=-1), "ring is -1; it must be in"), (dict(policy="other"), "policy other is none of exact"),
    (dict(n_heads=7), "n_heads"), (dict(budget=2.0), "budget is 2"),
])
def test_bad_settings(values, words):
    with pytest.raises(macattn.ArgumentError, match=words):
        macattn.Attention(**{**SHAPE, **values})


def test_unknown_settings_and_instruction_sets():
    with pytest.raises(TypeError, match="no setting 'buget'; there are: n_layers"):
        macattn.Attention(buget=1, **SHAPE)
    with pytest.raises(macattn.UnsupportedError, match="abacus"):
        macattn.Attention(isa="abacus", **SHAPE)


def test_bad_arrays():
    q, k = noise(1, 8, 64), noise(1, 50, 2, 64, dtype=np.float16)
    with macattn.Attention(policy="exact", **SHAPE) as m:
        with pytest.raises(macattn.StateError, match="no plan"):
            m.attend(q, k, k)
        m.plan([50])
        for arguments, kind, words in [
            ((q.astype(np.float16), k, k), TypeError, "q has type f16, not f32"),
            ((q[:, :7], k, k), ValueError, "q has shape"), ((q, k[:, :49], k), ValueError, "k has shape"),
            ((q, k, k.astype(np.float32)), TypeError, "v has type f32"),
            ((q, k.transpose(0, 1, 3, 2), k), ValueError, "adjacent"), (([1.0], k, k), TypeError, "no array"),
        ]:
            with pytest.raises(kind, match=words):
                m.attend(*arguments)
        with pytest.raises(ValueError, match="out has shape"):
            m.attend(q, k, k, out=np.empty((2, 8, 64), np.float32))
        with pytest.raises(macattn.ArgumentError, match="layer"):
            m.decode(2, q, k, k)


@pytest.mark.parametrize("what", ["q", "q_match", "out"])
def test_expanded_arrays_are_refused(what):
    """Their strides of 0 are the library's sign for packed ones: it would read and write past their end."""
    k, shape = noise(1, 50, 2, 64, dtype=np.float16), (1, 8, 64)
    arrays = dict(q=noise(*shape), q_match=noise(*shape), out=poison(*shape))
    arrays[what] = np.lib.stride_tricks.as_strided(arrays[what], shape, (2048, 0, 4))
    with macattn.Attention(**SHAPE) as m:
        m.plan([50])
        with pytest.raises(ValueError, match=f"{what} is expanded"):
            m.decode(0, arrays.pop("q"), k, k, **arrays)


def test_strides_of_single_rows_may_be_anything():
    q, k = noise(1, 8, 64), noise(1, 1, 2, 64)
    out = macattn.attend(q, k[0], k[0])
    odd = [np.lib.stride_tricks.as_strided(a, a.shape, (4,) * (a.ndim - 2) + a.strides[-2:]) for a in (q, k, k[0])]
    assert np.array_equal(macattn.attend(odd[0], odd[2], odd[2]), out)
    lse = np.lib.stride_tricks.as_strided(poison(1, 8), (1, 8), (64, 4))
    with macattn.Attention(**{**SHAPE, "k_dtype": "f32", "v_dtype": "f32"}) as m:
        m.plan([1])
        assert np.array_equal(m.attend(odd[0], odd[1], odd[1], lse=lse)[0], out) and not np.isnan(lse).any()


def test_arrays_that_are_not_what_their_memory_says():
    q, k = noise(1, 8, 64), noise(50, 2, 64)
    read_only = poison(1, 8, 64)
    read_only.flags.writeable = False
    for arguments, options, kind, words in [
        ((q.astype(">f4"), k, k), {}, TypeError, "q has type >f4"), ((q, k, k.astype(">f4")), {}, TypeError, "v has type >f4"),
        ((q, k, k.astype(float)), {}, TypeError, "v has type float64"),
        ((np.ma.masked_array(q, mask=True), k, k), {}, TypeError, "masked"),
        ((q, k, k), dict(out=read_only), ValueError, "out is read-only"),
        ((q, k, k), dict(lse=read_only[..., 0]), ValueError, "read-only|adjacent"),
    ]:
        with pytest.raises(kind, match=words):
            macattn.attend(*arguments, **options)
    with pytest.raises(ValueError, match="out is read-only"):
        macattn.merge(q, q[..., 0].copy(), q, q[..., 0].copy(), out=read_only)
    assert np.isnan(read_only).all()


def test_gradients_are_refused():
    torch = pytest.importorskip("torch")
    q, k = torch.randn(1, 8, 64, requires_grad=True), torch.randn(50, 2, 64)
    with pytest.raises(TypeError, match="requires gradients"):
        macattn.attend(q, k, k)
    with torch.no_grad():
        assert np.array_equal(macattn.attend(q, k, k), macattn.attend(q.detach(), k, k))


def test_batches_of_none_and_one_length_for_all():
    k = noise(3, 50, 2, 64)
    q = noise(3, 1, 8, 64)
    out, lse = macattn.attend(q[:0], k[:0], k[:0], lse=True)
    assert out.shape == (0, 1, 8, 64) and lse.shape == (0, 1, 8)
    assert np.array_equal(macattn.attend(q, k, k, n_tokens=20), macattn.attend(q, k, k, n_tokens=[20] * 3))
    assert [a.shape for a in macattn.merge(out, lse, out, lse)] == [out.shape, lse.shape]
    with pytest.raises(ValueError, match="n_tokens has 2 entries for 3 rows"):
        macattn.attend(q, k, k, n_tokens=[20, 20])
    with pytest.raises(ValueError, match="do not go with"):
        macattn.merge(*[np.zeros((), np.float32)] * 4)


@pytest.mark.parametrize("call, kind, words", [
    (lambda m: m.plan([5], slots=[1 << 32]), macattn.ArgumentError, "a slot is 4294967296"),
    (lambda m: m.plan([5], slots=[0.7]), TypeError, "a slot is 0.7, no whole number"),
    (lambda m: m.plan([5.5]), TypeError, "n_tokens is 5.5"), (lambda m: m.plan(5), TypeError, "a number for each row"),
    (lambda m: m.plan([(1 << 64) + 5]), macattn.ArgumentError, "64 bits"),
    (lambda m: m.plan([5], n_queries=(1 << 32) + 1), macattn.ArgumentError, "n_queries is"),
    (lambda m: m.plan([5], pages=[1 << 32]), macattn.ArgumentError, "a page is"),
    (lambda m: m.plan([5], pages=[[1.5]], page_size=16), TypeError, "a page is 1.5"),
    (lambda m: m.plan([5], page_size=16), macattn.ArgumentError, "`pages` is missing"),
    (lambda m: m.plan([5], pages=[[1]], page_size=(1 << 32) + 16), macattn.ArgumentError, "page_size is"),
    (lambda m: m.plan([5, 5], pages=[[1]], page_size=16), ValueError, "pages has 1 entries for 2 rows"),
    (lambda m: m.plan([5], pages=[0, 1]), ValueError, "pages has 2 entries for 1 rows"),
    (lambda m: m.plan([5], slots=[0, 1]), ValueError, "slots has 2 entries for 1 rows"),
    (lambda m: m.plan([5, 5], n_queries=[1]), ValueError, "n_queries has 1 entries for 2 rows"),
    (lambda m: m.reset(1 << 32), macattn.ArgumentError, "slot is"), (lambda m: m.fork(0, 1 << 32), macattn.ArgumentError, "target"),
    (lambda m: m.decode(None, *[None] * 3), TypeError, "layer is None"),
    (lambda m: m.stats(1 << 32), macattn.ArgumentError, "layer is"), (lambda m: m.load(0, 10), TypeError, "bytes"),
])
def test_numbers_are_neither_cut_off_nor_rounded(call, kind, words):
    with macattn.Attention(max_slots=2, **SHAPE) as m, pytest.raises(kind, match=words):
        call(m)


def test_page_tables_are_copied():
    q, k = noise(1, 8, 64), noise(3, 16, 2, 64, dtype=np.float16)
    table = np.array([2, 1], np.int32)
    with macattn.Attention(**SHAPE) as m:
        m.plan([20], pages=[table], page_size=16)
        expected = m.attend(q, k, k)
        table[:] = 1 << 30
        assert np.array_equal(m.attend(q, k, k), expected)


def test_a_closed_object_says_so():
    m = macattn.Attention(**SHAPE)
    m.close()
    m.close()
    q = noise(1, 8, 64)
    for call in (lambda: m.plan([1]), lambda: m.attend(q, q, q), lambda: m.decode(0, q, q, q), lambda: m.save(0),
                 lambda: m.reset(0), lambda: m.length(0), lambda: m.stats()):
        with pytest.raises(macattn.StateError, match="the object is closed"):
            call()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_objects_are_not_copied(make):
    """Two of them would free one object of the library twice."""
    with macattn.Attention(**SHAPE) as m:
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            make(m)
        m.plan([1])


def test_two_threads_with_one_object():
    """Each gets its own result, or a StateError."""
    q, k = noise(1, 8, 64), noise(1, 2000, 2, 64, dtype=np.float16)
    refused, unexpected = [], []
    with macattn.Attention(policy="exact", **SHAPE) as m:
        def run(n):
            for _ in range(100):
                try:
                    m.plan([n])
                    m.attend(q, k, k)
                except macattn.StateError as e:
                    refused.append(e)
                except Exception as e:
                    unexpected.append(e)
        threads = [threading.Thread(target=run, args=(500 * (i + 1),)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not unexpected and all("another thread" in str(e) for e in refused)
        m._lock.acquire()
        for call in (lambda: m.plan([1]), lambda: m.attend(q, k, k), lambda: m.stats(), m.close):
            with pytest.raises(macattn.StateError, match="another thread"):
                call()
        m._lock.release()


FORK = """
import os, numpy as np, macattn
q, k = np.ones((1, 8, 64), np.float32), np.ones((2000, 2, 64), np.float32)
shape = dict(n_layers=1, n_heads=8, n_kv_heads=2, head_dim=64, k_dtype="f32", v_dtype="f32")
objects = [macattn.Attention(n_threads=n, **shape) for n in (1, 2)]
for m in objects:
    m.plan([2000])
macattn.attend(q, k, k)
child = os.fork()
if child == 0:
    macattn.attend(q, k, k)  # on threads of the child's own
    objects[0].attend(q, k[None], k[None])
    try:
        objects[1].attend(q, k[None], k[None])
    except macattn.StateError as e:
        assert "forked" in str(e)
        objects.clear()
        os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
objects[1].attend(q, k[None], k[None])
"""


def test_a_forked_process_does_not_wait_for_threads_it_has_not():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)


def test_import_takes_neither_torch_nor_a_gpu():
    code = ("import sys, macattn; macattn.load(); "
            "assert not {'torch', 'transformers', 'vllm', 'sglang'} & set(sys.modules), 'an engine was imported'")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_info():
    text = subprocess.run([sys.executable, "-m", "macattn", "info"], check=True, capture_output=True, text=True).stdout
    assert text.startswith(f"macattn {macattn.version()}, ") and "(used)" in text
    assert all(s.name in text for s in macattn.settings())


@pytest.mark.skipif(macattn.has_cuda(), reason="built with the GPU side")
def test_without_the_gpu_side():
    with pytest.raises(macattn.UnsupportedError, match="built without its GPU side"):
        macattn.CudaAttention(**SHAPE)
