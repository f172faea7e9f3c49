#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches the pinned commit of ik_llama.cpp (MIT) from its repository and builds its llama-server and
# llama-sweep-bench for this machine: the other side of `bench/llama/models.py --configurations ...,ik`.
# No test needs it.
#
#   fetch/get-ik-llama.sh          fetch and build, some ten minutes on two cores
#   fetch/get-ik-llama.sh --dir    print the directory and do nothing
#
# Everything lies under ${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}/ik_llama.cpp-COMMIT, outside
# the clone. Safe to repeat. JOBS=n sets the number of parallel compilers; IK_LLAMA_REPOSITORY names another
# copy of the repository, the commit being the same.
set -eu

COMMIT=8337e4cd3861406fc04e0854b1409cd1b027fbc9

cache=${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}
dir=$cache/ik_llama.cpp-$(printf %.12s $COMMIT)
repository=${IK_LLAMA_REPOSITORY:-https://github.com/ikawrakow/ik_llama.cpp}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}

die() {
    printf '%s\n' "get-ik-llama: $*" >&2
    exit 1
}

case ${1:-} in
    '') ;;
    --dir)
        echo "$dir"
        exit
        ;;
    *) die "unknown option $1; usage: get-ik-llama.sh [--dir]" ;;
esac

for tool in git cmake ninja c++; do
    command -v $tool >/dev/null 2>&1 || die "$tool is missing; install it (Debian: git cmake ninja-build g++)"
done
mkdir -p "$dir"
# One at a time.
exec 9>"$dir/lock"
if command -v flock >/dev/null 2>&1; then
    flock 9
fi
if [ "$(git -C "$dir/src" rev-parse HEAD 2>/dev/null)" != $COMMIT ]; then
    rm -rf "$dir/src" "$dir/build"
    git init -q "$dir/src"
    git -C "$dir/src" fetch -q --depth 1 "$repository" $COMMIT || die "cannot fetch $COMMIT from $repository"
    git -C "$dir/src" -c advice.detachedHead=false checkout -q $COMMIT
fi
# As its own readme builds it: for the processor it is built on.
cmake -S "$dir/src" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
    -DCMAKE_C_FLAGS=-w -DCMAKE_CXX_FLAGS=-w >"$dir/configure.log" 2>&1 || die "cmake failed; see $dir/configure.log"
cmake --build "$dir/build" --parallel "$jobs" --target llama-server llama-sweep-bench >"$dir/build.log" 2>&1 ||
    die "the build failed; see $dir/build.log"
echo "$dir"
