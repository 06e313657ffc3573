#!/usr/bin/env bash
# Style, then the tests. Arguments go to pytest: bash runs/test.sh -m "not slow"
#
# Without arguments on a machine without a GPU, the tests of test_distributed.py run first, one at a
# time, because each of them starts two processes. The other tests then run two at a time, each with
# one thread.
source "$(dirname "$0")/setup.sh"
ruff check .
if [ $# -gt 0 ] || nvidia-smi -L >/dev/null 2>&1; then
    exec python -m pytest -q --durations=8 tests "$@"
fi
TEST_BASE=$(mktemp -d)  # for the fixture `base` of tests/conftest.py
export TEST_BASE
trap 'rm -r "$TEST_BASE"' EXIT
status=0
python -m pytest -q --durations=8 tests/test_distributed.py || status=$?
[ "$status" -le 1 ] || exit "$status"  # stopped by Ctrl-C
OMP_NUM_THREADS=1 python -m pytest -q --durations=8 -n 2 --dist loadfile tests \
    --ignore=tests/test_distributed.py || status=$?
exit "$status"
