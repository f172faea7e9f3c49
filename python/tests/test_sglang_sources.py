# SPDX-License-Identifier: Apache-2.0
"""What the plug-in for SGLang takes from SGLang is there, by that name and with those arguments, in the sources of every version
it accepts. MACATTN_SGLANG_SOURCES names folders with an unpacked wheel each, separated by colons; without it this is skipped.
Needs neither a GPU nor SGLang's dependencies: the sources are read, not imported."""
import ast
import os
import pathlib

import pytest

SOURCES = [pathlib.Path(p) for p in os.environ.get("MACATTN_SGLANG_SOURCES", "").split(":") if p]
pytestmark = pytest.mark.skipif(not SOURCES, reason="MACATTN_SGLANG_SOURCES names no folder")

PACKAGE = pathlib.Path(__file__).parents[1] / "macattn"
PLUGIN = [PACKAGE / "sglang.py", PACKAGE / "engines" / "sglang.py"]
METHODS = {  # what is called, hooked or overridden, with the arguments it must begin with
    "mem_cache/memory_pool.py": {
        "ReqToTokenPool": {"alloc": ["self", "reqs"], "free": ["self", "req"], "clear": ["self"]},
        "MHATokenToKVPool": {"get_key_buffer": ["self", "layer_id"], "get_value_buffer": ["self", "layer_id"],
                             "set_kv_buffer": ["self", "layer", "loc_info", "cache_k", "cache_v"]}},
    "managers/scheduler.py": {"Scheduler": {"get_internal_state": ["self"]}},
    "plugins/hook_registry.py": {"HookRegistry": {"register": ["cls", "target", "hook", "hook_type"]}},
    "layers/rotary_embedding/base.py": {"RotaryEmbedding": {"_ensure_cos_sin_cache_length": ["self", "needed_max_pos"]}},
    "layers/attention/triton_backend.py": {"TritonAttnBackend": {
        "__init__": ["self", "model_runner"], "init_forward_metadata": ["self", "forward_batch"],
        "init_forward_metadata_out_graph": ["self", "forward_batch", "in_capture"],
        "forward_extend": ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache", "sinks"],
        "forward_decode": ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache", "sinks"]}},
    "layers/attention/base_attn_backend.py": {"AttentionBackend": {"init_forward_metadata_in_graph": ["self", "forward_batch"]}},
}
WORDS = {  # attributes that are read
    "mem_cache/memory_pool.py": ["self.req_generation", "self.req_to_token", "self.store_dtype", "self.use_hnd"],
    "layers/radix_attention.py": ["self.tp_q_head_num", "self.tp_k_head_num", "self.xai_temperature_len", "self.use_irope",
                                  "self.pos_encoding_mode", "self.logit_cap", "self.is_cross_attention", "self.k_scale"],
    "layers/attention/triton_backend.py": ["self._translate_kv_loc", "self.dcp_size", "self.token_to_kv_pool", "self.req_to_token_pool",
                                             "self.extend_attention_fwd(", "lse_extend="],
    "model_executor/model_runner.py": ["self.is_draft_worker", "self.spec_algorithm", "self.use_mla_backend", "self.gpu_id"],
    "model_executor/forward_batch_info.py": ["rids: ", "extend_seq_lens_cpu: ", "extend_prefix_lens_cpu: "],
    "server_args.py": ["enable_two_batch_overlap", "enable_pdmux", "ATTENTION_BACKEND_CHOICES"],
    "managers/schedule_batch.py": ["self.origin_input_ids", "self.output_ids", "self.req_pool_idx", "self.sampling_params",
                                   "self.rid "],
}


@pytest.fixture(params=SOURCES or [None], ids=str)
def root(request):
    return request.param / "sglang" / "srt"


def test_methods(root):
    for file, classes in METHODS.items():
        nodes = {n.name: n for n in ast.walk(ast.parse((root / file).read_text())) if isinstance(n, ast.ClassDef)}
        for name, methods in classes.items():
            found = {n.name: [a.arg for a in n.args.args] for n in nodes[name].body if isinstance(n, ast.FunctionDef)}
            for method, arguments in methods.items():
                assert found.get(method, "missing")[:len(arguments)] == arguments, f"{name}.{method}"


def test_attributes(root):
    for file, words in WORDS.items():
        text = (root / file).read_text()
        assert not [word for word in words if word not in text], file


def test_what_is_imported_is_there(root):
    for plugin in PLUGIN:
        for node in ast.walk(ast.parse(plugin.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("sglang"):
                path = root.parent.parent / node.module.replace(".", "/")
                text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
                assert not [alias.name for alias in node.names if alias.name not in text], node.module


def test_the_table_of_versions(root):
    """The folder is of a version that the plug-in accepts."""
    import macattn.sglang
    info = next(root.parent.parent.glob("sglang-*.dist-info"), None)
    assert info is None or info.name.split("-")[1].removesuffix(".dist") in macattn.sglang.VERSIONS
