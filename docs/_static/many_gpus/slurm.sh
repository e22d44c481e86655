#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail
export GPUS="$SLURM_NTASKS_PER_NODE" NODES="$SLURM_NNODES"

# if one process dies, all end, instead of waiting for it
srun --kill-on-bad-exit=1 python train.py
