"""Learning rate and parameter groups: pure functions of the step and of the parameters' names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from data_pipelines.base import UserError
from pretrain.config import Optim
from pretrain.lars import LARS

_BASE_BATCH = 256
_NUMBERED = re.compile(r"(?:^|\.)(?:layers?|blocks?|stages?|h)\.(\d+)(?=\.)")
_EMBEDDING = re.compile(r"embed|(?:^|\.)(?:cls_token|stem)")


def peak_learning_rate(optim: Optim, global_batch: int) -> float:
    """`base_lr` scaled from 256 samples to the global batch.

    >>> peak_learning_rate(Optim(base_lr=0.1), 512)
    0.2
    """
    growth = global_batch / _BASE_BATCH
    factor = {"linear": growth, "sqrt": math.sqrt(growth), "none": 1.0}[optim.lr_scaling]
    return optim.base_lr * factor


def learning_rate(step: int, total_steps: int, optim: Optim, global_batch: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    It rises linearly over the warm-up, is at its peak on the warm-up's last step, and would
    reach `final_lr` times the peak at step `total_steps`.
    """
    peak = peak_learning_rate(optim, global_batch)
    warmup = optim.warmup if optim.warmup >= 1 else optim.warmup * total_steps
    if step + 1 < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, max(0.0, (step - warmup) / max(1.0, total_steps - warmup)))
    return peak * (optim.final_lr + (1 - optim.final_lr) * _decay(progress, step, total_steps, optim))


def _decay(progress: float, step: int, total_steps: int, optim: Optim) -> float:
    """From 1 at the peak to 0 at the end."""
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    cooldown_steps = optim.cooldown * total_steps
    return min(1.0, max(0.0, (total_steps - step) / cooldown_steps)) if cooldown_steps else 1.0


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    optim: Optim,
    encoder_prefix: str = "",
    factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups of equal weight decay and equal learning rate factor, in order of first appearance.

    Args:
        parameters: names and parameters; frozen ones are left out.
        encoder_prefix: `layer_decay` counts the layers of the network below this prefix.
        factors: an objective's own, on the learning rate, by prefix of names (`Objective.lr_factors`).

    Returns:
        Dicts with params, names, weight_decay and lr_scale (the factor on the learning rate).

    Source: no decay on norms and biases, and factors per layer, as in arXiv:2111.06377, A.1 and A.2.
    """
    trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    scales = layer_scales([name for name, _ in trained], optim.layer_decay, encoder_prefix)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trained:
        scale = scales[name] * next((f for prefix, f in (factors or {}).items() if name.startswith(prefix)), 1.0)
        weight_decay = optim.weight_decay if is_decayed(name, parameter) else 0.0
        empty: dict[str, Any] = {"params": [], "names": [], "weight_decay": weight_decay, "lr_scale": scale}
        group = groups.setdefault((weight_decay, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """False for norms and biases."""
    return parameter.ndim > 1 and not name.endswith("bias")


def layer_scales(names: Iterable[str], decay: float | None, encoder_prefix: str) -> Mapping[str, float]:
    """Factor on the learning rate by parameter name: decay to the power of the layers above.

    Embeddings count as the layer below the first; whatever is no numbered layer of the encoder is the top.

    >>> layer_scales(["embed.w", "layer.0.w", "layer.1.w", "head.w"], 0.5, "")
    {'embed.w': 0.125, 'layer.0.w': 0.25, 'layer.1.w': 0.5, 'head.w': 1.0}
    """
    names = list(names)
    if decay is None:
        return dict.fromkeys(names, 1.0)
    inside = [name for name in names if name.startswith(encoder_prefix)]
    numbered = {name: tuple(map(int, _NUMBERED.findall(name))) for name in inside if _NUMBERED.search(name)}
    depth_of = {layer: depth for depth, layer in enumerate(sorted(set(numbered.values())), start=1)}
    top = len(depth_of) + 1
    scales = {}
    for name in names:
        depth = top
        if name in numbered:
            depth = depth_of[numbered[name]]
        elif name.startswith(encoder_prefix) and _EMBEDDING.search(name.removeprefix(encoder_prefix)):
            depth = 0
        scales[name] = decay ** (top - depth)
    return scales


def build_optimizer(
    groups: list[dict[str, Any]], optim: Optim, zero_stage: int, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, LARS or SGD over `groups`; the learning rate is set before every step.

    Raises:
        UserError: LARS under ZeRO >= 1, where it would see flat pieces instead of whole parameters.
    """
    if optim.name == "lars":
        if zero_stage > 0:
            raise UserError(
                f"optim.name=lars needs whole parameters, engine.zero_stage={zero_stage} cuts them to pieces; "
                "set engine.zero_stage=0, or optim.name=adamw"
            )
        return LARS(groups, lr=0.0, momentum=optim.momentum, trust=optim.trust)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum)
    fused = device.type == "cuda"
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=fused)


MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "lars": ("momentum_buffer",), "sgd": ("momentum_buffer",)}
"""Tensors an optimizer keeps of each parameter, by optimizer name."""


def init_state(optimizer: torch.optim.Optimizer, name: str, parameter: torch.Tensor, updates: int) -> None:
    """Give `parameter` the state it would have after `updates` steps of zero gradient.

    Optimizers make their state at the first step; a checkpoint must find it before.
    """
    state = optimizer.state[parameter]
    for moment in MOMENTS[name]:
        if moment not in state:
            state[moment] = torch.zeros_like(parameter, requires_grad=False)
    if name == "adamw":
        on_device = bool(optimizer.defaults.get("fused"))
        state["step"] = torch.tensor(float(updates), device=parameter.device if on_device else "cpu")
