"""Linear probe as MAE does it: LARS on augmented crops, batch norm before the head; many ranks, resumable.

Heads on class token and pooled patches are trained at once; held-out training labels say which speaks. The crop is
bicubic, batch norm sees a micro step of all ranks (theirs: one GPU's rows), and one training sample in 50 is held out.

Source: He 2021, arXiv:2111.06377, A.1 and table 10; facebookresearch/mae, main_linprobe.py.
"""

from __future__ import annotations

from pydantic import Field

from evals.protocol import EvalData, Scores
from evals.supervised import HELD_OUT, Course, SupervisedConfig, judge_by_training
from evals.workplace import Workplace
from pretrain.export import LoadedEncoder

PROTOCOL = "linear_probe_mae/1"


class Config(SupervisedConfig):
    """The paper's figures for ViT-B; ViT-L and ViT-H take 50 epochs."""

    epochs: float = Field(90.0, gt=0)
    """Of the training set."""
    warmup_epochs: float = Field(10.0, ge=0)
    """In which the learning rate rises."""
    global_batch: int = Field(16_384, gt=0)
    """Samples an optimizer step."""
    micro_step: int = Field(2_048, gt=0)
    """Most samples of a forward pass, over all ranks. Batch norms see these."""
    base_lr: float = Field(0.1, gt=0)
    """Per 256 samples."""


def run_on_ranks(encoder: LoadedEncoder, data: EvalData, config: Config, place: Workplace) -> Scores:
    """Metrics "top1" of the chosen head, "cls.top1" and "pooled.top1"."""
    course = Course(
        objective={"frozen": True, "batch_norm": True, "held_out": HELD_OUT},
        optim={"name": "lars", "base_lr": config.base_lr, "momentum": 0.9, "weight_decay": 0.0, "schedule": "cosine"},
    )
    return judge_by_training(encoder, data, config, PROTOCOL, course, place)
