# SPDX-License-Identifier: Apache-2.0
"""macattn: fast decode attention for long contexts, on CPUs and NVIDIA GPUs.

    macattn.attend          exact attention in one call, NumPy or PyTorch
    macattn.merge           merge two ranges of tokens
    macattn.Attention       decode and prefill with reuse, on the CPU
    macattn.CudaAttention   the same on a GPU
    macattn.Sequences       requests of an engine, mapped to slots
    macattn.transformers    attn_implementation="macattn"

Importing this imports neither PyTorch nor an engine, and needs no GPU. docs/python.md has examples.
"""
from ._library import (ArgumentError, DeviceError, Error, FormatError, OutOfMemoryError, StateError, UnsupportedError,
                       has_cuda, load, path)
from ._settings import Setting, dtypes, policies, settings
from .attention import Attention, Stats, attend, merge
from .cuda import Batch, CudaAttention
from .sequences import Sequences

__all__ = [
    "ArgumentError", "Attention", "Batch", "CudaAttention", "DeviceError", "Error", "FormatError", "OutOfMemoryError",
    "Sequences", "Setting", "StateError", "Stats", "UnsupportedError", "attend", "dtypes", "has_cuda", "isas", "merge",
    "policies", "settings", "version",
]


def version() -> str:
    """The library's version."""
    return load().macattn_version().decode()


def isas() -> dict[str, bool]:
    """Instruction sets compiled into the library, best first, and whether this machine has them."""
    found, i = {}, 0
    while (name := load().macattn_isa_name(i)) is not None:
        found[name.decode()] = bool(load().macattn_isa_supported(name))
        i += 1
    return found
