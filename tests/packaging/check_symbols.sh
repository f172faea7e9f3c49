#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: check_symbols.sh NM SHARED_LIBRARY STATIC_LIBRARY HEADER LIST
# The shared library exports what LIST names, which is what HEADER declares; the static library
# defines nothing outside the prefixes macattn_ and mai_, and holds no global state.
set -euo pipefail
export LC_ALL=C
nm=$1 shared=$2 static=$3 header=$4 list=$5
failed=0

expect_equal() { # name, expected, actual
    if ! diff <(printf '%s\n' "$2") <(printf '%s\n' "$3"); then
        echo "symbols: $1 differ (< expected, > found); to accept a new interface:"
        echo "$nm -D --defined-only $shared | awk '{print \$3}' | sort > $list"
        failed=1
    fi
}

exported=$("$nm" -D --defined-only "$shared" | awk '{print $3}' | grep -v '^__\|^_init$\|^_fini$' |
    sort -u)
declared=$(sed 's://.*::' "$header" | tr '\n' ' ' | grep -o 'MACATTN_API [^;{]*(' |
    grep -o 'macattn_[a-z0-9_]* *(' | tr -d ' (' | sort -u)
expect_equal "exported symbols and $list" "$(sort -u "$list")" "$exported"
expect_equal "exported symbols and $header" "$declared" "$exported"

foreign=$("$nm" --defined-only --extern-only "$static" | awk 'NF == 3 {print $3}' |
    grep -v '^macattn_\|^mai_' || true)
if [ -n "$foreign" ]; then
    echo "symbols: the static library defines"
    echo "$foreign"
    failed=1
fi

# Data that is written (b, d) would be global state; tables of addresses are .data.rel.ro (also d),
# so these are told apart by section.
writable=$("$nm" --defined-only -f sysv "$static" 2>/dev/null |
    awk -F'|' '$7 ~ /^\.(bss|data|tbss|tdata)/ && $7 !~ /\.rel\.ro/ {print $1 $7}' || true)
if [ -n "$writable" ]; then
    echo "symbols: global state in the library:"
    echo "$writable"
    failed=1
fi
[ $failed -eq 0 ] || exit 1
echo "symbols: ok, $(wc -l < "$list") exported"
