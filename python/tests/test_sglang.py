# SPDX-License-Identifier: Apache-2.0
"""The plug-in for SGLang without SGLang and without a GPU: which requests get which slots, what each step hands to the library,
and what is left to the Triton backend. Modules of the names that the plug-in imports stand in for SGLang; an object that only
notes its calls stands in for the library's. That the names and arguments are SGLang's is test_sglang_sources.py's business."""
import enum
import importlib
import random
import sys
import types

import pytest
import standins

torch = pytest.importorskip("torch")

import macattn.cuda
import macattn.sglang


class Mode(enum.Enum):
    DECODE, EXTEND = range(2)

    def is_decode(self):
        return self == Mode.DECODE


class Pool:
    """SGLang's ReqToTokenPool: row 0 is padding's."""

    def __init__(self, size=6, context=512):
        self.size, self.req_to_token = size, torch.zeros(size + 1, context, dtype=torch.int32)
        self.free_slots, self.req_generation = list(range(1, size + 1)), torch.zeros(size + 1, dtype=torch.int64)

    def alloc(self, reqs):
        for r in reqs:
            if r.req_pool_idx is None:
                r.req_pool_idx = self.free_slots.pop(0)
                self.req_generation[r.req_pool_idx] += 1
        return [r.req_pool_idx for r in reqs]

    def free(self, req):
        self.free_slots.append(req.req_pool_idx)
        req.req_pool_idx = None

    def clear(self):
        self.free_slots = list(range(1, self.size + 1))
        self.req_generation.zero_()


class Cache:
    dtype = store_dtype = torch.bfloat16

    def __init__(self):
        self.k, self.v, self.written = (torch.zeros(64, 2, 64, dtype=torch.bfloat16) for _ in "kv"), None, []
        self.k, self.v = self.k

    def get_key_buffer(self, layer):
        return self.k

    def get_value_buffer(self, layer):
        return self.v

    def set_kv_buffer(self, layer, loc, k, v):
        self.written.append((layer.layer_id, loc.loc))


class Triton:
    """Stands in for the Triton backend."""
    dcp_size, _translate_kv_loc = 1, None

    def __init__(self, runner):
        self.req_to_token_pool, self.req_to_token = runner.req_to_token_pool, runner.req_to_token_pool.req_to_token
        self.token_to_kv_pool, self.calls, self.given = runner.token_to_kv_pool, [], []

    def init_forward_metadata(self, fb):
        self.calls.append("metadata")

    def init_forward_metadata_out_graph(self, fb, in_capture=False):
        self.calls.append("metadata")

    def forward_decode(self, q, k, v, layer, fb, save_kv_cache=True, sinks=None, **more):
        self.calls.append(layer.layer_id)
        return q

    def extend_attention_fwd(self, q, o, lse_extend=None):
        o.copy_(2 * q)
        if lse_extend is not None:
            lse_extend.copy_(torch.randn(lse_extend.shape))
            self.given.append(lse_extend)

    def forward_extend(self, q, k, v, layer, fb, save_kv_cache=True, sinks=None, **more):
        out = torch.empty_like(q)
        self.extend_attention_fwd(q.view(-1, 8, 64), out.view(-1, 8, 64))
        return out


class Attention(torch.nn.Module):
    def __init__(self, layer_id, window=-1):
        super().__init__()
        self.layer_id, self.sliding_window_size, self.attn_type = layer_id, window, "decoder"
        self.tp_q_head_num, self.tp_k_head_num, self.head_dim, self.v_head_dim = 8, 2, 64, 64
        self.scaling, self.logit_cap, self.k_scale, self.xai_temperature_len = 0.125, 0.0, None, -1
        self.is_cross_attention, self.use_irope, self.pos_encoding_mode = False, False, "NONE"


class RotaryEmbedding:
    head_size, is_neox_style = 64, True

    def __init__(self):
        self.cos_sin_cache = torch.zeros(16, 64)

    def _ensure_cos_sin_cache_length(self, n):
        self.cos_sin_cache = torch.zeros(n + 1, 64)


class Layer(torch.nn.Module):
    def __init__(self, layer_id, window=-1):
        super().__init__()
        self.attn, self.rotary_emb = Attention(layer_id, window), RotaryEmbedding()


