#!/usr/bin/env bash
# Stage 1, 2 nodes x 1 task: written by `sama-mega submit`. Runs the code and the recipe that lie beside
# it, as they were at submission; what is installed or edited elsewhere since then has no effect.
#SBATCH --job-name=demo_stage1
#SBATCH --chdir=/cluster/project
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/cluster/project/runs/demo_stage1/slurm-%j.log
set -euo pipefail

submission=/cluster/project/runs/demo_stage1/submissions/0012
export SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS=3
export SAMA_MEGA_TASKS_PER_NODE=1
export VIRTUAL_ENV=/shared/envs/sama
export PATH="$VIRTUAL_ENV/bin:$PATH"
export SAMA_MEGA_PYTHON=/shared/envs/sama/bin/python

code="$submission/code"
export SAMA_MEGA_SLURM="$code/slurm"
export PYTHONPATH="$code:$code/kernels:$code/data${PYTHONPATH:+:$PYTHONPATH}"
# Without it `python -m` would look into the working directory first, which may be a clone.
export PYTHONSAFEPATH=1
exec bash "$SAMA_MEGA_SLURM/job.sh" train "$submission/recipe.yaml"
