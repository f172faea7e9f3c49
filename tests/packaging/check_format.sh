#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: check_format.sh ROOT
# The C files are as clang-format 14 writes them. Headers keep their hand-aligned tables. 77: there
# is no clang-format 14.
set -euo pipefail
cd "$1"
tool=$(command -v clang-format-14 || command -v clang-format || true)
if [ -z "$tool" ] || ! "$tool" --version | grep -q 'version 14\.'; then
    echo "format: clang-format 14 is not installed"
    exit 77
fi
mapfile -t files < <(find src plugins tools tests examples bench python -name '*.c' | sort)
"$tool" --dry-run --Werror "${files[@]}"
echo "format: ok, ${#files[@]} files"
