#!/usr/bin/env bash
# Stage 1, 4 nodes x 8 GPUs: written by `sama-mega submit`. Runs the code and the recipe that lie beside
# it, as they were at submission; what is installed or edited elsewhere since then has no effect.
#SBATCH --job-name=edit
#SBATCH --chdir=/cluster/project
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --partition=gpu
#SBATCH --account=video
#SBATCH --qos=high
#SBATCH --constraint='h100&ib'
#SBATCH --exclude='node[07,12]'
#SBATCH --array=0-5%2
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/scratch/runs/edit/slurm-%A_%a.log
#SBATCH --reservation=weekend
#SBATCH --mail-type=FAIL
set -euo pipefail

submission=/scratch/runs/edit/submissions/0003
export NCCL_DEBUG=WARN
export GREETING="it's \$HOME"
export EMPTY=""
export SAMA_MEGA_MODULES="cuda/13.0 gcc/13"
export SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS=5
export SAMA_MEGA_HEALTH_CHECK=0
export SAMA_MEGA_HEALTH_TIMEOUT_SECONDS=120
export SAMA_MEGA_MIN_FREE_DISK_GIB=50
export SAMA_MEGA_MIN_FREE_GPU_MEMORY_SHARE=0.95
export SAMA_MEGA_MAX_CLOCK_SKEW_SECONDS=0.5
export SAMA_MEGA_MIN_ALL_REDUCE_GIGABYTES_PER_SECOND=200
export SAMA_MEGA_TASKS_PER_NODE=8
export SAMA_MEGA_PYTHON=/opt/venv/bin/python
export SAMA_MEGA_CONTAINER_IMAGE="registry.example.org#sama mega:1"
export SAMA_MEGA_CONTAINER_MOUNTS=/cluster/project:/cluster/project,/scratch/runs/edit:/scratch/runs/edit,/scratch/runs/pre:/scratch/runs/pre,/shared/data:/shared/data

code="$submission/code"
export SAMA_MEGA_SLURM="$code/slurm"
export PYTHONPATH="$code:$code/kernels:$code/data${PYTHONPATH:+:$PYTHONPATH}"
# Without it `python -m` would look into the working directory first, which may be a clone.
export PYTHONSAFEPATH=1
exec bash "$SAMA_MEGA_SLURM/job.sh" train "$submission/recipes/$SLURM_ARRAY_TASK_ID.yaml"
