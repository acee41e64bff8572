#!/usr/bin/env bash
# The body of a training job:   job.sh train RECIPE [a.b=value ...]
# Starts one rank per GPU (on a CPU cluster, one per task that was asked for), passes signals on to them, and when they
# have ended asks `sama-mega job-ended` whether Slurm is to start the job again. Every setting: slurm/README.md.
set -uo pipefail

say() { printf 'job %s: %s\n' "$SLURM_JOB_ID" "$*" >&2; }

export SAMA_MEGA_JOB_STARTED_AT_SECONDS=${EPOCHREALTIME/,/.}
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
say "$(date '+%F %T'): $* on $SLURM_JOB_NUM_NODES nodes (${SLURM_JOB_NODELIST:-?})${SLURM_RESTART_COUNT:+, started again for the ${SLURM_RESTART_COUNT}. time}"

# --- signals ---------------------------------------------------------------------------------------------------------
# USR1 (#SBATCH --signal=B:USR1@SECONDS: the time limit is near; a preemption may send it too): the ranks save at their
# next step and the job starts again. It is sent again until the ranks have ended: one that is not listening yet would
# miss it, and one that has heard it does not mind. Not in their first seconds: a shell that has just begun, and does not
# ignore it yet, would die of it. TERM comes with scancel, to the ranks as well.
must_stop='' cancelled='' ranks='' ranks_began='' passing_on=''
trap 'must_stop=1; pass_on' USR1
trap 'cancelled=1' TERM
pass_on() {
  [[ -n $must_stop && -n $ranks && -z $passing_on ]] || return 0
  say "told to stop: the ranks save at their next step"
  {
    ((SECONDS - ranks_began >= 3)) || sleep 3
    while kill -0 "$ranks" 2>/dev/null; do
      scancel --signal=USR1 "$SLURM_JOB_ID.0" 2>/dev/null
      sleep 5
    done
  } &
  passing_on=$!
}

# --- a node that is gone ---------------------------------------------------------------------------------------------
# srun waits for ever for the tasks of a node that lost power and came back before Slurm missed it. When those of this
# node, the first, have been gone for so long, the run has ended whatever srun waits for.
lost_node_seconds=${SAMA_MEGA_LOST_NODE_SECONDS:-120}
give_up_when_alone() {
  local seen='' gone_seconds=0 poll_seconds=5 processes
  while sleep "$poll_seconds" && kill -0 "$ranks" 2>/dev/null; do
    processes=$(scontrol listpids "$SLURM_JOB_ID" 2>/dev/null | awk '{ print $3 }')
    if grep -qx 0 <<<"$processes"; then
      seen=1 gone_seconds=0
    # A scontrol that does not list this script either says nothing of the ranks.
    elif [[ -n $seen ]] && grep -qx batch <<<"$processes" &&
      (((gone_seconds += poll_seconds) >= lost_node_seconds)); then
      say "this node's ranks ended $gone_seconds s ago and Slurm still waits for another node's: given up (SAMA_MEGA_LOST_NODE_SECONDS)"
      kill -KILL "$ranks"
    fi
  done
}

# --- what the ranks get ----------------------------------------------------------------------------------------------
# shellcheck source=slurm/ranks.sh
source "$folder/ranks.sh"

# --- the ranks -------------------------------------------------------------------------------------------------------
"${srun_ranks[@]}" bash "$folder/entrypoint.sh" "$@" &
ranks=$! ranks_began=$SECONDS
pass_on
give_up_when_alone &
watching=$!
# A trapped signal ends a wait early; the last one, after the end, has the status.
{ while kill -0 "$ranks"; do wait "$ranks"; done; } 2>/dev/null
wait "$ranks"
status=$?
kill "$watching" ${passing_on:+"$passing_on"} 2>/dev/null

# --- and then --------------------------------------------------------------------------------------------------------
if [[ -n $cancelled ]]; then
  say "${must_stop:+the time limit came before the save was done (more time: sbatch --signal=B:USR1@SECONDS), or }cancelled"
  exit 143
fi
# Of an array, this element alone: the number of one element is also that of the whole array.
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
ask=(bash "$folder/entrypoint.sh" job-ended --status "$status")
# A preemption with a grace time sends TERM, to the ranks alone.
if scontrol show job "$job" 2>/dev/null | grep -q 'PreemptTime=[0-9]'; then
  ask+=(--preempted)
fi
ask+=("${@:2}")
if [[ -n ${SAMA_MEGA_CONTAINER_IMAGE:-} ]]; then
  ask=(srun --export=ALL --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "${container[@]}" "${ask[@]}")
fi
# The last line: a container's or a site's own scripts may print before.
case $("${ask[@]}" | tail -n 1) in
  done) exit 0 ;;
  requeue)
    now=$(scontrol show job "$job" 2>/dev/null | grep -o 'Restarts=[0-9]*')
    if [[ -n $now && $now != "Restarts=${SLURM_RESTART_COUNT:-0}" ]]; then
      say "Slurm has started the job again already"
      exit 1
    fi
    say "$(date +%T): back into the queue; Slurm says CANCELLED ... DUE TO JOB REQUEUE"
    for attempt in {1..30}; do
      answer=$(scontrol requeue "$job" 2>&1) && break
      say "$answer"
      # slurmctld may be changing hosts; any other refusal is meant.
      if [[ $answer != *"contact"* || $attempt == 30 ]]; then
        say "error: Slurm does not start the job again, as scontrol says above: submit it again to go on"
        exit 1
      fi
      sleep 10
    done
    sleep 60 # Slurm ends this script before
    exit 0
    ;;
  # srun's status is the largest: of ranks that were ended because another failed, it tells nothing.
  *) exit $((status == 0 || status > 128 ? 1 : status)) ;;
esac
