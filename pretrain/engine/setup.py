"""What DeepSpeed is told."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import nn

from data_pipelines.base import UserError
from pretrain.config import EngineConfig, Optim, Train
from pretrain.distributed import World
from pretrain.objective import Objective

_BUCKET = 200_000_000
"""Elements reduced at a time; the buffer is allocated whole, so small models get a smaller one."""


def deepspeed_config(
    module: nn.Module, config: EngineConfig, optim: Optim, train: Train, world: World
) -> dict[str, Any]:
    """The configuration of one engine.

    Raises:
        UserError: `offload` where the stage does not allow it.
    """
    if config.offload and config.zero_stage < 2:
        raise UserError(f"engine.offload needs engine.zero_stage 2 or 3, got {config.zero_stage}")
    on_gpu = world.device.type == "cuda"
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": min(_BUCKET, trained)}
    if config.zero_stage >= 2:
        zero["overlap_comm"] = on_gpu
    if config.zero_stage in (1, 2):
        zero["contiguous_gradients"] = on_gpu  # a copy of each gradient, to keep an accelerator's memory in one piece
    if config.offload and on_gpu:  # on a CPU the state is where it would be put
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": max(1, train.global_batch // (train.accumulation * world.world_size)),
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": optim.clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if config.precision == "bf16" and config.zero_stage:
        # At stage 0 the weights stay fp32, and autocast does the rest: they are their own masters.
        settings |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return settings


def start_deepspeed(objective: Objective, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    """A DeepSpeed engine around `objective`; it takes the module and the optimizer over."""
    import deepspeed
    import deepspeed.runtime.zero.utils as zero_utils

    # ZeRO 3 would warn on every start that it cannot look for tensors inside a `Batch`; there are none to find.
    zero_utils.warned = True
    with contextlib.redirect_stdout(io.StringIO()):  # its bf16 optimizer prints memory figures past the logger
        engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=settings, dist_init_required=False
        )
    return engine


def enable_checkpointing(module: nn.Module) -> None:
    """Let every network inside `module` that can recompute its activations do so.

    Raises:
        UserError: none of them can.
    """
    able = [part for part in module.modules() if getattr(part, "supports_gradient_checkpointing", False)]
    for part in able:
        # its second name is the one before transformers 5.24
        enable: Any = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if not able:
        raise UserError(
            "engine.checkpoint_activations: no network of this objective can recompute activations; set it false"
        )
