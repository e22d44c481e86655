#!/bin/bash
# On one machine:  GPUS=4 bash torchrun.sh
# On each of two:  GPUS=4 NODES=2 FIRST=node-1 bash torchrun.sh
set -euo pipefail
export GPUS NODES="${NODES:-1}"

torchrun \
    --nnodes="$NODES" \
    --nproc-per-node="$GPUS" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="${FIRST:-localhost}:${PORT:-29500}" \
    train.py
