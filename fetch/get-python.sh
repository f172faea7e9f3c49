#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A virtual environment with what the tests of the Python package need: PyTorch for the CPU, transformers, pytest, by the
# versions and hashes of python-requirements.txt. It lies outside the clone and is made once (600 MB to fetch, 1.6 GB on the disk).
#
# usage: fetch/get-python.sh          make it if it is not there; prints its folder in the last line
#        fetch/get-python.sh --dir    print the folder and do nothing
#
# The folder is under ${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}; its name holds a hash of the versions.
# On x86-64, PyTorch's package is linked with NVIDIA's libraries: small stand-ins take their places (cuda_stand_in.py).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}

die() {
    echo "get-python: $*" >&2
    exit 1
}

command -v "$python" > /dev/null || die "$python is missing; install it (Debian: python3)"
cache=${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}
hash=$(cat "$here/python-requirements.txt" "$here/cuda_stand_in.py" | sha256sum | cut -c1-12)
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
dir=$cache/venv-$version-$hash
if [ "${1:-}" = --dir ]; then
    echo "$dir"
    exit
fi
if [ ! -f "$dir/ready" ]; then
    rm -rf "$dir"
    mkdir -p "$cache"
    "$python" -m venv "$dir" || die "no virtual environment could be made (Debian: python3-venv)"
    pip=("$dir/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps --no-warn-conflicts)
    "${pip[@]}" --require-hashes -r "$here/python-requirements.txt" || die "pip could not install python-requirements.txt"
    site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    if ! "$dir/bin/python" -c 'import torch' 2> /dev/null; then
        "$dir/bin/python" "$here/cuda_stand_in.py" "$site" || die "PyTorch cannot be made to do without a GPU's libraries"
    fi
    "$dir/bin/python" -c 'import torch, transformers' || die "PyTorch or transformers does not load"
    touch "$dir/ready"
fi
echo "$dir"
