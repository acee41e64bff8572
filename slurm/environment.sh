#!/usr/bin/env bash
# Read by every script that starts a step: loads the modules, and says in which container srun runs, as the array
# `container`.
# shellcheck disable=SC2034  # used by who reads this
if [[ -n ${SAMA_MEGA_MODULES:-} ]]; then
  # shellcheck disable=SC1091,SC2086  # of the cluster; several words
  if ! { declare -F module >/dev/null || source /etc/profile.d/modules.sh || source /etc/profile.d/lmod.sh
    module load $SAMA_MEGA_MODULES; }; then
    echo "error: SAMA_MEGA_MODULES ($SAMA_MEGA_MODULES) cannot be loaded" >&2
    exit 2
  fi
fi
# Of the shell that submitted, when that was a step itself: they would bind all ranks to its CPUs.
unset "${!SLURM_CPU_BIND@}"
container=()
if [[ -n ${SAMA_MEGA_CONTAINER_IMAGE:-} ]]; then
  container=("--container-image=$SAMA_MEGA_CONTAINER_IMAGE" "--container-workdir=$PWD"
    "--container-mounts=${SAMA_MEGA_CONTAINER_MOUNTS:-$PWD:$PWD}")
fi
