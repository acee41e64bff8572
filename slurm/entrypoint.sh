#!/usr/bin/env bash
# What one rank runs: the command line with the right Python ($VIRTUAL_ENV's, else ./.venv's, else PATH's).
# The rank reads its place from srun's SLURM_* variables.
set -euo pipefail

python=python3
if [[ -n ${VIRTUAL_ENV:-} ]]; then
  python=$VIRTUAL_ENV/bin/python
elif [[ -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi
# A rank's threads come from its share of the node, not from all of its cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
exec "$python" -m sama_mega "$@"
