#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: cuda_stand_in.py SITE_PACKAGES

PyTorch's package for x86-64 Linux is linked with two gigabytes of NVIDIA's libraries, of which a machine
without a GPU uses nothing. This puts small libraries of the same names beside torch's own. Their functions
return cudaErrorNoDevice, so torch finds no GPU and works on the CPU. Needs a C compiler and readelf.
"""
import collections
import pathlib
import re
import subprocess
import sys

NO_DEVICE = 100  # cudaErrorNoDevice
# What is called without a GPU too, and has to answer.
ANSWERS = {
    "cudaGetErrorString": 'const char *cudaGetErrorString(int error) { return "there is no GPU"; }',
    "cudaGetErrorName": 'const char *cudaGetErrorName(int error) { return "cudaErrorNoDevice"; }',
    "cudaStreamIsCapturing": "int cudaStreamIsCapturing(void *stream, int *status) { return *status = 0; }",
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed(libraries):
    """Names of the libraries that these are linked with and that this machine does not have."""
    names = set()
    for path in libraries:
        names |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-dW", str(path))))
    return {n for n in names if re.match(r"lib(cu|nv|nccl)", n)} - {p.name for p in libraries}


def homes(libraries):
    """{version: the library that has to define it}"""
    found = {}
    for path in libraries:
        for line in output("readelf", "-VW", str(path)).splitlines():
            file = re.search(r"File: (\S+)", line)
            if file:
                home = file[1]
            elif "Name: " in line and "Flags" in line:
                found[re.search(r"Name: (\S+)", line)[1]] = home
    return found


def undefined(libraries):
    """{version or "": functions} that none of these defines."""
    want, have = collections.defaultdict(set), set()
    for path in libraries:
        for line in output("readelf", "--dyn-syms", "-W", str(path)).splitlines():
            field = line.split()
            if len(field) < 8 or field[4] not in ("GLOBAL", "WEAK"):
                continue
            name, _, version = field[7].partition("@")
            if field[6] != "UND":
                have.add(name)
            elif field[4] == "GLOBAL":
                want[version.lstrip("@")].add(name)
    return {v: names - have for v, names in want.items()}


def make(folder, name, versions):
    """A library of that name which defines the functions of each version; "" is none."""
    lines = [ANSWERS.get(f, f"int {f}(void) {{ return {NO_DEVICE}; }}") for names in versions.values() for f in sorted(names)]
    source, script = folder / "stand_in.c", folder / "stand_in.map"
    source.write_text("\n".join(dict.fromkeys(lines)) + "\n")
    script.write_text("".join(f"{v} {{ {' '.join(f + ';' for f in sorted(names))} }};\n"
                              for v, names in versions.items() if v))
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{name}",
                    *([f"-Wl,--version-script,{script}"] if script.stat().st_size else []),
                    "-o", str(folder / name), str(source)], check=True)
    source.unlink()
    script.unlink()


def main():
    folder = pathlib.Path(sys.argv[1]) / "torch" / "lib"
    libraries = sorted(folder.glob("*.so*"))
    missing = needed(libraries)
    functions = undefined(libraries)
    home = homes(libraries)
    # Functions without a version may come from any library: the runtime, which all are linked with, has them.
    plain = {f for f in functions.get("", ()) if re.match(r"_*(cu|nccl|nv)", f)}
    for name in sorted(missing):
        versions = {v: f for v, f in functions.items() if home.get(v) == name}
        make(folder, name, versions | ({"": plain} if name.startswith("libcudart") else {}))
    print(f"{len(missing)} libraries of NVIDIA's stood in for")


main()
