# SPDX-License-Identifier: Apache-2.0
"""vLLM's plug-in: `attention_backend="CUSTOM"`. The backend itself is macattn.engines.vllm, which vLLM imports when it
is chosen; this must neither be slow nor touch a GPU, since vLLM calls `register` in every process it starts."""


def register():
    """The entry point. A backend that someone else registered as CUSTOM stays."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    if not AttentionBackendEnum.CUSTOM.is_overridden():
        register_backend(AttentionBackendEnum.CUSTOM, "macattn.engines.vllm.Backend")


def stats():
    """Counters of this process's layers, see `macattn.Stats`; {} before the model is loaded. With an engine in other
    processes (VLLM_ENABLE_V1_MULTIPROCESSING=1) ask there: llm.collective_rpc(lambda worker: macattn.vllm.stats())."""
    from .engines import vllm
    return vllm.stats()
