# SPDX-License-Identifier: Apache-2.0
"""On a GPU: the package's own calls against float64, and transformers against sdpa. Skipped without one."""
import copy

import numpy as np
import pytest
import reference

torch = pytest.importorskip("torch")

import macattn

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
              pytest.mark.skipif(not macattn.has_cuda(), reason="built without the GPU side")]
HEADS, KV_HEADS, DIM = 8, 2, 64
SHAPE = dict(n_layers=2, n_heads=HEADS, n_kv_heads=KV_HEADS, head_dim=DIM, q_dtype="bf16", k_dtype="bf16", v_dtype="bf16",
             out_dtype="bf16")
REUSE = dict(policy="paper", tau=0.0, min_tokens=0, band=8)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16).cuda()


def ints(values):
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def stream():
    return torch.cuda.current_stream().cuda_stream


def poison(*shape, dtype=torch.bfloat16):
    return torch.full(shape, float("nan"), dtype=dtype, device="cuda")


def off(got, expected):
    got, expected = (np.asarray(torch.as_tensor(a).double().cpu()) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("paging", ["contiguous", "table", "indptr"])
def test_attend(paging):
    lengths, q = [40, 17, 64], noise(3, HEADS, DIM)
    k, v = noise(20, 16, KV_HEADS, DIM, seed=1), noise(20, 16, KV_HEADS, DIM, seed=2)
    tables = [[7, 2, 9], [0, 4], [11, 12, 13, 3]]
    if paging == "contiguous":
        k, v = k.view(5, 64, KV_HEADS, DIM), v.view(5, 64, KV_HEADS, DIM)
        tables = [[4], [0], [2]]
        batch = macattn.Batch(ints(lengths), pages=ints([4, 0, 2]))
    elif paging == "table":
        batch = macattn.Batch(ints(lengths), page_size=16, pages=ints([t + [0] * (4 - len(t)) for t in tables]))
    else:
        batch = macattn.Batch(ints(lengths), page_size=16, pages=ints(sum(tables, [])), page_indptr=ints([0, 3, 5, 9]))
    with macattn.CudaAttention(policy="exact", max_slots=3, **SHAPE) as m:
        out, lse = poison(3, HEADS, DIM), poison(3, HEADS, dtype=torch.float32)
        m.attend(batch, q, k, v, out=out, lse=lse, stream=stream())
        torch.cuda.synchronize()
        for i, (table, n) in enumerate(zip(tables, lengths)):
            ks, vs = (torch.cat([a[p] for p in table])[:n].float().cpu() for a in (k, v))
            expected = reference.attend(q[i:i + 1].float().cpu(), ks, vs)
            assert off(out[i:i + 1], expected[0]) < 0.01
            assert off(lse[i:i + 1], expected[1]) < 1e-3


def test_reuse_graphs_and_slots():
    k, v, q = noise(2, 600, KV_HEADS, DIM, seed=1), noise(2, 600, KV_HEADS, DIM, seed=2), noise(2, HEADS, DIM)
    lengths, slots, out = ints([500, 300]), ints([1, 0]), poison(2, HEADS, DIM)
    with macattn.CudaAttention(max_slots=3, **SHAPE, **REUSE) as m:
        batch = macattn.Batch(lengths, slots=slots)

        def decode():
            m.decode(0, batch, q, k, v, q_match=q, out=out, stream=stream())

        def hits_after(run):
            before = m.stats().hits
            run()
            torch.cuda.synchronize()
            return m.stats().hits - before

        assert hits_after(decode) == 0
        lengths += 1
        assert hits_after(decode) == 2 * HEADS
        expected = reference.attend(q[:1].float().cpu(), k[0, :501].float().cpu(), v[0, :501].float().cpu())[0]
        assert off(out[:1], expected) < 0.1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decode()
        lengths += 1
        assert hits_after(graph.replay) == 2 * HEADS
        m.truncate(1, 400, stream=stream())
        lengths += 1
        assert hits_after(graph.replay) == HEADS
        slots.fill_(-1)
        assert hits_after(graph.replay) == 0
        m.fork(1, 2, stream=stream())
        slots.copy_(ints([2, -1]))
        lengths += 1
        assert hits_after(decode) == HEADS
        m.reset(2, stream=stream())
        lengths += 1
        assert hits_after(decode) == 0 and m.decisions() != 0
        m.reset_stats(stream=stream())
        torch.cuda.synchronize()
        assert m.stats().steps == 0


def test_arrays_elsewhere_are_refused():
    q, out = noise(1, HEADS, DIM), poison(1, HEADS, DIM)
    k = noise(1, 64, KV_HEADS, DIM)
    batch = macattn.Batch(ints([64]))
    with macattn.CudaAttention(policy="exact", **SHAPE) as m:
        with pytest.raises(ValueError, match="k is in host memory, not on CUDA device 0"):
            m.attend(batch, q, k.cpu(), k, out=out, stream=stream())
        with pytest.raises(ValueError, match="out has shape"):
            m.attend(batch, q, k, k, out=poison(2, HEADS, DIM), stream=stream())


# ------------------------------------------------------------------------------------------------------ transformers

transformers = pytest.importorskip("transformers")
from test_transformers import MODELS, make, padded, some_ids, step, text, use  # noqa: E402

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402


def on_gpu(config=LlamaConfig, model=LlamaForCausalLM, **more):
    more = {"head_dim": 64, "hidden_size": 256, **more}
    return make(config, model, **more).to("cuda", torch.bfloat16)


def teacher_forced(model, ids, mask=None, n=20, first=50):
    """Logits of a prompt's end and of each of the next n tokens, which are given."""
    cache, found = DynamicCache(), []
    places = (mask.cumsum(-1) - 1).clamp(min=0) if mask is not None else None
    for end in range(first, first + n):
        now = slice(0 if end == first else end - 1, end)
        more = {"attention_mask": mask[:, :end], "position_ids": places[:, now]} if mask is not None else {}
        found.append(step(model, ids[:, now], cache, **more))
    return torch.stack(found)


@pytest.mark.parametrize("config, model, more", MODELS, ids=lambda p: getattr(p, "__name__", ""))
@pytest.mark.parametrize("batch", [1, 3])
def test_transformers(config, model, more, batch):
    model, ids = on_gpu(config, model, **more), some_ids(batch, 70).cuda()
    expected = teacher_forced(use(model, "sdpa"), ids)
    got = teacher_forced(use(model, "macattn"), ids)
    assert off(got, expected) < 0.05
    calls = macattn.transformers.stats(model)["calls"]
    assert calls == {"sdpa: prompt on a GPU": 3, "macattn": 3 * 19}
    use(model, "macattn", **REUSE)
    cache = DynamicCache()
    step(model, ids[:, :50], cache)
    before = macattn.transformers.stats(model)["hits"]
    step(model, ids[:, 20:21], cache)  # a token of the prompt: its query in the first layer is remembered
    assert macattn.transformers.stats(model)["hits"] > before
    text(model, ids[:, :50])
    assert set(macattn.transformers.stats(model)["calls"]) == {"sdpa: prompt on a GPU", "macattn"}


def test_transformers_left_padding():
    model = on_gpu()
    ids, mask = (t.cuda() for t in padded(3, 70))
    expected = teacher_forced(use(model, "sdpa"), ids, mask)
    assert off(teacher_forced(use(model, "macattn"), ids, mask), expected) < 0.05
    use(model, "macattn", **REUSE)
    teacher_forced(model, ids, mask)
    assert macattn.transformers.stats(model)["hits"] > 0


def test_transformers_rollback_and_copies():
    model = use(on_gpu(), "macattn", max_slots=4, **REUSE)
    ids, wrong = some_ids(1, 70).cuda(), some_ids(1, 5, seed=5).cuda()
    expected = teacher_forced(model, ids)
    cache = DynamicCache()
    step(model, ids[:, :50], cache)
    other = copy.deepcopy(cache)
    for i in range(5):
        step(model, wrong[:, i:i + 1], cache)
    cache.crop(-5)
    for c in (cache, other):
        got = torch.stack([step(model, ids[:, i:i + 1], c) for i in range(50, 69)])
        torch.testing.assert_close(got, expected[1:])


def test_transformers_beams_and_assistants():
    model, ids = on_gpu(), some_ids(2, 40).cuda()
    options = dict(num_beams=3, output_logits=False)
    text(use(model, "macattn", **REUSE), ids, **options)
    assert macattn.transformers.stats(model)["hits"] == 0
    assistant = use(on_gpu(num_hidden_layers=1), "macattn")
    text(model, ids[:1], assistant_model=assistant, max_new_tokens=16)
    assert macattn.transformers.stats(assistant)["calls"]["macattn"] > 0


def test_f32_is_left_to_sdpa():
    model = use(on_gpu().float(), "macattn")
    teacher_forced(model, some_ids(1, 70).cuda(), n=3)
    assert all(who.startswith("sdpa: ") for who in macattn.transformers.stats(model)["calls"])


# ------------------------------------------------------------------------------------------------------------ engines


@pytest.mark.parametrize("neox, rotated", [(True, 64), (False, 64), (True, 48)])
def test_queries_are_turned_back(neox, rotated):
    pytest.importorskip("triton")
    from macattn.serving.rotate import unrotate
    lengths, q = ints([1, 700, 4000, 0]), noise(4, HEADS, DIM)
    angle = torch.arange(4096, device="cuda")[:, None] / 10000.0 ** (torch.arange(rotated // 2, device="cuda") * 2 / rotated)
    table = torch.cat([angle.cos(), angle.sin()], -1).to(torch.bfloat16)
    cos, sin = (t[(lengths - 1).clamp(min=0).long()][:, None].double() for t in table.split(rotated // 2, -1))
    wide, turned = q.double(), q.double().clone()
    half = rotated // 2
    first, second = (slice(0, half), slice(half, rotated)) if neox else (slice(0, rotated, 2), slice(1, rotated, 2))
    turned[..., first] = wide[..., first] * cos - wide[..., second] * sin
    turned[..., second] = wide[..., second] * cos + wide[..., first] * sin
    back = poison(4, HEADS, DIM)
    unrotate(turned.to(torch.bfloat16), back, table, lengths, neox)
    assert off(back, q) < 0.01
