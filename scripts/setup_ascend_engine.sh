#!/usr/bin/env bash
# Makes .venv-ascend-RELEASE, where one release of vllm-ascend runs on the emulated torch_npu (tests/emulation).
#
#   bash scripts/setup_ascend_engine.sh 0.26.0rc1   set up, or bring up to date; seconds when nothing changed
#
# What goes in is pinned to the last package in scripts/requirements-ascend-RELEASE.txt and installed without asking
# the packages: the releases ask for torch_npu, and for three different versions of torch, none of which runs here.
# Needs Python 3.11 (the wheels of vllm-ascend are made for it) and what scripts/setup.sh needs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly RELEASE=${1:?"name a release: 0.23.0 or 0.26.0rc1"}
readonly REQUIREMENTS=scripts/requirements-ascend-$RELEASE.txt
PYTHON=${PYTHON:-python3.11}
VENV=$PWD/.venv-ascend-$RELEASE
FILES=(scripts/setup_ascend_engine.sh scripts/requirements-ascend.txt "$REQUIREMENTS")
if [[ ! -f $REQUIREMENTS ]]; then
    echo "setup: no release '$RELEASE'; there are:" scripts/requirements-ascend-*.txt >&2
    exit 1
fi
source scripts/environment.sh

install_engine() {
    pip install --no-deps --no-compile --requirement "$REQUIREMENTS" || {
        echo "setup: a package of $REQUIREMENTS is not on the configured indexes (see above)"
        echo "setup: check the network, or point PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS at a place that has it"
        return 1
    }
}

# Every engine of the tests is a process of its own, and some environments keep Python from storing what it compiles.
compile_engine() {
    # torch is there compiled, and has a file of a later Python
    python -m compileall -q -j 0 -x '/torch/' "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
}

# Puts the checkout on the path, with the metadata by which the engine finds its plugin. Not an editable install, which
# would compile the extensions anew in every environment.
link_project() {
    local site metadata
    compiled || python setup.py build_ext --inplace
    site=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    metadata=$(mktemp -d)
    printf '%s\n' "$PROJECT_ROOT" "$PROJECT_ROOT/python" >"$site/npu_weave.pth"
    rm -rf "$site"/npu_weave-*.dist-info
    python setup.py egg_info --egg-base "$metadata" dist_info --output-dir "$site"
    rm -rf "$metadata"
}

check_imports() {
    cd "$VENV" # away from the checkout, so that only what is on the path is found
    PYTHONPATH=$PROJECT_ROOT/tests/emulation/torch_npu VLLM_PLUGINS=ascend python -c '
import importlib.metadata as metadata
import torch, npu_weave._C, vllm, vllm_ascend, weave_ops
from vllm.platforms import current_platform
print(vllm.__version__, metadata.version("vllm_ascend"), current_platform.device_name, metadata.version("npu-weave"))
assert current_platform.device_name == "npu"'
}

main() {
    local expected
    expected=$(digest)
    up_to_date "$expected" && return
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
        die "'$PYTHON' is not Python 3.11, for which vllm-ascend's wheels are made" \
            "install it, or name it: PYTHON=/path/to/python3.11 bash scripts/setup_ascend_engine.sh $RELEASE"
    enter_environment
    step "installing vllm-ascend $RELEASE and its vLLM (500 MB)" install_engine
    step "compiling their Python" compile_engine
    step "putting npu-weave into it" link_project
    step "checking that engine and plugins import" check_imports
    echo "$expected" >"$STAMP"
}

take_lock
main