class Location:
    def __init__(self, loc, swa_loc):
        self.loc = loc


class Registry:
    _patched = set()
    hooks = {}

    @classmethod
    def register(cls, target, hook, kind):
        cls.hooks[target] = hook, kind


def module(name, **names):
    m = types.ModuleType(name)
    vars(m).update(names)
    return m


@pytest.fixture
def sglang(monkeypatch):
    """The plug-in, loaded anew with stand-ins, its hooks in place."""
    pool = type("ReqToTokenPool", (Pool,), {})
    Registry._patched, Registry.hooks = set(), {}
    backends, choices = {}, []
    stand_ins = {
        "triton": {"jit": lambda f: f, "next_power_of_2": lambda n: n}, "triton.language": {"constexpr": int},
        **{name: {} for name in ("sglang", "sglang.srt", "sglang.srt.layers", "sglang.srt.layers.attention", "sglang.srt.mem_cache",
                                 "sglang.srt.plugins")},
        "sglang.srt.layers.attention.triton_backend": {"TritonAttnBackend": Triton},
        "sglang.srt.layers.attention.attention_registry": {
            "register_attention_backend": lambda name: lambda f: backends.setdefault(name, f)},
        "sglang.srt.layers.radix_attention": {"AttentionType": types.SimpleNamespace(DECODER="decoder"), "RadixAttention": Attention},
        "sglang.srt.mem_cache.memory_pool": {"KVWriteLoc": Location, "MHATokenToKVPool": Cache, "ReqToTokenPool": pool},
        "sglang.srt.plugins.hook_registry": {"HookRegistry": Registry,
                                             "HookType": types.SimpleNamespace(AFTER="after", BEFORE="before")},
        "sglang.srt.server_args": {"ATTENTION_BACKEND_CHOICES": choices, "add_attention_backend_choices": choices.extend},
    }
    for name, names in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module(name, **names))
    for name in ("engines.sglang", "serving.layers", "serving.prompts", "serving.rotate"):
        monkeypatch.delitem(sys.modules, f"macattn.{name}", raising=False)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.17")
    monkeypatch.setattr(macattn.cuda, "CudaAttention", standins.CudaAttention)
    monkeypatch.setattr(macattn.cuda, "state_bytes", lambda **settings: 1)
    monkeypatch.setattr(macattn.cuda, "run_bytes", lambda n_tokens, **settings: 2 * n_tokens)
    macattn.sglang.register()
    plain = {name: getattr(pool, name) for name in ("alloc", "free", "clear")}

    def hooked(name):
        hook, kind = Registry.hooks[macattn.sglang.POOL + name]

        def method(self, *arguments):
            if kind == "before":
                hook(self, *arguments)
            result = plain[name](self, *arguments)
            if kind == "after":
                hook(result, self, *arguments)
            return result
        setattr(pool, name, method)
        Registry._patched.add(macattn.sglang.POOL + name)
    for name in plain:
        hooked(name)
    plugin = importlib.import_module("macattn.engines.sglang")
    for m in (plugin, sys.modules["macattn.serving.prompts"]):
        monkeypatch.setattr(m, "stream", lambda: 7)
        monkeypatch.setattr(m, "unrotate", lambda q, out, *more: out.copy_(q))
    for name in ("zeros", "full", "empty", "arange"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *shape, _make=make, device=None, **more: _make(*shape, **more))
    yield types.SimpleNamespace(plugin=plugin, pool=pool, create=backends["macattn"], choices=choices)
    monkeypatch.undo()
    for name in ("engines.sglang", "serving.layers", "serving.prompts", "serving.rotate"):
        sys.modules.pop(f"macattn.{name}", None)


def request(tokens, new=64):
    return types.SimpleNamespace(req_pool_idx=None, rid=object(), origin_input_ids=[0] * tokens, output_ids=[],
                                 sampling_params=types.SimpleNamespace(max_new_tokens=new))


