# 2 of this, on this machine
export PYTHONSAFEPATH=1
export PYTHONPATH=CODE
PYTHON -u -m submitit.core._submit RUNS/example/logs/jobs/pretrain-1
