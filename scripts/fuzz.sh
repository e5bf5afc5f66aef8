#!/usr/bin/env bash
# Damages adapters and requests at random, with other examples in every round, until the time is over or a round fails.
#
#   bash scripts/fuzz.sh              an hour
#   bash scripts/fuzz.sh 10           ten minutes
#
# What fails is printed as small as it gets, with the code that repeats it, and tried first in the next run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH=$PWD/.venv/bin:$PATH OMP_NUM_THREADS=1 WEAVE_FUZZ=${WEAVE_FUZZ:-10}

readonly MINUTES=${1:-60}
round=0
while ((SECONDS < 60 * MINUTES)); do
    round=$((round + 1))
    seed=$RANDOM$RANDOM
    echo "== round $round after $((SECONDS / 60)) minutes, seed $seed, $WEAVE_FUZZ times the usual examples"
    pytest -q -p no:cacheprovider --timeout 3600 --hypothesis-profile=fuzz --hypothesis-seed="$seed" \
        tests/property/test_adapter_mutation.py tests/engine/test_server_fuzz.py
done
echo "fuzzed for $((SECONDS / 60)) minutes in $round rounds: every damaged adapter and every request was answered or refused"