def make_runner(sglang, settings=None, layers=(-1, -1), **more):
    model = torch.nn.ModuleList(Layer(i, window) for i, window in enumerate(layers))
    known = dict(
        is_draft_worker=False, use_mla_backend=False, gpu_id=0, dtype=torch.bfloat16, model=model, server_args=object(),
        spec_algorithm=types.SimpleNamespace(is_none=lambda: True), req_to_token_pool=sglang.pool(), token_to_kv_pool=Cache(),
        model_config=types.SimpleNamespace(context_len=400, hf_config=types.SimpleNamespace(
            macattn={"policy": "budget", "max_slots": 2, "min_tokens": 100, **(settings or {})})))
    return types.SimpleNamespace(**{**known, **more})


def step(backend, requests, lengths, mode=Mode.DECODE, padding=0, graph=False):
    """One step's rows as the library would read them: [(slot, length, first page)]."""
    indices = [r.req_pool_idx for r in requests] + [0] * padding
    fb = types.SimpleNamespace(
        forward_mode=mode, spec_info=None, batch_size=len(indices), req_pool_indices=torch.tensor(indices),
        seq_lens=torch.tensor(lengths + [1] * padding), out_cache_loc=torch.arange(len(indices)))
    if graph:
        backend.init_forward_metadata_out_graph(fb)
        backend.init_forward_metadata_in_graph(fb)
    else:
        backend.init_forward_metadata(fb)
    n = len(indices)
    return fb, list(zip(backend.row_slots[:n].tolist(), backend.lengths[:n].tolist(), backend.starts[:n].tolist()))


def test_a_step(sglang):
    assert sglang.choices == ["macattn"]
    runner = make_runner(sglang)
    backend = sglang.create(runner)
    a, b = request(200), request(50, new=10)
    runner.req_to_token_pool.alloc([a, b])
    fb, rows = step(backend, [a, b], [201, 51])
    assert rows == [(0, 201, 512), (-1, 51, 1024)]  # b can never become long enough to be worth a slot
    q = torch.randn(2, 512).to(torch.bfloat16)
    for layer in runner.model:
        out = backend.forward_decode(q, q[:, :128], q[:, :128], layer.attn, fb)
        assert out.shape == q.shape
    made = backend.groups[0].attention
    assert made.resets == [0] and made.settings["max_tokens"] == 408 and made.max_rows == 7
    assert [c[0] for c in made.calls] == [0, 1] and [w[0] for w in runner.token_to_kv_pool.written] == [0, 1]
    _, batch, query, k, v, more = made.calls[0]
    assert torch.equal(query.flatten(1), q) and torch.equal(more["q_match"], query) and more["stream"] == 7
    assert k.shape == (64, 1, 2, 64) and k.strides == (256, 256, 128, 2)
    assert batch.struct.page_size == 1 and batch.n_rows == 2
    assert backend.calls == []  # the Triton backend had nothing to prepare
    backend.forward_decode(q, q[:, :128], q[:, :128], runner.model[0].attn, fb, save_kv_cache=False)
    assert len(runner.token_to_kv_pool.written) == 2
    step(backend, [a], [200], mode=Mode.EXTEND)
    assert backend.calls == ["metadata"]


def test_other_layers_are_left_to_triton(sglang):
    runner = make_runner(sglang, layers=(-1, 64, -1))
    backend = sglang.create(runner)
    a = request(200)
    runner.req_to_token_pool.alloc([a])
    fb, _ = step(backend, [a], [201])
    q = torch.randn(1, 512).to(torch.bfloat16)
    for layer in runner.model:
        backend.forward_decode(q, q[:, :128], q[:, :128], layer.attn, fb)
    assert backend.calls == ["metadata", 1] and [c[0] for c in backend.groups[0].attention.calls] == [0, 1]
    runner = make_runner(sglang, dtype=torch.float32)
    assert sglang.create(runner).groups == []


