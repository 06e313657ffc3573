#!/usr/bin/env bash
# Style, then the tests. Arguments go to pytest: bash runs/test.sh -m "not slow"
source "$(dirname "$0")/setup.sh"
ruff check .
if nvidia-smi -L >/dev/null 2>&1; then
    exec python -m pytest -q --durations=8 tests "$@"
fi
# Four processes of pytest on two cores, each with one thread: many tests wait for what they have
# started. A file stays in one process; those that take longest come first. The first one makes the
# fixture `base` of tests/conftest.py for all.
first=$(echo tests/test_{distributed,stages,readme,rollout,two_steps,ends,algorithm}.py)
TEST_BASE=$(mktemp -d)
trap 'rm -r "$TEST_BASE"' EXIT
TEST_BASE=$TEST_BASE OMP_NUM_THREADS=1 python -m pytest -q --durations=8 -n 4 --dist loadfile \
    --no-loadscope-reorder $first tests "$@"
