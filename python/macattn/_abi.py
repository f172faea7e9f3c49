# SPDX-License-Identifier: Apache-2.0
"""include/macattn/macattn.h and cuda.h for ctypes: every struct, constant and function that this package uses.

The only place with ctypes declarations. `python/tests/test_abi.py` compares it with the headers and with what a C
compiler makes of them; a field that is added to a struct there is added here, in the same place.
"""
import ctypes as C
from ctypes import POINTER as to
from ctypes import c_char_p as text
from ctypes import c_double as f64
from ctypes import c_float as f32
from ctypes import c_int as enum
from ctypes import c_int32 as i32
from ctypes import c_int64 as i64
from ctypes import c_size_t as size
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from ctypes import c_void_p as address

# macattn_status. The texts are the library's (macattn_status_string).
OK = 0
E_ARG = -10
E_RANGE = -11
E_UNSUPPORTED = -20
E_ISA = -21
E_NOMEM = -30
E_SPACE = -31
E_STATE = -40
E_DEVICE = -50
E_FORMAT = -60
E_SYSTEM = -70

# macattn_setting_type
SETTING_INTEGER = 0
SETTING_REAL = 1
SETTING_POLICY = 2
SETTING_DTYPE = 3

DISTANCE_BINS = 16
WAYS = 3  # macattn_way: reused, selected, exact


class Config(C.Structure):
    c_name = "macattn_config"
    _fields_ = [
        ("struct_size", size),
        ("n_layers", i32), ("n_heads", i32), ("n_kv_heads", i32), ("head_dim", i32), ("v_head_dim", i32),
        ("q_dtype", enum), ("k_dtype", enum), ("v_dtype", enum),
        ("scale", f32), ("softcap", f32), ("window", i64),
        ("max_slots", i32), ("max_tokens", i64), ("policy", enum), ("ring", i32), ("band", i32),
        ("fresh_tokens", i32), ("min_tokens", i64), ("tau", f32), ("budget", f32),
        ("n_threads", i32), ("spin_us", i32),
        ("parallel_for", address), ("parallel_user", address), ("isa", text),
        ("alloc", address), ("free", address), ("alloc_user", address),
        ("lse_order", i32), ("select", i32),
    ]


class Row(C.Structure):
    c_name = "macattn_row"
    _fields_ = [("slot", i32), ("n_queries", i32), ("n_tokens", i64), ("page", i32), ("pages", address)]


class Batch(C.Structure):
    c_name = "macattn_batch"
    _fields_ = [("struct_size", size), ("n_rows", i32), ("rows", to(Row)), ("page_size", i32), ("n_pages", i32)]


class Kv(C.Structure):
    c_name = "macattn_kv"
    _fields_ = [
        ("k", address), ("v", address),
        ("k_page_stride", i64), ("k_token_stride", i64), ("k_head_stride", i64),
        ("v_page_stride", i64), ("v_token_stride", i64), ("v_head_stride", i64),
    ]


class Io(C.Structure):
    c_name = "macattn_io"
    _fields_ = [
        ("struct_size", size),
        ("q", address), ("q_row_stride", i64), ("q_head_stride", i64),
        ("q_match", address), ("q_match_row_stride", i64), ("q_match_head_stride", i64),
        ("kv", Kv), ("sinks", address),
        ("out", address), ("out_row_stride", i64), ("out_head_stride", i64), ("lse", address),
    ]


class Stats(C.Structure):
    c_name = "macattn_stats"
    _fields_ = [
        ("struct_size", size),
        ("steps", c_uint64), ("hits", c_uint64), ("misses", c_uint64),
        ("tokens_total", c_uint64), ("tokens_skipped", c_uint64),
        ("distance", c_uint64 * DISTANCE_BINS),
        ("match_ns", c_uint64), ("attend_ns", c_uint64), ("merge_ns", c_uint64), ("judge_ns", c_uint64),
        ("samples", c_uint64), ("error2_layer", f64), ("error2_head", f64),
        ("groups", c_uint64 * WAYS), ("kv_bytes", c_uint64 * WAYS), ("run_bytes", c_uint64 * WAYS), ("ring_bytes", c_uint64 * WAYS),
        ("select_ns", c_uint64), ("checks", c_uint64), ("error2_selected", f64),
    ]


class Setting(C.Structure):
    c_name = "macattn_setting"
    _fields_ = [
        ("struct_size", size), ("name", text), ("about", text), ("type", enum),
        ("low", f64), ("high", f64), ("initial", f64), ("policies", c_uint32),
    ]


class CudaConfig(C.Structure):
    c_name = "macattn_cuda_config"
    _fields_ = [
        ("struct_size", size), ("device", i32), ("max_rows", i32), ("out_dtype", enum), ("run_tokens", i64),
    ]


class CudaBatch(C.Structure):
    c_name = "macattn_cuda_batch"
    _fields_ = [
        ("struct_size", size), ("n_rows", i32), ("slots", address), ("n_tokens", address),
        ("page_size", i32), ("pages", address), ("page_indptr", address), ("page_table_stride", i64),
    ]


class CudaIo(C.Structure):
    c_name = "macattn_cuda_io"
    _fields_ = [
        ("struct_size", size),
        ("q", address), ("q_row_stride", i64), ("q_head_stride", i64),
        ("q_match", address), ("q_match_row_stride", i64), ("q_match_head_stride", i64),
        ("kv", Kv), ("k_scale", f32), ("v_scale", f32), ("sinks", address),
        ("out", address), ("out_row_stride", i64), ("out_head_stride", i64), ("lse", address),
    ]


