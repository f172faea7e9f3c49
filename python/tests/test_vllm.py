# SPDX-License-Identifier: Apache-2.0
"""The plug-in for vLLM without vLLM and without a GPU: which rows of which steps get which slots, and what is left to
FlashAttention. Modules of the names that the plug-in imports stand in for vLLM; an object that only notes its calls stands in
for the library's. That the names and arguments are vLLM's is test_vllm_sources.py's business."""
import dataclasses
import importlib
import sys
import types

import pytest
import standins

torch = pytest.importorskip("torch")

import macattn.cuda


class Flash:
    """What the stand-in for FlashAttention was given, and the lse it gave."""
    calls, lse = [], []


def flash_attn_varlen_func(q, out, return_softmax_lse=False):
    out.copy_(2 * q.view(out.shape))
    if not return_softmax_lse:
        return out
    Flash.lse.append(torch.randn(q.shape[1], q.shape[0]))
    return out, Flash.lse[-1]


@dataclasses.dataclass
class Metadata:
    num_actual_tokens: int
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    slot_mapping: torch.Tensor
    scheduler_metadata: object = "schedule"
    use_cascade: bool = False
    causal: bool = True


class FlashBuilder:
    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        pass

    def build(self, common_prefix_len, common, fast_build=False):
        return Metadata(common.num_actual_tokens, common.query_start_loc, common.seq_lens, common.block_table_tensor,
                        common.slot_mapping)


class FlashImpl:
    dcp_world_size = 1

    def __init__(self, num_heads, head_size, scale, num_kv_heads, sliding_window=None, attn_type="decoder"):
        self.num_heads, self.head_size, self.scale, self.num_kv_heads = num_heads, head_size, scale, num_kv_heads
        self.sliding_window = (-1, -1) if sliding_window is None else (sliding_window - 1, 0)
        self.attn_type, self.alibi_slopes, self.kv_sharing_target_layer_name = attn_type, None, None
        self.kv_cache_dtype, self.logits_soft_cap, self.sinks = "auto", 0, None

    def process_weights_after_loading(self, act_dtype):
        pass

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *scales):
        Flash.calls.append((query, attn_metadata))
        n = attn_metadata.num_actual_tokens
        sys.modules["vllm.v1.attention.backends.flash_attn"].flash_attn_varlen_func(q=query[:n], out=output[:n])
        return output


class RequestState:
    def __init__(self):
        self.req_id_to_index, self.free_indices, self.prompt = {}, [0, 1, 2, 3], {}

    def add_request(self, req_id, prompt_len):
        self.req_id_to_index[req_id], self.prompt[req_id] = self.free_indices.pop(), prompt_len

    def remove_request(self, req_id):
        index = self.req_id_to_index.pop(req_id, None)
        if index is not None:
            self.free_indices.append(index)
        return index


class GPUModelRunner:
    def prepare_attn(self, input_batch):
        return "real"

    def prepare_dummy_attn(self, input_batch):
        return "dummy"

    def execute_model(self, work):
        return work()

    def initialize_kv_cache(self, config):
        pass

    def reload_weights(self):
        pass


class Worker:
    def wake_up(self, tags=None):
        pass


def split(common, decode_threshold):
    lengths = common.query_start_loc.diff().tolist()
    n = next((i for i, length in enumerate(lengths) if length > decode_threshold), len(lengths))
    return n, len(lengths) - n, sum(lengths[:n]), sum(lengths[n:])


def module(name, **names):
    m = types.ModuleType(name)
    vars(m).update(names)
    return m


MODULES = ("engines.vllm", "serving.layers", "serving.prompts", "serving.rotate")
CONFIG = types.SimpleNamespace(
    additional_config={"macattn": {"policy": "budget", "max_slots": 2, "min_tokens": 100}}, speculative_config=None,
    use_v2_model_runner=True, model_config=types.SimpleNamespace(max_model_len=4096),
    scheduler_config=types.SimpleNamespace(max_num_seqs=4),
    compilation_config=types.SimpleNamespace(max_cudagraph_capture_size=8))


