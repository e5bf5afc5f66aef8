#!/usr/bin/env bash
# A server under skewed traffic for 20 adapters while one of them is loaded, unloaded or re-pointed every two seconds,
# clients hang up, calls fail on purpose and processes that read adapters are killed. Every answer is compared with plain
# vLLM's on merged checkpoints.
#
#   bash scripts/soak.sh                      15 minutes, and some to find out what is right; report in build/soak.md
#   bash scripts/soak.sh --minutes 2          shorter; --help shows more
#
# Ends with 0 only if every answer was right, every error was one that was meant, and memory stayed flat.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python -m weave_bench.serve_soak "$@"
