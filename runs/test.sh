#!/usr/bin/env bash
# Style, then the tests. Arguments go to pytest: bash runs/test.sh -m "not slow"
source "$(dirname "$0")/setup.sh"
ruff check .
python -m pytest -q --durations=8 tests "$@"
