#!/usr/bin/env bash
# Loads and unloads adapters 100,000 times on a simulated driver and 10,000 times on the host's, and looks for what stays
# behind; then leaks on purpose, which must be noticed. A few minutes.
#
#   bash scripts/soak_memory.sh           ends with 0 only if nothing leaks and every leak on purpose is found
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
soak() { .venv/bin/python -m weave_bench.soak "$@"; }

soak --driver simulated --cycles 100000
soak --driver host --cycles 10000
for kind in page mapping file memory; do
    echo "on purpose: --leak $kind"
    if soak --driver host --cycles 2000 --leak "$kind"; then
        echo "the leak was not found" >&2
        exit 1
    fi
done
echo "no leak, and every leak on purpose was found"
