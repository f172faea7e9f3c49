#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The figures of docs/eval.md on pretrained models: what policies change in their predictions and answers, and what they read.
#
# usage: bench/eval-models.sh [--dry-run] FOLDER [PART...]
#     FOLDER   of the results: DATE-models-PART.jsonl and, for eval and torch, DATE-models-PART-kl-*.svg
#     PART     eval     KL and bytes in llama.cpp, quantised as the models come (macattn eval): needs no Python package
#              torch    the same in PyTorch, weights dequantised to float32: no rounding of activations to hide small
#                       divergences behind. For machines with a GPU, or patience
#              answers  RULER tasks at 8K and 16K, answered by exact attention and by policies, in PyTorch
#              tasks    the same tasks in llama.cpp
#              (default: eval tasks)
#     MODELS="smollm2 coder-0.5b" CONTEXTS="8k" TASKS=vt SAMPLES=10 THREADS=8 PARTS=4 change what is done; PYTHON is the one with
#     torch, numpy, gguf, tokenizers and macattn. The models are fetched (fetch/get-model.sh); coder-1.5b at 32K in llama.cpp
#     takes hours on a few cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
do=()
[ "${1:-}" != --dry-run ] || { do=(echo); shift; }
out=${1:?usage: bench/eval-models.sh [--dry-run] FOLDER [PART...]}
shift
[ $# -gt 0 ] || set -- eval tasks
macattn=${MACATTN:-build/release/macattn}
plugin=${MACATTN_PLUGIN:-build/release/plugins/ggml/libggml-macattn.so}
python=${PYTHON:-python3}
threads=${THREADS:-$(nproc)}
tasks=${TASKS:-niah_multikey_1,niah_multivalue,vt,niah_multikey_2}
samples=${SAMPLES:-50}
budgets=${BUDGETS:-0.002,0.01,0.03,0.05,0.1,0.2}
texts=${TEXTS:-code documents chat}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

contexts() { # model
    case $1 in
        _ | smollm2) echo "${CONTEXTS:-6k}" ;;
        coder-0.5b) echo "${CONTEXTS:-8k,16k}" ;;
        *) echo "${CONTEXTS:-16k,32k}" ;;
    esac
}

model() { # name
    if [ ${#do[@]} -gt 0 ]; then echo "$1.gguf"; else fetch/get-model.sh "$1"; fi
}

# Adds the rows of one run to a part's.
gather() { # part, rows
    [ ! -s "$2" ] || cat "$2" >> "$out/$(date +%F)-models-$1.jsonl"
}

plot() { # part
    local plotter=python3
    python3 -c 'import matplotlib' 2> /dev/null || plotter=/usr/bin/python3
    [ ${#do[@]} -gt 0 ] || "$plotter" bench/plot_eval.py --no-heads --prefix "$(date +%F)-models-$1-" --out "$out" \
        "$out/$(date +%F)-models-$1.jsonl" || echo "eval-models.sh: no plots of $1" >&2
}

evaluate() { # model's file, text, contexts, options...
    local file=$1 text=$2 context=$3 chat=()
    shift 3
    [ "$text" != chat ] || chat=(--chat)
    "${do[@]}" "$macattn" eval --plugin "$plugin" -m "$file" -f "$work/$text" -c "$context" -n 192 --windows 1 \
        --threads "$threads" "${chat[@]}" --json "$work/rows" "$@"
    gather eval "$work/rows"
}

part_eval() {
    local name text band order file
    for text in $texts; do python3 bench/models/texts.py "$text" > "$work/$text"; done
    for name in ${MODELS:-smollm2 coder-0.5b coder-1.5b}; do
        file=$(model "$name")
        for text in $texts; do
            for band in 256 2048; do
                for order in 0 1; do
                    evaluate "$file" "$text" "$(contexts "$name")" -p paper --tau 0.45 --band $band --lse-order $order
                done
            done
            evaluate "$file" "$text" "$(contexts "$name")" -p budget --budget "$budgets"
        done
    done
    plot eval
}

# 16k,32k -> 16384,32768
in_tokens() {
    local list=${1//k/*1024} each sum=()
    for each in ${list//,/ }; do sum+=($((each))); done
    (IFS=, && echo "${sum[*]}")
}

part_torch() {
    local name band order budget sets=()
    for band in 256 2048; do
        for order in 0 1; do
            sets+=(--set "{\"policy\": \"paper\", \"tau\": 0.45, \"band\": $band, \"lse_order\": $order}")
        done
    done
    for budget in ${budgets//,/ }; do sets+=(--set "{\"policy\": \"budget\", \"budget\": $budget}"); done
    for name in ${MODELS:-smollm2 coder-0.5b coder-1.5b}; do
        "${do[@]}" "$python" bench/models/fidelity.py "$(model "$name")" --text "${texts// /,}" \
            --context "$(in_tokens "$(contexts "$name")")" --threads "$threads" --json "$work/torch" "${sets[@]}"
        gather torch "$work/torch"
        rm -f "$work/torch"
    done
    plot torch
}

# Of Qwen2.5's tokens in a task's text; two per cent of it are left for the template, and for tokenizers that differ a little.
bytes_per_token() { # task
    case $1 in
        niah_multikey_1 | niah_multivalue) echo 4.85 ;;
        vt) echo 3.65 ;;
        *) echo 2.93 ;;
    esac
}

part_answers() {
    local name length file i pids pid task
    for name in ${MODELS:-coder-1.5b}; do
        file=$(model "$name")
        for length in ${CONTEXTS:-8k 16k}; do
            for task in ${tasks//,/ }; do
                "$macattn" tasks generate --tasks "$task" --length "$length" --samples "$samples" \
                    --bytes-per-token "$(bytes_per_token "$task")"
            done > "$work/samples"
            pids=()
            for ((i = 0; i < ${PARTS:-1}; i++)); do
                "${do[@]}" "$python" bench/models/answers.py "$file" "$work/samples" --part "$i/${PARTS:-1}" \
                    --threads $((threads / ${PARTS:-1})) --json "$work/answers.$i" --set '{"policy": "budget"}' \
                    --set '{"policy": "paper", "lse_order": 0}' --set '{"policy": "paper"}' &
                pids+=($!)
            done
            for pid in "${pids[@]}"; do wait "$pid"; done
            for ((i = 0; i < ${PARTS:-1}; i++)); do gather answers "$work/answers.$i"; done
            rm -f "$work"/answers.*
        done
    done
}

part_tasks() {
    local name length policy file
    for name in ${MODELS:-smollm2 coder-0.5b}; do
        file=$(model "$name")
        for length in ${CONTEXTS:-8k 16k}; do
            [ "$name" != smollm2 ] || [ "$length" != 16k ] || continue # it was trained to 8K
            for policy in budget paper; do
                "${do[@]}" "$macattn" eval --plugin "$plugin" -m "$file" --threads "$threads" --chat --tasks "$tasks" \
                    --length "$length" --samples "$samples" -p $policy --json "$work/rows"
                gather tasks "$work/rows"
            done
        done
    done
}

for part in "$@"; do
    case $part in
        eval | torch | answers | tasks)
            [ ${#do[@]} -gt 0 ] || rm -f "$out/$(date +%F)-models-$part.jsonl"
            "part_$part"
            ;;
        *)
            echo "eval-models.sh: no part $part" >&2
            exit 2
            ;;
    esac
done
