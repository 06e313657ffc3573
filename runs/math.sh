#!/usr/bin/env bash
# Qwen2.5 on MATH with the paper's settings: prompts, both stages, evaluation before and after on
# the paper's benchmarks, the pictures and the report. If it is interrupted, the same command
# continues it.
#
#   bash runs/math.sh                                        # 1.5B, all GPUs of this machine
#   GPUS=4 OUT=out/math_7b bash runs/math.sh config/7b.py    # 7B on four; presets at the end
#
# It needs the hub, and GPUs of 80 GB: one for 1.5B, four for 7B. The paper reports, on four H100,
# 6.92 hours for 1.5B, 8.78 for 3B and 11.01 for 7B; docs/manual.md has its accuracies. By this
# repository's measurement of one step (bench/RESULTS.md, 8.6 s on one H100 at a mean length of 384
# tokens) the 675 steps of 1.5B would take 1.6 hours on one H100; nobody has run the whole script on
# GPUs yet.
source "$(dirname "$0")/setup.sh"

out=${OUT:-out/math} benchmarks=math500,minerva_math,olympiadbench,amc23
stage="torchrun --standalone --nproc_per_node=${GPUS:-gpu}"
model=$(model_of config/math.py "$@")

python prepare.py --task=math,$benchmarks "$@"
$stage estimate_value.py config/math.py "$@" --out="$out"
$stage train_apo.py config/math.py "$@" --out="$out"
$stage evaluate.py config/math.py "$@" --model="$model,$out/model" --task=$benchmarks \
    --samples_per_prompt=32 --kl_to="$model"
python bench/paper_grader.py "$out"/model/eval-*.jsonl
python report.py "$out"
