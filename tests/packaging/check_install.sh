#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: check_install.sh CMAKE BUILD_DIR SOURCE_DIR WORK_DIR
# Installs into a staging folder, moves the tree, and builds and runs examples/embed_cmake against
# it in every way a user may: find_package, pkg-config shared and static, and as a subdirectory.
set -euo pipefail
cmake=$1 build=$2 source=$3 work=$4
rm -rf "$work"
mkdir -p "$work"

DESTDIR=$work/stage "$cmake" --install "$build" > "$work/install.log"
installed=$(find "$work/stage" -type d -path '*/cmake/macattn')
prefix=$work/moved
mv "${installed%/lib*}" "$prefix"   # nothing in the tree may depend on where it was staged

for file in include/macattn/macattn.h include/macattn/version.h; do
    [ -e "$prefix/$file" ] || { echo "install: $file is missing"; exit 1; }
done
library_dir=$(dirname "$(find "$prefix" -name libmacattn.a)")
[ -L "$library_dir/libmacattn.so" ] && [ -e "$library_dir/libmacattn.so.0" ]
if grep -rIl -e "$build" -e "$source" "$prefix"; then
    echo "install: the files above name the build or source folder"
    exit 1
fi
if [ -x "$prefix/bin/macattn" ]; then
    "$prefix/bin/macattn" --version
fi

"$cmake" -S "$source/examples/embed_cmake" -B "$work/package" -DCMAKE_PREFIX_PATH="$prefix" \
    > "$work/package.log"
"$cmake" --build "$work/package" >> "$work/package.log"
"$work/package/embed_shared"
"$work/package/embed_static"

"$cmake" -S "$source/examples/embed_cmake" -B "$work/subdirectory" -DCMAKE_BUILD_TYPE=Debug \
    -DMACATTN_SOURCE_DIR="$source" > "$work/subdirectory.log"
"$cmake" --build "$work/subdirectory" >> "$work/subdirectory.log"
"$work/subdirectory/embed_static"

if command -v pkg-config > /dev/null; then
    export PKG_CONFIG_PATH=$library_dir/pkgconfig
    read -ra flags <<< "$(pkg-config --cflags --libs macattn)"
    cc "$source/examples/embed_cmake/main.c" -o "$work/by_pkg_config" "${flags[@]}" -lm
    LD_LIBRARY_PATH=$library_dir "$work/by_pkg_config"
    read -ra flags <<< "$(pkg-config --static --cflags --libs macattn)"
    cc -static "$source/examples/embed_cmake/main.c" -o "$work/by_pkg_config_static" "${flags[@]}"
    "$work/by_pkg_config_static"
fi
echo "install: ok"
