#!/usr/bin/env bash
# The paper's comparison at its scale: Qwen2.5-1.5B on MATH by A*-PO, PPO, REBEL and GRPO, three
# seeds each, then all models on the paper's benchmarks. If it is interrupted, the same command
# continues it.
#
#   bash runs/claims.sh                                  # all GPUs of this machine
#   GPUS=4 SEEDS="0" EQUAL=generations bash runs/claims.sh    # presets may follow
#
# EQUAL=prompts, the default, gives every algorithm 256 prompts per step: REBEL samples 512 responses
# and GRPO 2,048. EQUAL=generations gives every algorithm 256 responses.
#
# It needs the hub, and four or eight GPUs of 80 GB. Nobody has run it yet. By the steps that
# bench/step.py measured on one H100 (bench/RESULTS.md: 9.0, 16.1, 16.0 and 76.5 s with equal prompts;
# 9.0, 16.1, 8.6 and 8.7 s with equal generations; responses of 384 tokens on average) the 675 steps
# of a run take 1.7, 3.0, 3.0 and 14.3 H100 hours with equal prompts, and 1.7, 3.0, 1.6 and 1.6 with
# equal generations. For three seeds that is 66 and 24 H100 hours, if steps scale with the number of
# GPUs; evaluations, checkpoints and A*-PO's stage 1 (0.3 hours a seed) come on top.
source "$(dirname "$0")/setup.sh"

seeds=${SEEDS:-0 1 2} equal=${EQUAL:-prompts}
benchmarks=math500,minerva_math,olympiadbench,amc23
stage="torchrun --standalone --nproc_per_node=${GPUS:-gpu}"
model=$(model_of config/math.py "$@")
rebel="" grpo=""
if [ "$equal" = generations ]; then
    rebel="--batch_size=128 --mini_batch_size=64" grpo="--batch_size=32 --mini_batch_size=16"
fi

python prepare.py --task=math,$benchmarks "$@"
models=$model
for seed in $seeds; do
    out=out/claims_math_$equal/$seed
    $stage estimate_value.py config/math.py "$@" --seed="$seed" --out="$out/apo"
    $stage train_apo.py config/math.py "$@" --seed="$seed" --out="$out/apo"
    $stage -m baselines.ppo config/math.py "$@" --seed="$seed" --out="$out/ppo"
    $stage -m baselines.rebel config/math.py "$@" --seed="$seed" $rebel --out="$out/rebel"
    $stage -m baselines.grpo config/math.py "$@" --seed="$seed" $grpo --out="$out/grpo"
    python report.py "$out/apo" "$out/ppo" "$out/rebel" "$out/grpo"
    models+=,$out/apo/model,$out/ppo/model,$out/rebel/model,$out/grpo/model
done
$stage evaluate.py config/math.py "$@" --model="$models" --task=$benchmarks \
    --samples_per_prompt=32 --kl_to="$model"
