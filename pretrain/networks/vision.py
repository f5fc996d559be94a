"""Image encoders on transformers models, and the features that are read off them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, VideoMAEModel, ViTModel

from data_pipelines.base import UserError
from pretrain.networks.architectures import VISION, model_class, network_config
from pretrain.networks.video import still_map
from pretrain.networks.vit import POSITION_BASE, draw_vit


@dataclass(frozen=True)
class Features:
    """What an image encoder says of a batch.

    Attributes:
        pooled: (B, D), mean over the patches or the map.
        cls: (B, D), the class token of a ViT; None where there is none.
    """

    pooled: Tensor
    cls: Tensor | None = None

    def joined(self) -> Tensor:
        """(B, D) or (B, 2D): all there is, class token first."""
        return self.pooled if self.cls is None else torch.cat([self.cls, self.pooled], dim=-1)


def vision_encoder(
    tree: Mapping[str, Any], where: str, *, image_size: int, channels: int, position_base: float = POSITION_BASE
) -> PreTrainedModel:
    """Draw the image encoder that `tree` describes, without a pooling head.

    ViTs get fixed sine-cosine positions and the initialisation of MAE and MoCo v3 (`draw_vit`).

    Raises:
        UserError: see `network_config`; or `image_size` is no multiple of `patch_size`.
    """
    defaults = {"layer_norm_eps": 1e-6} if tree.get("architecture") in ("vit", "convnext") else {}
    config = network_config({**defaults, **tree}, VISION, where, image_size=image_size, num_channels=channels)
    build = model_class(str(tree["architecture"]), VISION)
    if build is not ViTModel:
        return build(config)
    encoder = ViTModel(config, add_pooling_layer=False)
    refuse_broken_patches(encoder, image_size, where)
    draw_vit(encoder, position_base)
    return encoder


def refuse_broken_patches(encoder: PreTrainedModel, image_size: int | None, where: str = "recipe curriculum") -> None:
    """Raises UserError where a ViT's patches do not tile images of a size."""
    patch_size = encoder.config.patch_size if isinstance(encoder, ViTModel) else 1
    if image_size is not None and image_size % patch_size:
        raise UserError(f"{where}: image_size={image_size} is no multiple of patch_size={patch_size}")


def features(encoder: PreTrainedModel, images: Tensor) -> Features:
    """Read class token and pooled features off an encoder; one of clips sees the image stand still.

    Args:
        images: (B, C, H, W), normalised; at another size than a ViT's own, its positions are stretched over the grid.
    """
    if isinstance(encoder, VideoMAEModel):
        return Features(pooled=still_map(encoder, images).mean(dim=(2, 3)))
    if isinstance(encoder, ViTModel):
        output = encoder(images.to(encoder.dtype), interpolate_pos_encoding=True)
        tokens = output.last_hidden_state  # (B, 1 + N, D)
        return Features(pooled=tokens[:, 1:].mean(dim=1), cls=tokens[:, 0])
    return Features(pooled=encoder(images.to(encoder.dtype)).pooler_output.flatten(1))


def feature_map(encoder: PreTrainedModel, images: Tensor) -> Tensor:
    """Features by place: the patch tokens on their grid, over all moments of an unmoved clip, or a convnet's last map.

    Args:
        images: (B, C, H, W), normalised.

    Returns:
        (B, D, h, w).
    """
    if isinstance(encoder, VideoMAEModel):
        return still_map(encoder, images)
    output = encoder(images.to(encoder.dtype))
    if not isinstance(encoder, ViTModel):
        return output.last_hidden_state
    grid = tuple(side // encoder.config.patch_size for side in images.shape[-2:])
    return output.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, grid)


def feature_width(encoder: PreTrainedModel) -> int:
    """D of `features`."""
    config = encoder.config
    return int(config.hidden_size if isinstance(encoder, ViTModel | VideoMAEModel) else config.hidden_sizes[-1])
