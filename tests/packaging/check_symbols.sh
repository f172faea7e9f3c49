#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: check_symbols.sh NM SHARED_LIBRARY STATIC_LIBRARY HEADER LIST [CUDA_HEADER CUDA_LIST]
# The shared library exports what the lists name, which is what the headers declare; the static
# library defines nothing outside the prefixes macattn_ and mai_ (in C++: namespace mai), and holds
# no global state but what nvcc adds.
set -euo pipefail
export LC_ALL=C
nm=$1 shared=$2 static=$3
headers=("$4" ${6:+"$6"}) lists=("$5" ${7:+"$7"})
# What nvcc adds to every file: handles of its kernels, a stub to launch each.
nvcc='__cudaFatCubinHandle\|__device_stub__\|^DW\.ref\.'
failed=0

expect_equal() { # name, expected, actual
    if ! diff <(printf '%s\n' "$2") <(printf '%s\n' "$3"); then
        echo "symbols: $1 differ (< expected, > found); to accept a new interface:"
        echo "$nm -D --defined-only $shared | awk '{print \$3}' | sort, into ${lists[*]}"
        failed=1
    fi
}

exported=$("$nm" -D --defined-only "$shared" | awk '{print $3}' | grep -v '^__\|^_init$\|^_fini$' |
    sort -u)
declared=$(sed 's://.*::' "${headers[@]}" | tr '\n' ' ' | grep -o 'MACATTN_API [^;{]*(' |
    grep -o 'macattn_[a-z0-9_]* *(' | tr -d ' (' | sort -u)
expect_equal "exported symbols and ${lists[*]}" "$(sort -u "${lists[@]}")" "$exported"
expect_equal "exported symbols and ${headers[*]}" "$declared" "$exported"

foreign=$("$nm" --defined-only --extern-only "$static" | awk 'NF == 3 {print $3}' |
    grep -v "^macattn_\|^mai_\|^_ZN3mai\|$nvcc" || true)
if [ -n "$foreign" ]; then
    echo "symbols: the static library defines"
    echo "$foreign"
    failed=1
fi

# Data that is written (b, d) would be global state; tables of addresses are .data.rel.ro (also d),
# so these are told apart by section.
writable=$("$nm" --defined-only -f sysv "$static" 2>/dev/null |
    awk -F'|' '$7 ~ /^\.(bss|data|tbss|tdata)/ && $7 !~ /\.rel\.ro/ {print $1 $7}' |
    grep -v "$nvcc" || true)
if [ -n "$writable" ]; then
    echo "symbols: global state in the library:"
    echo "$writable"
    failed=1
fi
[ $failed -eq 0 ] || exit 1
echo "symbols: ok, $(cat "${lists[@]}" | wc -l) exported"