class CudaDecision(C.Structure):
    c_name = "macattn_cuda_decision"
    _fields_ = [("start", i32), ("entry", i32), ("distance2", f32), ("next", i32)]


STRUCTS = (Config, Row, Batch, Kv, Io, Stats, Setting, CudaConfig, CudaBatch, CudaIo, CudaDecision)

# name: (result, arguments). Where the result is a status it is `enum`.
FUNCTIONS = {
    "version": (text, []),
    "status_string": (text, [enum]),
    "dtype_row_bytes": (size, [enum, i64]),
    "config_init": (enum, [to(Config)]),
    "config_state_bytes": (enum, [to(Config), to(size)]),
    "config_run_bytes": (enum, [to(Config), i64, to(size)]),
    "create": (enum, [to(Config), to(address), text, size]),
    "destroy": (None, [address]),
    "last_error": (text, [address]),
    "get_config": (enum, [address, to(Config)]),
    "plan": (enum, [address, to(Batch)]),
    "attend": (enum, [address, to(Io)]),
    "decode": (enum, [address, i32, to(Io)]),
    "prefill": (enum, [address, i32, to(Io)]),
    "set_head_budget": (enum, [address, i32, i32, f32]),
    "merge": (enum, [i64, i32, address, address, address, address, address, address]),
    "slot_reset": (enum, [address, i32]),
    "slot_truncate": (enum, [address, i32, i64]),
    "slot_fork": (enum, [address, i32, i32]),
    "slot_length": (enum, [address, i32, to(i64)]),
    "slot_save": (enum, [address, i32, address, to(size)]),
    "slot_load": (enum, [address, i32, address, size]),
    "stats_get": (enum, [address, i32, i32, to(Stats)]),
    "stats_reset": (enum, [address]),
    "isa_name": (text, [enum]),
    "isa_supported": (enum, [text]),
    "policy_name": (text, [enum]),
    "dtype_name": (text, [enum]),
    "policy_find": (enum, [text, to(enum)]),
    "dtype_find": (enum, [text, to(enum)]),
    "setting_at": (to(Setting), [enum]),
    "setting_find": (to(Setting), [text]),
    "setting_get": (enum, [to(Config), text, to(f64)]),
    "setting_set": (enum, [to(Config), text, f64, text, size]),
    "setting_parse": (enum, [to(Config), text, text, text, size]),
}

# Only in a library that was built with its GPU side.
CUDA_FUNCTIONS = {
    "cuda_config_init": (enum, [to(CudaConfig)]),
    "cuda_state_bytes": (enum, [to(Config), to(size)]),
    "cuda_run_bytes": (enum, [to(Config), i64, to(size)]),
    "cuda_create": (enum, [to(Config), to(CudaConfig), to(address), text, size]),
    "cuda_destroy": (None, [address]),
    "cuda_last_error": (text, [address]),
    "cuda_attend": (enum, [address, to(CudaBatch), to(CudaIo), address]),
    "cuda_decode": (enum, [address, i32, to(CudaBatch), to(CudaIo), address]),
    "cuda_capture": (enum, [address, i32, to(CudaBatch), i32, i32, to(CudaIo), address]),
    "cuda_slot_reset": (enum, [address, i32, address]),
    "cuda_slot_truncate": (enum, [address, i32, i64, address]),
    "cuda_slot_fork": (enum, [address, i32, i32, address]),
    "cuda_set_head_budget": (enum, [address, i32, i32, f32, address]),
    "cuda_decisions": (address, [address]),
    "cuda_stats_get": (enum, [address, i32, i32, to(Stats)]),
    "cuda_stats_reset": (enum, [address, address]),
}


address_of, buffer, byref, sizeof = C.addressof, C.create_string_buffer, C.byref, C.sizeof


def sized(struct, **fields):
    """A struct that says how large it is."""
    return struct(struct_size=sizeof(struct), **fields)


def declare(library):
    """Give the library's functions their types. The GPU side may be missing."""
    for functions in (FUNCTIONS, CUDA_FUNCTIONS):
        for name, (result, arguments) in functions.items():
            function = getattr(library, "macattn_" + name, None)
            if function is None:
                if functions is CUDA_FUNCTIONS:
                    break
                raise AttributeError(f"macattn_{name} is missing")
            function.restype, function.argtypes = result, arguments


# ---------------------------------------------------------------------- DLPack 0.8 (dlpack.h), for arrays of others


class DLDevice(C.Structure):
    _fields_ = [("device_type", enum), ("device_id", i32)]


class DLDataType(C.Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class DLTensor(C.Structure):
    _fields_ = [
        ("data", address), ("device", DLDevice), ("ndim", i32), ("dtype", DLDataType),
        ("shape", to(i64)), ("strides", to(i64)), ("byte_offset", c_uint64),
    ]


DL_CPU, DL_CUDA, DL_CUDA_HOST, DL_CUDA_MANAGED = 1, 2, 3, 13
DL_INT, DL_UINT, DL_FLOAT, DL_BFLOAT, DL_F8_E4M3 = 0, 1, 2, 4, 10

capsule_pointer = C.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = address, [C.py_object, text]
