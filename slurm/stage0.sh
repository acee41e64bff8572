#!/usr/bin/env bash
#SBATCH --job-name=sama-stage0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.log
#
# Stage 0 on Slurm, one task per rank.
# Submit from the folder that holds the data and runs/ (the clone, for the demo):
#   sbatch slurm/stage0.sh
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=14 --time=24:00:00 \
#     slurm/stage0.sh recipes/wan14b_stage0.yaml train.steps=1000
# Slurm runs a copy of this file, so the entrypoint beside it is found through the folder of submission;
# SAMA_MEGA_SLURM names its folder where that is not slurm/.
set -euo pipefail

recipe=${1:-recipes/demo_stage0.yaml}
folder=${SAMA_MEGA_SLURM:-${SLURM_SUBMIT_DIR:-.}/slurm}
# srun does not take --cpus-per-task over from sbatch.
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  bash "$folder/entrypoint.sh" train "$recipe" "${@:2}"
