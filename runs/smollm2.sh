#!/usr/bin/env bash
# SmolLM2-135M-Instruct learns to follow short instructions (tasks/instructions.py): prompts, both
# stages, evaluation before and after, the report. If it is interrupted, the same command continues
# it.
#
#   bash runs/smollm2.sh              # HuggingFaceTB/SmolLM2-135M-Instruct, from the hub
#   bash runs/smollm2.sh my_folder    # from a local folder
source "$(dirname "$0")/setup.sh"

model=${1:-HuggingFaceTB/SmolLM2-135M-Instruct} out=out/smollm2

python prepare.py --task=instructions
python estimate_value.py config/smollm2.py --model="$model" --out=$out
python train_apo.py config/smollm2.py --model="$model" --out=$out
python evaluate.py config/smollm2.py --model="$model,$out/model" --kl_to="$model"
python report.py $out
