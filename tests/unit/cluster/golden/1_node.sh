#!/usr/bin/env bash
# Stage 0, 1 node x 8 GPUs: written by `sama-mega submit`. Runs the code and the recipe that lie beside
# it, as they were at submission; what is installed or edited elsewhere since then has no effect.
#SBATCH --job-name=wan14b_stage0
#SBATCH --chdir=/cluster/project
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=2-00:00:00
#SBATCH --partition=gpu
#SBATCH --account=video
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/cluster/project/runs/wan14b_stage0/slurm-%j.log
set -euo pipefail

submission=/cluster/project/runs/wan14b_stage0/submissions/0001
export SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS=3
export SAMA_MEGA_TASKS_PER_NODE=8
export SAMA_MEGA_PYTHON=/shared/envs/sama/bin/python

code="$submission/code"
export SAMA_MEGA_SLURM="$code/slurm"
export PYTHONPATH="$code:$code/kernels:$code/data${PYTHONPATH:+:$PYTHONPATH}"
# Without it `python -m` would look into the working directory first, which may be a clone.
export PYTHONSAFEPATH=1
exec bash "$SAMA_MEGA_SLURM/job.sh" train "$submission/recipe.yaml"
