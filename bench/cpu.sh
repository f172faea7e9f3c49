#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What docs/benchmarks.md began with (exact attention, reuse, prefill, search), measured on this machine: one JSON
# object a row.
#
# usage: bench/cpu.sh [OUTPUT.jsonl]      (default: bench/results/DATE-cpu.jsonl)
#
# Takes about ten minutes. Nothing else should run meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-bench/results/$(date +%F)-cpu.jsonl}
threads=${THREADS:-$(nproc)}
cmake --preset release > /dev/null
cmake --build --preset release > /dev/null
fetch/get-llama.sh > /dev/null
: > "$out"
measure() {
    echo "macattn bench $*" >&2
    build/release/macattn bench "$@" --threads "$threads" --json | tee -a "$out" |
        python3 -c 'import json, sys
for line in sys.stdin:
    r = json.loads(line)
    print("   ", {k: v for k, v in r.items() if k in ("kv", "heads", "context", "hit_ratio",
          "us_median", "gbps", "ceiling_share", "cache_share", "cache_fma_share",
          "speedup_vs_peer", "speedup_vs_exact", "match_share")}, flush=True)' >&2
}
measure attend --heads 32/8,32/4,32/32 --context 128k --peer ggml
measure attend --heads 32/8 --head-dim 64 --context 128k --peer ggml
measure attend --heads 32/8 --context 128k --kv bf16,q8_0 --peer ggml
measure attend --heads 32/8 --context 8k --peer ggml
measure attend --heads 32/8 --context 16k --queries 512 --peer ggml
measure mac --context 8k,128k --hit-ratio 0,0.5,0.95,1 --policy paper
measure mac --context 8k,128k --hit-ratio 0.5,0.95 --policy paper --clustered
measure mac --context 16k,128k --hit-ratio 0,0.5,0.95,1 --policy budget
measure match --ring 512,4096 --hit-ratio 0,1
