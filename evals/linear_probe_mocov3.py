"""Linear probe as MoCo v3 does it: SGD on augmented crops, several learning rates at once; many ranks, resumable.

Each learning rate has a head on class token and on pooled patches; held-out training labels say which speaks, for the
encoder and for each control. The crop is bicubic, and one training sample in 50 is held out.

Source: Chen 2021, arXiv:2104.02057, appendix A; facebookresearch/moco-v3, main_lincls.py and CONFIG.md (learning rate
3 for ViTs, 0.1 for ResNet-50, per 256 samples).
"""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from evals.protocol import EvalData, Scores
from evals.supervised import HELD_OUT, Course, SupervisedConfig, judge_by_training
from evals.workplace import Workplace
from pretrain.export import LoadedEncoder

PROTOCOL = "linear_probe_mocov3/1"


class Config(SupervisedConfig):
    """The figures of their code."""

    epochs: float = Field(90.0, gt=0)
    """Of the training set."""
    warmup_epochs: float = Field(0.0, ge=0)
    """In which the learning rate rises."""
    global_batch: int = Field(1_024, gt=0)
    """Samples an optimizer step."""
    micro_step: int = Field(1_024, gt=0)
    """Most samples of a forward pass, over all ranks."""
    base_lrs: tuple[PositiveFloat, ...] = Field((3.0, 1.0, 0.3, 0.1), min_length=1)
    """Learning rates to choose from, per 256 samples."""


def run_on_ranks(encoder: LoadedEncoder, data: EvalData, config: Config, place: Workplace) -> Scores:
    """Metrics "top1" of the chosen head, and "KIND.top1@lrBASE" of each."""
    first = config.base_lrs[0]
    course = Course(
        objective={"frozen": True, "held_out": HELD_OUT, "lr_factors": [rate / first for rate in config.base_lrs]},
        optim={"name": "sgd", "base_lr": first, "momentum": 0.9, "weight_decay": 0.0, "schedule": "cosine"},
    )
    return judge_by_training(encoder, data, config, PROTOCOL, course, place)
