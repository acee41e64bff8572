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

tasks_per_node=${SAMA_MEGA_TASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}}
exec srun --export=ALL --ntasks="$((SLURM_JOB_NUM_NODES * tasks_per_node))" --ntasks-per-node="$tasks_per_node" \
  --cpus-per-task="$((SLURM_CPUS_ON_NODE / tasks_per_node))" \
  bash "${SAMA_MEGA_SLURM:-$SLURM_SUBMIT_DIR/slurm}/entrypoint.sh" health "${@:-recipes/demo_stage0.yaml}"