@pytest.fixture
def vllm(monkeypatch):
    """The plug-in, loaded anew with stand-ins."""
    triton = types.SimpleNamespace(jit=lambda f: f, next_power_of_2=lambda n: n)
    stand_ins = {
        "triton": vars(triton), "triton.language": {"constexpr": int},
        "vllm": {}, "vllm.config": {"get_current_vllm_config_or_none": lambda: CONFIG},
        "vllm.logger": {"init_logger": lambda name: types.SimpleNamespace(info=print, warning=print)},
        "vllm.utils": {}, "vllm.utils.torch_utils": {"canonicalize_singleton_dim_strides": lambda t: t},
        "vllm.v1": {}, "vllm.v1.attention": {}, "vllm.v1.attention.backends": {},
        "vllm.v1.attention.backend": {"AttentionCGSupport": types.SimpleNamespace(UNIFORM_SINGLE_TOKEN_DECODE=1),
                                      "AttentionType": types.SimpleNamespace(DECODER="decoder")},
        "vllm.v1.attention.backends.flash_attn": {"FlashAttentionBackend": object, "FlashAttentionImpl": FlashImpl,
                                                  "FlashAttentionMetadataBuilder": FlashBuilder,
                                                  "flash_attn_varlen_func": flash_attn_varlen_func},
        "vllm.v1.attention.backends.utils": {"split_decodes_and_prefills": split},
        "vllm.v1.worker": {}, "vllm.v1.worker.gpu": {},
        "vllm.v1.worker.gpu.model_runner": {"GPUModelRunner": type("GPUModelRunner", (GPUModelRunner,), {})},
        "vllm.v1.worker.gpu_worker": {"Worker": type("Worker", (Worker,), {})},
        "vllm.v1.worker.gpu.states": {"RequestState": type("RequestState", (RequestState,), {})},
    }
    for name, names in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module(name, **names))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.26.0")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"macattn.{name}", raising=False)
    monkeypatch.setattr(macattn.cuda, "CudaAttention", standins.CudaAttention)
    monkeypatch.setattr(macattn.cuda, "state_bytes", lambda **settings: 1)
    monkeypatch.setattr(macattn.cuda, "run_bytes", lambda n_tokens, **settings: 2 * n_tokens)
    plugin = importlib.import_module("macattn.engines.vllm")
    prompts = sys.modules["macattn.serving.prompts"]
    for m in (plugin, prompts):
        monkeypatch.setattr(m, "stream", lambda: 7)
        monkeypatch.setattr(m, "unrotate", lambda q, out, *more: out.copy_(q))
    monkeypatch.setattr(plugin.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(plugin.torch, "empty", lambda *shape, device=None, dtype=None: torch.zeros(shape, dtype=dtype))
    plain_tensor = torch.tensor
    monkeypatch.setattr(plugin.torch, "tensor", lambda data, pin_memory=False, **more: plain_tensor(data, **more))
    Flash.calls.clear()
    Flash.lse.clear()
    yield plugin
    monkeypatch.undo()
    for name in MODULES:
        sys.modules.pop(f"macattn.{name}", None)


class Model:
    """A loaded model of two plain layers and one with a window, its requests and its steps."""

    def __init__(self, plugin):
        self.plugin = plugin
        self.impls = [plugin.Impl(8, 64, 0.125, 2), plugin.Impl(8, 64, 0.125, 2, sliding_window=128),
                      plugin.Impl(8, 64, 0.125, 2)]
        for impl in self.impls:
            impl.process_weights_after_loading(torch.bfloat16)
        self.runner, self.requests = plugin.GPUModelRunner(), plugin.RequestState()
        rope = type("RotaryEmbedding", (), {"head_size": 64, "cos_sin_cache": None, "is_neox_style": True})()
        self.runner.model = types.SimpleNamespace(modules=lambda: [
            types.SimpleNamespace(rotary_emb=rope, children=lambda impl=impl: [types.SimpleNamespace(impl=impl)])
            for impl in self.impls])
        self.runner.initialize_kv_cache(None)
        self.builder = plugin.Builder(None, [], CONFIG, torch.device("cpu"))
        self.cache = torch.zeros(16, 2, 16, 128, dtype=torch.bfloat16)
        self.object = plugin.engine.groups[0].attention

    def step(self, rows, padding=0, dummy=False):
        """rows: {request: (length, new tokens)}; returns each decode row's slot, as the library would read it."""
        def work():
            ends = torch.tensor([0, *(q for _, q in rows.values())]).cumsum(0).numpy()
            batch = types.SimpleNamespace(
                idx_mapping_np=[self.requests.req_id_to_index.get(r, i) for i, r in enumerate(rows)],
                num_computed_tokens_np=[n - q for n, q in rows.values()], num_scheduled_tokens=[q for _, q in rows.values()],
                prefill_len_np=[self.requests.prompt.get(r, 0) for r in rows], query_start_loc_np=ends)
            (self.runner.prepare_dummy_attn if dummy else self.runner.prepare_attn)(batch)
            lengths = [n for n, _ in rows.values()] + [0] * padding
            new = [q for _, q in rows.values()] + [1] * padding
            start = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
            common = types.SimpleNamespace(
                num_reqs=len(new), num_actual_tokens=sum(new), query_start_loc=start,
                seq_lens=torch.tensor(lengths, dtype=torch.int32), seq_lens_cpu_upper_bound=torch.tensor(lengths),
                block_table_tensor=torch.zeros(len(new), 8, dtype=torch.int32), slot_mapping=torch.arange(sum(new)))
            return self.builder.build(0, common)
        self.metadata = self.runner.execute_model(work)
        step = self.metadata.macattn
        return step and list(step.slots.values())[0][:step.n].tolist()

    def forward(self, tokens):
        q = torch.randn(tokens, 8, 64).to(torch.bfloat16)
        self.out = [torch.zeros_like(q) for _ in self.impls]
        for impl, out in zip(self.impls, self.out):
            impl.forward(None, q, q[:, :2], q[:, :2], self.cache, self.metadata, out)
        return q

    def shown(self, rows):
        """A step and its forward: (what each plain layer was shown, as (row, tokens, queries, slot)), the captures, q)."""
        self.object.captures.clear()
        Flash.lse.clear()
        self.step(rows)
        q = self.forward(sum(new for _, new in rows.values()))
        found = [[(c.row, c.length, len(c.q), c.slot) for c in self.object.captures if c.layer == layer] for layer in (0, 1)]
        assert found[0] == found[1]
        return found[0], self.object.captures, q


def test_plain_layers_are_decoded_and_the_others_left(vllm):
    model = Model(vllm)
    assert [impl.layer for impl in model.impls] == [0, None, 1]
    assert model.object.settings["n_layers"] == 2 and model.object.settings["max_tokens"] == 4097
    model.requests.add_request("a", 200)
    model.step({"a": (200, 1)})
    q = model.forward(1)
    assert [c[0] for c in model.object.calls] == [0, 1] and len(Flash.calls) == 1
    layer, batch, query, k, v, more = model.object.calls[0]
    assert torch.equal(query, q) and torch.equal(more["q_match"], q) and more["stream"] == 7
    assert k.shape == v.shape == (16, 16, 2, 64) and v.pointer - k.pointer == 128 and k.strides == (8192, 256, 4096, 2)
    assert batch.struct.page_size == 16 and batch.struct.page_table_stride == 8


def test_slots_follow_requests(vllm):
    model = Model(vllm)
    for r in "abc":
        model.requests.add_request(r, 200)
    a, b = model.step({"a": (300, 1), "b": (200, 1)})
    assert {a, b} == {0, 1}
    assert model.step({"b": (201, 1), "a": (301, 1), "c": (150, 1)}) == [b, a, -1]  # the longest have them
    assert model.step({"a": (302, 1), "c": (99, 1)}) == [a, -1]  # too short to be worth it
    assert model.step({"c": (151, 1), "a": (303, 1)}) == [b, a]  # b is not in the step: the slot is reset and c's
    resets = len(model.object.resets)
    model.requests.remove_request("a")
    model.requests.add_request("d", 300)  # at a's index in vLLM
    assert model.step({"d": (400, 1), "c": (152, 1)}) == [a, b]
    assert len(model.object.resets) == resets + 1 and model.object.resets[-1] == a
    model.runner.reload_weights()
    assert model.object.resets[-2:] == [0, 1]
    vllm.Worker().wake_up()
    assert model.object.resets[-4:] == [0, 1, 0, 1]


def test_dummies_and_padding_have_no_slots(vllm):
    model = Model(vllm)
    model.requests.add_request("a", 200)
    a, = model.step({"a": (300, 1)})
    assert model.step({"x": (300, 1)}, dummy=True) == [-1]
    assert model.step({"a": (301, 1)}, padding=3) == [a, -1, -1, -1]
    assert vllm.engine.rows is None  # a build outside a step, as in a capture, finds none
    place = list(model.metadata.macattn.slots.values())[0].data_ptr()
    model.step({"a": (302, 1)}, padding=3)
    assert list(model.metadata.macattn.slots.values())[0].data_ptr() == place


def test_mixed_batches_are_divided(vllm):
    model = Model(vllm)
    for r in "ab":
        model.requests.add_request(r, 200)
    assert model.step({"a": (300, 1), "b": (50, 50)}) in ([0], [1])
    model.forward(51)
    assert [len(c[2]) for c in model.object.calls] == [1, 1]
    (query, rest), (whole, metadata), _ = Flash.calls
    assert len(query) == 50 == rest.num_actual_tokens and rest.query_start_loc.tolist() == [0, 50]
    assert rest.seq_lens.tolist() == [50] and rest.slot_mapping.tolist() == list(range(1, 51))
    assert rest.scheduler_metadata is None
    assert len(whole) == 51 and metadata is model.metadata
    assert model.step({"b": (60, 10)}) is None  # no decode row at all
    model.forward(10)
    assert len(model.object.calls) == 2


@pytest.fixture
def show_all(monkeypatch):
    monkeypatch.setitem(CONFIG.additional_config, "macattn", {**CONFIG.additional_config["macattn"], "show_prompts": 1})


def test_a_prompt_is_shown(vllm, show_all):
    model = Model(vllm)
    model.requests.add_request("a", 200)
    (found,), (first, second), q = model.shown({"a": (200, 200)})
    assert found[:3] == (0, 200, 200) and found[3] in (0, 1)
    assert torch.equal(first.q, q) and torch.equal(first.out, 2 * q) and first.k is not None and first.page == 16
    assert torch.equal(first.match, q) and torch.equal(first.lse, Flash.lse[0].t()) and torch.equal(second.lse, Flash.lse[1].t())
    assert len(Flash.lse) == 2 and len(Flash.calls) == 3 and first.stream == 7  # the layer with a window is not asked for its lse
    resets = len(model.object.resets)
    assert model.step({"a": (201, 1)}) == [found[3]] and len(model.object.resets) == resets
    assert vllm.engine.prompts.stats() == {"prompts": 1, "prompts_shown": 1}


def test_long_prompts_show_their_end(vllm, show_all):
    model = Model(vllm)
    model.requests.add_request("a", 3000)
    assert model.shown({"a": (1900, 1900)})[0] == []
    (found,), captures, q = model.shown({"a": (2000, 100)})
    assert found[:3] == (0, 2000, 24) and torch.equal(captures[0].q, q[-24:])
    (found,), captures, q = model.shown({"a": (3000, 1000)})
    assert found[:3] == (0, 3000, 1000) and vllm.engine.prompts.ended == 1
    c = captures[0]  # what was before RoPE, and the lse, of those that a ring can hold
    assert torch.equal(c.match[-512:], q[-512:]) and torch.equal(c.lse[-512:], Flash.lse[0].t()[-512:])
    model.requests.add_request("b", 3000)
    assert [s[:3] for s in model.shown({"b": (3000, 16)})[0]] == [(0, 3000, 16)]  # the rest was cached


def test_prompts_beside_decoding(vllm, show_all):
    model = Model(vllm)
    for r, n in (("a", 200), ("b", 150), ("c", 180), ("d", 90)):
        model.requests.add_request(r, n)
    a = model.shown({"a": (200, 200)})[0][0][3]
    model.object.calls.clear()
    found, captures, q = model.shown({"a": (201, 1), "d": (90, 90), "b": (120, 120), "c": (130, 130)})
    other = 1 - a  # the longest of the new ones has it; d is too short to be shown
    assert found == [(2, 120, 120, -1), (3, 130, 130, other)]
    assert torch.equal(captures[0].q, q[91:211]) and torch.equal(captures[1].q, q[211:])
    assert torch.equal(captures[0].lse, Flash.lse[0].t()[90:210]) and torch.equal(captures[1].lse, Flash.lse[0].t()[210:])
    assert [c[1].n_rows for c in model.object.calls] == [1, 1] and [c[2].shape[0] for c in model.object.calls] == [1, 1]
    found, _, _ = model.shown({"a": (202, 1), "c": (180, 50)})  # c's last chunk: its slot goes on
    assert found == [(1, 180, 50, other)] and model.step({"a": (203, 1), "c": (181, 1)}) == [a, other]
    assert model.object.resets == [a, other]
    model.requests.remove_request("c")  # cancelled
    found, _, _ = model.shown({"a": (204, 1), "b": (150, 30)})
    assert found == [(1, 150, 30, other)] and model.object.resets == [a, other, other]
    model.requests.remove_request("a")  # preempted
    assert model.step({"b": (151, 1)}) == [other]
    model.requests.add_request("a", 205)  # and resumed, with what it had decoded
    found, _, _ = model.shown({"b": (152, 1), "a": (205, 205)})
    assert found == [(1, 205, 205, a)] and model.object.resets == [a, other, other, a]


def test_dummies_show_nothing(vllm, show_all):
    model = Model(vllm)
    model.requests.add_request("a", 200)
    assert model.step({"a": (200, 200)}, dummy=True) is None
    model.forward(200)
    assert model.object.captures == [] and Flash.lse == []
    model.impls[0].sinks = torch.zeros(8)
    model.runner.execute_model(lambda: None)
    found = model.step({"a": (200, 200)})
    model.forward(200)
    assert found == [] and [c.layer for c in model.object.captures] == [1]


def test_which_prompts_are_shown(vllm):
    prompts = vllm.Prompts(4, 100)
    assert prompts.queries(0, 50, 50) == 0 and prompts.queries(300, 301, 300) == 0 and prompts.queries(0, 500, 3000) == 0
    assert prompts.ended == 0
    assert [prompts.queries(0, 2000, 2000) for _ in range(12)] == [1024] * 4 + [0, 0, 0, 1024, 0, 0, 0, 1024]
    assert prompts.stats() == {"prompts": 12, "prompts_shown": 6}
    short = vllm.Prompts(1000, 100)
    assert [short.queries(0, 200, 200) for _ in range(33)] == [200] * 32 + [0]
    assert vllm.Prompts(0, 100).queries(0, 2000, 2000) == 0


def test_speculation_and_the_old_runner_are_exact(vllm, monkeypatch, capsys):
    monkeypatch.setattr(CONFIG, "speculative_config", object())
    model = Model(vllm)
    assert model.object.settings["policy"] == "exact"
    model.requests.add_request("a", 200)
    assert model.step({"a": (300, 1)}) == [-1]
    model.forward(1)
    assert model.object.calls[0][5]["q_match"] is None
    assert "speculation" in capsys.readouterr().out


def test_settings_are_checked(vllm, monkeypatch):
    for asked, kind, words in [({"buget": 1}, TypeError, "no setting 'buget'"), ({"n_heads": 2}, ValueError, "the model's"),
                               ({"tau": 2.0}, macattn.ArgumentError, "tau is 2"),
                               ("budget", ValueError, "the settings are 'budget', not names with values")]:
        monkeypatch.setattr(CONFIG, "additional_config", {"macattn": asked})
        vllm.engine.__init__()
        with pytest.raises(kind, match=words):
            Model(vllm)


def test_other_versions_are_refused(vllm, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.25.1")
    monkeypatch.delitem(sys.modules, "macattn.engines.vllm")
    with pytest.raises(ImportError, match="made for vLLM 0.26.x, 0.33.x; this is 0.25.1"):
        importlib.import_module("macattn.engines.vllm")


def test_memory_counts_means_of_runs(vllm):
    layers = sys.modules["macattn.serving.layers"]
    settings = layers.read_settings({"policy": "budget", "max_slots": 4, "run_tokens": 1000}, 2000)
    assert settings["run_tokens"] == 1000 and settings["budget"] == pytest.approx(0.01)
    assert layers.memory(settings, None) == 4 * 1 + 4 * 2 * 2000
    assert layers.memory(settings, 1000) == 4 * 1 + 2 * 1000
    for wrong in (0, "many"):
        with pytest.raises(ValueError, match="run_tokens"):
            layers.read_settings({"run_tokens": wrong}, 2000)
    with pytest.raises(ValueError, match="show_prompts is -1"):
        layers.read_settings({"show_prompts": -1}, 2000)
