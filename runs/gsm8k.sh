#!/usr/bin/env bash
# Qwen2.5 on GSM8K with the paper's settings: prompts, both stages, evaluation before and after, the
# pictures and the report. If it is interrupted, the same command continues it.
#
#   bash runs/gsm8k.sh                                         # 1.5B, all GPUs of this machine
#   GPUS=4 OUT=out/gsm8k_7b bash runs/gsm8k.sh config/7b.py    # 7B on four; presets at the end
#
# It needs the hub, and GPUs of 80 GB: one for 1.5B, four for 7B. By this repository's measurement of
# one step (bench/RESULTS.md, 8.6 s on one H100 at a mean length of 384 tokens) the 725 steps of 1.5B
# would take 1.7 hours on one H100; nobody has run the whole script on GPUs yet.
source "$(dirname "$0")/setup.sh"

out=${OUT:-out/gsm8k}
stage="torchrun --standalone --nproc_per_node=${GPUS:-gpu}"
model=$(model_of config/gsm8k.py "$@")

python prepare.py --task=gsm8k "$@"
$stage estimate_value.py config/gsm8k.py "$@" --out="$out"
$stage train_apo.py config/gsm8k.py "$@" --out="$out"
$stage evaluate.py config/gsm8k.py "$@" --model="$model,$out/model"
python report.py "$out"
