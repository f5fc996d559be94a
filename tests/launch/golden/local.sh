# 2 of this, on this machine
export OMP_NUM_THREADS=1
export PYTHONSAFEPATH=1
export PYTHONPATH=CODE
PYTHON -u -m submitit.core._submit RUNS/example/logs/jobs/pretrain-1
