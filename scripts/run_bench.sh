#!/usr/bin/env bash
# Benchmarks, by name; without a name all of them.
#
#   bash scripts/run_bench.sh kernels       gating and rerouting, fused and in parts (minutes)
#   bash scripts/run_bench.sh ascendc       the AscendC kernels counted under emulation, and a projection (a minute)
#   bash scripts/run_bench.sh loads         adapters from disk and from host memory, cost of a page (minutes)
#   bash scripts/run_bench.sh memory        physical memory under base and adapters, measured (a minute)
#
# Options after the name go to it, e.g. `kernels --threads 2`. Nothing else should run on the machine meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() {
    local part=$1
    shift
    printf '\n== %s\n' "$part"
    case $part in
    kernels) python -m weave_bench.kernels "$@" ;;
    ascendc) PYTHONPATH=tests python -m kernels.ascendc_projection "$@" ;;
    loads) python -m weave_bench.load_speed "$@" ;;
    memory) npu-weave memory "$@" ;;
    *)
        echo "run_bench: no benchmark '$part'; there are: kernels, ascendc, loads, memory" >&2
        exit 2
        ;;
    esac
}

bash scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH

if (($# > 0)); then
    run "$@"
else
    for part in kernels ascendc loads memory; do
        run "$part"
    done
fi
