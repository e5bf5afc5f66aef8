#!/usr/bin/env bash
# Every check of the project, or some tests.
#
#   bash scripts/test.sh                     lint, types, formats, then all tests
#   bash scripts/test.sh tests/unit -k walls only pytest, with these arguments
#
# Sets up .venv first when it is missing or stale. Ends with pytest's summary; any failure ends it at once.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH

if (($# > 0)); then
    exec pytest "$@"
fi

check() {
    printf '== %s\n' "$*"
    "$@"
}

check ruff check .
check ruff format --check .
check mypy --strict
echo "== clang-format --dry-run -Werror (csrc)"
find csrc -type f \( -name '*.cpp' -o -name '*.cc' -o -name '*.h' -o -name '*.hpp' \) -print0 |
    xargs -0 -r clang-format --dry-run -Werror
# two at a time, a file to one process: most tests wait for an engine that starts on one core; engines first, as these
# files take longest. One thread each: the threads of two processes on two cores wait for one another most of the time
OMP_NUM_THREADS=1 check pytest -n 2 --dist loadfile --no-loadscope-reorder