def test_slots_follow_requests(sglang):
    runner = make_runner(sglang)
    backend, pool = sglang.create(runner), runner.req_to_token_pool
    resets = backend.groups[0].attention.resets
    a, b, c, d = request(300), request(200), request(250), request(150)
    pool.alloc([a, b])
    assert [r[0] for r in step(backend, [a, b], [301, 201])[1]] == [0, 1]
    pool.alloc([c])  # longer than b, which loses its slot
    assert [r[0] for r in step(backend, [a, b, c], [302, 202, 251])[1]] == [0, -1, 1]
    pool.alloc([d])
    pool.alloc([c])  # a further chunk of c's prompt
    assert [r[0] for r in step(backend, [a, b, c, d], [303, 203, 252, 151], graph=True, padding=2)[1]] == [0, -1, 1, -1, -1, -1]
    assert sorted(resets) == [0, 1, 1]
    old = a.req_pool_idx
    pool.free(a)  # b, the longest of those that wait, gets its slot
    assert [r[0] for r in step(backend, [b, c, d], [204, 253, 152], graph=True)[1]] == [0, 1, -1]
    pool.free_slots.insert(0, pool.free_slots.pop())
    e = request(160)
    pool.alloc([e])  # at a's index
    assert e.req_pool_idx == old
    assert [r[0] for r in step(backend, [e, b], [161, 205])[1]] == [-1, 0]
    pool.clear()
    for r in (b, c, d, e):
        r.req_pool_idx = None
    pool.alloc([e])  # an index and a generation that there were before
    before = len(resets)
    assert step(backend, [e], [161])[1][0][0] >= 0 and len(resets) == before + 1


def extend(backend, requests, chunks, **more):
    """A step of prompts: chunks are (tokens before, new ones). What each layer was shown: (row, tokens, queries, slot)."""
    made = backend.groups[0].attention
    made.captures.clear()
    backend.given.clear()
    fb = types.SimpleNamespace(
        forward_mode=Mode.EXTEND, spec_info=None, batch_size=len(requests), rids=[r.rid for r in requests],
        req_pool_indices=torch.tensor([r.req_pool_idx for r in requests]), seq_lens=torch.tensor([a + b for a, b in chunks]),
        extend_seq_lens_cpu=[b for _, b in chunks], extend_prefix_lens_cpu=[a for a, _ in chunks])
    backend.init_forward_metadata(fb)
    q = torch.randn(sum(b for _, b in chunks), 512).to(torch.bfloat16)
    for layer in backend.test_layers:
        out = backend.forward_extend(q, q[:, :128], q[:, :128], layer.attn, fb, **more)
        assert torch.equal(out, 2 * q)
    found = [[(c.row, c.length, len(c.q), c.slot) for c in made.captures if c.layer == layer] for layer in (0, 1)]
    assert found[0] == found[1]
    return found[0], made.captures, q.view(-1, 8, 64)


def test_prompts_are_shown(sglang):
    runner = make_runner(sglang, {"show_prompts": 1}, layers=(-1, 64, -1))
    backend, pool = sglang.create(runner), runner.req_to_token_pool
    backend.test_layers, made = runner.model, backend.groups[0].attention
    a, b, c = request(200), request(300), request(90)
    pool.alloc([a, b, c])
    assert extend(backend, [c], [(0, 90)])[0] == []  # too short
    found, captures, q = extend(backend, [a, b], [(0, 200), (0, 120)])
    sa, sb = found[0][3], found[1][3]
    assert found == [(0, 200, 200, sa), (1, 120, 120, sb)] and {sa, sb} == {0, 1}
    first = captures[0]
    assert torch.equal(first.q, q[:200]) and torch.equal(first.out, 2 * q[:200]) and torch.equal(first.match, q[:200])
    assert torch.equal(first.lse, backend.given[0][:200]) and torch.equal(captures[1].lse, backend.given[0][200:])
    assert len(backend.given) == 2 and first.page == 1 and first.stream == 7  # the layer with a window is not asked
    pool.alloc([b])  # a further chunk, beside a row that decodes (a mixed batch)
    found, captures, q = extend(backend, [b, a], [(120, 180), (200, 1)])
    assert found == [(0, 300, 180, sb)] and torch.equal(captures[0].q, q[:180])
    assert [r[0] for r in step(backend, [a, b], [202, 301])[1]] == [sa, sb] and made.resets == [0, 1]
    assert backend.places.prompts.stats() == {"prompts": 2, "prompts_shown": 2}
    pool.free(b)  # retracted
    b.output_ids += [0] * 10
    pool.alloc([b])
    assert extend(backend, [b], [(0, 310)])[0] == [(0, 310, 310, sb)] and made.resets == [0, 1, sb]
    pool.free(a)  # cancelled; the next has most of its prompt in the radix cache
    d = request(350)
    pool.alloc([d])
    assert extend(backend, [d], [(320, 30)])[0] == [(0, 350, 30, sa)] and made.resets == [0, 1, sb, sa]
    assert {a.rid, c.rid} & backend.places.lengths.keys() == {c.rid}
    assert extend(backend, [d], [(320, 30)], sinks=torch.zeros(8))[0] == [] and backend.given == []
    fb = types.SimpleNamespace(forward_mode=Mode.EXTEND, spec_info=None, batch_size=1, rids=[d.rid])
    backend.init_forward_metadata(fb)  # a dummy
    assert backend.shown == []
    assert extend(backend, [d], [(320, 30)])[0] != []
    pool.clear()
    assert extend(backend, [d], [(320, 30)])[0] == []


