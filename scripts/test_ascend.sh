#!/usr/bin/env bash
# The tests that need torch_npu: its real binary, on an emulated runtime (tests/emulation/cann). No NPU, no CANN.
#
#   bash scripts/test_ascend.sh                all of tests/ascend
#   bash scripts/test_ascend.sh -k streams     only pytest, with these arguments
#
# Makes .venv-ascend first when it is missing or stale: torch_npu does not belong beside the CPU engine of .venv, for
# where it is installed and CANN is not, a plain `import torch` fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=$PWD/.venv-ascend
FILES=(scripts/test_ascend.sh)
source scripts/environment.sh

readonly TORCH_NPU_VERSION=2.13.0
export TORCH_DEVICE_BACKEND_AUTOLOAD=0 # torch must not load torch_npu before the tests have loaded the emulation

set_up() {
    local expected
    expected=$(digest)
    up_to_date "$expected" && return
    enter_environment
    if [[ $(installed_version torch_npu) != "$TORCH_NPU_VERSION" ]]; then
        step "installing torch_npu $TORCH_NPU_VERSION (44 MB)" pip install \
            "torch==$TORCH_VERSION+cpu" "torch_npu==$TORCH_NPU_VERSION"
    fi
    step "compiling and installing npu-weave, with its dev tools" build_project
    echo "$expected" >"$STAMP"
}

take_lock
set_up
export PATH=$VENV/bin:$PATH
step "building the emulated CANN (two minutes the first time)" python tests/emulation/cann/build.py
give_lock_back

exec pytest -n 2 tests/ascend "$@"
