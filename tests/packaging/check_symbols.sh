#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: check_symbols.sh NM SHARED_LIBRARY STATIC_LIBRARY HEADER LIST [HEADER LIST]...
# The shared library exports what the LISTs name, each of which is what its HEADER declares; the
# static library defines nothing outside the prefixes macattn_ and mai_, and holds no global state
# (but for what the CUDA compiler adds to the objects it makes).
set -euo pipefail
export LC_ALL=C
nm=$1 shared=$2 static=$3
shift 3
failed=0

expect_equal() { # name, expected, actual
    if ! diff <(printf '%s\n' "$2") <(printf '%s\n' "$3"); then
        echo "symbols: $1 differ (< expected, > found); a new interface is a new line in the list"
        failed=1
    fi
}

exported=$("$nm" -D --defined-only "$shared" | awk '{print $3}' | grep -v '^__\|^_init$\|^_fini$' |
    sort -u)
listed=
while [ $# -gt 0 ]; do
    declared=$(sed 's://.*::' "$1" | tr '\n' ' ' | grep -o 'MACATTN_API [^;{]*(' |
        grep -o 'macattn_[a-z0-9_]* *(' | tr -d ' (' | sort -u)
    expect_equal "$2 and what $1 declares" "$(sort -u "$2")" "$declared"
    listed+=$(cat "$2")$'\n'
    shift 2
done
expect_equal "exported symbols and the lists" "$(printf '%s' "$listed" | sort -u)" "$exported"

of_c() { # nm's options...: the lines of objects that a C compiler made
    "$nm" -A --defined-only "$@" "$static" 2> /dev/null | grep -v '\.cu\.o:' |
        sed 's/^[^:]*:[^:]*://'
}

foreign=$(of_c --extern-only | awk 'NF == 3 {print $3}' |
    grep -v '^macattn_\|^mai_' || true)
if [ -n "$foreign" ]; then
    echo "symbols: the static library defines"
    echo "$foreign"
    failed=1
fi

# Data that is written (b, d) would be global state; tables of addresses are .data.rel.ro (also d),
# so these are told apart by section.
writable=$(of_c -f sysv |
    awk -F'|' '$7 ~ /^\.(bss|data|tbss|tdata)/ && $7 !~ /\.rel\.ro/ {print $1 $7}' || true)
if [ -n "$writable" ]; then
    echo "symbols: global state in the library:"
    echo "$writable"
    failed=1
fi
[ $failed -eq 0 ] || exit 1
echo "symbols: ok, $(printf '%s' "$listed" | wc -l) exported"
