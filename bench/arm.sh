#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: bench/arm.sh [LIBRARY]
# How many instructions a step takes on 64-bit Arm, by token and KV head: what an emulator executes for 192
# tokens less what it does for 64. LIBRARY: build/aarch64/libmacattn.a (cmake --preset aarch64).
set -euo pipefail
cd "$(dirname "$0")/.."
library=${1:-build/aarch64/libmacattn.a}
program=$(mktemp)
trap 'rm -f "$program"' EXIT
aarch64-linux-gnu-gcc -O2 -static -Isrc -Iinclude bench/arm_step.c "$library" -lm -lpthread \
    -o "$program"

executed() { # ARGUMENTS of the program
    qemu-aarch64-static -cpu max -singlestep -d nochain,exec -D /dev/stdout "$program" "$@" |
        grep -c '^Trace'
}

for type in f16 bf16 q8_0 q4_0; do
    for shape in '32 8 128' '12 2 128' '14 2 64' '9 3 64'; do
        read -r heads kv_heads dim <<< "$shape"
        printf '%s\t%s/%s d %s' "$type" "$heads" "$kv_heads" "$dim"
        for isa in neon neon-dotprod neon-i8mm; do
            few=$(executed "$isa" "$type" "$heads" "$kv_heads" "$dim" 64)
            many=$(executed "$isa" "$type" "$heads" "$kv_heads" "$dim" 192)
            printf '\t%s %s' "$isa" $(((many - few) / 128 / kv_heads))
        done
        echo
    done
done
