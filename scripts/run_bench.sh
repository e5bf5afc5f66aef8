#!/usr/bin/env bash
# Measures npu-weave on this machine, beside every alternative, and writes a report.
#
#   bash scripts/run_bench.sh                  every part but gpu (an hour and more)
#   bash scripts/run_bench.sh --quick          the same but live, with fewer repeats (minutes)
#   bash scripts/run_bench.sh memory kernels   these parts: steps, serve, live, accuracy, memory, loads, catalogue, kernels, gpu
#   bash scripts/run_bench.sh ascendc          the AscendC kernels counted under emulation, and a projection; printed only
#
# What was found is added to build/bench/run.json, and build/bench/report.md is made from that; those of quick runs lie in
# build/bench/quick. A part replaces what an earlier run found of it; the report says where and of what each is. Nothing
# else should run on the machine meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH

case ${1:-} in
ascendc)
    shift
    PYTHONPATH=tests python -m kernels.ascendc_projection "$@"
    ;;
*)
    python -m weave_bench run "$@"
    ;;
esac
