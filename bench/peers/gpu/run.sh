#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One run on one GPU: read ceiling and torch SDPA, FlashInfer, macattn, the public MAC kernel; each part in a
# process of its own with a time limit. What it needs is made by fetch/get-gpu-peers.sh.
#
# usage: run.sh FOLDER    PARTS="read bulk sdpa fi macattn mac"  TOTAL_S=350  OUT=...
HERE=$(cd "$(dirname "$0")" && pwd)
G=$(cd "${1:?usage: run.sh FOLDER}" && pwd) || exit 1
export GPU_FOLDER=$G RD_SO=$G/librd.so MACATTN_LIBRARY=$G/libmacattn.so
export PYTHONUNBUFFERED=1 OUT=${OUT:-/tmp/out} PYTHONPATH=$HERE/../../../python:/tmp/site
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} FLASHINFER_WORKSPACE_BASE=/tmp/fi FLASHINFER_CUDA_ARCH_LIST=9.0a MAX_JOBS=16
export FLASHINFER_DISABLE_VERSION_CHECK=1 FLASHINFER_LOGGING_LEVEL=warning
export PATH=$CUDA_HOME/bin:$PATH
mkdir -p "$OUT" /tmp/fi
S=$SECONDS
TOTAL_S=${TOTAL_S:-350}
lap() { echo "## t=$((SECONDS - S))s $*"; }
part() { # seconds name command...
    local t=$1 n=$2 room=$((TOTAL_S - (SECONDS - S)))
    shift 2
    case " ${PARTS:-read bulk sdpa fi macattn mac} " in *" $n "*) ;; *) return ;; esac
    [ "$room" -lt "$t" ] && t=$room
    [ "$t" -lt 15 ] && { lap "$n skipped: out of time"; return; }
    lap "$n"
    PART_BUDGET_S=$((t - 8)) timeout -k 5 "$t" "$@" 2>&1 | tee -a "$OUT/log.txt"
    local rc=${PIPESTATUS[0]}
    [ "$rc" -eq 0 ] || echo "## $n ended with status $rc" | tee -a "$OUT/log.txt"
}
[ -d /tmp/site ] || tar -C /tmp -xJf "$G/site.txz"
part 40 read python3 "$HERE/bw.py" read
part 25 bulk python3 "$HERE/bw.py" bulk
part 40 sdpa python3 "$HERE/bw.py" sdpa
part "${FI_S:-110}" fi python3 "$HERE/fi.py"
part "${MACATTN_S:-120}" macattn python3 "$HERE/ours.py"
part "${MAC_S:-130}" mac python3 "$HERE/mac.py"
lap "done"
