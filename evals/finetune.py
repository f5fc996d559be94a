"""Fine-tuning of the whole encoder with layer decay, RandAugment, mixup and CutMix; many ranks, resumable.

The head reads the mean of the patches, as MAE's does, behind the encoder's own last norm instead of a fresh one. The
controls are the same training from the drawn network (from scratch), and of a linear model on pixels.

Source: He 2021, arXiv:2111.06377, A.1 and table 9.
"""

from __future__ import annotations

from pydantic import Field

from evals.protocol import EvalData, Scores
from evals.supervised import Course, SupervisedConfig, judge_by_training
from evals.workplace import Workplace
from pretrain.export import LoadedEncoder

PROTOCOL = "finetune/1"


class Config(SupervisedConfig):
    """The paper's figures for ViT-B; ViT-L and ViT-H take 50 epochs, ViT-H drops paths at 0.2 (B and L at 0.1)."""

    epochs: float = Field(100.0, gt=0)
    """Of the training set."""
    warmup_epochs: float = Field(5.0, ge=0)
    """In which the learning rate rises."""
    global_batch: int = Field(1_024, gt=0)
    """Samples an optimizer step."""
    micro_step: int = Field(1_024, gt=0)
    """Most samples of a forward pass, over all ranks."""
    base_lr: float = Field(1e-3, gt=0)
    """Per 256 samples."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Factor on the learning rate per layer below the top."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Of the last layer; 0 for convnets."""


def run_on_ranks(encoder: LoadedEncoder, data: EvalData, config: Config, place: Workplace) -> Scores:
    """Metric "top1"."""
    course = Course(
        objective={
            "frozen": False, "kinds": ["pooled"], "head_std": 2e-5, "label_smoothing": 0.1,
            "drop_path": config.drop_path, "mixing": {"mixup": 0.8, "cutmix": 1.0},
            "rand_augment": {"operations": 2, "strength": 9.0, "jitter": 0.5},
        },
        optim={
            "name": "adamw", "base_lr": config.base_lr, "betas": [0.9, 0.999], "weight_decay": 0.05,
            "layer_decay": config.layer_decay, "schedule": "cosine",
        },
        zero_stage=1,
    )  # fmt: skip
    return judge_by_training(encoder, data, config, PROTOCOL, course, place)
