#!/usr/bin/env bash
# Everything that needs a GPU, in pieces that each write their result at once and have a limit of
# seconds, the most important first: at most half an hour on one 80 GB GPU, in the activated
# environment. Results go to bench/gpu-results/*.log, or to another folder:
#     bash bench/gpu.sh /some/folder
# Without a GPU the same commands run at tiny shapes, to see that they work: 2 minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-bench/gpu-results}")
mkdir -p "$out"
failed=0

piece() {  # name, seconds that it may take, command
    local name=$1 limit=$2 begin=$SECONDS
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n 25
    local status=${PIPESTATUS[0]}
    echo "== $name: status $status, $((SECONDS - begin)) s" | tee -a "$out/$name.log"
    [ "$status" = 0 ] || failed=1
}

{ date; nvidia-smi -L; python --version; pip list 2>/dev/null | grep -iE '^(torch|vllm|triton|flash)'; } \
    2>&1 | tee "$out/machine.log"

if nvidia-smi -L >/dev/null 2>&1; then
    shape=(--size=1.5B --dtype=bfloat16 --mean_tokens=400 --max_response_tokens=1024
           --batch_size=256 --mini_batch_size=128 --steps=3)
    rollout=(--size=1.5B --dtype=bfloat16 --mean_tokens=400 --max_tokens=1024 --repeats=2)
    fits=--gpu
else
    shape=(--size=1M --mean_tokens=8 --prompt_tokens=8 --max_response_tokens=12 --batch_size=4
           --mini_batch_size=2 --steps=2)
    rollout=(--repeats=1)
    fits=--tiny
fi
# Building the engine takes 45 s of each, the first compiled step 30 s.
piece step 180 python bench/step.py "${shape[@]}" --compile=True
# Eight updates per sampling instead of two.
piece step_8 240 python bench/step.py "${shape[@]}" --compile=True --batch_size=256 \
    --mini_batch_size=32 --algorithms=apo,oapl
piece rollout 180 python bench/rollout.py "${rollout[@]}"
piece test_cuda 450 python -m pytest -q tests/test_cuda.py
piece step_plain 150 python bench/step.py "${shape[@]}"
piece step_recompute 150 python bench/step.py "${shape[@]}" --compile=True \
    --checkpoint_activations=True --micro_batch_tokens=16384
piece step_offload 180 python bench/step.py "${shape[@]}" --compile=True --offload=True
piece fits 500 python bench/fits.py "$fits"
exit $failed
