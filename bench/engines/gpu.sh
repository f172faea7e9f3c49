#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The Python package and the engines on this machine's GPU: tests, then times. Needs PyTorch, transformers 5.17 or later and
# pytest; the parts vllm... also vLLM, the part sglang SGLang.
#
# usage: bench/engines/gpu.sh [PART...]     parts: tests transformers cpu vllm-same vllm-requests vllm vllm-tp2
#                                           vllm-answers sglang sglang-requests
#                                           (default: those whose packages are there; vllm-tp2 with two GPUs; vllm-answers with MODEL)
#        LIBRARY=libmacattn.so   built with the GPU side; else it is built here, for this GPU alone
#        MODEL=FILE.gguf SAMPLES="FILE..."   of arch qwen2, and tasks for vllm-answers (macattn tasks generate)
#        SITE=FOLDER             packages that the machine's Python lacks
#        OUT=FOLDER              where the rows go (build/engines)
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit
out=${OUT:-build/engines} here=bench/engines
mkdir -p "$out"
export PYTHONPATH=$root/python:$root/build/engines-plugin${SITE:+:$SITE} HF_HUB_OFFLINE=1
has() { python3 -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }
if [ $# -eq 0 ]; then
    set -- tests transformers
    ! has vllm || set -- "$@" vllm-same vllm-requests vllm
    ! has vllm || [ "$(nvidia-smi --list-gpus | wc -l)" -lt 2 ] || set -- "$@" vllm-tp2
    ! has vllm || [ -z "${MODEL:-}" ] || set -- "$@" vllm-answers
    ! has sglang || set -- "$@" sglang sglang-requests
fi
if [ -z "${LIBRARY:-}" ]; then
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
    [ "$capability" != 90 ] || capability=90a
    cmake --preset cuda "-DCMAKE_CUDA_ARCHITECTURES=$capability-real" -DMACATTN_BUILD_TESTS=OFF -DMACATTN_BUILD_TOOLS=OFF \
        -DMACATTN_BUILD_EXAMPLES=OFF > "$out/build.log" 2>&1 &&
        cmake --build build/cuda -j "$(nproc)" --target macattn_shared >> "$out/build.log" 2>&1 ||
        { tail -20 "$out/build.log"; exit 1; }
    LIBRARY=$root/build/cuda/libmacattn.so
fi
export MACATTN_LIBRARY=$LIBRARY
# Engines find plug-ins by the metadata of installed packages; this is all of it that they read.
meta=$root/build/engines-plugin/macattn-0.dist-info
mkdir -p "$meta"
printf 'Metadata-Version: 2.1\nName: macattn\nVersion: 0\n' > "$meta/METADATA"
python3 -c "import tomllib; groups = tomllib.load(open('pyproject.toml', 'rb'))['project']['entry-points']
for group, points in groups.items(): print(f'[{group}]', *(f'{k} = {v}' for k, v in points.items()), sep='\n')" > "$meta/entry_points.txt"
failed=0
for part in "$@"; do
    echo "== $part"
    case $part in
        tests) (cd python/tests && python3 -m pytest -q -p no:cacheprovider test_cuda.py) ;;
        transformers) python3 $here/transformers_decode.py --context 4000 32000 128000 --batch 1 8 ;;
        cpu) python3 $here/transformers_decode.py --device cpu --layers 4 --context 4000 16000 ;;
        vllm-same) python3 $here/vllm_check.py same ;;
        vllm-requests) python3 $here/vllm_check.py requests ;;
        vllm) python3 $here/vllm_decode.py --layers 12 && python3 $here/vllm_decode.py --batch 1 ;;
        vllm-tp2) python3 $here/vllm_check.py same --tp 2 --plans flash "exact, graphs" &&
            python3 $here/vllm_decode.py --tp 2 --batch 1 8 --ways flash exact reuse ;;
        vllm-answers)
            # shellcheck disable=SC2086 # several files
            python3 $here/vllm_answers.py "$MODEL" $SAMPLES --json "$out/answers.json" ;;
        sglang-requests) python3 $here/sglang_check.py ;;
        sglang) python3 $here/sglang_decode.py --layers 8 &&
            python3 $here/sglang_decode.py --model small --context 500 3000 --batch 1 4 --ways triton exact reuse ;;
        *) echo "gpu.sh: there is no part $part" && false ;;
    esac 2> "$out/$part.log" | tee "$out/$part.txt" || { failed=1; echo "FAILED: $part"; tail -30 "$out/$part.log"; }
done
exit $failed
