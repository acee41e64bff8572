#!/usr/bin/env bash
#SBATCH --job-name=sama-export
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.log
#
# Writes a checkpoint in another format; the arguments are those of `sama-mega export`:
#   sbatch slurm/export.sh runs/demo_stage1 diffusers --out exported
set -euo pipefail

folder=${SAMA_MEGA_SLURM:-$SLURM_SUBMIT_DIR/slurm}
# shellcheck source=slurm/environment.sh
source "$folder/environment.sh"
exec srun --export=ALL --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" ${container[@]+"${container[@]}"} \
  bash "$folder/entrypoint.sh" export "$@"
