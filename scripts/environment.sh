# How scripts/setup.sh and scripts/test_ascend.sh make an environment; sourced by both, at the root of the checkout.
#
# The sourcing script sets VENV (where the environment goes) and FILES (what else, beside the sources, decides whether
# it is stale).

readonly TORCH_VERSION=2.13.0
readonly TORCH_INDEX=https://download.pytorch.org/whl/cpu
readonly PROJECT_ROOT=$PWD
readonly STAMP=$VENV/.npu_weave_stamp
readonly LOG=$VENV/setup.log

# Only one set-up at a time in one checkout, for the compiled parts lie in the source tree; the lock is on a file of the
# checkout itself and goes with the process.
take_lock() {
    if command -v flock >/dev/null; then
        exec 9<"$PROJECT_ROOT/scripts/setup.sh"
        flock --exclusive 9
    fi
}

give_lock_back() {
    exec 9<&-
}

die() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

# What the installed project depends on: when the digest differs from the stamp, the build is stale.
digest() {
    {
        printf '%s\n' "$PROJECT_ROOT"
        find python npu_weave -name __init__.py | sort
        find csrc -type f | sort | xargs -r sha256sum
        sha256sum pyproject.toml setup.py npu_weave/__init__.py scripts/environment.sh "${FILES[@]}"
    } | sha256sum | cut -d ' ' -f 1
}

up_to_date() {
    [[ -x $VENV/bin/python && -f $STAMP && $(<"$STAMP") == "$1" ]] &&
        compgen -G 'npu_weave/_C*.so' >/dev/null && compgen -G 'python/weave_ops/_C*.so' >/dev/null
}

# step TEXT COMMAND...: one line on the screen, the command's output in the log, its end shown when it fails.
step() {
    local text=$1 start=$SECONDS job status=0
    shift
    printf '\n== %s\n' "$text" >>"$LOG"
    "$@" >>"$LOG" 2>&1 &
    job=$!
    trap 'kill "$job" 2>/dev/null; exit 130' INT TERM # a background job does not get Ctrl-C by itself
    if [[ -t 1 ]]; then
        while kill -0 "$job" 2>/dev/null; do
            printf '\r  %-58s %4ss' "$text" $((SECONDS - start))
            sleep 1
        done
    fi
    wait "$job" || status=$?
    trap - INT TERM
    [[ -t 1 ]] && printf '\r'
    printf '  %-58s %4ss\n' "$text" $((SECONDS - start))
    if ((status != 0)); then
        printf '\n' >&2
        tail -n 30 "$LOG" >&2
        die "'$text' failed (exit status $status); the whole log is ${LOG#"$PROJECT_ROOT"/}"
    fi
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "no Python 3.11 or newer found (tried: ${PYTHON:-python3.11 python3.12 python3})" \
        "install one, or name it: PYTHON=/path/to/python3.11 bash scripts/setup.sh"
}

check_tools() {
    local python=$1 tool
    for tool in git cmake "${CXX:-g++}"; do
        command -v "$tool" >/dev/null || die "'$tool' is missing; on Debian or Ubuntu: apt install build-essential cmake git"
    done
    "$python" -c 'import os, sysconfig; assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))' \
        2>/dev/null || die "$python has no headers (Python.h); on Debian or Ubuntu: apt install python3-dev"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$python cannot make virtual environments; on Debian or Ubuntu: apt install python3-venv"
}

installed_version() {
    "$VENV/bin/python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null || true
}

# Makes $VENV unless it is there, and enters it.
enter_environment() {
    local python
    if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        check_tools "$python"
        echo "Setting up ${VENV##*/} with $python ($("$python" -V 2>&1)); the first time takes a few minutes."
        rm -rf "$VENV"
        mkdir "$VENV"
        step "making the virtual environment" "$python" -m venv "$VENV"
    else
        check_tools "$VENV/bin/python"
        echo "Bringing ${VENV##*/} up to date."
    fi
    export PATH=$VENV/bin:$PATH VIRTUAL_ENV=$VENV PIP_DISABLE_PIP_VERSION_CHECK=1
    unset PYTHONPATH PYTHONHOME
    rm -f "$STAMP"
    if [[ $(installed_version torch) != "$TORCH_VERSION+cpu" ]]; then
        step "installing torch $TORCH_VERSION for the CPU (200 MB)" install_torch
    fi
}

# The CPU build of torch is on PyTorch's own index, not on PyPI; a mirror configured for pip is tried first.
install_torch() {
    local torch=torch==$TORCH_VERSION+cpu
    pip install "$torch" || pip install --extra-index-url "$TORCH_INDEX" "$torch" || {
        echo "setup: no $torch for this Python and machine, neither on the configured indexes nor on $TORCH_INDEX;"
        echo "setup: check the network, or point PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS at a place that has it"
        return 1
    }
}

# Whether the extensions in the tree are newer than all they are made from. Every environment has the same torch.
compiled() {
    local extension
    for extension in npu_weave/_C*.so python/weave_ops/_C*.so; do
        [[ -f $extension && -z $(find csrc setup.py scripts/environment.sh -newer "$extension" -print -quit) ]] || return
    done
}

build_project() {
    pip install --no-build-isolation --editable '.[bench,dev]'
}
