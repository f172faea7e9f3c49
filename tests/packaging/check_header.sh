#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: check_header.sh COMPILER LANGUAGE STANDARD INCLUDE_DIR
# The public header compiles alone, without a warning, as the given language. 77: the compiler does
# not have the language.
set -euo pipefail
compiler=$1 language=$2 standard=$3 include=$4
if ! echo 'int x;' | "$compiler" -x "$language" -std="$standard" -fsyntax-only - 2> /dev/null; then
    echo "header: $compiler does not compile $language"
    exit 77
fi
flags=(-Wall -Wextra -pedantic -Wshadow -Werror -fsyntax-only)
[ "$language" = c ] && flags+=(-Wstrict-prototypes)
for header in "$include"/macattn/*.h; do
    name=macattn/${header##*/}
    printf '#include "%s"\n#include "%s"\nextern int not_empty;\n' "$name" "$name" |
        "$compiler" -x "$language" -std="$standard" "${flags[@]}" -I "$include" -
    echo "header: $name compiles as $standard"
done
