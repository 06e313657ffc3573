#!/usr/bin/env bash
# The whole pipeline on the arithmetic task: four minutes on two CPU cores, no download but the
# packages.
source "$(dirname "$0")/setup.sh"

[ -f data/arithmetic/model/config.json ] || python prepare.py  # prompts, and a small base model
python estimate_value.py                                       # stage 1: V* from 8 samples each
python train_apo.py                                            # stage 2: A*-PO
python evaluate.py --kl_to=data/arithmetic/model               # before and after
python report.py out/arithmetic                                # report.md and curves.png
