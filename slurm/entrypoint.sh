#!/usr/bin/env bash
# What one task runs:   entrypoint.sh COMMAND ARGUMENT ...
# The command line with the right Python: $SAMA_MEGA_PYTHON, $VIRTUAL_ENV's, ./.venv's, that of the clone which holds
# this script, else PATH's. A rank reads its place and the port of rank 0, which follows from the job's id, from srun's
# SLURM_* variables. Ranks that train check their nodes first: none starts before all are healthy.
set -euo pipefail

# Until the program listens for it, USR1 would end it; slurm/job.sh sends it again.
trap '' USR1
export SAMA_MEGA_RANK_STARTED_AT_SECONDS=${EPOCHREALTIME/,/.}

clone=$(dirname "${BASH_SOURCE[0]}")/..
if [[ -n ${SAMA_MEGA_PYTHON:-} ]]; then
  python=$SAMA_MEGA_PYTHON
elif [[ -n ${VIRTUAL_ENV:-} && -x $VIRTUAL_ENV/bin/python ]]; then
  python=$VIRTUAL_ENV/bin/python
elif [[ -x .venv/bin/python ]]; then
  python=.venv/bin/python
elif [[ -x $clone/.venv/bin/python ]]; then
  python=$clone/.venv/bin/python
else
  python=python3
fi
if ! "$python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("typer") and u.find_spec("sama_mega")))' \
  2>/dev/null; then
  [[ ${SLURM_LOCALID:-0} != 0 ]] ||
    echo "error: ${SLURMD_NODENAME:-$HOSTNAME}: $python cannot run sama-mega: run make install in the clone, or export" \
      "SAMA_MEGA_PYTHON=PATH of a Python that has it" >&2
  exit 2
fi

# Rank 0 holds a connection to every rank, often more than the usual 1,024.
ulimit -n "$(ulimit -H -n)" 2>/dev/null || true
# A rank's threads come from its share of the node, not from all of its cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export PYTHONUNBUFFERED=1
# Warnings name the link or the node that is at fault.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# A try over InfiniBand takes 4.096 us x 2^22 = 17 s, 7 tries 2 minutes: a switch that fails over is survived.
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22} NCCL_IB_RETRY_CNT=${NCCL_IB_RETRY_CNT:-7}
# A collective that failed ends its rank at once instead of at the next wait.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}

if [[ $1 == train && ${SAMA_MEGA_HEALTH_CHECK:-1} != 0 ]]; then
  "$python" -m sama_mega health "${@:2}"
fi
export SAMA_MEGA_HEALTHY_AT_SECONDS=${EPOCHREALTIME/,/.}
exec "$python" -m sama_mega "$@"
