#!/usr/bin/env bash
#SBATCH --job-name=sama-stage0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#
# Stage 0 on Slurm. Without arguments: the demo, on two cores of one node; its clips are made first.
# Submit from the folder that holds the data and runs/ (the clone, for the demo); more in slurm/README.md:
#   sbatch slurm/stage0.sh
#   sbatch --nodes=16 --gpus-per-node=8 --exclusive --mem=0 --time=24:00:00 \
#     slurm/stage0.sh recipes/wan14b_stage0.yaml train.steps=50000
# Slurm runs a copy of this file, so the others are found through the folder of submission, or through SAMA_MEGA_SLURM.
set -euo pipefail

folder=${SAMA_MEGA_SLURM:-$SLURM_SUBMIT_DIR/slurm}
if [[ ! -f $folder/job.sh ]]; then
  echo "error: $folder has no job.sh: submit from the clone, or export SAMA_MEGA_SLURM=CLONE/slurm" >&2
  exit 2
fi
if (($# == 0)) && [[ ! -d runs/demo/world ]]; then
  bash "$folder/entrypoint.sh" data synth --out runs/demo/world --videos 4000 --images 8000 --frames 13 --workers 2
fi
exec bash "$folder/job.sh" train "${@:-recipes/demo_stage0.yaml}"
