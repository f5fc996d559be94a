"""A run that really trained, with a target encoder, judged through the command line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoModel

from evals.protocol import Result
from pretrain.checkpoint import CheckpointReader
from tests.evals.judged_runs import MOCO, pack_blobs


def python(*arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_trained_target_encoder_is_exported_and_judged(tmp_path):
    train, test = pack_blobs(tmp_path / "set")
    recipe = {
        "objective": MOCO,
        "data": {"path": train.path, "validation": test.path, "workers": 0},
        "train": {"global_batch": 16, "steps": 6},
        "optim": {"base_lr": 1e-2, "lr_scaling": "none"},
        "engine": {"zero_stage": 2},
        "monitor": {"tensorboard": False},
    }
    (tmp_path / "moco.yaml").write_text(yaml.safe_dump(recipe))
    python("pretrain", "moco.yaml", folder=tmp_path)
    out = python("launch.cli", "eval", "linear_probe", "runs/moco", "budgets=[5]", "repeats=2", folder=tmp_path)
    assert "top1@all" in out

    (path,) = tmp_path.glob("runs/moco/evals/step-00000006/linear_probe-*.json")
    result = Result.model_validate_json(path.read_bytes())
    assert result.controls.keys() == {"raw", "random_init"}
    reader = CheckpointReader(tmp_path / "runs/moco/checkpoints/step-00000006")
    opened = AutoModel.from_pretrained(tmp_path / "runs/moco/exports/step-00000006", add_pooling_layer=False)
    name = "layernorm.weight"
    averaged = reader.read(f"target_network.{name}", "ema")
    torch.testing.assert_close(opened.state_dict()[name], averaged)
    assert not torch.allclose(averaged, reader.read(f"network.{name}"))
