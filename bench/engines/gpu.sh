#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The Python package and the engines on this machine's GPU: tests, then times. Needs PyTorch, transformers 5.17 or later and
# pytest; the part vllm also vLLM 0.26.
#
# usage: bench/engines/gpu.sh [PART...]     parts: tests transformers cpu vllm
#        LIBRARY=libmacattn.so   built with the GPU side; else it is built here, for this GPU alone
#        SITE=FOLDER             packages that the machine's Python lacks
#        OUT=FOLDER              where the rows go (build/engines)
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit
out=${OUT:-build/engines} here=bench/engines
mkdir -p "$out"
[ $# -gt 0 ] || set -- tests transformers cpu vllm
if [ -z "${LIBRARY:-}" ]; then
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
    [ "$capability" != 90 ] || capability=90a
    cmake --preset cuda "-DCMAKE_CUDA_ARCHITECTURES=$capability-real" -DMACATTN_BUILD_TESTS=OFF -DMACATTN_BUILD_TOOLS=OFF \
        -DMACATTN_BUILD_EXAMPLES=OFF > "$out/build.log" 2>&1 &&
        cmake --build build/cuda -j "$(nproc)" --target macattn_shared >> "$out/build.log" 2>&1 ||
        { tail -20 "$out/build.log"; exit 1; }
    LIBRARY=$root/build/cuda/libmacattn.so
fi
# vLLM finds plug-ins by the metadata of installed packages; this is all of it that it reads.
meta=$root/build/engines-plugin/macattn-0.dist-info
mkdir -p "$meta"
printf 'Metadata-Version: 2.1\nName: macattn\nVersion: 0\n' > "$meta/METADATA"
printf '[vllm.general_plugins]\nmacattn = macattn.vllm:register\n' > "$meta/entry_points.txt"
export MACATTN_LIBRARY=$LIBRARY PYTHONPATH=$root/python:$root/build/engines-plugin${SITE:+:$SITE} HF_HUB_OFFLINE=1
failed=0
for part in "$@"; do
    echo "== $part"
    case $part in
        tests) python3 -m pytest -q -p no:cacheprovider python/tests/test_cuda.py ;;
        transformers) python3 $here/transformers_decode.py --context 4000 32000 128000 --batch 1 8 | tee "$out/transformers.jsonl" ;;
        cpu) python3 $here/transformers_decode.py --device cpu --layers 4 --context 4000 16000 | tee "$out/cpu.jsonl" ;;
        vllm)
            python3 $here/vllm_decode.py --model "${MODEL:-8b}" --context ${CONTEXT:-32000 125000} --batch ${BATCH:-1 8} \
                --backend FLASH_ATTN CUSTOM --additional-config "{\"macattn\": ${SETTINGS:-{\}}}" 2> "$out/vllm.log" |
                tee "$out/vllm.jsonl"
            ;;
        *) echo "gpu.sh: there is no part $part" && false ;;
    esac || { failed=1; [ "$part" != vllm ] || tail -30 "$out/vllm.log"; }
done
exit $failed
