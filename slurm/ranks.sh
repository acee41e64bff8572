#!/usr/bin/env bash
# Read by job.sh and check.sh: how many ranks a node gets, and the srun that starts them, as the array `srun_ranks`.
# One rank a GPU that was granted; where there is none, one a task that was asked for.
# shellcheck source=slurm/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
gpus=${SLURM_GPUS_ON_NODE:-0}
tasks_per_node=${SAMA_MEGA_TASKS_PER_NODE:-$((gpus > 0 ? gpus : ${SLURM_NTASKS_PER_NODE:-1}))}
cpus_per_task=$((SLURM_CPUS_ON_NODE / tasks_per_node))
if ((cpus_per_task == 0)); then
  echo "error: $tasks_per_node ranks a node have $SLURM_CPUS_ON_NODE CPUs: add --exclusive, or --cpus-per-gpu=8" >&2
  exit 2
fi
# --export: after `sbatch --export=NONE`, which some clusters make the default, srun would pass nothing on.
# shellcheck disable=SC2034  # used by who reads this
srun_ranks=(srun --export=ALL --kill-on-bad-exit=1
  --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * tasks_per_node))"
  --ntasks-per-node="$tasks_per_node" --cpus-per-task="$cpus_per_task" ${container[@]+"${container[@]}"})
