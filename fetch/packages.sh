# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by ./run and ./test: Debian packages that are missing are named, then installed.

install_missing() { # log, packages...
    local log=$1 missing=() package runner=()
    shift
    if ! command -v apt-get > /dev/null; then
        echo "no apt-get here; TESTING.md says what is needed"
        return
    fi
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' ||
            missing+=("$package")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        echo "all packages are installed"
        return
    fi
    echo "installing with apt-get: ${missing[*]}"
    if [ "$(id -u)" -ne 0 ]; then
        runner=(sudo)
        # Without a terminal nobody can type a password: fail at once instead of waiting for one.
        [ -t 0 ] && [ -z "${CI:-}" ] || runner+=(-n)
        runner+=("DEBIAN_FRONTEND=$DEBIAN_FRONTEND")
    fi
    {
        "${runner[@]}" apt-get update
        "${runner[@]}" apt-get install -y --no-install-recommends "${missing[@]}"
    } > "$log" 2>&1 < /dev/null ||
        echo "apt-get failed (see $log); what needs these packages will fail or be skipped"
}
