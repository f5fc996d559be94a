# in this process
PretrainEntry(folder='RUNS/example/logs/jobs/pretrain-1', digest='', has_evals=True)
