#!/bin/bash

# Parameters
#SBATCH --account=my_project
#SBATCH --constraint=infiniband
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --job-name=example.pretrain-1
#SBATCH --mem=900GB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=RUNS/example/logs/jobs/pretrain-1/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
module load cuda
export NCCL_SOCKET_IFNAME=ib0
export PYTHONSAFEPATH=1
export PYTHONPATH=CODE${PYTHONPATH:+:$PYTHONPATH}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
job=RUNS/example/logs/jobs/pretrain-1
start=${SLURM_RESTART_COUNT:-0}
apptainer exec --nv /images/thalweg.sif python -m launch.job begin "$job" "$start"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output RUNS/example/logs/jobs/pretrain-1/%j_%t_log.out --kill-on-bad-exit=1 apptainer exec --nv /images/thalweg.sif python -u -m submitit.core._submit RUNS/example/logs/jobs/pretrain-1


# teardown
code=$?
if apptainer exec --nv /images/thalweg.sif python -m launch.job end "$job" "$start" "$code"; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 120  # SLURM ends this shell meanwhile
fi
exit "$code"
