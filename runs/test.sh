#!/usr/bin/env bash
# Style, then the tests. With arguments, which go to pytest: bash runs/test.sh -m "not slow"
source "$(dirname "$0")/setup.sh"
ruff check .
if [ $# -gt 0 ]; then
    exec python -m pytest -q --durations=8 tests "$@"
fi
# Two files at a time, with one thread each. Then the tests of several processes, one at a time.
OMP_NUM_THREADS=1 python -m pytest -q --durations=8 -n 2 --dist loadfile tests \
    --ignore=tests/test_distributed.py
python -m pytest -q --durations=8 tests/test_distributed.py
