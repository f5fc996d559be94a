#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=2
#SBATCH --job-name=example.pretrain-1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=RUNS/example/logs/jobs/pretrain-1/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=60
#SBATCH --wckey=submitit

# setup
export PYTHONSAFEPATH=1
export PYTHONPATH=CODE${PYTHONPATH:+:$PYTHONPATH}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
job=RUNS/example/logs/jobs/pretrain-1
start=${SLURM_RESTART_COUNT:-0}
PYTHON -m launch.job begin "$job" "$start"
PYTHON -m launch.watch "$job" >>"$job/watch.log" 2>&1 &
watcher=$!

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUNS/example/logs/jobs/pretrain-1/%j_%t_log.out --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit RUNS/example/logs/jobs/pretrain-1


# teardown
code=$?
kill "$watcher" 2>/dev/null && wait "$watcher"
if PYTHON -m launch.job end "$job" "$start" "$code"; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 120  # SLURM ends this shell meanwhile
fi
PYTHON -m launch.watch --drain "$job" >>"$job/watch.log" 2>&1
exit "$code"