def test_no_request_ever_meets_anothers_slot(sglang):
    runner = make_runner(sglang, {"max_slots": 3})
    backend, pool = sglang.create(runner), runner.req_to_token_pool
    resets, rng = backend.groups[0].attention.resets, random.Random(3)
    owner, seen, live = {}, 0, []
    for _ in range(2000):
        if live and rng.random() < 0.3:
            pool.free(live.pop(rng.randrange(len(live))))
        if pool.free_slots and rng.random() < 0.5:
            live.append(request(rng.randrange(1, 300)))
            pool.alloc(live[-1:])
        if rng.random() < 0.02:
            pool.clear()
            live.clear()
        rows = rng.sample(live, rng.randrange(len(live) + 1))
        if not rows:
            continue
        slots = [r[0] for r in step(backend, rows, [len(r.origin_input_ids) + 1 for r in rows])[1]]
        fresh, seen = resets[seen:], len(resets)
        for r, slot in zip(rows, slots):
            assert slot < 0 or slot in fresh or owner[slot] is r
        for slot in fresh:
            owner[slot] = next((r for r in live if backend.places.slots.get(r.req_pool_idx) == slot), None)
        taken = [s for s in slots if s >= 0]
        assert len(set(taken)) == len(taken)
    assert seen > 100


def test_what_could_go_wrong_in_silence_is_refused(sglang):
    for name in ("alloc", "free", "clear"):
        Registry._patched.discard(macattn.sglang.POOL + name)
        with pytest.raises(RuntimeError, match=f"hooks on ReqToTokenPool.{name} are missing"):
            sglang.create(make_runner(sglang))
        Registry._patched.add(macattn.sglang.POOL + name)
    other = type("OtherPool", (sglang.pool,), {"alloc": lambda self, reqs: None})
    with pytest.raises(RuntimeError, match="OtherPool gives requests away on its own"):
        sglang.create(make_runner(sglang, req_to_token_pool=other()))
    with pytest.raises(ValueError, match="MLA"):
        sglang.create(make_runner(sglang, use_mla_backend=True))
    with pytest.raises(ValueError, match="two batches at once"):
        sglang.create(make_runner(sglang, server_args=types.SimpleNamespace(enable_two_batch_overlap=True)))
    for asked, kind, words in [({"buget": 1}, TypeError, "no setting 'buget'"), ({"n_heads": 2}, ValueError, "the model's")]:
        with pytest.raises(kind, match=words):
            sglang.create(make_runner(sglang, asked))
    assert type(sglang.create(make_runner(sglang, is_draft_worker=True))) is Triton


def test_speculation_is_exact(sglang, caplog):
    caplog.set_level("INFO")
    backend = sglang.create(make_runner(sglang, spec_algorithm=types.SimpleNamespace(is_none=lambda: False)))
    assert not backend.places.reusing and "exact because of speculation" in caplog.text


def test_other_versions_are_refused(sglang, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.18")
    with pytest.raises(ImportError, match="made for SGLang 0.5.17; this is 0.5.18"):
        macattn.sglang.register()


def test_statistics_travel_with_the_schedulers_state():
    pool = types.SimpleNamespace(macattn=types.SimpleNamespace(stats=lambda: {"hits": 3}))
    result = types.SimpleNamespace(internal_state={})
    macattn.sglang.with_stats(result, types.SimpleNamespace(req_to_token_pool=pool), None)
    engine = types.SimpleNamespace(get_server_info=lambda: {"internal_states": [result.internal_state] * 2})
    assert macattn.sglang.stats(engine) == {"hits": 6}
