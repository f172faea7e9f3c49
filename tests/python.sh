#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The Python package: built from this clone as a wheel for other machines and installed into the environment of
# fetch/get-python.sh; its tests run against what was installed. Nothing is written into the clone but build/.
#
# usage: tests/python.sh [pytest arguments]
#
# The last line is pytest's. MACATTN_SMOLLM2=FILE.gguf runs the pretrained model's tests too; unset, fetch/get-model.sh
# is asked for it. With nvcc and a GPU: tests/python.sh with MACATTN_CUDA=ON builds the GPU side as well.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$(fetch/get-python.sh | tail -1)
wheel=$(PYTHON=$venv/bin/python python/wheel.sh build/wheels --no-build-isolation --config-settings=build-dir=build/python \
    --config-settings="cmake.define.MACATTN_CUDA=${MACATTN_CUDA:-OFF}" | tail -1)
"$venv/bin/python" -m pip --quiet --disable-pip-version-check install --no-deps --force-reinstall "$wheel"
if [ -z "${MACATTN_SMOLLM2:-}" ] && [ -x fetch/get-model.sh ]; then
    MACATTN_SMOLLM2=$(fetch/get-model.sh smollm2 2> /dev/null | tail -1) || MACATTN_SMOLLM2=
fi
export MACATTN_SMOLLM2
cd python/tests
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider --durations=5 "$@"
