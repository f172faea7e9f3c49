# SPDX-License-Identifier: Apache-2.0
"""What macattn.engines.vllm takes from vLLM is there, by that name and with those arguments, in the sources of every version
it accepts. MACATTN_VLLM_SOURCES names folders with an unpacked wheel each, separated by colons; without it this is skipped.
Needs neither a GPU nor vLLM's dependencies: the sources are read, not imported."""
import ast
import os
import pathlib

import pytest

SOURCES = [pathlib.Path(p) for p in os.environ.get("MACATTN_VLLM_SOURCES", "").split(":") if p]
pytestmark = pytest.mark.skipif(not SOURCES, reason="MACATTN_VLLM_SOURCES names no folder")

PLUGIN = pathlib.Path(__file__).parents[1] / "macattn" / "engines" / "vllm.py"
METHODS = {  # what is called or overridden, with the arguments it must begin with
    "v1/worker/gpu/states.py": {"RequestState": {"add_request": ["self", "req_id"], "remove_request": ["self", "req_id"]}},
    "v1/worker/gpu/model_runner.py": {"GPUModelRunner": {
        "prepare_attn": ["self", "input_batch"], "prepare_dummy_attn": ["self", "input_batch"], "execute_model": ["self"],
        "initialize_kv_cache": ["self"], "reload_weights": ["self"]}},
    "v1/worker/gpu_worker.py": {"Worker": {"wake_up": ["self"]}},
    "v1/attention/backends/flash_attn.py": {
        "FlashAttentionMetadataBuilder": {
            "__init__": ["self", "kv_cache_spec", "layer_names", "vllm_config", "device"],
            "build": ["self", "common_prefix_len", "common_attn_metadata", "fast_build"]},
        "FlashAttentionImpl": {"forward": ["self", "layer", "query", "key", "value", "kv_cache", "attn_metadata", "output",
                                           "output_scale", "output_block_scale"]},
        "FlashAttentionBackend": {"get_name": [], "get_impl_cls": [], "get_builder_cls": []}},
}
FIELDS = {
    ("v1/attention/backends/flash_attn.py", "FlashAttentionMetadata"): [
        "num_actual_tokens", "query_start_loc", "seq_lens", "block_table", "slot_mapping", "scheduler_metadata", "causal"],
    ("v1/attention/backend.py", "CommonAttentionMetadata"): [
        "query_start_loc", "seq_lens", "num_reqs", "num_actual_tokens", "block_table_tensor", "slot_mapping",
        "seq_lens_cpu_upper_bound"],
    ("v1/worker/gpu/input_batch.py", "InputBatch"): [
        "idx_mapping_np", "num_computed_tokens_np", "num_scheduled_tokens", "prefill_len_np", "query_start_loc_np"],
}


def tree(root, file):
    return ast.parse((root / "vllm" / file).read_text())


def class_of(root, file, name):
    return next(n for n in ast.walk(tree(root, file)) if isinstance(n, ast.ClassDef) and n.name == name)


@pytest.fixture(params=SOURCES or [None], ids=str)
def root(request):
    return request.param


def test_methods(root):
    for file, classes in METHODS.items():
        for name, methods in classes.items():
            found = {n.name: [a.arg for a in n.args.args] for n in class_of(root, file, name).body
                     if isinstance(n, ast.FunctionDef)}
            for method, arguments in methods.items():
                assert found.get(method, "missing")[:len(arguments)] == arguments, f"{name}.{method}"


def test_fields(root):
    for (file, name), fields in FIELDS.items():
        found = {n.target.id for n in class_of(root, file, name).body if isinstance(n, ast.AnnAssign)}
        assert not set(fields) - found, f"{name} lacks {set(fields) - found}"


def test_what_is_imported_is_there(root):
    for node in ast.walk(ast.parse(PLUGIN.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level or not (node.module or "").startswith("vllm"):
            continue
        path = root / node.module.replace(".", "/")
        text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        for alias in node.names:
            assert alias.name in text, f"{node.module} has no {alias.name}"


def test_where_the_rows_of_a_step_come_from(root):
    """A step's rows are told right before its metadata are built, within execute_model; the ropes before graphs are captured."""
    runner = class_of(root, "v1/worker/gpu/model_runner.py", "GPUModelRunner")
    execute = next(n for n in runner.body if isinstance(n, ast.FunctionDef) and n.name == "execute_model")
    calls = [n.func.attr for n in ast.walk(execute) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    assert "prepare_attn" in calls and "prepare_dummy_attn" in calls
    assert {n.name for n in runner.body if isinstance(n, ast.FunctionDef)} >= {"load_model", "capture_model"}


def test_flash_attention_gives_its_lse(root):
    """Prompts are computed by a function that is looked up in this module, and gives the lse to who asks for it."""
    text = (root / "vllm" / "v1/attention/backends/flash_attn.py").read_text()
    assert "flash_attn_varlen_func(" in text[text.index("class FlashAttentionImpl"):] or "return flash_attn_varlen_func(*args" in text
    function = next(n for n in ast.walk(tree(root, "vllm_flash_attn/flash_attn_interface.py"))
                    if isinstance(n, ast.FunctionDef) and n.name == "flash_attn_varlen_func")
    assert "return_softmax_lse" in [a.arg for a in function.args.args + function.args.kwonlyargs]


def test_the_table_of_versions(root):
    """The folder is of a version that the plug-in accepts."""
    info = next(root.glob("vllm-*.dist-info"), None)
    versions = next(ast.literal_eval(n.value) for n in ast.parse(PLUGIN.read_text()).body
                    if isinstance(n, ast.Assign) and n.targets[0].id == "VERSIONS")
    assert info is None or ".".join(info.name.split("-")[1].split(".")[:2]) in versions
