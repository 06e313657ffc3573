#!/usr/bin/env bash
# The tests. Arguments go to pytest: bash runs/test.sh -k model -x
source "$(dirname "$0")/setup.sh"
python -m pytest -q --durations=8 tests "$@"
