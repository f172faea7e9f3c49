# SPDX-License-Identifier: Apache-2.0
"""The structs, functions and constants of _abi.py are those of the headers, and of a C compiler."""
import ctypes as C
import pathlib
import re
import subprocess

import pytest

from macattn import _abi

INCLUDE = pathlib.Path(__file__).parents[2] / "include"
HEADERS = [INCLUDE / "macattn" / name for name in ("macattn.h", "cuda.h")]
TEXT = re.sub(r"/\*.*?\*/|//[^\n]*", " ", "\n".join(h.read_text() for h in HEADERS), flags=re.S)


def c_structs():
    """{name: names of its fields} of all complete structs in the headers."""
    found = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", TEXT, re.S):
        fields = []
        for declaration in body.split(";"):
            if function := re.search(r"\(\*(\w+)\)", declaration):
                fields.append(function[1])
            elif declaration.strip():
                fields += [re.findall(r"\w+", re.sub(r"\[.*", "", part))[-1] for part in declaration.split(",")]
        found[name] = fields
    return found


def test_every_struct_is_declared_with_every_field():
    assert {s.c_name: [f[0] for f in s._fields_] for s in _abi.STRUCTS} == c_structs()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """{expression: value} as a C compiler has it."""
    wanted = []
    for s in _abi.STRUCTS:
        wanted.append(f"sizeof({s.c_name})")
        for name, *_ in s._fields_:
            wanted += [f"offsetof({s.c_name}, {name})", f"sizeof((({s.c_name} *)0)->{name})"]
    wanted += [f"MACATTN_{name}" for name in vars(_abi) if re.match(r"OK$|E_|SETTING_|DISTANCE_", name)]
    folder = tmp_path_factory.mktemp("abi")
    source = folder / "layout.c"
    prints = "\n".join(f'    printf("%lld\\n", (long long)({w}));' for w in wanted)
    source.write_text('#include "macattn/cuda.h"\n#include <stdio.h>\nint main(void)\n{\n' + prints + "\n    return 0;\n}\n")
    subprocess.run(["cc", "-w", f"-I{INCLUDE}", "-o", str(folder / "layout"), str(source)], check=True)
    lines = subprocess.run([str(folder / "layout")], check=True, capture_output=True, text=True).stdout.split()
    assert len(lines) == len(wanted) > 150
    return dict(zip(wanted, map(int, lines)))


@pytest.mark.parametrize("struct", _abi.STRUCTS, ids=lambda s: s.c_name)
def test_layout(struct, compiled):
    assert C.sizeof(struct) == compiled[f"sizeof({struct.c_name})"]
    for name, *_ in struct._fields_:
        field = getattr(struct, name)
        assert field.offset == compiled[f"offsetof({struct.c_name}, {name})"], name
        assert field.size == compiled[f"sizeof((({struct.c_name} *)0)->{name})"], name


def test_constants(compiled):
    for expression, value in compiled.items():
        if expression.startswith("MACATTN_"):
            assert getattr(_abi, expression.removeprefix("MACATTN_")) == value


def test_every_function_is_declared_with_as_many_arguments():
    declared = {}
    for result, name, arguments in re.findall(r"MACATTN_API\s+(const \w+ \*?|[\w]+ \*?)\s*macattn_(\w+)\((.*?)\);", TEXT, re.S):
        declared[name] = 0 if arguments.strip() == "void" else arguments.count(",") + 1
    assert len(declared) > 40
    known = {**_abi.FUNCTIONS, **_abi.CUDA_FUNCTIONS}
    assert {name: len(arguments) for name, (_, arguments) in known.items()} == declared


def test_every_status_has_a_constant():
    codes = re.findall(r"XX\((\w+), (-?\d+), ", TEXT)
    assert len(codes) > 5
    assert {name: getattr(_abi, name) for name, _ in codes} == {name: int(value) for name, value in codes}
