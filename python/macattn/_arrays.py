# SPDX-License-Identifier: Apache-2.0
"""Where an array lies, whoever made it: NumPy, anything with data_ptr() (PyTorch), the CUDA array interface, DLPack."""
import dataclasses
import sys

import numpy as np

from . import _abi


@dataclasses.dataclass(slots=True)
class View:
    """`strides` are in bytes. `dtype` is the library's name for the type, or another's ("int32", "uint8", ">f4").
    `device` is None in host memory, else the GPU's ordinal. `owner` keeps the memory alive."""
    pointer: int
    shape: tuple
    strides: tuple
    dtype: str
    itemsize: int
    device: int | None
    owner: object
    writable: bool = True


SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "f8_e4m3"}


def view(array) -> View:
    """The memory of an array, without a copy."""
    if isinstance(array, View):
        return array
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array is not read as one: hand over its data, or fill it")
    if isinstance(array, np.ndarray):
        return View(array.ctypes.data, array.shape, array.strides, _short(array.dtype), array.itemsize, None, array,
                    array.flags.writeable)
    if hasattr(array, "data_ptr"):
        return _of_torch(array)
    if hasattr(array, "__cuda_array_interface__"):
        return _of_cuda(array)
    if hasattr(array, "__dlpack__"):
        return _of_dlpack(array)
    raise TypeError(f"{type(array).__name__} is no array: it has neither data_ptr() nor __cuda_array_interface__ nor "
                    "__dlpack__ (NumPy, PyTorch, CuPy and JAX arrays do)")


def _short(dtype):
    return SHORT.get(dtype.name, dtype.name) if dtype.isnative else dtype.str


def _of_torch(tensor):
    torch = sys.modules.get("torch")
    if torch is not None and getattr(tensor, "requires_grad", False) and torch.is_grad_enabled():
        raise TypeError("a tensor that requires gradients: none are computed here. Use detach(), or torch.no_grad()")
    size = tensor.element_size()
    name = str(tensor.dtype).removeprefix("torch.")
    kind = tensor.device.type
    if kind not in ("cpu", "cuda"):
        raise TypeError(f"a tensor on {tensor.device} is neither in host memory nor on a CUDA device")
    return View(tensor.data_ptr(), tuple(tensor.shape), tuple(n * size for n in tensor.stride()), SHORT.get(name, name),
                size, tensor.device.index if kind == "cuda" else None, tensor)


def _packed(shape, itemsize):
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _of_cuda(array):
    at = array.__cuda_array_interface__
    dtype = np.dtype(at["typestr"])
    shape = tuple(at["shape"])
    device = getattr(getattr(array, "device", None), "id", 0)
    return View(at["data"][0], shape, tuple(at.get("strides") or _packed(shape, dtype.itemsize)), _short(dtype),
                dtype.itemsize, device, array, not at["data"][1])


def _of_dlpack(array):
    capsule = array.__dlpack__()
    tensor = _abi.DLTensor.from_address(_abi.capsule_pointer(capsule, b"dltensor"))
    kind, bits = tensor.dtype.code, tensor.dtype.bits
    name = {(_abi.DL_FLOAT, 32): "f32", (_abi.DL_FLOAT, 16): "f16", (_abi.DL_BFLOAT, 16): "bf16",
            (_abi.DL_F8_E4M3, 8): "f8_e4m3"}.get((kind, bits))
    if name is None:
        name = {_abi.DL_INT: "int", _abi.DL_UINT: "uint", _abi.DL_FLOAT: "float"}.get(kind, f"type {kind} ") + str(bits)
    where = tensor.device.device_type
    if where not in (_abi.DL_CPU, _abi.DL_CUDA_HOST, _abi.DL_CUDA, _abi.DL_CUDA_MANAGED):
        raise TypeError(f"DLPack device type {where} is neither host memory nor a CUDA device")
    shape = tuple(tensor.shape[:tensor.ndim])
    size = bits // 8 * tensor.dtype.lanes
    strides = (tuple(n * size for n in tensor.strides[:tensor.ndim]) if tensor.strides else _packed(shape, size))
    on_gpu = where in (_abi.DL_CUDA, _abi.DL_CUDA_MANAGED)
    return View((tensor.data or 0) + tensor.byte_offset, shape, strides, name, size,
                tensor.device.device_id if on_gpu else None, (array, capsule))


def is_packed(v):
    if 0 in v.shape:
        return True
    step = v.itemsize
    for n, stride in zip(reversed(v.shape), reversed(v.strides)):
        if n > 1 and stride != step:
            return False
        step *= n
    return True


def _steps(v):
    """The strides, those of dimensions of size 1 (which say nothing, and may be anything) as if the rest were packed."""
    steps, step = [], v.itemsize
    for n, stride in zip(reversed(v.shape), reversed(v.strides)):
        steps.append(step if n == 1 else stride)
        step = max(step, steps[-1] * n)
    return tuple(reversed(steps))


def expect(v, what, dtype, ndim, device=None):
    """Raise unless a view has this type, number of dimensions and adjacent last values."""
    if v.dtype != dtype:
        raise TypeError(f"{what} has type {v.dtype}, not {dtype}")
    if len(v.shape) != ndim:
        raise ValueError(f"{what} has {len(v.shape)} dimensions, not {ndim}")
    if v.shape[-1] > 1 and v.strides[-1] != v.itemsize:
        raise ValueError(f"the values of {what}'s last dimension are not adjacent in memory")
    if v.device != device:
        place = {None: "in host memory"}
        raise ValueError(f"{what} is {place.get(v.device, f'on CUDA device {v.device}')}, not "
                         f"{place.get(device, f'on CUDA device {device}')}")
    if 1 in v.shape:
        v.strides = _steps(v)
    return v


def distinct(v, what):
    """Raise if values repeat: to the library a stride of 0 is the packed one."""
    if any(n > 1 and stride == 0 for n, stride in zip(v.shape, v.strides)):
        raise ValueError(f"{what} is expanded, with values that share memory: make it contiguous")
    return v


def writable(v, what):
    if not v.writable:
        raise ValueError(f"{what} is read-only")
    return v


def byte_view(v, values):
    """The shape with its last dimension in bytes counted as `values`: for block types such as q8_0, held as uint8."""
    return dataclasses.replace(v, shape=v.shape[:-1] + (values,))
