#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The figures of docs/eval.md and docs/tasks.md: what reuse changes in the bundled model's predictions.
#
# usage: bench/eval.sh TEXT [FOLDER [PART...]]
#     TEXT    long documents separated by zero bytes, at least 20K tokens each, that the model has not seen
#     FOLDER  of the results (default: bench/results), files DATE-eval-PART.jsonl
#     PART    weights budget paper near-paper free q8 tasks-8k tasks-16k (default: all, about two hours on one core)
#
# Nothing here is about speed, so other work may run meanwhile; each part runs on one thread.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
text=${1:?usage: bench/eval.sh TEXT [FOLDER [PART...]]}
out=${2:-bench/results}
shift $(($# < 2 ? $# : 2))
[ $# -gt 0 ] || set -- weights budget paper near-paper free q8 tasks-8k tasks-16k
macattn=${MACATTN:-build/release/macattn}
plugin=${MACATTN_PLUGIN:-build/release/plugins/ggml/libggml-macattn.so}
q8=model/macattn-38m-q8_0.gguf
f16=${TMPDIR:-/tmp}/macattn-38m-f16.gguf

evaluate() { # part, options...
    local part=$1
    shift
    echo "eval $part" >&2
    "$macattn" eval --plugin "$plugin" --threads 1 --json "$out/$(date +%F)-eval-$part.jsonl" "$@"
}

for part in "$@"; do
    case $part in
        weights) python3 bench/dequantize.py --gguf-py "$(fetch/get-llama.sh --dir)/src/gguf-py" $q8 "$f16" ;;
        budget) evaluate "$part" -m "$f16" -f "$text" -c 16k -n 512 --windows 8 -p budget \
            --budget 0.001,0.002,0.003,0.005,0.01,0.02,0.03,0.05,0.1 ;;
        paper) evaluate "$part" -m "$f16" -f "$text" -c 16k -n 512 --windows 8 -p paper \
            --tau 0.45,0.6,0.7,0.8,0.9,0.95,0.98 ;;
        near-paper) evaluate "$part" -m "$f16" -f "$text" -c 16k -n 512 --windows 4 -p paper --band 2048 \
            --tau 0.7,0.8,0.85,0.9,0.95 ;;
        free) evaluate "$part" -m "$f16" -f "$text" -c 8k -n 4096 --windows 2 --free-run -p budget \
            --budget 0.01,0.03 -p paper --tau 0.45,0.9 ;;
        q8) evaluate "$part" -m $q8 -f "$text" -c 8k,16k -n 512 --windows 4 -p budget --budget 0.01,0.03 \
            -p paper --tau 0.45,0.9 ;;
        tasks-*) evaluate "$part" -m $q8 --tasks native --length "${part#tasks-}" --samples 100 \
            --policy budget --budget 0.01 ;;
        *)
            echo "eval.sh: no part $part" >&2
            exit 2
            ;;
    esac
done
