"""Encoders of clips on transformers' VideoMAE, and what they say of a single image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoMAEModel

from data_pipelines.base import UserError
from pretrain.networks.architectures import VIDEO, network_config
from pretrain.networks.vit import POSITION_BASE, draw_linears


def video_encoder(tree: Mapping[str, Any], where: str, *, image_size: int, channels: int, frames: int) -> VideoMAEModel:
    """Draw the encoder of clips that `tree` describes, with a norm behind its last layer as VideoMAE pretrains it.

    Raises:
        UserError: see `network_config`; or patches and tubelets do not tile the clip.
    """
    facts = {"image_size": image_size, "num_channels": channels, "num_frames": frames, "use_mean_pooling": False}
    config = network_config({"layer_norm_eps": 1e-6, **tree}, VIDEO, where, **facts)
    for size, part in (("image_size", "patch_size"), ("num_frames", "tubelet_size")):
        if facts[size] % getattr(config, part):
            raise UserError(f"{where}: {size}={facts[size]} is no multiple of {part}={getattr(config, part)}")
    encoder = VideoMAEModel(config)
    draw_video(encoder)
    return encoder


@torch.no_grad()
def draw_video(encoder: VideoMAEModel) -> None:
    """Redraw an encoder: Xavier in tubelets and blocks; its positions are fixed waves already.

    Source: VideoMAE's published code; the tubelets as MAE draws its patches.
    """
    projection = encoder.embeddings.patch_embeddings.projection
    nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1))
    nn.init.zeros_(projection.bias)
    for layer in encoder.encoder.layer:
        attention = layer.attention.attention
        draw_linears(layer, joint={attention.query, attention.key, attention.value})


def sinusoid_positions(count: int, width: int) -> Tensor:
    """One-dimensional positions: sine in even columns, cosine in odd ones.

    Returns:
        (count, width) float32.

    Source: Vaswani 2017, arXiv:1706.03762, section 3.5; VideoMAE numbers tubelets moment by moment, row by row.
    """
    columns = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * POSITION_BASE ** (-2 * (columns // 2) / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos()).float()


def still_map(encoder: VideoMAEModel, images: Tensor) -> Tensor:
    """Features by place of images that stand still for a whole clip, the mean over its moments.

    Args:
        images: (B, C, H, W), normalised.

    Returns:
        (B, D, h, w).
    """
    config = encoder.config
    clips = images.to(encoder.dtype)[:, None].expand(-1, config.num_frames, -1, -1, -1)
    side, moments = config.image_size // config.patch_size, config.num_frames // config.tubelet_size
    tokens = encoder(clips).last_hidden_state  # (B, moments * h * w, D)
    return tokens.unflatten(1, (moments, side, side)).mean(dim=1).permute(0, 3, 1, 2)
