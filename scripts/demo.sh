#!/usr/bin/env bash
# One server with four adapters on the small real model, beside a plain server for each merged checkpoint.
#
#   bash scripts/demo.sh              30 prompts a task; ends with 0 only if every answer is the same
#   bash scripts/demo.sh --count 10   fewer prompts
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
exec .venv/bin/python -m weave_lab.demo "$@"
