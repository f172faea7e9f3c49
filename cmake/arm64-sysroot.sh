#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# usage: arm64-sysroot.sh DIR
# Fetches the arm64 builds of the libraries that the tests link, and unpacks them under DIR. It uses
# the apt sources of this machine with an apt state of its own in DIR: nothing is installed, no
# foreign architecture is added, and root is not needed.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
[ -e "$dir/complete" ] && exit 0

mkdir -p "$dir/apt/lists/partial" "$dir/apt/archives/partial" "$dir/deb"
: > "$dir/apt/status"
options=(
    -o APT::Architecture=arm64 -o APT::Architectures=arm64
    -o Dir::State::lists="$dir/apt/lists" -o Dir::State::status="$dir/apt/status"
    -o Dir::Cache="$dir/apt" -o Acquire::Languages=none
    -o APT::Sandbox::User="$(id -un)"
)
apt-get "${options[@]}" update || true   # a source without arm64 must not stop the others
cd "$dir/deb"
apt-get "${options[@]}" download libcmocka-dev libcmocka0 libcjson-dev libcjson1
for package in *.deb; do
    dpkg-deb -x "$package" "$dir"
done
rm -rf "$dir/apt" "$dir/deb"
touch "$dir/complete"
