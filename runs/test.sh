#!/usr/bin/env bash
# Style, then the tests, two at a time where there is no GPU. Arguments go to pytest:
# bash runs/test.sh -m "not slow"
source "$(dirname "$0")/setup.sh"
ruff check .
if nvidia-smi -L >/dev/null 2>&1; then workers=0; else workers=2; fi
python -m pytest -q -n "$workers" --dist worksteal --durations=8 tests "$@"
