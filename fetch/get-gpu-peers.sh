#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prepares a folder with what bench/peers/gpu/run.sh measures: FlashInfer with its modules compiled ahead of
# time, the paper's public kernel, the read kernel, and the library. No GPU is needed for it; the folder is then
# taken to one.
#
# usage: get-gpu-peers.sh FOLDER LIBMACATTN.SO     needs nvcc, git, and Python 3.12 with venv
#
# Pinned: torch 2.11.0 (the GPU machine must have it), flashinfer-python 0.6.18 (Apache-2.0), and the kernel
# at commit 7314294 of github.com/YJHMITWEB/MAC-Attention. None of it is part of this repository.
set -euo pipefail
here=$(cd "$(dirname "$0")/../bench/peers/gpu" && pwd)
out=${1:?usage: get-gpu-peers.sh FOLDER LIBMACATTN.SO} library=${2:?the library, built with MACATTN_CUDA}
python=${PYTHON:-python3.12}
mkdir -p "$out/mac"
out=$(cd "$out" && pwd)
work=${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}/gpu-peers
mkdir -p "$work"

echo "get-gpu-peers: FlashInfer and torch (about 5 GB) go to $work"
[ -x "$work/venv/bin/python" ] || "$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.11.0 flashinfer-python==0.6.18 apache-tvm-ffi ninja
export FLASHINFER_WORKSPACE_BASE=$work FLASHINFER_CUDA_ARCH_LIST=9.0a MAX_JOBS=${MAX_JOBS:-$(nproc)}
PATH=$work/venv/bin:$PATH
for module in dec fa2 "xqa 4" "xqa 8"; do
    # shellcheck disable=SC2086
    "$work/venv/bin/python" "$here/build_fi.py" $module
done

site=$work/site
rm -rf "$site" && mkdir -p "$site"
packages=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cp -r "$packages"/flashinfer "$packages"/tvm_ffi "$packages"/einops "$packages"/pynvml* "$site"/
mkdir -p "$site/flashinfer/data/aot"
find "$work/.cache/flashinfer" -name '*.so' | while read -r module; do
    name=$(basename "$module" .so)
    mkdir -p "$site/flashinfer/data/aot/$name"
    cp "$module" "$site/flashinfer/data/aot/$name/"
done
tar -C "$work" -cJf "$out/site.txz" site

[ -d "$work/mac" ] || git clone -q https://github.com/YJHMITWEB/MAC-Attention "$work/mac"
git -C "$work/mac" checkout -q 7314294
source=$(find "$work/mac" -name mac_decode_persistent.cu | head -1)
torch=$packages/torch
include=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
name=mac_attention_persistent_decode_fastmath_ext
nvcc -O3 -std=c++17 -U__CUDA_NO_HALF_CONVERSIONS__ -U__CUDA_NO_BFLOAT16_CONVERSIONS__ \
    -gencode=arch=compute_90a,code=sm_90a -Xptxas -dlcm=cg --use_fast_math --expt-relaxed-constexpr \
    -Xcompiler -fPIC -shared -DTORCH_EXTENSION_NAME=$name -DTORCH_API_INCLUDE_EXTENSION_H \
    -I"$torch/include" -I"$torch/include/torch/csrc/api/include" -I"$include" "$source" \
    -o "$out/mac/$name.so" -L"$torch/lib" -lc10 -ltorch_cpu -ltorch -lc10_cuda -ltorch_cuda -ltorch_python

nvcc -O3 -gencode=arch=compute_90a,code=sm_90a -Xcompiler -fPIC -shared "$here/rd.cu" -o "$out/librd.so"
cp -L "$library" "$out/libmacattn.so"
echo "get-gpu-peers: $out is ready; on the GPU machine: bench/peers/gpu/run.sh $out, then report.py"
