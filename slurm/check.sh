#!/usr/bin/env bash
#SBATCH --job-name=sama-check
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:10:00
#SBATCH --output=%x-%j.log
#
# Are these nodes healthy, and does the recipe fit them? Trains nothing.
#   sbatch --nodes=16 --gpus-per-node=8 --exclusive slurm/check.sh recipes/wan14b_stage0.yaml
set -euo pipefail

folder=${SAMA_MEGA_SLURM:-$SLURM_SUBMIT_DIR/slurm}
# shellcheck source=slurm/ranks.sh
source "$folder/ranks.sh"
exec "${srun_ranks[@]}" bash "$folder/entrypoint.sh" health "${@:-recipes/demo_stage0.yaml}"
