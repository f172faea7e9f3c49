#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches the pinned llama.cpp (the copy inside the source distribution of the PyPI package
# llama-cpp-python), checks its hash, builds what is asked for, and compiles the module through
# which `macattn bench --peer ggml` measures ggml.
#
#   fetch/get-llama.sh                    ggml and the peer module
#   fetch/get-llama.sh llama-bench ...    further CMake targets of llama.cpp
#   fetch/get-llama.sh --dir              print the directory and do nothing
#
# Everything lies under ${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}, outside the clone:
#   llama.cpp-VERSION/src/                     the source tree
#   llama.cpp-VERSION/build/                   CMake's build directory; programs in build/bin
#   llama.cpp-VERSION/libmacattn-peer-ggml.so  the module
# Safe to repeat: what is done is not done again. JOBS=n sets the number of parallel compilers.
# A source archive already at hand may be named in LLAMA_SDIST; its hash is checked all the same.
set -eu

VERSION=0.3.36
SHA256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
ARCHIVE=llama_cpp_python-$VERSION.tar.gz

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}
dir=$cache/llama.cpp-$VERSION
src=$dir/src
build=$dir/build
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
trap 'rm -rf "$cache/download.$$" "$dir/unpack.$$" "$dir/module.$$"' EXIT

say() {
    printf '%s\n' "get-llama: $*" >&2
}

die() {
    say "$*"
    exit 1
}

need() {
    command -v "$1" >/dev/null 2>&1 || die "$1 is missing; install it ($2)"
}

hash_ok() {
    printf '%s  %s\n' "$SHA256" "$1" | sha256sum --check --status 2>/dev/null
}

fetch() {
    archive=$cache/$ARCHIVE
    if [ -n "${LLAMA_SDIST:-}" ]; then
        archive=$LLAMA_SDIST
    elif [ ! -f "$archive" ]; then
        need python3 "Debian: python3 python3-pip"
        python3 -m pip --version >/dev/null 2>&1 || die "pip is missing; install it (Debian: python3-pip)"
        say "fetching $ARCHIVE (77 MB)"
        # pip looks into the archive with its build system, which it installs in isolation.
        python3 -m pip download --quiet --disable-pip-version-check --no-deps \
            --no-binary llama-cpp-python --dest "$cache/download.$$" "llama-cpp-python==$VERSION" ||
            die "pip could not fetch llama-cpp-python $VERSION"
        mv "$cache/download.$$/$ARCHIVE" "$archive"
    fi
    hash_ok "$archive" || die "$archive does not have the SHA-256 $SHA256; remove it and try again"
}

unpack() {
    say "unpacking"
    rm -rf "$src"
    mkdir -p "$dir/unpack.$$"
    tar -xzf "$archive" -C "$dir/unpack.$$" "llama_cpp_python-$VERSION/vendor/llama.cpp"
    # The file points at a repository that is not part of the archive and confuses git and CMake.
    rm -f "$dir/unpack.$$/llama_cpp_python-$VERSION/vendor/llama.cpp/.git"
    mv "$dir/unpack.$$/llama_cpp_python-$VERSION/vendor/llama.cpp" "$src"
    touch "$src/.macattn-unpacked"
}

has() {
    case " $flags " in
        *" $1 "*) return 0 ;;
    esac
    return 1
}

# Every instruction set ggml can use here, named one by one: GGML_NATIVE and GGML_BACKEND_DL exclude
# each other, and a peer built for less than the machine would be no fair comparison.
isa_options() {
    flags=$(sed -n 's/^\(flags\|Features\)[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
    case $(uname -m) in
        x86_64)
            for pair in sse4_2:SSE42 avx:AVX avx2:AVX2 fma:FMA f16c:F16C bmi2:BMI2 \
                avx_vnni:AVX_VNNI avx512_vnni:AVX512_VNNI avx512vbmi:AVX512_VBMI \
                avx512_bf16:AVX512_BF16 amx_tile:AMX_TILE amx_int8:AMX_INT8 amx_bf16:AMX_BF16; do
                if has "${pair%%:*}"; then value=ON; else value=OFF; fi
                printf ' %s' "-DGGML_${pair#*:}=$value"
            done
            # What ggml means by GGML_AVX512.
            if has avx512f && has avx512cd && has avx512vl && has avx512dq && has avx512bw; then
                printf ' %s' -DGGML_AVX512=ON
            else
                printf ' %s' -DGGML_AVX512=OFF
            fi
            ;;
        aarch64)
            arch=armv8-a
            if has asimddp; then arch=armv8.2-a+dotprod; fi
            if has asimddp && has fphp; then arch=$arch+fp16; fi
            if has asimddp && has i8mm; then arch=$arch+i8mm; fi
            if has asimddp && has sve; then arch=$arch+sve; fi
            printf ' %s' "-DGGML_CPU_ARM_ARCH=$arch"
            ;;
    esac
}

configure() {
    need cmake "Debian: cmake"
    need ninja "Debian: ninja-build"
    say "configuring"
    # shellcheck disable=SC2046 # the options hold no spaces
    cmake -S "$src" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
        -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
        -DLLAMA_OPENSSL=OFF -DGGML_CCACHE=OFF -DGGML_BACKEND_DL=ON -DGGML_RPC=ON \
        -DCMAKE_C_FLAGS=-w -DCMAKE_CXX_FLAGS=-w -DGGML_NATIVE=OFF $(isa_options) >"$dir/configure.log" 2>&1 ||
        die "cmake failed; see $dir/configure.log"
}

build_targets() {
    say "building: $*"
    cmake --build "$build" --parallel "$jobs" --target "$@" >&2 || die "the build failed"
}

# The module is linked against ggml-base alone; it loads ggml-cpu the way llama.cpp does.
build_peer() {
    module=$dir/libmacattn-peer-ggml.so
    if [ -f "$module" ] && [ "$module" -nt "$root/bench/peers/ggml_peer.c" ] &&
        [ "$module" -nt "$root/tools/bench/peer.h" ]; then
        return
    fi
    say "compiling $module"
    "${CC:-cc}" -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden \
        -I"$src/ggml/include" -I"$root/tools/bench" -DMACATTN_GGML_DIR="\"$build/bin\"" \
        -DMACATTN_GGML_SDIST="\"$VERSION\"" -o "$dir/module.$$" "$root/bench/peers/ggml_peer.c" \
        -L"$build/bin" -lggml -lggml-base -Wl,-rpath,"$build/bin"
    mv "$dir/module.$$" "$module"
}

if [ "${1:-}" = --dir ]; then
    printf '%s\n' "$dir"
    exit 0
fi
mkdir -p "$dir"
# One at a time.
exec 9>"$dir/lock"
if command -v flock >/dev/null 2>&1; then
    flock 9
fi
if [ ! -f "$src/.macattn-unpacked" ]; then
    fetch
    unpack
fi
if [ ! -f "$build/build.ninja" ]; then
    configure
fi
build_targets ggml ggml-cpu ggml-base "$@"
build_peer
say "ready: $dir"
