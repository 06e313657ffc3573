#!/usr/bin/env bash
# Stage 2 on two nodes of 8 GPUs under Slurm, from a folder on a file system that both share:
#   sbatch runs/slurm.sh train_apo.py config/math.py config/7b.py --out=out/math_7b
#
# Slurm sends SIGTERM two minutes before the time limit: the running step ends, a checkpoint is
# written, and the same sbatch command continues. No cluster has run this script yet.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%j.log
set -euo pipefail
source .venv/bin/activate  # made beforehand on a node with a GPU: bash runs/setup.sh

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc_per_node=8 --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d --rdzv_endpoint="$first:29500" --shutdown-timeout=100 "$@"
