#!/usr/bin/env bash
# The tests that need torch_npu, on an emulated runtime. No NPU, no CANN.
#
#   bash scripts/test_ascend.sh                all of tests/ascend, and tests/ascend_engine with each release
#   bash scripts/test_ascend.sh -k streams     the same with these arguments for pytest
#
# tests/ascend has the real binary of torch_npu, on an emulated CANN (tests/emulation/cann). tests/ascend_engine has
# whole engines of the real vllm-ascend, on an emulated torch_npu (tests/emulation/torch_npu), a release after the other;
# with the newest release all of them, and the tests of the emulation itself, with others the ways in which they differ.
#
# Makes the environments first that are missing or stale. torch_npu does not belong beside the CPU engine of .venv, for
# where it is installed and CANN is not, a plain `import torch` fails; and each vllm-ascend wants a vLLM of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=$PWD/.venv-ascend
FILES=(scripts/test_ascend.sh)
source scripts/environment.sh

readonly TORCH_NPU_VERSION=2.13.0
readonly RELEASES=(0.23.0 0.26.0rc1)
readonly NOTHING_SELECTED=5 # pytest's exit status
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
    if compiled; then
        local -x NPU_WEAVE_COMPILED=1 # another environment's, from this tree
    fi
    step "installing npu-weave, with its dev tools" build_project
    echo "$expected" >"$STAMP"
}

# part ENVIRONMENT PYTEST_ARGUMENT...: one run of pytest. That arguments select nothing is a failure only if they do so
# in every part.
selected=
part() {
    local environment=$1 status=0
    shift
    printf '== %s: pytest %s\n' "$environment" "$*"
    "$environment/bin/python" -m pytest "$@" || status=$?
    ((status == NOTHING_SELECTED)) && return
    ((status == 0)) || exit "$status"
    selected=yes
}

take_lock
set_up
step "building the emulated CANN (two minutes the first time)" "$VENV/bin/python" tests/emulation/cann/build.py
give_lock_back
for release in "${RELEASES[@]}"; do
    bash scripts/setup_ascend_engine.sh "$release"
done

part .venv-ascend -n 2 tests/ascend "$@"
export PYTHONPATH=$PWD/tests/emulation/torch_npu
for release in "${RELEASES[@]}"; do
    # two at a time, a file to one process: the longest file starts engines, the others fit beside it
    part ".venv-ascend-$release" -n 2 --dist loadfile tests/ascend_engine "$@"
done
[[ -n $selected ]] || exit "$NOTHING_SELECTED"
